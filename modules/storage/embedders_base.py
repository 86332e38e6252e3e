"""What an embedder is, its errors, and the check of what it gives back."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Protocol, runtime_checkable

from modules.store_common.errors import StorageError, UnavailableError

__all__ = ["Embedder", "EmbedderError", "EmbedderUnavailableError", "Matrix", "checked_matrix"]

Matrix = NDArray[np.float32]


class EmbedderError(StorageError):
    """The embedder refused the texts, or gave back something that is not their vectors. Trying again will not help."""


class EmbedderUnavailableError(EmbedderError, UnavailableError):
    """The embedder could not be reached, was too slow or asked to slow down; trying again later may help."""


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of texts; nearness of meaning is the cosine of two of them."""

    @property
    def name(self) -> str:
        """What made the vectors, for example "hashing" or "openai:text-embedding-3-small"; vectors of two do not mix."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in a vector; 0 when it is not known before the first call."""
        ...

    async def embed(self, texts: Sequence[str]) -> Matrix:
        """Return a vector for each text.

        Args:
            texts: Any number of texts, none of them blank.

        Returns:
            Shape (len(texts), dimension), float32, finite, no row all zero.

        Raises:
            EmbedderError: the texts are refused.
            EmbedderUnavailableError: try again later.
        """
        ...


def checked_matrix(given: Any, rows: int, dimension: int, name: str) -> Matrix:
    """Return what an embedder gave as a float32 matrix, or raise `EmbedderError`.

    Args:
        given: What it gave.
        rows: How many texts there were.
        dimension: What it must be; 0: any.
        name: The embedder's, for messages.
    """
    try:
        matrix: Matrix = np.ascontiguousarray(given, dtype=np.float32)
    except (TypeError, ValueError) as exc:
        raise EmbedderError(f"the embedder {name} gave something that is not a matrix of numbers") from exc
    if matrix.ndim != 2 or matrix.shape[0] != rows or (dimension and matrix.shape[1] != dimension):
        wanted = f"({rows}, {dimension or 'any'})"
        raise EmbedderError(f"the embedder {name} gave vectors of shape {matrix.shape}, not {wanted}")
    if not np.isfinite(matrix).all():
        raise EmbedderError(f"the embedder {name} gave a vector that is not finite")
    if rows and not np.any(matrix, axis=1).all():
        raise EmbedderError(f"the embedder {name} gave a vector without a direction (all zero)")
    return matrix

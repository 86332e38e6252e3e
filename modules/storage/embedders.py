"""Embedders: what makes vectors of texts. The rooms: `embedders_base` (the protocol), and one for each kind.

`make_embedder("openai:text-embedding-3-small", api_key=...)` makes one; `await embedder.embed(["two cats", "a dog"])`
gives float32 numbers of shape (2, dimension).
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Optional

from modules.storage.embedders_base import Embedder, EmbedderError, EmbedderUnavailableError
from modules.store_common.errors import InvalidValueError

if TYPE_CHECKING:
    from modules.storage.settings import StorageSettings

__all__ = [
    "Embedder",
    "EmbedderError",
    "EmbedderUnavailableError",
    "close_embedder",
    "configured_embedder",
    "make_embedder",
]

_HASHING_DIMENSION = 384
_TIMEOUT_S = 30.0


def configured_embedder(settings: StorageSettings, *, timeout_s: float = _TIMEOUT_S) -> Embedder:
    """Make the embedder that `settings.embedder` means, which must be set.

    Args:
        settings: With its name, and where and by which key it is reached.
        timeout_s: openai: seconds that a request may take.

    Raises:
        InvalidValueError, EmbedderError: as `make_embedder`.
    """
    key = settings.embedder_api_key
    return make_embedder(
        settings.embedder or "",
        base_url=settings.embedder_base_url,
        api_key=None if key is None else key.get_secret_value(),
        dimension=settings.embedder_dimension,
        timeout_s=timeout_s,
    )


def make_embedder(
    spec: str,
    *,
    base_url: Optional[str] = None,
    api_key: Optional[str] = None,
    dimension: int = 0,
    timeout_s: float = _TIMEOUT_S,
    batch_size: Optional[int] = None,
) -> Embedder:
    """Make the embedder that a setting names. Does no I/O, but "module:callable" imports the module.

    Args:
        spec: "hashing"; "openai:MODEL" (any OpenAI-compatible server); "sentence-transformers:MODEL" (extra
            `embeddings`); or "module:callable" of your own.
        base_url: openai: the server, up to and including "/v1"; None: OpenAI's own.
        api_key: openai: the key; None: none is sent (local servers).
        dimension: Numbers in a vector; 0: the embedder's own.
        timeout_s: openai: seconds that a request may take.
        batch_size: Texts in a request, or at once in the model; None: 128 and 32.

    Raises:
        InvalidValueError: the setting is not one of these.
        EmbedderError: "module:callable" cannot be imported.
    """
    kind, _, rest = spec.strip().partition(":")
    if kind == "hashing" and not rest:
        from modules.storage.embedders_hashing import HashingEmbedder

        return HashingEmbedder(dimension or _HASHING_DIMENSION)
    if kind == "openai":
        from modules.storage.embedders_http import OpenAIEmbedder

        return OpenAIEmbedder(
            rest,
            base_url=base_url,
            api_key=api_key,
            dimension=dimension,
            timeout_s=timeout_s,
            batch_size=batch_size or 128,
        )
    from modules.storage.embedders_local import SentenceTransformersEmbedder, load

    if kind == "sentence-transformers" and rest:
        return SentenceTransformersEmbedder(rest, batch_size=batch_size or 32)
    if not rest:
        raise InvalidValueError(
            "the embedder must be hashing, openai:MODEL, sentence-transformers:MODEL or module:callable"
        )
    return load(spec.strip())


async def close_embedder(embedder: Any) -> None:
    """Close an embedder that has something to close; others are left alone."""
    close = getattr(embedder, "close", None)
    if close is not None:
        result = close()
        if inspect.isawaitable(result):
            await result

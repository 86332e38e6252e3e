"""Vectors to and from PostgreSQL's wire: pgvector's binary form, which is five times as fast as its text.

The form is two 16-bit integers (dimension, 0) and the numbers as big-endian float32. asyncpg needs a codec for it on the
connection; that is state of the client only, so poolers do not mind. To others on the same connection nothing changes:
they still see and give vectors as the text "[1,2,3]", as asyncpg does without a codec.

Source: pgvector, src/vector.c, `vector_recv` and `vector_send`.
"""

from __future__ import annotations

import struct
from typing import Any, List, Union
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from modules.storage.backends.postgresql_errors import DRIVER_ERRORS, translate
from modules.storage.operations import Transaction
from modules.store_common.errors import StatementError

__all__ = ["pack_vectors", "prepare_connection", "unpack_vector"]

_prepared: WeakSet[Any] = WeakSet()


def pack_vectors(matrix: NDArray[np.float32]) -> List[bytes]:
    """Return each row in pgvector's binary form."""
    rows, dimension = matrix.shape
    if rows == 1:
        return [struct.pack(">HH", dimension, 0) + matrix.astype(">f4").tobytes()]
    width = 4 + 4 * dimension
    packed = np.empty((rows, width), dtype=np.uint8)
    packed[:, :4] = np.frombuffer(struct.pack(">HH", dimension, 0), dtype=np.uint8)
    # the numbers of each row behind its head, swapped in place
    numbers: NDArray[np.float32] = np.ndarray(
        (rows, dimension), dtype=">f4", buffer=packed.data, offset=4, strides=(width, 4)
    )
    numbers[:] = matrix
    data = packed.tobytes()
    return [data[start : start + width] for start in range(0, len(data), width)]


def unpack_vector(data: bytes) -> NDArray[np.float32]:
    """Return the row that PostgreSQL's `vector_send` wrote."""
    return np.frombuffer(data, dtype=">f4", offset=4).astype(np.float32)


def _encode(value: Union[bytes, str]) -> bytes:
    if isinstance(value, bytes):
        return value
    numbers = np.array([float(part) for part in value.strip("[] ").split(",")], dtype=np.float32)
    return pack_vectors(numbers.reshape(1, -1))[0]


def _decode(data: bytes) -> str:
    return "[" + ",".join(f"{number:.9g}" for number in unpack_vector(bytes(data)).tolist()) + "]"


async def prepare_connection(tx: Transaction, schema: str) -> None:
    """Teach the connection of `tx` the binary form, once.

    Args:
        tx: Of a PostgreSQL executor.
        schema: Where the extension lies.
    """
    # the transaction's own face takes statements only; a codec belongs to the driver's connection
    raw: Any = getattr(tx, "_connection", None)
    if raw is None:
        raise StatementError("pgvector needs a transaction on asyncpg")
    if raw in _prepared:
        return
    try:
        await raw.set_type_codec("vector", schema=schema, encoder=_encode, decoder=_decode, format="binary")
    except DRIVER_ERRORS as exc:
        raise translate(exc) from exc
    _prepared.add(raw)

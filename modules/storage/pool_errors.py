"""What a connection pool raises; users import the names from `modules.storage.pool`."""

from __future__ import annotations

from modules.store_common.errors import OverloadedError, StorageError

__all__ = ["PoolError", "PoolTimeoutError"]


class PoolError(StorageError):
    """A connection pool was used in a way that cannot work, or is configured so."""


class PoolTimeoutError(PoolError, OverloadedError):
    """No connection became free in time, or too many calls wait already.

    Attributes:
        size: How many connections the pool may open.
        waited_s: How long this call waited, in seconds.
    """

    retryable = True

    def __init__(self, message: str, size: int = 0, waited_s: float = 0.0) -> None:
        super().__init__(message, size, waited_s)
        self.size = size
        self.waited_s = waited_s

    def __str__(self) -> str:
        return str(self.args[0])

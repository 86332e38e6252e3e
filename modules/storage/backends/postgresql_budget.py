"""How many connections to one PostgreSQL database this process may hold, shared by the pools of its event loops."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, List

if TYPE_CHECKING:
    from modules.storage.backends.postgresql_pool import PostgresPool

__all__ = ["ConnectionBudget"]


class ConnectionBudget:
    """How many connections all pools of one database may hold together; each event loop has a pool of its own.

    Pools of different loops make room for each other: one that has to wait asks the others for their idle connections,
    and a share that becomes free is told to those who wait.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()
        self._pools: List[PostgresPool] = []

    def join(self, pool: PostgresPool) -> None:
        """Let `pool` take part."""
        with self._lock:
            self._pools.append(pool)

    def leave(self, pool: PostgresPool) -> None:
        """Forget `pool`. Harmless when it is not there."""
        with self._lock:
            self._pools = [other for other in self._pools if other is not pool]

    def take(self) -> bool:
        """Reserve one connection; False when none is left."""
        with self._lock:
            if self.used >= self.limit:
                return False
            self.used += 1
            return True

    def give(self, count: int = 1) -> None:
        """Give back."""
        with self._lock:
            self.used -= count

    @property
    def has_room(self) -> bool:
        """Whether a connection may be opened."""
        return self.used < self.limit

    def others_wait(self, pool: PostgresPool) -> bool:
        """Whether calls of another event loop wait for a connection."""
        return len(self._pools) > 1 and any(other.waiting for other in self._pools if other is not pool)

    def ask_others(self, pool: PostgresPool) -> None:
        """Have the pools of other event loops close their idle connections."""
        for other in self._others(pool):
            other.soon(other.shrink)

    def tell_others(self, pool: PostgresPool) -> None:
        """Wake a call of another event loop that waits: there may be room."""
        for other in self._others(pool):
            if other.waiting:
                other.soon(other.room)

    def _others(self, pool: PostgresPool) -> List[PostgresPool]:
        return [other for other in self._pools if other is not pool]

"""The transaction of a unit of work on PostgreSQL: one connection of the pool, taken at the first operation."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, AsyncIterator, Awaitable, Callable, Dict, Optional, Tuple

from modules.storage.backends.postgresql_connection import PostgresTransaction, remaining
from modules.storage.backends.postgresql_errors import DRIVER_ERRORS, translate
from modules.storage.backends.unit_turns import UnitTurns
from modules.store_common.deadlines import within
from modules.store_common.errors import DeadlineExceededError, StorageError, UnavailableError

if TYPE_CHECKING:
    import asyncpg
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from modules.storage.backends.postgresql_executor import PostgresExecutor
    from modules.storage.backends.postgresql_pool import PooledConnection, PostgresPool
    from modules.storage.operations import Operation

__all__ = ["PostgresUnit", "create_unit_engine"]

#: The connection of the unit of work whose session is being used in this context.
_adopted: ContextVar[Any] = ContextVar("atlas_storage_postgresql_connection")


# At the deadline a statement under way is cancelled by its own time-out; if it still runs after this long (seconds),
# the server does not answer and the connection is closed under it.
_GRACE_S = 0.4


class PostgresUnit:
    """One transaction for many operations.

    Args:
        executor: The database.
        deadline: Monotonic time in seconds; when it passes, the connection is closed, which rolls back.
    """

    def __init__(self, executor: PostgresExecutor, deadline: float) -> None:
        self._executor = executor
        self._deadline = deadline
        self._pool: Optional[PostgresPool] = None
        self._pooled: Optional[PooledConnection] = None
        self._transaction: Any = None
        self._timer: Optional[asyncio.TimerHandle] = None
        self._ended: Optional[StorageError] = None
        # asyncpg allows one statement at a time on a connection; a unit may be used by several tasks
        self._turns = UnitTurns(deadline)
        self._spoiled = False
        self.in_doubt = False

    async def run(self, operation: Operation[Any, Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Run an operation in the transaction. After one that failed in the database only a rollback is possible."""
        async with self._turns.mine():
            pooled = await self._begun()
            tx = PostgresTransaction(pooled.raw, self._deadline)
            try:
                return await operation.function(tx, *args, **kwargs)
            except UnavailableError as exc:
                if self._ended is not None:
                    # the connection was closed at the unit's deadline, while this statement was under way
                    raise self._ended from exc
                self._spoiled = True
                raise
            except StorageError:
                self._spoiled = True
                raise

    async def commit(self) -> None:
        """Commit; when it raises and the transaction is not in doubt, nothing was kept."""
        async with self._turns.mine():
            if self._ended is not None:
                raise self._ended
            if self._pooled is None:
                return
            raw, healthy = self._pooled.raw, False
            try:
                if self._spoiled:
                    # PostgreSQL answers COMMIT of a failed transaction with a quiet ROLLBACK; any statement says so
                    await self._within_deadline(lambda: raw.execute("SELECT 1"))
                await self._within_deadline(self._send_commit)
                self.in_doubt = False
                healthy = True
            finally:
                self._give_back(healthy)

    async def rollback(self) -> None:
        """Roll back; harmless when the transaction has ended. Closing the connection is the way out when that fails."""
        if self._pooled is None:
            return
        healthy = False
        try:
            # with a statement of another task under way, closing the connection is the only way
            if not self._pooled.raw.is_closed() and not self._turns.busy:
                # a server that does not answer must not keep the caller past the unit's deadline
                left = self._deadline - asyncio.get_running_loop().time()
                await within(self._transaction.rollback(), min(5.0, max(0.1, left)))
                healthy = True
        except DRIVER_ERRORS:
            # the connection is closed below, and with it the transaction
            healthy = False
        finally:
            self._give_back(healthy)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Lend an ORM session inside the transaction; flushed at the end of the block, undone when it raises."""
        from sqlalchemy.ext.asyncio import AsyncSession

        async with self._turns.mine():
            pooled = await self._begun()
            token = _adopted.set(_Borrowed(pooled.raw))
            try:
                # connected here and now: a session of another unit may be opened before the first statement of this one
                connection = await self._executor.orm_engine().connect()
            finally:
                _adopted.reset(token)
            try:
                async with AsyncSession(connection, expire_on_commit=False) as session:
                    yield session
                    await session.commit()
            finally:
                await connection.close()

    async def _begun(self) -> PooledConnection:
        if self._ended is not None:
            raise self._ended
        if self._pooled is None:
            self._pool = self._executor.pool()
            pooled = await self._pool.acquire(self._deadline)
            self._pooled = pooled
            try:
                self._transaction = pooled.raw.transaction()
                await self._within_deadline(self._transaction.start)
            except BaseException:
                self._give_back(healthy=False)
                raise
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, self._deadline - loop.time()), self._expire)
        return self._pooled

    async def _send_commit(self) -> None:
        self.in_doubt = True
        await self._transaction.commit()

    async def _within_deadline(self, send: Callable[[], Awaitable[Any]]) -> None:
        """Send a statement, unless the deadline has passed before."""
        seconds = remaining(self._deadline)
        try:
            await within(send(), seconds)
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc

    def _expire(self) -> None:
        self._ended = DeadlineExceededError(
            "the unit of work passed its deadline and was rolled back; nothing of it was kept"
        )
        if self._turns.busy and self._timer is not None:
            self._timer = asyncio.get_running_loop().call_later(_GRACE_S, self._give_back, False)
        else:
            self._give_back(healthy=False)

    def _give_back(self, healthy: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        pooled, self._pooled = self._pooled, None
        if pooled is not None and self._pool is not None:
            self._pool.release(pooled, healthy)
        if self._ended is None:
            self._ended = StorageError("the unit of work has ended; begin a new one")


class _Borrowed:
    """A connection that SQLAlchemy may use and not close: the unit of work owns it."""

    def __init__(self, raw: asyncpg.Connection[Any]) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    async def close(self, **options: Any) -> None:
        """Leave it open."""

    def terminate(self) -> None:
        """Leave it open."""


def create_unit_engine() -> AsyncEngine:
    """Return an async engine whose connections are those of the unit of work in whose context it is used."""
    from modules.storage.backends.postgresql_orm import create_adopting_engine

    async def adopt() -> Any:
        return _adopted.get()

    return create_adopting_engine(adopt)

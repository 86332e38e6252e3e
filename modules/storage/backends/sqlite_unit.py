"""The transaction of a unit of work on SQLite: a turn of the writer, taken at the first write."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Optional, Tuple

from modules.storage.backends.sqlite_turn import WriterTurn
from modules.storage.backends.unit_turns import UnitTurns
from modules.store_common.errors import DeadlineExceededError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from modules.storage.backends.sqlite_executor import SQLiteExecutor
    from modules.storage.operations import Operation

__all__ = ["SQLiteUnit"]


class SQLiteUnit:
    """One transaction for many operations. Reads before the first write do not hold up anybody.

    Args:
        executor: The database.
        deadline: Monotonic time in seconds; when it passes, the transaction is rolled back wherever it is.
        owner: The task whose writes outside of the unit would wait for themselves; None: the one that writes first.
    """

    def __init__(self, executor: SQLiteExecutor, deadline: float, owner: Any = None) -> None:
        self._executor = executor
        self._deadline = deadline
        self._owner = owner
        self._turn: Optional[WriterTurn] = None
        self._turns = UnitTurns(deadline)
        self.in_doubt = False

    async def run(self, operation: Operation[Any, Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        """Run an operation in the transaction; a failed one leaves nothing of its own."""
        if not operation.writes and self._turn is None and not self._turns.busy:
            return await self._executor.run(operation, *args, **kwargs)
        async with self._turns.mine():
            turn = await self._begun()
            return await turn.run(lambda tx: operation.function(tx, *args, **kwargs))

    async def commit(self) -> None:
        """Commit; when it raises and the transaction is not in doubt, nothing was kept."""
        async with self._turns.mine():
            if self._turn is None:
                return
            self.in_doubt = True
            try:
                await self._turn.commit()
                self.in_doubt = False
            except DeadlineExceededError as exc:
                # the turn ended at its deadline before COMMIT came up; else COMMIT is under way
                self.in_doubt = exc is not self._turn.ended
                raise
            finally:
                self._executor.released(self._turn)

    async def rollback(self) -> None:
        """Roll back; harmless when the transaction has ended."""
        if self._turn is not None:
            try:
                await self._turn.rollback()
            finally:
                self._executor.released(self._turn)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Lend an ORM session inside the transaction; flushed at the end of the block, undone when it raises."""
        from sqlalchemy.ext.asyncio import AsyncSession

        from modules.storage.backends.sqlite_orm import adopted_turn

        async with self._turns.mine():
            token = adopted_turn.set(self._begun)
            try:
                # connected here and now: a session of another unit may be opened before the first statement of this one
                connection = await self._executor.orm_engine().connect()
            finally:
                adopted_turn.reset(token)
            try:
                async with AsyncSession(connection, expire_on_commit=False) as session:
                    yield session
                    await session.commit()
            finally:
                await connection.close()

    async def _begun(self) -> WriterTurn:
        if self._turn is None:
            turn = self._executor.turn(self._deadline)
            await turn.begin()
            self._turn = turn
            self._executor.holding(turn, self._owner)
        return self._turn

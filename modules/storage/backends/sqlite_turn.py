"""The writer's turn of a unit of work: a transaction on the writer's connection that lasts over many calls.

The writer thread begins the transaction when the turn comes up in its queue and then serves only this turn, until it is
committed, rolled back, or its deadline passes; then it rolls back by itself, so that a caller that hangs (or calls a
model inside) never holds up the others for longer than its deadline.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import time
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Optional, TypeVar

from modules.storage.backends.sqlite_calls import Call, Lane, Outcome, deliver
from modules.storage.backends.sqlite_connection import SQLiteTransaction, drive
from modules.storage.backends.sqlite_errors import translate
from modules.store_common.errors import DeadlineExceededError, StatementError, StorageError

if TYPE_CHECKING:
    from modules.storage.backends.sqlite_threads import DatabaseThread

__all__ = ["BareTurn", "WriterTurn"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
# A turn held longer than this is told as a warning event, in seconds: everybody else's writes wait meanwhile.
_LONG_TURN_S = 1.0
# How long after its deadline the end of a turn is waited for, in seconds.
_WORD_S = 1.0


class WriterTurn:
    """One transaction on the writer's connection. Made on the loop; `begin` takes the turn.

    Args:
        writer: The database's writer thread.
        lane: Of the loop that uses the turn.
        deadline: Monotonic time in seconds at which the writer rolls back by itself.
    """

    def __init__(self, writer: DatabaseThread, lane: Lane, deadline: float) -> None:
        self._writer = writer
        self._lane = lane
        self._deadline = deadline
        self._queue: queue.SimpleQueue[Call] = queue.SimpleQueue()
        self._begin: Optional[Call] = None
        self._ended: Optional[StorageError] = None
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether the transaction was begun and has not ended."""
        return self._open and self._ended is None

    @property
    def ended(self) -> Optional[StorageError]:
        """What calls get that come after the end; None while it has not ended."""
        return self._ended

    async def begin(self) -> None:
        """Wait for the turn and begin the transaction.

        Raises:
            DeadlineExceededError: the turn did not come up before the deadline.
            BusyError: another process holds the database's lock.
        """
        self._begin = Call(self._lane, None, (), {})
        self._writer.submit(self, self._lane)
        try:
            await self._begin.result(self._deadline, None)
        except asyncio.CancelledError:
            # the turn may have come up at this very moment: let the writer go on
            self._give_up()
            raise

    async def run(self, function: Callable[[SQLiteTransaction], Coroutine[Any, Any, T]]) -> T:
        """Run an operation in the transaction, undone by itself if it fails."""
        stopping = self._writer.is_stopping
        result: T = await self.call(lambda connection: _in_savepoint(connection, function, stopping))
        return result

    async def call(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run `function(connection)` on the writer thread, in the transaction."""
        call = Call(self._lane, function, (), {})
        self._put(call)
        result: T = await call.result(self._deadline, self._writer)
        return result

    async def commit(self) -> None:
        """Commit and end the turn. When it raises, the transaction was rolled back."""
        await self._finish("COMMIT")

    async def rollback(self) -> None:
        """Roll back and end the turn; harmless when it has ended, or ends by itself meanwhile."""
        if not self.is_open:
            return
        try:
            await self._finish("ROLLBACK")
        except StorageError as exc:
            if exc is not self._ended:
                raise

    async def _finish(self, verb: str) -> None:
        call = Call(self._lane, verb, (), {})
        self._put(call)
        # the writer ends the turn at its deadline by itself; what this waits for is its word
        await call.result(max(self._deadline, time.monotonic()) + _WORD_S, None)

    def _put(self, call: Call) -> None:
        if self._ended is not None:
            raise self._ended
        self._queue.put(call)
        if self._ended is not None and call.claim():
            # The writer left between the two looks; nobody reads this queue any more. A call that it has claimed is
            # answered: the COMMIT that ended the turn itself would else be told as refused although it was done.
            call.future.set_exception(self._ended)

    def _give_up(self) -> None:
        self._ended = DeadlineExceededError("the unit of work was cancelled")
        self._queue.put(Call(self._lane, "ROLLBACK", (), {}))

    # --- on the writer thread -----------------------------------------------------------------------------------

    def serve(self, connection: sqlite3.Connection) -> None:
        """Hold the turn until it ends."""
        begin = self._begin
        if begin is None or self._ended is not None or not begin.claim():
            return
        self._writer.served.turn(begin)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as exc:
            error = translate(exc)
            error.__cause__ = exc
            self._leave(error)
            deliver([(begin, None, error)])
            return
        started = time.monotonic()
        self._open = True
        deliver([(begin, None, None)])
        try:
            self._serve_calls(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            held = time.monotonic() - started
            if held > _LONG_TURN_S:
                logger.warning(
                    "storage.sqlite.turn_held_long",
                    extra={"backend": "sqlite", "duration_ms": round(held * 1000)},
                )

    def refuse(self, error: StorageError) -> None:
        """Answer a turn that never came up."""
        self._leave(error)
        if self._begin is not None:
            deliver([(self._begin, None, error)])

    def _serve_calls(self, connection: sqlite3.Connection) -> None:
        while True:
            try:
                call = self._queue.get(timeout=max(0.0, self._deadline - time.monotonic()))
            except queue.Empty:
                connection.execute("ROLLBACK")
                self._leave(
                    DeadlineExceededError(
                        "the unit of work passed its deadline and was rolled back; nothing of it was kept"
                    )
                )
                return
            if isinstance(call.work, str):
                self._end(connection, call)
                return
            if call.claim():
                deliver([self._attempt(connection, call)])
            if not connection.in_transaction:
                self._leave(
                    StorageError(
                        "SQLite rolled the unit of work back after an error; nothing of it was kept; begin again"
                    )
                )
                return

    def _attempt(self, connection: sqlite3.Connection, call: Call) -> Outcome:
        self._writer.set_current(call)
        try:
            return call, call.work(connection), None
        except Exception as exc:  # noqa: BLE001 - raised to the caller who waits
            return call, None, exc
        finally:
            self._writer.set_current()

    def _end(self, connection: sqlite3.Connection, call: Call) -> None:
        call.claim()
        error: Optional[StorageError] = None
        try:
            connection.execute(call.work)
        except sqlite3.Error as exc:
            error = translate(exc)
            error.__cause__ = exc
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        self._leave(StorageError("the unit of work has ended; begin a new one"))
        deliver([(call, None, error)])

    def _leave(self, error: StorageError) -> None:
        """End the turn: calls that still wait, and later ones, get `error`."""
        if self._ended is None:
            self._ended = error
        while True:
            try:
                call = self._queue.get_nowait()
            except queue.Empty:
                return
            deliver([(call, None, self._ended)])


class BareTurn:
    """The writer's connection outside a transaction, for one function: VACUUM and checkpoints cannot run inside one."""

    def __init__(
        self, function: Callable[[sqlite3.Connection], Any], writer: DatabaseThread, lane: Lane
    ) -> None:
        self.call = Call(lane, function, (), {})
        self._writer = writer

    def serve(self, connection: sqlite3.Connection) -> None:
        """Run the function, on the writer thread."""
        if not self.call.claim():
            return
        self._writer.served.turn(self.call)
        result: Any = None
        error: Optional[Exception] = None
        self._writer.set_current(self.call)
        try:
            result = self.call.work(connection)
        except (sqlite3.Error, OverflowError, ValueError) as exc:
            error = translate(exc)
            error.__cause__ = exc
        except Exception as exc:  # noqa: BLE001 - raised to the caller who waits; it must not end the thread
            error = exc
        finally:
            self._writer.set_current()
        if connection.in_transaction:
            # everybody's next write would fail to begin its own
            connection.execute("ROLLBACK")
            error = error or StatementError(
                "the SQL text left a transaction open, which was rolled back; use a unit of work or a session"
            )
        deliver([(self.call, result, error)])

    def refuse(self, error: StorageError) -> None:
        """Answer without having run."""
        deliver([(self.call, None, error)])


def _in_savepoint(
    connection: sqlite3.Connection,
    function: Callable[[SQLiteTransaction], Coroutine[Any, Any, T]],
    is_stopping: Callable[[], bool],
) -> T:
    try:
        connection.execute("SAVEPOINT operation")
        try:
            result = drive(function(SQLiteTransaction(connection, is_stopping)))
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO operation")
                connection.execute("RELEASE operation")
            raise
        connection.execute("RELEASE operation")
    except sqlite3.Error as exc:
        raise translate(exc) from exc
    return result

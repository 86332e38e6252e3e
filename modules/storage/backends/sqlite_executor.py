"""The executor of a SQLite database: its writer and reader threads behind `await executor.run(operation, ...)`."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional, TypeVar

from typing_extensions import ParamSpec

from modules.storage.backends.sqlite_calls import Call, Lane
from modules.storage.backends.sqlite_connection import SQLiteOptions, open_connection
from modules.storage.backends.sqlite_threads import DatabaseThread, ReaderThread, WriterThread
from modules.storage.backends.sqlite_turn import BareTurn, WriterTurn
from modules.storage.backends.sqlite_unit import SQLiteUnit
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import NotInitializedError, StorageError, WrongProcessError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from modules.storage.operations import Operation

__all__ = ["SQLiteExecutor"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _Threads(NamedTuple):
    """The threads of an open database; a database in memory has one connection, so one thread serves as all three."""

    writer: WriterThread
    reader: DatabaseThread
    #: Answers health checks beside long reads.
    lookout: DatabaseThread

    @property
    def all(self) -> List[DatabaseThread]:
        """Each thread once, the writer last: its connection empties the write-ahead log when it closes."""
        return list(dict.fromkeys((self.lookout, self.reader, self.writer)))

    def close(self, timeout_s: float) -> None:
        """Close all; blocks."""
        for thread in self.all:
            thread.close(timeout_s)


def _open_threads(options: SQLiteOptions, queue_size: int) -> _Threads:
    """Start the threads; when one cannot open its connection, those before it are closed again."""
    writer = WriterThread(options, queue_size)
    writer.open()
    if options.is_memory:
        return _Threads(writer, writer, writer)
    opened: List[DatabaseThread] = [writer]
    thread: DatabaseThread
    try:
        for name in ("reader", "lookout"):
            thread = ReaderThread(name, lambda: open_connection(options, read_only=True), queue_size)
            thread.open()
            opened.append(thread)
    except BaseException:
        for thread in reversed(opened):
            thread.close(timeout_s=5.0)
        raise
    return _Threads(writer, opened[1], opened[2])


class SQLiteExecutor:
    """Runs operations on one SQLite database. May be used from any number of event loops and threads.

    Args:
        options: The database and how its connections are opened.
        command_timeout_s: Default deadline of a call, in seconds.
        queue_size: How many calls may wait for the writer, and for the reader, before more are refused.
    """

    dialect = "sqlite"

    def __init__(
        self, options: SQLiteOptions, *, command_timeout_s: float = 30.0, queue_size: int = 10_000
    ) -> None:
        self.options = options
        self._command_timeout_s = command_timeout_s
        self._queue_size = queue_size
        self._threads: Optional[_Threads] = None
        self._lanes: Dict[asyncio.AbstractEventLoop, Lane] = {}
        self._process = os.getpid()
        self._lock = threading.Lock()
        # tasks that hold the writer's turn: what they do outside of it would wait for themselves
        self._turn_holders: Dict[Any, WriterTurn] = {}
        self._orm_engine: Optional[AsyncEngine] = None

    @property
    def is_open(self) -> bool:
        """Whether the threads run."""
        return self._threads is not None

    def open_and_close_later(self) -> None:
        """Undo an `open` that another thread is in the middle of: close as soon as it is done."""

        def undo() -> None:
            with self._lock:
                threads, self._threads = self._threads, None
            if threads is not None:
                threads.close(timeout_s=10.0)

        threading.Thread(target=undo, name="atlas-sqlite-close", daemon=True).start()

    def open(self) -> None:
        """Open the connections and start the threads. Blocks for some milliseconds; call it off the loop.

        Raises:
            UnavailableError, CorruptionError, PermissionDeniedError: the database cannot be opened.
        """
        with self._lock:
            if self._threads is None:
                self._threads = _open_threads(self.options, self._queue_size)
                self._process = os.getpid()

    async def close(self, timeout_s: float = 10.0) -> bool:
        """Finish what waits, close the connections and end the threads; False when they did not end in time."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is None or os.getpid() != self._process:
            return True
        ended = [await _join(thread, timeout_s) for thread in threads.all]
        return all(ended)

    async def run(self, operation: Operation[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `operation`; a write is durable when this returns."""
        thread = self._thread(operation.writes, operation.urgent)
        lane = self._lane()
        call = Call(lane, operation, args, kwargs)
        if self._turn_holders:
            self._refuse_self_wait(operation.writes)
        thread.submit(call, lane)
        result: R = await call.result(deadline_after(self._command_timeout_s), thread)
        return result

    async def call_bare(
        self, function: Callable[[sqlite3.Connection], T], *, timeout_s: Optional[float] = None
    ) -> T:
        """Run `function(connection)` on the writer thread outside a transaction.

        Args:
            function: Blocks every write until it returns.
            timeout_s: Its deadline in seconds; None: the default of calls.
        """
        self._refuse_self_wait(writes=True)
        thread = self._thread(writes=True)
        lane = self._lane()
        turn = BareTurn(function, thread, lane)
        thread.submit(turn, lane)
        deadline = deadline_after(self._command_timeout_s if timeout_s is None else timeout_s)
        result: T = await turn.call.result(deadline, thread)
        return result

    def unit(self, deadline: float, owner: Any = None) -> SQLiteUnit:
        """Return a new transaction for a unit of work, not yet begun.

        Args:
            deadline: Monotonic time in seconds.
            owner: The task that the unit belongs to, whichever task uses it first.
        """
        self._thread(writes=True)
        return SQLiteUnit(self, deadline, owner)

    def orm_engine(self) -> AsyncEngine:
        """Return the async SQLAlchemy engine for sessions inside units of work."""
        if self._orm_engine is None:
            from modules.storage.backends.sqlite_orm import create_turn_engine

            self._orm_engine = create_turn_engine()
        return self._orm_engine

    def turn(self, deadline: float) -> WriterTurn:
        """Return a new turn of the writer, not yet begun; `deadline` is monotonic time in seconds."""
        self._refuse_self_wait(writes=True)
        return WriterTurn(self._thread(writes=True), self._lane(), deadline)

    def holding(self, turn: WriterTurn, owner: Any = None) -> None:
        """Remember that `owner` (None: the current task) holds `turn`, until `released`."""
        self._turn_holders[asyncio.current_task() if owner is None else owner] = turn

    def released(self, turn: WriterTurn) -> None:
        """Forget `turn`."""
        for task in [task for task, held in self._turn_holders.items() if held is turn]:
            self._turn_holders.pop(task, None)

    def statistics(self) -> Dict[str, int]:
        """Return numbers for health: what waits for the writer and the reader, what they have done, and how long it waited."""
        if self._threads is None:
            return {}
        writer, reader = self._threads.writer, self._threads.reader
        return {
            "writer_waiting": writer.waiting,
            **writer.served.numbers("writer"),
            "reader_waiting": reader.waiting,
            **reader.served.numbers("reader"),
        }

    def _lane(self) -> Lane:
        return self._lanes.get(asyncio.get_running_loop()) or self._new_lane()

    def _new_lane(self) -> Lane:
        loop = asyncio.get_running_loop()
        with self._lock:
            for closed in [other for other in self._lanes if other.is_closed()]:
                del self._lanes[closed]
            return self._lanes.setdefault(loop, Lane(loop))

    def _thread(self, writes: bool, urgent: bool = False) -> DatabaseThread:
        threads = self._threads
        if threads is None:
            raise NotInitializedError("the SQLite database")
        if os.getpid() != self._process:
            raise WrongProcessError(
                "this SQLite database was opened before a fork; open a new StorageManager in the child process"
            )
        if writes:
            return threads.writer
        return threads.lookout if urgent else threads.reader

    def _refuse_self_wait(self, writes: bool) -> None:
        if not (writes or self.options.is_memory):
            return
        turn = self._turn_holders.get(asyncio.current_task())
        if turn is not None and turn.is_open:
            raise StorageError(
                "this task holds the SQLite writer's turn in a unit of work, so this call would wait for itself; "
                "use the unit's own stores (uow.conversations, uow.kv, uow.session()) inside it"
            )


async def _join(thread: DatabaseThread, timeout_s: float) -> bool:
    """Close `thread` without blocking the loop; False when it did not end within `timeout_s` seconds."""
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    loop = ended.get_loop()

    def settle(done: bool) -> None:
        if not ended.done():
            ended.set_result(done)

    def wait() -> None:
        done = thread.close(timeout_s)
        try:
            loop.call_soon_threadsafe(settle, done)
        except RuntimeError:
            # the loop is gone; nobody waits any more
            return

    threading.Thread(target=wait, name="atlas-sqlite-close", daemon=True).start()
    return await ended

"""The two threads of a SQLite database: the writer with its group commit, and the reader.

The writer drains its queue, runs every waiting operation in one `BEGIN IMMEDIATE` transaction, commits once, and only
then acknowledges. At synchronous=FULL that gave 12 times the throughput of a commit per operation (ACCESS_PATH item 1).
When an operation fails half-way, the batch is rolled back and run again with a raw SAVEPOINT around each. The reader
drains its queue as well. Both answer all callers of a batch with one wake-up of the loop, and run waiting calls of an
operation that has a `batch` form as one statement.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional, Sequence, Tuple, Union

from modules.storage.backends.sqlite_calls import Call, Lane, Outcome, Tally, deliver
from modules.storage.backends.sqlite_connection import (
    SQLiteOptions,
    SQLiteTransaction,
    drive,
    open_connection,
)
from modules.storage.backends.sqlite_errors import translate
from modules.storage.backends.sqlite_grouping import grouped
from modules.storage.backends.sqlite_wal import WalWatch
from modules.store_common.errors import NotInitializedError, OverloadedError

if TYPE_CHECKING:
    from modules.storage.backends.sqlite_turn import BareTurn, WriterTurn

__all__ = ["DatabaseThread", "ReaderThread", "WriterThread"]

logger = logging.getLogger(__name__)

# A batch is bounded so that its first caller does not wait for an endless stream of later ones.
_MAX_BATCH = 256
_Special = Union["BareTurn", "WriterTurn"]
_Item = Union[Call, _Special, None]


class DatabaseThread(ABC):
    """A thread that owns one connection and a bounded queue of calls."""

    def __init__(self, name: str, connect: Callable[[], sqlite3.Connection], queue_size: int) -> None:
        self._connect = connect
        self._connection: Optional[sqlite3.Connection] = None
        # appended to by any loop, taken from by the thread alone; the bell wakes the thread when it sleeps
        self._queue: Deque[_Item] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asleep = False
        self._queue_size = queue_size
        self._closing = False
        self._ended = False
        self._current: Sequence[Call] = ()
        self._stopping = False
        self._current_lock = threading.Lock()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._opened: queue.SimpleQueue[Optional[BaseException]] = queue.SimpleQueue()
        self.served = Tally()

    def open(self) -> None:
        """Start the thread and open its connection. Blocks; raises what opening raised."""
        self._thread.start()
        error = self._opened.get()
        if error is not None:
            self._thread.join()
            raise error

    def close(self, timeout_s: float) -> bool:
        """Finish what is queued, close the connection and end the thread. Blocks; False when it did not end in time."""
        if not self._closing:
            self._closing = True
            self._queue.append(None)
            self._bell.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many calls are in the queue."""
        return len(self._queue)

    def submit(self, call: _Item, lane: Lane) -> None:
        """Queue a call of the loop that `lane` is of.

        Raises:
            NotInitializedError: the database is closed.
            OverloadedError: the queue is full.
        """
        if self._closing:
            raise NotInitializedError("the SQLite database", "it was shut down")
        if len(self._queue) >= self._queue_size:
            raise OverloadedError(
                f"{self._queue_size} calls are waiting for the SQLite {self._thread.name} already; slow down and try again"
            )
        self._queue.append(call)
        if self._asleep:
            lane.wake(self)
        elif self._ended:
            # the thread ended since the look above; nobody else reads this queue any more
            self._refuse_rest()

    def wake(self) -> None:
        """Wake the thread if it sleeps."""
        if self._asleep:
            self._asleep = False
            self._bell.put(None)

    def interrupt(self, call: Call) -> bool:
        """Stop the statement under way if it is `call`'s, and the ones after it; False when it is not. Called on the loop.

        Calls that run together are stopped when nobody waits for any of them.
        """
        with self._current_lock:
            if call not in self._current:
                return False
            if self._connection is not None and all(other.future.done() for other in self._current):
                self._stopping = True
                self._connection.interrupt()
            return True

    def is_stopping(self) -> bool:
        """Whether what is under way was interrupted, on the thread: it may have been between two statements."""
        return self._stopping

    def _main(self) -> None:
        try:
            self._connection = self._connect()
        except BaseException as exc:  # noqa: BLE001 - raised by `open`, in its thread
            self._opened.put(exc)
            return
        self._opened.put(None)
        try:
            self._serve(self._connection)
        except BaseException:
            # a defect of ours; without the thread nothing would ever be answered
            logger.exception(
                "storage.sqlite.thread_died", extra={"backend": "sqlite", "detail": self._thread.name}
            )
        finally:
            self._closing = self._ended = True
            self._refuse_rest()
            self._connection.close()

    def _serve(self, connection: sqlite3.Connection) -> None:
        closing = False
        while not closing:
            calls, special, closing = self._drain()
            if calls:
                self.served.batch(calls)
                deliver(self._run_batch(connection, calls))
            if special is not None:
                special.serve(connection)
            self._after_work()

    def _after_work(self) -> None:  # noqa: B027 - a reader has nothing to do then
        """Do what is to be done once the callers have their answers."""

    def _sleep(self) -> None:
        """Wait until there is something in the queue."""
        while not self._queue:
            self._asleep = True
            # what came before the others could see that this thread sleeps has rung no bell
            if not self._queue:
                self._bell.get()
            self._asleep = False

    def _drain(self) -> Tuple[List[Call], Optional[_Special], bool]:
        """Wait for work and return what waits: calls, then perhaps a turn that comes after them, and whether to end."""
        calls: List[Call] = []
        self._sleep()
        take = self._queue.popleft
        while self._queue and len(calls) < _MAX_BATCH:
            item = take()
            if item is None:
                return calls, None, True
            if not isinstance(item, Call):
                return calls, item, False
            if item.claim():
                calls.append(item)
        return calls, None, False

    def _refuse_rest(self) -> None:
        closed = NotInitializedError("the SQLite database", "it was shut down")
        while True:
            try:
                item = self._queue.popleft()
            except IndexError:
                return
            if isinstance(item, Call):
                deliver([(item, None, closed)])
            elif item is not None:
                item.refuse(closed)

    def set_current(self, *calls: Call) -> None:
        """Say which calls are under way, so that they alone can be interrupted; none: nothing is."""
        with self._current_lock:
            self._current = calls
            self._stopping = False

    @abstractmethod
    def _run_batch(self, connection: sqlite3.Connection, calls: Sequence[Call]) -> List[Outcome]:
        """Run calls that wait, and return how each ended, in their order."""

    def _attempt(self, tx: SQLiteTransaction, call: Call) -> Outcome:
        self.set_current(call)
        try:
            return call, drive(call.work.function(tx, *call.args, **call.kwargs)), None
        except Exception as exc:  # noqa: BLE001 - raised to the caller who waits; it must not end the thread
            return call, None, exc
        finally:
            self.set_current()

    def _attempt_together(self, tx: SQLiteTransaction, calls: Sequence[Call]) -> List[Outcome]:
        """Run calls of one operation by its `batch` form; nothing is returned when that failed as a whole."""
        self.set_current(*calls)
        try:
            results = drive(_as_coroutine(calls[0].work.batch(tx, [call.args for call in calls])))
        except Exception:  # noqa: BLE001 - one of them is at fault: each again by itself gets its own error
            return []
        finally:
            self.set_current()
        return [
            (call, None, result) if isinstance(result, BaseException) else (call, result, None)
            for call, result in zip(calls, results)
        ]


class WriterThread(DatabaseThread):
    """The only thread that writes. Also runs reads of an in-memory database, which has one connection."""

    def __init__(self, options: SQLiteOptions, queue_size: int) -> None:
        super().__init__("writer", lambda: open_connection(options), queue_size)
        self._wal = WalWatch(options.path, options.large_wal_bytes)

    def _after_work(self) -> None:
        self._wal.look()

    def _run_batch(self, connection: sqlite3.Connection, calls: Sequence[Call]) -> List[Outcome]:
        tx = SQLiteTransaction(connection, self.is_stopping)
        if len(calls) == 1:
            return [self._run_alone(connection, tx, calls[0])]
        return self._run_plainly(connection, tx, calls) or self._run_guarded(connection, tx, calls)

    def _run_plainly(
        self, connection: sqlite3.Connection, tx: SQLiteTransaction, calls: Sequence[Call]
    ) -> Optional[List[Outcome]]:
        """Run a batch without savepoints, calls of one operation together where it has a form for that.

        Returns:
            None, with nothing applied, when calls failed after they had changed something: only savepoints can undo their
            part alone. A call that failed before it changed anything (the usual refusal) needs none.
        """
        outcomes: List[Outcome] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for group in grouped(calls):
                changes = connection.total_changes
                done = self._attempt_together(tx, group) if len(group) > 1 else [self._attempt(tx, group[0])]
                culprit = done[0] if len(done) == 1 and done[0][2] is not None else None
                if not connection.in_transaction:
                    # SQLite rolled the whole transaction back (disk full, I/O error, interrupt)
                    return self._run_again(connection, tx, calls, culprit)
                if not done or (culprit is not None and connection.total_changes != changes):
                    connection.execute("ROLLBACK")
                    # one whose caller has gone is not run again: it may be the one that took too long
                    gone = culprit is not None and culprit[0].future.done()
                    return self._run_again(connection, tx, calls, culprit) if gone else None
                outcomes += done
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            return self._fail(connection, calls, outcomes, exc)
        return outcomes

    def _run_guarded(
        self, connection: sqlite3.Connection, tx: SQLiteTransaction, calls: Sequence[Call]
    ) -> List[Outcome]:
        """Run a batch with a savepoint around each call, so that one that fails leaves nothing and the others stay."""
        outcomes: List[Outcome] = []
        try:
            connection.execute("BEGIN IMMEDIATE")
            for call in calls:
                connection.execute("SAVEPOINT operation")
                outcome = self._attempt(tx, call)
                outcomes.append(outcome)
                if not connection.in_transaction:
                    # SQLite rolled the whole transaction back (disk full, I/O error, interrupt): the others lost their work
                    return self._run_again(connection, tx, calls, outcome)
                if outcome[2] is not None:
                    connection.execute("ROLLBACK TO operation")
                connection.execute("RELEASE operation")
            connection.execute("COMMIT")
        except sqlite3.Error as exc:
            return self._fail(connection, calls, outcomes, exc)
        return outcomes

    def _run_alone(self, connection: sqlite3.Connection, tx: SQLiteTransaction, call: Call) -> Outcome:
        """Run one call in a transaction of its own: no savepoint."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcome = self._attempt(tx, call)
            if outcome[2] is None:
                connection.execute("COMMIT")
            elif connection.in_transaction:
                connection.execute("ROLLBACK")
            return outcome
        except sqlite3.Error as exc:
            return self._fail(connection, [call], [], exc)[0]

    def _run_again(
        self,
        connection: sqlite3.Connection,
        tx: SQLiteTransaction,
        calls: Sequence[Call],
        culprit: Optional[Outcome],
    ) -> List[Outcome]:
        """Run calls whose common transaction is lost, each by itself, but for the culprit and those nobody waits for."""
        error = None if culprit is None else culprit[2]
        logger.warning(
            "storage.sqlite.batch_lost",
            extra={"backend": "sqlite", "count": len(calls), "error_type": type(error).__name__},
        )
        outcomes: List[Outcome] = [] if culprit is None else [culprit]
        for call in calls:
            if culprit is not None and call is culprit[0]:
                continue
            outcomes.append(
                (call, None, None) if call.future.done() else self._run_alone(connection, tx, call)
            )
        return outcomes

    def _fail(
        self,
        connection: sqlite3.Connection,
        calls: Sequence[Call],
        outcomes: Sequence[Outcome],
        exc: sqlite3.Error,
    ) -> List[Outcome]:
        """Roll back a batch whose BEGIN, SAVEPOINT or COMMIT failed: all of it fails, whatever each call had returned."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            logger.exception("storage.sqlite.rollback_failed", extra={"backend": "sqlite"})
        own: Dict[int, BaseException] = {id(call): error for call, _, error in outcomes if error is not None}
        failed: List[Outcome] = []
        for call in calls:
            error = own.get(id(call))
            if error is None:
                error = translate(exc)
                error.__cause__ = exc
            failed.append((call, None, error))
        return failed


class ReaderThread(DatabaseThread):
    """Serves operations that change nothing, outside a transaction unless they ask for a snapshot."""

    def _run_batch(self, connection: sqlite3.Connection, calls: Sequence[Call]) -> List[Outcome]:
        tx = SQLiteTransaction(connection, self.is_stopping)
        outcomes: List[Outcome] = []
        for group in grouped(calls):
            done = self._attempt_together(tx, group) if len(group) > 1 else []
            outcomes += done or [self._read(connection, tx, call) for call in group]
        return outcomes

    def _read(self, connection: sqlite3.Connection, tx: SQLiteTransaction, call: Call) -> Outcome:
        if not call.work.atomic:
            return self._attempt(tx, call)
        try:
            connection.execute("BEGIN")
            outcome = self._attempt(tx, call)
            if connection.in_transaction:
                connection.execute("COMMIT")
            return outcome
        except sqlite3.Error as exc:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            error = translate(exc)
            error.__cause__ = exc
            return call, None, error


async def _as_coroutine(awaitable: Any) -> Any:
    return await awaitable

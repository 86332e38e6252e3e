"""One SQLite connection: how it is opened, and the `Transaction` that operations see on it."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Coroutine, List, Mapping, Optional, Sequence, TypeVar
from urllib.parse import quote

from modules.storage.backends.sqlite_errors import interrupted, translate
from modules.store_common.errors import BusyError, StatementError, UnavailableError

if TYPE_CHECKING:
    from modules.storage.statements import CompiledStatement, Row, Statement

__all__ = ["SQLiteOptions", "SQLiteTransaction", "drive", "open_connection"]

T = TypeVar("T")

# RETURNING came with 3.35 (https://www.sqlite.org/lang_returning.html)
_OLDEST = (3, 35, 0)
# The named in-memory VFS with real locks came with 3.36; before it the shared cache serves.
_MEMDB = (3, 36, 0)
_DRIVER_ERRORS = (sqlite3.Error, OverflowError, ValueError, UnicodeError)


@dataclass(frozen=True)
class SQLiteOptions:
    """How connections to one database are opened.

    Attributes:
        path: The database file; None for one that lives in memory.
        memory_name: Name that the connections of an in-memory database share.
        synchronous: OFF, NORMAL, FULL or EXTRA (https://www.sqlite.org/pragma.html#pragma_synchronous).
        busy_timeout_s: How long to wait for another process's lock, in seconds.
        large_wal_bytes: A write-ahead log longer than this is told; twice what one is cut to after a checkpoint.
    """

    path: Optional[Path]
    memory_name: str = ""
    synchronous: str = "FULL"
    busy_timeout_s: float = 5.0
    large_wal_bytes: int = 2 * 67108864

    @property
    def is_memory(self) -> bool:
        return self.path is None

    @property
    def uri(self) -> str:
        """The URI for `sqlite3.connect`; special characters of the path are quoted."""
        if self.path is not None:
            return f"file:{quote(str(self.path))}"
        if sqlite3.sqlite_version_info >= _MEMDB:
            return f"file:/{self.memory_name}?vfs=memdb"
        return f"file:{self.memory_name}?mode=memory&cache=shared"


def open_connection(options: SQLiteOptions, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection in autocommit mode, with our pragmas set. May be used by one thread at a time.

    Raises:
        UnavailableError: the file cannot be opened, or this SQLite is too old.
        CorruptionError: the file is not a database.
    """
    if sqlite3.sqlite_version_info < _OLDEST:
        raise UnavailableError(f"SQLite 3.35 or newer is needed; this Python has {sqlite3.sqlite_version}")
    try:
        connection = sqlite3.connect(
            options.uri,
            uri=True,
            timeout=options.busy_timeout_s,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=256,
        )
    except sqlite3.Error as exc:
        raise translate(exc) from exc
    try:
        _set_pragmas(connection, options, read_only)
    except sqlite3.Error as exc:
        connection.close()
        raise translate(exc) from exc
    return connection


def _set_pragmas(connection: sqlite3.Connection, options: SQLiteOptions, read_only: bool) -> None:
    if not options.is_memory:
        _use_wal(connection, options.busy_timeout_s)
        # 16 MiB instead of 4: a page that is written often is moved into the file a fourth as often
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        # keeps the file that is left after a checkpoint small; 64 MiB
        connection.execute("PRAGMA journal_size_limit = 67108864")
    synchronous = {"OFF": 0, "NORMAL": 1, "FULL": 2, "EXTRA": 3}[options.synchronous]
    connection.execute(f"PRAGMA synchronous = {synchronous:d}")
    connection.execute("PRAGMA foreign_keys = ON")
    # negative: KiB; 16 MiB a connection
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA temp_store = MEMORY")
    if read_only:
        connection.execute("PRAGMA query_only = ON")


def _use_wal(connection: sqlite3.Connection, patience_s: float) -> None:
    """Switch to the write-ahead log. SQLite's busy timeout does not cover this when processes start together."""
    give_up = time.monotonic() + patience_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as exc:
            if not isinstance(translate(exc), BusyError) or time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run an operation's coroutine to its end in this thread; on SQLite it never has a reason to suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise StatementError(
        "an operation awaited something other than its transaction; see modules.storage.operations"
    )


def _never() -> bool:
    return False


class SQLiteTransaction:
    """`modules.storage.operations.Transaction` on a sqlite3 connection. Its coroutines never suspend.

    Args:
        connection: Where the statements run.
        is_stopping: Whether the operation was interrupted: `sqlite3_interrupt` stops a statement that runs, not the next.
    """

    __slots__ = ("_connection", "_is_stopping")

    dialect = "sqlite"

    def __init__(self, connection: sqlite3.Connection, is_stopping: Callable[[], bool] = _never) -> None:
        self._connection = connection
        self._is_stopping = is_stopping

    async def all(self, statement: Statement, **params: Any) -> List[Row]:
        compiled = statement.compiled("sqlite")
        try:
            rows = self._execute(compiled, params).fetchall()
        except _DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        decode = compiled.decode
        return rows if decode is None else [decode(row) for row in rows]

    async def first(self, statement: Statement, **params: Any) -> Optional[Row]:
        compiled = statement.compiled("sqlite")
        try:
            row: Optional[Row] = self._execute(compiled, params).fetchone()
        except _DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        return row if row is None or compiled.decode is None else compiled.decode(row)

    async def one(self, statement: Statement, **params: Any) -> Row:
        row = await self.first(statement, **params)
        if row is None:
            raise StatementError("a statement that always gives a row gave none")
        return row

    async def run(self, statement: Statement, **params: Any) -> int:
        compiled = statement.compiled("sqlite")
        try:
            return self._execute(compiled, params).rowcount
        except _DRIVER_ERRORS as exc:
            raise translate(exc) from exc

    async def run_many(self, statement: Statement, rows: Sequence[Mapping[str, Any]]) -> None:
        compiled = statement.compiled("sqlite")
        self._check()
        try:
            self._connection.executemany(compiled.sql, map(compiled.bind, rows))
        except _DRIVER_ERRORS as exc:
            raise translate(exc) from exc

    def _execute(self, compiled: CompiledStatement, params: Mapping[str, Any]) -> sqlite3.Cursor:
        self._check()
        return self._connection.execute(compiled.sql, compiled.bind(params))

    def _check(self) -> None:
        if self._is_stopping():
            raise interrupted()

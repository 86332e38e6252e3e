"""Administration of a SQLite database: tables, size, pragmas, vacuum, checkpoint, online backup."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from sqlalchemy import Integer, String, text

from modules.storage.backends.rows import compile_free_sql
from modules.storage.backends.sqlite_connection import SQLiteOptions, open_connection
from modules.storage.backends.sqlite_errors import translate
from modules.storage.opening import run_in_thread
from modules.storage.operations import Transaction, read
from modules.storage.statements import Statement
from modules.store_common.errors import PermissionDeniedError, StorageError, StorageIOError, UnavailableError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from modules.storage.backends.sqlite_executor import SQLiteExecutor
    from modules.storage.pool import SQLPool

__all__ = ["SQLiteBackend", "create_sqlite_engine", "ensure_parent_directory"]

_SHOWN_PRAGMAS = {
    "journal_mode": "PRAGMA journal_mode",
    "synchronous": "PRAGMA synchronous",
    "foreign_keys": "PRAGMA foreign_keys",
    "busy_timeout": "PRAGMA busy_timeout",
    "page_size": "PRAGMA page_size",
    "cache_size": "PRAGMA cache_size",
}
# Long maintenance may take its time; in seconds.
_MAINTENANCE_TIMEOUT_S = 3600.0
_BACKUP_PAGES_PER_STEP = 1024

# Looking goes to the reader: it must not queue behind a unit of work that holds the writer's turn.
_TABLE_NAMES = Statement(
    text("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").columns(name=String())
)
_PAGES = Statement(
    text("SELECT page_count, page_size FROM pragma_page_count(), pragma_page_size()").columns(
        page_count=Integer(), page_size=Integer()
    )
)


@read(urgent=True)
async def _table_names(tx: Transaction) -> List[str]:
    return [row[0] for row in await tx.all(_TABLE_NAMES) if not row[0].startswith("sqlite_")]


@read(urgent=True)
async def _pages(tx: Transaction) -> Tuple[int, int]:
    count, size = await tx.one(_PAGES)
    return int(count), int(size)


class SQLiteBackend:
    """What an operator does with a SQLite database. All methods but the properties talk to an initialised pool."""

    def __init__(self, pool: SQLPool) -> None:
        self._pool = pool

    @property
    def is_memory(self) -> bool:
        """Whether the database lives in memory and ends with the process."""
        return self._pool.settings.path == ":memory:"

    @property
    def db_path(self) -> Optional[Path]:
        """The absolute path of the database file; None in memory."""
        return None if self.is_memory else Path(self._pool.settings.path).expanduser().absolute()

    def ensure_directory(self) -> None:
        """Create the directory of the database file, readable by its owner only."""
        if self.db_path is not None:
            ensure_parent_directory(self.db_path)

    async def get_table_names(self) -> List[str]:
        """Return the names of all tables, sorted; SQLite's own are left out."""
        return await self._executor.run(_table_names)

    async def verify_tables(self, required: Iterable[str]) -> Dict[str, bool]:
        """Return for each of the `required` tables whether it exists."""
        present = set(await self.get_table_names())
        return {name: name in present for name in required}

    async def execute_sql(self, sql: str, params: Optional[Mapping[str, Any]] = None) -> List[Dict[str, Any]]:
        """Run one SQL statement in a transaction of its own.

        Args:
            sql: The text; parameters as `:name`.
            params: Their values, of types that sqlite3 knows.

        Returns:
            The rows as mappings of column name to value; empty for a statement without rows.
        """
        compiled, values = compile_free_sql(sql, params, "sqlite")

        def execute(connection: sqlite3.Connection) -> List[Dict[str, Any]]:
            cursor = connection.execute(compiled, values)
            names = [column[0] for column in cursor.description or ()]
            return [dict(zip(names, row)) for row in cursor.fetchall()]

        return await self._executor.call_bare(execute)

    async def get_database_size(self) -> int:
        """Return the size of the database in bytes, without its write-ahead log."""
        count, size = await self._executor.run(_pages)
        return count * size

    async def get_page_count(self) -> int:
        """Return how many pages the database has."""
        return (await self._executor.run(_pages))[0]

    def get_wal_size(self) -> int:
        """Return the size of the write-ahead log in bytes; 0 when there is none."""
        if self.db_path is None:
            return 0
        try:
            return os.stat(f"{self.db_path}-wal").st_size
        except FileNotFoundError:
            return 0

    async def configure_pragmas(self) -> Dict[str, Any]:
        """Return the pragmas in effect on the writer's connection; they are set whenever a connection is opened."""

        def look(connection: sqlite3.Connection) -> Dict[str, Any]:
            return {name: connection.execute(sql).fetchone()[0] for name, sql in _SHOWN_PRAGMAS.items()}

        return await self._executor.call_bare(look)

    async def vacuum(self) -> None:
        """Rebuild the file without free pages. Holds up every write meanwhile; needs as much free disk space again."""
        await self._executor.call_bare(
            lambda connection: connection.execute("VACUUM").close(), timeout_s=_MAINTENANCE_TIMEOUT_S
        )

    async def checkpoint(self) -> bool:
        """Move the write-ahead log into the file and empty it; False when a reader of another process kept part of it."""
        return await self._executor.call_bare(
            lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0,
            timeout_s=_MAINTENANCE_TIMEOUT_S,
        )

    async def backup(
        self, path: os.PathLike[str], *, progress: Optional[Callable[[int, int], None]] = None
    ) -> Path:
        """Copy the database to `path` while it is in use; the copy appears whole or not at all.

        Args:
            path: The file to make; an existing one is replaced, unless it is a database in use.
            progress: Called with (pages left, pages in all), in a worker thread.

        Raises:
            StorageIOError, StorageFullError, PermissionDeniedError: the copy cannot be written; none is left.
            StorageError: `path` is a database in use.
        """
        options = self._executor.options
        target: Path = await run_in_thread(lambda: _backup(options, Path(path), progress))
        return target

    @property
    def _executor(self) -> SQLiteExecutor:
        executor: Any = self._pool.executor
        return executor  # type: ignore[no-any-return]


def _backup(options: SQLiteOptions, path: Path, progress: Optional[Callable[[int, int], None]]) -> Path:
    target = path.expanduser().absolute()
    ensure_parent_directory(target)
    _refuse_in_use(options, target)
    partial = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
    source = open_connection(options, read_only=True)
    try:
        copy = sqlite3.connect(str(partial), isolation_level=None)
        try:
            source.backup(
                copy,
                pages=_BACKUP_PAGES_PER_STEP,
                progress=None if progress is None else lambda status, left, total: progress(left, total),
                sleep=0.001,
            )
            copy.execute("PRAGMA journal_mode = DELETE")
        finally:
            copy.close()
        _sync(partial)
        os.replace(partial, target)
        _sync(target.parent)
        return target
    except sqlite3.Error as exc:
        raise translate(exc) from exc
    except PermissionError as exc:
        raise PermissionDeniedError(
            "the backup file may not be written; check the directory's permissions"
        ) from exc
    except OSError as exc:
        raise StorageIOError(f"the backup file cannot be written: {exc.strerror}") from exc
    finally:
        source.close()
        for leftover in (partial, partial.with_name(partial.name + "-journal")):
            leftover.unlink(missing_ok=True)


def _refuse_in_use(options: SQLiteOptions, target: Path) -> None:
    """A file put under an open database, or beside a write-ahead log that is not its own, would be damaged by it."""
    same = options.path is not None and target.exists() and target.samefile(options.path)
    if same or target.with_name(target.name + "-wal").exists():
        raise StorageError(
            "the backup's path is a database in use (or one that was not closed cleanly); choose another path"
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def ensure_parent_directory(path: Path) -> None:
    """Create the directory that `path` is to lie in; a new one may be entered by its owner only.

    Raises:
        UnavailableError: it cannot be made, or is not a directory.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise UnavailableError(f"the directory {path.parent} cannot be created: {exc.strerror}") from exc


def create_sqlite_engine(executor: SQLiteExecutor, pool_options: Dict[str, Any]) -> Engine:
    """Return a synchronous SQLAlchemy engine with our pragmas on every connection.

    Transactions are begun by SQLAlchemy itself (not by sqlite3's guesses), so that DDL and savepoints behave
    (SQLAlchemy documentation, "Serializable isolation / Savepoints / Transactional DDL" of the pysqlite dialect).
    """
    from sqlalchemy import create_engine, event
    from sqlalchemy.pool import QueuePool

    engine = create_engine(
        "sqlite://", creator=lambda: open_connection(executor.options), poolclass=QueuePool, **pool_options
    )

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    def checkin(connection: Any, record: Any) -> None:
        # SQLAlchemy takes a COMMIT that was refused (a deferred foreign key) for an end; SQLite keeps the transaction
        # open, and with it everybody else's write lock
        if connection is not None and connection.in_transaction:
            connection.rollback()

    event.listen(engine, "begin", begin)
    event.listen(engine, "checkin", checkin)
    return engine

"""Bringing a database's schema up to date, and saying where it stands.

Plain synchronous functions over a SQLAlchemy `Engine`; the manager calls them in a thread. All revisions that are
missing are applied in one transaction under a lock, so that of ten processes starting together one migrates and nine
find it done, and a migration that is killed leaves nothing behind. SQLite: `BEGIN IMMEDIATE` is the lock.
PostgreSQL: a transaction-level advisory lock, which works behind a transaction pooler too.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, List, Optional

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from modules.storage.migrations import HEAD, VERSION_TABLE, MigrationError
from modules.store_common.errors import BusyError, UnavailableError

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy.engine import Connection, Engine

__all__ = [
    "MigrationError",
    "Revision",
    "current",
    "history",
    "is_from_future",
    "pending",
    "sql",
    "upgrade",
]

_log = logging.getLogger(__name__)
# Alembic keeps the context of a run in module globals: two databases of one process are migrated one after the other.
_one_run = threading.Lock()

# Any fixed 64-bit number will do, as long as nobody else in the database uses it: "ATLASmig" in ASCII.
_LOCK_KEY = 0x41544C41536D6967
_TABLE_EXISTS = {
    "sqlite": text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = :name"),
    # Not to_regclass(): its cached "there is none" outlives the wait for an advisory lock.
    "postgresql": text(
        "SELECT 1 FROM pg_catalog.pg_class WHERE relname = :name AND pg_table_is_visible(oid)"
    ),
}
_VERSIONS = text(f"SELECT version_num FROM {VERSION_TABLE}")
_LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL, appendix A, "lock_not_available"
_SQLITE_BUSY = 5  # sqlite.org/rescode.html; the primary code is the low byte


@dataclass(frozen=True)
class Revision:
    """One step of the schema.

    Attributes:
        revision: Its id.
        down_revision: The id of the one before, None for the first.
        summary: What it does, in one line.
    """

    revision: str
    down_revision: Optional[str]
    summary: str


def current(engine: Engine) -> Optional[str]:
    """Return the revision that the database is at, None when it has no schema of ours yet."""
    with engine.connect() as connection, _translated("reading the schema's revision"):
        return _current(connection)


def is_from_future(revision: Optional[str]) -> bool:
    """True when this release does not know `revision`: a newer release has migrated the database."""
    return revision not in (None, HEAD) and revision not in {item.revision for item in history()}


def history() -> List[Revision]:
    """Return every revision of this release, oldest first."""
    scripts = list(_scripts().walk_revisions())
    return [Revision(item.revision, _single(item.down_revision), item.doc) for item in reversed(scripts)]


def pending(engine: Engine) -> List[str]:
    """Return the ids of the revisions that `upgrade` would apply, in order.

    Raises:
        MigrationError: the database is from the future.
    """
    found = current(engine)
    return [] if found == HEAD else _after(found)


def sql(dialect: str, *, search_language: str = "english") -> str:
    """Return the SQL of all revisions, for an administrator to review and run on an empty database.

    Args:
        dialect: "sqlite" or "postgresql".
        search_language: Language of full-text search.
    """
    from alembic import command

    buffer = io.StringIO()
    config = _config(search_language, output_buffer=buffer)
    config.attributes["dialect"] = dialect
    with _one_run:
        command.upgrade(config, "head", sql=True)
    return buffer.getvalue()


def upgrade(
    engine: Engine, *, search_language: str = "english", lock_timeout_seconds: float = 60.0
) -> List[str]:
    """Apply every revision that is missing, in one transaction, and return their ids (empty: nothing was missing).

    Args:
        engine: Of the database.
        search_language: Language of full-text search; fixed when its tables are made.
        lock_timeout_seconds: How long to wait for another process that is migrating, and for locks on tables.

    Raises:
        MigrationError: the database is from the future, or a revision failed; nothing was changed.
        BusyError: another process held the lock for longer than `lock_timeout_seconds`.
    """
    started = time.monotonic()
    with engine.connect() as connection, _translated("migrating the database"):
        if _current(connection) == HEAD:
            return []
        connection.rollback()
        with _locked(connection, lock_timeout_seconds):
            found = _current(connection)
            missing = [] if found == HEAD else _after(found)
            if missing:
                _run(connection, search_language)
    if missing:
        duration_ms = round((time.monotonic() - started) * 1000, 1)
        extra = {"backend": engine.dialect.name, "count": len(missing), "duration_ms": duration_ms}
        _log.info("storage.migrated", extra=extra)
    return missing


def _run(connection: Connection, search_language: str) -> None:
    from alembic import command

    config = _config(search_language)
    config.attributes["connection"] = connection
    with _one_run:
        command.upgrade(config, "head")


def _after(revision: Optional[str]) -> List[str]:
    """Return the ids of the revisions after `revision`, in order."""
    ids = [item.revision for item in history()]
    if revision is None:
        return ids
    if revision not in ids:
        raise MigrationError(
            f"the database is at schema revision {revision!r}, which this release does not know (it knows {HEAD!r} and "
            "older): a newer release has migrated it. Upgrade atlas-storage here (pip install --upgrade atlas-storage), "
            "or open a back-up from before; nothing was changed"
        )
    return ids[ids.index(revision) + 1 :]


def _current(connection: Connection) -> Optional[str]:
    if connection.execute(_TABLE_EXISTS[connection.dialect.name], {"name": VERSION_TABLE}).first() is None:
        return None
    row = connection.execute(_VERSIONS).first()
    return None if row is None else str(row[0])


@contextmanager
def _locked(connection: Connection, timeout_seconds: float) -> Iterator[None]:
    """Hold a transaction that excludes every other migration of this database; commits at the end."""
    locked = _locked_sqlite if connection.dialect.name == "sqlite" else _locked_postgresql
    with locked(connection, round(timeout_seconds * 1000)):
        yield


@contextmanager
def _locked_postgresql(connection: Connection, timeout_ms: int) -> Iterator[None]:
    with connection.begin():
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {timeout_ms:d}")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK_KEY:d})")
        yield


@contextmanager
def _locked_sqlite(connection: Connection, timeout_ms: int) -> Iterator[None]:
    # The sqlite3 module commits by itself before DDL unless it is told to leave transactions alone.
    connection = connection.execution_options(isolation_level="AUTOCOMMIT")
    before = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {timeout_ms:d}")
    connection.rollback()
    try:
        with connection.begin():  # SQLAlchemy's bookkeeping; its COMMIT ends ours
            if connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
                connection.exec_driver_sql(
                    "ROLLBACK"
                )  # an engine whose "begin" event has begun, but not IMMEDIATE
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            yield
    finally:
        if not connection.closed and not connection.invalidated:
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {before:d}")


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn the driver's errors into ours; what SQLAlchemy says holds whole statements, so it stays in the cause."""
    try:
        yield
    except DBAPIError as exc:
        original: Any = exc.orig
        code = getattr(original, "sqlite_errorcode", None)
        is_busy = (code is not None and code & 0xFF == _SQLITE_BUSY) or "database is locked" in str(original)
        if is_busy or getattr(original, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            raise BusyError(
                f"{doing}: another process holds the lock (is it migrating too?); nothing was changed, try again"
            ) from exc
        if exc.connection_invalidated:
            raise UnavailableError(f"{doing}: the connection broke; nothing was changed, try again") from exc
        reason = str(original).strip().splitlines()[0] if str(original).strip() else type(original).__name__
        raise MigrationError(f"{doing} failed, nothing was changed: {reason}") from exc


def _config(search_language: str, **options: Any) -> Config:
    from alembic.config import Config

    config = Config(**options)
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["search_language"] = search_language
    return config


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(_config("english"))


def _single(down: Any) -> Optional[str]:
    return down if down is None or isinstance(down, str) else ",".join(down)

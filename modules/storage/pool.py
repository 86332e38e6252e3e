"""`SQLPool`: one SQL database, opened and closed, with two doors.

`executor` is the fast path of the stores. `engine`, `session_factory` and `session()` are SQLAlchemy for users' own code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Optional, Union

from modules.storage.backends.wakeups import Wakeups
from modules.storage.opening import OpenOnce, run_in_thread
from modules.storage.pool_errors import PoolError, PoolTimeoutError
from modules.storage.settings import SQLBackendSettings, SQLDialect
from modules.store_common.deadlines import deadline_after, within
from modules.store_common.errors import (
    MissingDependencyError,
    NotInitializedError,
    StorageError,
    WrongProcessError,
)
from modules.store_common.ids import new_id

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session, sessionmaker

    from modules.storage.backends.postgresql_connection import PostgresOptions
    from modules.storage.backends.postgresql_executor import PostgresExecutor
    from modules.storage.backends.sqlite_executor import SQLiteExecutor

__all__ = ["PoolError", "PoolTimeoutError", "SQLPool"]

logger = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 10.0


class SQLPool:
    """Connections to one SQL database. Nothing is opened before `initialize()`; it may be opened again after `shutdown()`.

    Args:
        settings: The database; None: the embedded default.
    """

    def __init__(self, settings: Optional[SQLBackendSettings] = None) -> None:
        self._settings = settings if settings is not None else SQLBackendSettings()
        self._executor: Optional[Union[SQLiteExecutor, PostgresExecutor]] = None
        self._wakeups: Optional[Wakeups] = None
        self._engine: Optional[Engine] = None
        self._session_factory: Optional[sessionmaker[Session]] = None
        # a plain lock: held for moments only, and right whichever loop or thread comes (P25)
        self._lock = threading.Lock()
        self._opening = OpenOnce()
        self._process = os.getpid()

    @property
    def settings(self) -> SQLBackendSettings:
        """The settings of this database."""
        return self._settings

    @property
    def dialect(self) -> str:
        """Either "sqlite" or "postgresql"."""
        return self._settings.dialect.value

    @property
    def is_initialized(self) -> bool:
        """Whether the pool is open."""
        return self._executor is not None

    @property
    def executor(self) -> Union[SQLiteExecutor, PostgresExecutor]:
        """The fast path, for the stores.

        Raises:
            NotInitializedError: before `initialize()` and after `shutdown()`.
        """
        if self._executor is None:
            raise NotInitializedError("the SQL pool")
        return self._executor

    @property
    def wakeups(self) -> Wakeups:
        """Tells those who wait that there is something to do, in other processes too.

        Raises:
            NotInitializedError: before `initialize()` and after `shutdown()`.
        """
        if self._wakeups is None:
            raise NotInitializedError("the SQL pool")
        return self._wakeups

    @property
    def engine(self) -> Engine:
        """A synchronous SQLAlchemy engine on the same database, for users' own code and the migrations.

        Raises:
            NotInitializedError: before `initialize()` and after `shutdown()`.
            WrongProcessError: the pool was opened before a fork.
            MissingDependencyError: PostgreSQL without psycopg.
        """
        executor = self.executor
        if os.getpid() != self._process:
            # a connection of the parent must not be used, nor closed, by its child
            raise WrongProcessError(
                "this pool was opened before a fork; open a new StorageManager in the child process"
            )
        with self._lock:
            if self._engine is None:
                self._engine = _create_engine(self._settings, executor)
            return self._engine

    @property
    def session_factory(self) -> sessionmaker[Session]:
        """A synchronous `sessionmaker` on `engine`; use its sessions in threads, not on the event loop."""
        engine = self.engine
        if self._session_factory is None:
            from sqlalchemy.orm import sessionmaker

            self._session_factory = sessionmaker(engine, expire_on_commit=False)
        return self._session_factory

    async def initialize(self) -> None:
        """Open the database. Harmless when it is open; concurrent calls open it once.

        Raises:
            UnavailableError, PermissionDeniedError, CorruptionError: it cannot be opened; nothing stays open.
            MissingDependencyError: the driver is not installed.
        """
        await self._opening.run(lambda: self._executor is not None, self._open)

    async def _open(self) -> None:
        started = time.monotonic()
        self._process = os.getpid()
        self._executor = await self._open_executor()
        self._wakeups = _make_wakeups(self._executor)
        logger.info(
            "storage.pool.initialized",
            extra={"backend": self.dialect, "duration_ms": round((time.monotonic() - started) * 1000, 1)},
        )

    async def _open_executor(self) -> Union[SQLiteExecutor, PostgresExecutor]:
        if self._settings.dialect is SQLDialect.SQLITE:
            executor = _sqlite_executor(self._settings)
            await _open_or_undo(executor)
            return executor
        postgres = _postgres_executor(self._settings)
        await postgres.open()
        return postgres

    async def shutdown(self) -> None:
        """Finish what is under way, close every connection of ours. Harmless when closed; never waits for ever."""
        with self._lock:
            executor, self._executor = self._executor, None
            engine, self._engine, self._session_factory = self._engine, None, None
            wakeups, self._wakeups = self._wakeups, None
        if executor is None:
            return
        if wakeups is not None and os.getpid() == self._process:
            await wakeups.close()
        if engine is not None:
            mine = os.getpid() == self._process
            await run_in_thread(lambda: engine.dispose(close=mine))
        ended = await executor.close(_CLOSE_TIMEOUT_S)
        if not ended:
            logger.warning("storage.pool.shutdown_timed_out", extra={"backend": self.dialect})
        logger.info("storage.pool.shutdown", extra={"backend": self.dialect})

    @asynccontextmanager
    async def session(self) -> AsyncIterator[AsyncSession]:
        """Lend an async ORM session in a transaction of its own: committed at the end of the block, else rolled back.

        On SQLite it takes the writer's turn at its first statement; keep it short.
        """
        unit = self.executor.unit(deadline_after(self._settings.command_timeout_s))
        try:
            async with unit.session() as session:
                yield session
            await unit.commit()
        except BaseException:
            await unit.rollback()
            raise

    async def health_check(self, timeout: float = 5.0) -> bool:
        """Return whether the database answers within `timeout` seconds. Never raises but for cancellation."""
        from modules.storage.backends.probe import ping

        if self._executor is None:
            return False
        try:
            await within(self._executor.run(ping), timeout)
        except (StorageError, asyncio.TimeoutError):
            return False
        return True

    def statistics(self) -> Dict[str, int]:
        """Return the pool in numbers, for health and metrics; empty when closed."""
        return {} if self._executor is None else self._executor.statistics()


def _make_wakeups(executor: Union[SQLiteExecutor, PostgresExecutor]) -> Wakeups:
    if executor.dialect == "sqlite":
        return Wakeups()
    from modules.storage.backends.postgresql_wakeups import PostgresWakeups

    return PostgresWakeups(executor)  # type: ignore[arg-type]


async def _open_or_undo(executor: SQLiteExecutor) -> None:
    """Open the threads; when the caller is cancelled meanwhile, close what the opening thread goes on to open."""
    try:
        await run_in_thread(executor.open)
    except asyncio.CancelledError:
        executor.open_and_close_later()
        raise


def _sqlite_executor(settings: SQLBackendSettings) -> SQLiteExecutor:
    from modules.storage.backends.sqlite import ensure_parent_directory
    from modules.storage.backends.sqlite_connection import SQLiteOptions
    from modules.storage.backends.sqlite_executor import SQLiteExecutor

    path: Optional[Path] = None
    if settings.path != ":memory:":
        path = Path(settings.path).expanduser().absolute()
        ensure_parent_directory(path)
    options = SQLiteOptions(
        path=path,
        memory_name=f"atlas-{new_id()}",
        synchronous=settings.sqlite_synchronous.value,
        busy_timeout_s=settings.sqlite_busy_timeout_s,
    )
    return SQLiteExecutor(
        options, command_timeout_s=settings.command_timeout_s, queue_size=settings.sqlite_queue_size
    )


def _postgres_executor(settings: SQLBackendSettings) -> PostgresExecutor:
    try:
        from modules.storage.backends.postgresql_connection import PostgresOptions
        from modules.storage.backends.postgresql_executor import PoolLimits, PostgresExecutor
        from modules.storage.backends.postgresql_tls import TLSOptions
    except ImportError as exc:
        raise MissingDependencyError("asyncpg", "postgres") from exc
    tls = TLSOptions(settings.effective_tls_mode.value, **settings.get_tls_files())
    if not (tls.verifies or settings.is_local):
        # somebody between here and there may read everything, the password included
        logger.warning(
            "storage.postgresql.server_not_verified", extra={"backend": "postgresql", "detail": tls.mode}
        )
    options = PostgresOptions(
        dsn=settings.get_driver_url(),
        tls=tls,
        application_name=settings.application_name,
        connect_timeout_s=settings.connect_timeout_s,
        command_timeout_s=settings.command_timeout_s,
    )
    limits = PoolLimits(
        size=settings.pool.size,
        max_overflow=settings.pool.max_overflow,
        timeout_s=settings.pool.timeout,
        max_waiters=settings.max_waiters,
        max_lifetime_s=settings.pool.recycle,
        max_idle_s=settings.max_idle_s,
        ping=settings.pool.pre_ping,
    )
    return PostgresExecutor(options, limits, pooler=settings.pooler.value)


def _create_engine(settings: SQLBackendSettings, executor: Union[SQLiteExecutor, PostgresExecutor]) -> Engine:
    from sqlalchemy import create_engine

    if executor.dialect == "sqlite":
        from modules.storage.backends.sqlite import create_sqlite_engine

        return create_sqlite_engine(executor, settings.pool.to_engine_kwargs())  # type: ignore[arg-type]
    try:
        import psycopg  # noqa: F401
    except ImportError as exc:
        raise MissingDependencyError("psycopg", "postgres") from exc
    options: PostgresOptions = executor.options  # type: ignore[assignment]
    connect_args: Dict[str, Any] = {
        "connect_timeout": max(2, int(settings.connect_timeout_s)),
        "application_name": settings.application_name,
        **options.tls.for_libpq(),
    }
    if options.transaction_pooling:
        connect_args["prepare_threshold"] = None
    return create_engine(
        settings.get_driver_url("psycopg"), connect_args=connect_args, **settings.pool.to_engine_kwargs()
    )

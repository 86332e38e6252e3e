"""`StorageManager`: configuration, lifecycle, health and access to every store, in one place."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Type, Union

from modules.storage.domain_stores import DomainStores
from modules.storage.health import HealthMonitor, StorageHealthStatus, check_all
from modules.storage.maintenance import Maintenance
from modules.storage.manager_checks import health_checks, verify_tables
from modules.storage.manager_mongo import MongoAccess, MongoStores, check_mongo_settings, open_mongo
from modules.storage.manager_outbox import UnitsOfWork, check_outbox, make_outbox
from modules.storage.manager_schema import ensure_schema, require_known_schema
from modules.storage.manager_stores import StoreParts, make_store
from modules.storage.manager_tasks import stop_tasks
from modules.storage.manager_vectors import VectorStores, check_vector_settings
from modules.storage.opening import OpenOnce
from modules.storage.pool import SQLPool
from modules.storage.settings import SettingsError, SQLDialect, StorageSettings
from modules.storage.telemetry import Metrics, observed
from modules.store_common.errors import NotInitializedError, StorageError
from modules.store_common.tenancy import TenantPolicy

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

    from modules.access_store.repository import AccessStore
    from modules.job_store.queue import JobQueue
    from modules.storage.adapters import DomainStoreFactory
    from modules.storage.backends.postgresql import PostgreSQLBackend
    from modules.storage.backends.sqlite import SQLiteBackend
    from modules.storage.backends.wakeups import Wakeups
    from modules.storage.embedders_base import Embedder
    from modules.storage.operations import Executor
    from modules.storage.semantic import SemanticIndex
    from modules.storage.vectors.base import VectorProvider
    from modules.storage.vectors.registry import VectorStoreRegistry

__all__ = ["StorageManager"]

logger = logging.getLogger(__name__)


class StorageManager(DomainStores, UnitsOfWork, MongoAccess):
    """Owns the stores of an application.

    Nothing is opened before `initialize()` (or `async with`). Stores are made at first access.

    Args:
        settings: `StorageSettings`, a mapping as for `StorageSettings.from_dict`, or None: SQLite in ./.atlas/.
        background: False: no work of its own (upkeep, health checks, embedding), as short-lived commands want it.

    Raises:
        SettingsError: the settings are wrong.
    """

    def __init__(
        self, settings: Union[StorageSettings, Mapping[str, Any], None] = None, *, background: bool = True
    ) -> None:
        self._has_background = background
        self._settings = _as_settings(settings)
        self._opening = OpenOnce()
        self._pool: Optional[SQLPool] = None
        self._executor: Any = None
        self._vectors: Optional[VectorStores] = None
        self._semantic: Optional[SemanticIndex] = None
        self._mongo: Optional[MongoStores] = None
        self._stores: Dict[str, Any] = {}
        self._backend: Any = None
        self._tasks: List[asyncio.Task[None]] = []
        self._monitor = HealthMonitor(self.health_check, self._settings.health_check_interval_seconds)
        self._process = os.getpid()
        self._metrics = Metrics()

    # --- lifecycle ----------------------------------------------------------------------------------------------

    @property
    def is_initialized(self) -> bool:
        """Whether `initialize()` has succeeded and `shutdown()` was not called since."""
        return self._pool is not None

    async def initialize(self) -> None:
        """Open the database, bring its schema up to date and start the background tasks.

        Harmless when it is open already; concurrent calls open once. A failed call leaves nothing open and can be
        repeated.

        Raises:
            StorageError: says which store failed and why.
        """
        await self._opening.run(lambda: self._pool is not None, self._open)

    async def _open(self) -> None:
        started = time.monotonic()
        check_vector_settings(self._settings)
        check_mongo_settings(self._settings)
        pool = SQLPool(self._settings.sql)
        await pool.initialize()
        try:
            if self._settings.sql.auto_migrate:
                await ensure_schema(pool)
            else:
                await require_known_schema(pool)
            self._mongo = await open_mongo(self._settings, self._metrics)
        except BaseException:
            await pool.shutdown()
            raise
        self._process = os.getpid()
        self._executor = observed(pool.executor, self._settings, self._metrics)
        self._vectors = self._init_vector_store()
        self._outbox = make_outbox(self._settings, self._executor, self._vectors, pool.wakeups)
        if self._mongo is not None:
            self._mongo.join(self._outbox, self._executor)
        self._pool = pool
        self._tasks = self._start_background() if self._has_background else []
        logger.info(
            "storage.initialized",
            extra={"backend": pool.dialect, "duration_ms": round((time.monotonic() - started) * 1000, 1)},
        )

    def _start_background(self) -> List[asyncio.Task[None]]:
        tasks = [
            asyncio.create_task(self.maintenance.run(), name="atlas-storage-maintenance"),
            asyncio.create_task(self._monitor.run(), name="atlas-storage-health"),
        ]
        if self._settings.outbox.relay and self._outbox is not None:
            tasks.append(asyncio.create_task(self._outbox.relay.run(), name="atlas-storage-relay"))
        semantic = self.semantic_index
        if semantic is not None:
            tasks.append(asyncio.create_task(semantic.run(), name="atlas-storage-embedding"))
        return tasks

    async def shutdown(self) -> None:
        """Finish what is under way, stop the background tasks and close what this manager opened. Harmless when closed."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        tasks, self._tasks = self._tasks, []
        self._stores = {}
        self._backend = None
        vectors, self._vectors = self._vectors, None
        semantic, self._semantic = self._semantic, None
        mongo, self._mongo = self._mongo, None
        await stop_tasks(tasks)
        self._outbox = None
        if semantic is not None:
            await semantic.close()
        if vectors is not None and os.getpid() == self._process:
            # the threads and connections of a parent process are its own to close
            await vectors.shutdown()
        if mongo is not None:
            await mongo.close()
        await pool.shutdown()
        logger.info("storage.shutdown", extra={"backend": pool.dialect})

    async def __aenter__(self) -> StorageManager:
        await self.initialize()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.shutdown()

    # --- settings -----------------------------------------------------------------------------------------------

    def get_settings(self) -> StorageSettings:
        """Return the settings in effect."""
        return self._settings

    def configure(self, **overrides: Any) -> StorageSettings:
        """Change settings before `initialize()`, for example `configure(sql={"url": "postgresql://..."})`.

        Args:
            overrides: Fields of `StorageSettings`; a mapping changes the fields it names and keeps the others.

        Raises:
            StorageError: the manager is open.
            SettingsError: the result would be wrong; nothing was changed.
        """
        if self._pool is not None:
            raise StorageError(
                "settings can be changed before initialize() or after shutdown(), not while the manager is open"
            )
        self._settings = self._settings.merged_with(overrides)
        self._monitor.interval_s = self._settings.health_check_interval_seconds
        return self._settings

    # --- stores -------------------------------------------------------------------------------------------------

    @property
    def access(self) -> AccessStore:
        """The tokens of the HTTP API."""
        store: AccessStore = self._store("access")
        return store

    @property
    def job_queue(self) -> JobQueue:
        """What workers and schedulers call, over all tenants: claim, heartbeat, settle."""
        queue: JobQueue = self._store("job_queue")
        return queue

    @property
    def vectors(self) -> VectorProvider:
        """The vector store of `vectors.backend`; made at first access, opened by its first call.

        Raises:
            NotConfiguredError: `vectors.backend` is none.
            MissingDependencyError: its package is not installed.
        """
        return self._vector_stores().default

    @property
    def vector_registry(self) -> VectorStoreRegistry:
        """The open vector stores by name; what is registered here is closed at `shutdown()`."""
        return self._vector_stores().registry

    @property
    def semantic_index(self) -> Optional[SemanticIndex]:
        """What keeps messages searchable by meaning; None unless `embedder` is set."""
        if self._semantic is None and self._settings.embedder is not None:
            from modules.storage.semantic import index_from_settings

            self._semantic = index_from_settings(self._settings, self.executor, self.vectors)
        return self._semantic

    @property
    def embedder(self) -> Optional[Embedder]:
        """What makes vectors of texts; None unless `embedder` is set."""
        index = self.semantic_index
        return None if index is None else index.embedder

    def add_vector_store(
        self,
        provider: str,
        *,
        name: Optional[str] = None,
        options: Optional[Mapping[str, Any]] = None,
        default: bool = False,
    ) -> VectorProvider:
        """Make another vector store beside the configured one, or in its place; it is opened by its first call.

        Args:
            provider: One of `available_vector_providers()`, of entry points too.
            name: In the registry; None: the provider's.
            options: What the settings do not say: arguments of our providers, `VectorContext.options` of others.
            default: Let it be `storage.vectors` from now on.

        Raises:
            NotConfiguredError: there is no such provider, or not on this database.
            AlreadyExistsError: the name is taken.
        """
        return self._vector_stores().add(provider, name, options or {}, default=default)

    def get_domain_store_factory(self) -> DomainStoreFactory:
        """Return the factory that makes synchronous repositories over this manager's stores."""
        from modules.storage.adapters import DomainStoreFactory

        return DomainStoreFactory(self)

    # --- databases ----------------------------------------------------------------------------------------------

    @property
    def executor(self) -> Executor:
        """What runs operations on the SQL database."""
        self._open_pool()
        executor: Executor = self._executor
        return executor

    @property
    def sql_pool(self) -> SQLPool:
        """The pool of the SQL database."""
        return self._open_pool()

    @property
    def wakeups(self) -> Wakeups:
        """Tells those who wait that there is something to do; see `modules.storage.backends.wakeups`."""
        return self._open_pool().wakeups

    def get_sql_engine(self) -> Engine:
        """Return a synchronous SQLAlchemy engine on the SQL database."""
        return self._open_pool().engine

    def get_session_factory(self) -> sessionmaker[Session]:
        """Return a synchronous `sessionmaker` on the SQL database."""
        return self._open_pool().session_factory

    @property
    def sql_backend(self) -> Union[SQLiteBackend, PostgreSQLBackend]:
        """Administration of the SQL database."""
        pool = self._open_pool()
        if self._backend is None:
            self._backend = _make_backend(pool)
        backend: Union[SQLiteBackend, PostgreSQLBackend] = self._backend
        return backend

    # --- health and schema --------------------------------------------------------------------------------------

    @property
    def health_monitor(self) -> HealthMonitor:
        """Keeps the last result of the background check and tells listeners of changes."""
        return self._monitor

    async def health_check(self) -> StorageHealthStatus:
        """Check every configured store now, side by side, each within `health_check_timeout_seconds`. Never raises."""
        if self._pool is None:
            return StorageHealthStatus()
        checks = health_checks(self._pool, self._vector_stores(), lambda: self.semantic_index, self._mongo)
        outbox = self.outbox
        checks["outbox"] = lambda: check_outbox(outbox, self._settings)
        return await check_all(checks, self._settings.health_check_timeout_seconds)

    @property
    def metrics(self) -> Metrics:
        """Operations by store, name, outcome and back end since the manager was made; empty unless `telemetry` is on."""
        return self._metrics

    async def verify_stores(self) -> Dict[str, bool]:
        """Return for each configured store whether its tables are there."""
        return await verify_tables(self._open_pool(), self._vector_stores(), self._mongo)

    async def ensure_schemas(self) -> Dict[str, bool]:
        """Bring the schema up to date and return for each configured store whether its tables are there.

        Raises:
            MigrationError: the database is from a newer release, or a migration failed; nothing was changed.
        """
        pool = self._open_pool()
        await ensure_schema(pool)
        if self._mongo is not None:
            await self._mongo.ensure()
        return await verify_tables(pool, self._vector_stores(), self._mongo)

    @property
    def maintenance(self) -> Maintenance:
        """Upkeep across tenants, done in the background: what `atlas-storage prune` does now."""
        return Maintenance(
            self.executor,
            self._settings,
            self._tenancy,
            self._vector_stores(),
            self.wakeups.notify,
            conversations=self._executor_of("conversations"),
            kv=self._executor_of("kv"),
            jobs=self._executor_of("jobs"),
        )

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _tenancy(self) -> TenantPolicy:
        return TenantPolicy(self._settings.require_tenant_context, self._settings.default_tenant_id)

    def _open_pool(self) -> SQLPool:
        if self._pool is None:
            raise NotInitializedError("the StorageManager")
        return self._pool

    def _vector_stores(self) -> VectorStores:
        if self._vectors is None:
            raise NotInitializedError("the StorageManager")
        return self._vectors

    def _init_vector_store(self) -> VectorStores:
        """Return what makes the configured vector store when it is asked for; nothing is loaded or opened yet."""
        return VectorStores(self._settings, self._executor, self._tenancy, self._metrics)

    def _store(self, name: str) -> Any:
        store = self._stores.get(name)
        if store is None:
            store = self._stores[name] = self._make_store(name, self._executor_of(name))
        return store

    def _executor_of(self, store: str) -> Executor:
        """Return what runs the operations of a store outside of units of work."""
        return self.executor if self._mongo is None else self._mongo.executor_or(store, self.executor)

    def _make_store(self, name: str, executor: Executor) -> Any:
        """Make the store `name` on `executor`: the pool's, or a unit of work's."""
        if name == "vectors":
            return self._vector_stores().within(executor)
        if self._mongo is not None:
            self._mongo.refuse_other_executor(name, executor)
        if name == "documents":
            return self._documents(executor)
        wakeups = self.wakeups
        parts = StoreParts(
            executor, self._settings, self._tenancy, self.semantic_index, wakeups.notify, wakeups
        )
        return make_store(name, parts)


def _as_settings(settings: Union[StorageSettings, Mapping[str, Any], None]) -> StorageSettings:
    if settings is None:
        return StorageSettings()
    if isinstance(settings, StorageSettings):
        return settings
    if isinstance(settings, Mapping):
        return StorageSettings.from_dict(settings)
    raise SettingsError(f"settings must be StorageSettings, a mapping or None, not {type(settings).__name__}")


def _make_backend(pool: SQLPool) -> Any:
    if pool.settings.dialect is SQLDialect.SQLITE:
        from modules.storage.backends.sqlite import SQLiteBackend

        return SQLiteBackend(pool)
    from modules.storage.backends.postgresql import PostgreSQLBackend

    return PostgreSQLBackend(pool)

"""The manager's vector stores: which one the settings mean, made when first asked for, opened by their first call.

NumPy and the providers are loaded here only when somebody uses vectors (or health looks at a remote store), so that a
manager without vectors starts as fast as before.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Mapping, Optional, Tuple

from sqlalchemy import text
from sqlalchemy.types import Text

from modules.storage.health import HealthStatus
from modules.storage.opening import run_in_thread
from modules.storage.operations import Transaction, read
from modules.storage.settings import SettingsError, SQLDialect, VectorBackendType
from modules.storage.settings_sources import nearest
from modules.storage.statements import Row, Statement
from modules.storage.telemetry_vectors import vector_calls
from modules.store_common.errors import NotConfiguredError, StorageError

if TYPE_CHECKING:
    from modules.storage.operations import Executor
    from modules.storage.settings import StorageSettings
    from modules.storage.telemetry import Metrics
    from modules.storage.vectors.base import VectorProvider
    from modules.storage.vectors.registry import VectorStoreRegistry
    from modules.store_common.tenancy import TenantPolicy

__all__ = ["VECTOR_TABLES", "VectorStores", "check_vector_settings", "vector_backend"]

#: The tables that migrations make for a vector store inside the SQL database.
VECTOR_TABLES: Dict[str, Tuple[str, ...]] = {
    "sqlite": ("atlas_vector_collections", "atlas_vectors", "atlas_vector_tombstones"),
    "pgvector": ("atlas_pgvector_collections",),
}
_EXTENSION = Statement(
    text(
        "SELECT a.default_version, e.extversion FROM pg_available_extensions AS a"
        " LEFT JOIN pg_extension AS e ON e.extname = a.name WHERE a.name = 'vector'"
    ).columns(default_version=Text(), extversion=Text())
)
_Result = Tuple[HealthStatus, str, Dict[str, Any]]


def vector_backend(settings: StorageSettings) -> str:
    """Return the provider's name, or "none"; the embedded default is that of the SQL database: pgvector on PostgreSQL."""
    chosen = settings.vectors.backend
    if chosen is VectorBackendType.SQLITE and settings.sql.dialect is SQLDialect.POSTGRESQL:
        return "pgvector"
    return chosen.value if isinstance(chosen, VectorBackendType) else chosen


def check_vector_settings(settings: StorageSettings) -> None:
    """Refuse settings that cannot work together, before anything is opened.

    Raises:
        SettingsError: says which one and what to do.
    """
    chosen = settings.vectors.backend
    source = settings.sources["vectors.backend"]
    on_sqlite = settings.sql.dialect is SQLDialect.SQLITE
    if chosen is VectorBackendType.PGVECTOR and on_sqlite:
        raise SettingsError(
            "pgvector needs PostgreSQL, and the SQL database is SQLite; set sql.url, or leave vectors.backend at sqlite",
            "vectors.backend",
            source,
        )
    if chosen is VectorBackendType.SQLITE and not on_sqlite and source != "default":
        raise SettingsError(
            "sqlite needs a SQLite database, and the SQL database is PostgreSQL; set it to pgvector, or leave it unset",
            "vectors.backend",
            source,
        )
    if chosen is VectorBackendType.PINECONE and settings.vectors.pinecone_api_key is None:
        raise SettingsError(
            "Pinecone needs an API key, and vectors.backend is pinecone", "vectors.pinecone_api_key"
        )
    if not isinstance(chosen, VectorBackendType):
        _check_registered(chosen, source)


def _check_registered(name: str, source: str) -> None:
    """Refuse the name of a provider that nobody has registered. Loads NumPy, so not for the names of ours."""
    from modules.storage.vectors.registry import available_vector_providers

    known = [*available_vector_providers(), VectorBackendType.NONE.value]
    if name not in known:
        raise SettingsError(
            f"no vector provider of this name is registered; there are {', '.join(known)}",
            "vectors.backend",
            source,
            nearest(name, known),
        )


@read(urgent=True)
async def _extension(tx: Transaction) -> Optional[Row]:
    return await tx.first(_EXTENSION)


class VectorStores:
    """The vector stores of one open manager.

    Args:
        settings: Checked by `check_vector_settings`.
        executor: Of the SQL database.
        tenancy: How the tenant of a call is found.
        metrics: Where calls of stores outside of the SQL database are counted.
    """

    def __init__(
        self, settings: StorageSettings, executor: Executor, tenancy: TenantPolicy, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._tenancy = tenancy
        self._calls = vector_calls(settings, metrics)
        self._lock = threading.RLock()
        self._registry: Optional[VectorStoreRegistry] = None
        self._made: List[Tuple[str, VectorProvider]] = []
        # their options name the executor of another database
        self._elsewhere: List[VectorProvider] = []
        self._listeners: List[Callable[[str, VectorProvider], Any]] = []
        self._closed = False

    @property
    def backend(self) -> str:
        """The configured provider's name, or "none"."""
        return vector_backend(self._settings)

    @property
    def is_remote(self) -> bool:
        """Whether the configured provider keeps its vectors outside of the SQL database."""
        return self.backend != "none" and self.backend not in VECTOR_TABLES

    def when_added(self, listener: Callable[[str, VectorProvider], Any]) -> None:
        """Have `listener(name, provider)` called for each provider that is made from now on."""
        self._listeners.append(listener)

    def joins(self, provider: VectorProvider) -> bool:
        """Whether `provider` takes part in transactions of the SQL database, and not in those of another one."""
        return provider.capabilities.transactional and not any(provider is other for other in self._elsewhere)

    @property
    def registry(self) -> VectorStoreRegistry:
        """The registry, with the configured provider as its default."""
        with self._lock:
            if self._registry is None:
                from modules.storage.vectors.registry import VectorStoreRegistry

                made = VectorStoreRegistry()
                if self.backend != "none":
                    self._add(made, self.backend, self.backend, {}, default=True)
                self._registry = made
            return self._registry

    @property
    def default(self) -> VectorProvider:
        """The default provider of the registry.

        Raises:
            NotConfiguredError: `vectors.backend` is none, and nobody has registered another one.
        """
        return self.registry.default

    def add(
        self, provider: str, name: Optional[str], options: Mapping[str, Any], *, default: bool
    ) -> VectorProvider:
        """Make a provider and register it as `name` (None: the provider's)."""
        with self._lock:
            return self._add(
                self.registry, provider, provider if name is None else name, options, default=default
            )

    def _add(
        self,
        registry: VectorStoreRegistry,
        provider: str,
        name: str,
        options: Mapping[str, Any],
        *,
        default: bool,
    ) -> VectorProvider:
        from modules.storage.vectors.factory import VectorContext, make_vector_provider

        context = VectorContext(self._settings.vectors, self._tenancy, self._executor, options)
        made = make_vector_provider(provider, context)
        registry.register_instance(name, made, default=default)
        if not self._closed:
            made.open_on_use()
        self._made.append((name, made))
        if options.get("executor", self._executor) is not self._executor:
            self._elsewhere.append(made)
        if self._calls is not None and not self.joins(made):
            # one inside the SQL database is counted where its operations run
            self._calls.watch(made, made.name or name)
        for listener in self._listeners:
            listener(name, made)
        return made

    def within(self, executor: Executor) -> VectorProvider:
        """Return the default provider inside a unit of work: in its transaction, or staging for it what is outside of SQL.

        Raises:
            NotConfiguredError: it was registered from outside, so a relay of another process would not know it.
        """
        provider = self.default
        name = next((name for name, made in self._made if made is provider), None)
        if name is None:
            raise NotConfiguredError(
                f"the vector store {provider.name} was registered from outside, so it cannot take part in a unit of work; "
                "call storage.vectors after the unit"
            )
        staging = getattr(executor, "staging", None)
        if self.joins(provider):
            return provider.within(executor)
        if staging is None:
            raise NotConfiguredError(
                f"the vector store {name} is not in this database, and nothing can be staged here"
            )
        from modules.storage.vectors.staged import StagedVectors

        return StagedVectors(provider, name, executor, staging, self._tenancy)

    async def shutdown(self) -> None:
        """Close every provider of the registry. What was handed out does not open again."""
        with self._lock:
            self._closed = True
            registry, made = self._registry, list(self._made)
        for _, provider in made:
            provider.open_on_use(False)
        if registry is not None:
            await registry.shutdown_all()

    # --- health -------------------------------------------------------------------------------------------------

    async def answers(self) -> bool:
        """Return whether the configured store opens and answers; for one inside the SQL database see `VECTOR_TABLES`."""
        try:
            return (await self._ask_provider())[0] is not HealthStatus.UNHEALTHY
        except StorageError:
            return False

    async def check(self) -> _Result:
        """Return the health of the configured store.

        One inside the SQL database that nobody has used yet is judged by what it needs there, without loading it. A remote
        one is opened: that is how a wrong key or a damaged directory shows.
        """
        details: Dict[str, Any] = {"backend": self.backend}
        if self._registry is None or not self.default.is_initialized:
            if self.backend in ("in_memory", "sqlite"):
                return HealthStatus.HEALTHY, "", {**details, "opened": False}
            if self.backend == "pgvector":
                return await self._check_extension({**details, "opened": False})
        return await self._ask_provider()

    async def _ask_provider(self) -> _Result:
        # loading a provider's packages takes longer than a look at a store should hold up the event loop
        provider: VectorProvider = await run_in_thread(lambda: self.default)
        await provider.require_open()
        details: Dict[str, Any] = {
            "backend": provider.name,
            "opened": True,
            "instances": self.registry.list_instances(),
        }
        # a little less than the check as a whole may take, so that the answer says who did not answer
        if await provider.health_check(timeout=0.9 * self._settings.health_check_timeout_seconds):
            return HealthStatus.HEALTHY, "", details
        return HealthStatus.UNHEALTHY, f"the vector store {provider.name} does not answer", details

    async def _check_extension(self, details: Dict[str, Any]) -> _Result:
        found = await self._executor.run(_extension)
        details["available_version"] = None if found is None else found[0]
        details["installed_version"] = None if found is None else found[1]
        asked_for = self._settings.vectors.backend is VectorBackendType.PGVECTOR
        if found is None and asked_for:
            return (
                HealthStatus.UNHEALTHY,
                "the PostgreSQL server has no extension vector; install pgvector 0.8 or newer on the server",
                details,
            )
        return HealthStatus.HEALTHY, "", details

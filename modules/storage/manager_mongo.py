"""The manager's MongoDB: which stores are there, their executors, their indexes, and how they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

from modules.storage.health import HealthStatus
from modules.storage.manager_checks import HealthResult
from modules.storage.mongo_pool import MongoPool
from modules.storage.settings import SettingsError, StorageSettings
from modules.storage.telemetry import Metrics, observed
from modules.store_common.errors import NotConfiguredError

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.database import AsyncDatabase

    from modules.storage.backends.mongodb import MongoDBBackend
    from modules.storage.backends.mongodb_writer import MongoWriter
    from modules.storage.documents import DocumentForms
    from modules.storage.operations import Executor
    from modules.storage.outbox import Outbox

__all__ = [
    "MongoAccess",
    "MongoStores",
    "check_mongo_settings",
    "is_mongo_configured",
    "open_mongo",
    "stores_in_mongo",
]


def stores_in_mongo(settings: StorageSettings) -> List[str]:
    """Return the names of the stores that the settings keep in MongoDB."""
    asked = {
        "conversations": settings.use_mongo_for_conversations,
        "jobs": settings.use_mongo_for_jobs,
        "kv": settings.kv.backend == "mongo",
    }
    return [name for name, is_asked in asked.items() if is_asked]


def is_mongo_configured(settings: StorageSettings) -> bool:
    """Return whether the settings name a MongoDB server: a store is kept there, or `mongo.url` is given."""
    return bool(stores_in_mongo(settings)) or settings.mongo.url is not None


def check_mongo_settings(settings: StorageSettings) -> None:
    """Refuse settings that ask MongoDB for what it is not built for; no other store is quietly used.

    Raises:
        NotConfiguredError: `kv.backend` is no back end.
        SettingsError: search by meaning over conversations in MongoDB.
    """
    if settings.kv.backend not in ("sql", "mongo"):
        raise NotConfiguredError("kv.backend names no back end of this release; use sql or mongo")
    if settings.use_mongo_for_conversations and settings.embedder is not None:
        raise SettingsError(
            "search by meaning follows conversations in SQL only; unset it, or use_mongo_for_conversations",
            key="embedder",
        )


def _forms(store: str) -> DocumentForms:
    if store == "kv":
        from modules.Tools.Base_Tools.kv_mongo_repository import KEY_VALUE_FORMS

        return KEY_VALUE_FORMS
    if store == "jobs":
        from modules.job_store.mongo_repository import JOB_FORMS

        return JOB_FORMS
    from modules.conversation_store.mongo_repository import CONVERSATION_FORMS

    return CONVERSATION_FORMS


class MongoStores:
    """The stores in MongoDB. Nothing is opened before `open()`.

    Args:
        settings: Of the manager; they name a server.
        metrics: Where operations are counted.
    """

    def __init__(self, settings: StorageSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._executors: Dict[str, Any] = {}
        self.names = stores_in_mongo(settings)
        self.pool = MongoPool(settings.mongo)

    async def open(self) -> None:
        """Connect, and make the indexes that are missing.

        Raises:
            StorageError: the server cannot be used; nothing stays open.
        """
        await self.pool.initialize()
        try:
            await self.ensure()
        except BaseException:
            await self.pool.shutdown()
            raise

    async def ensure(self) -> None:
        """Bring the indexes of the stores up to date."""
        from modules.storage.backends.mongodb_schema import ensure_store
        from modules.storage.backends.mongodb_writer import DOCUMENT_FORMS

        for forms in (DOCUMENT_FORMS, *map(_forms, self.names)):
            await ensure_store(self.pool, forms)
        if self.holds("conversations"):
            await self._choose_language()

    async def _choose_language(self) -> None:
        """Note the language of the search index, once: another setting needs `rebuild_search()`, as in SQL."""
        from modules.conversation_store.mongo_repository import SEARCH_LANGUAGE

        documents = self.pool.executor(_forms("conversations")).documents
        language = {"$setOnInsert": {"language": self._settings.sql.search_language}}
        await documents.upsert_each(SEARCH_LANGUAGE, [({"_id": "language"}, language)])

    def holds(self, store: str) -> bool:
        """Return whether the store `store` is in MongoDB; "job_queue" is a face of "jobs"."""
        return _HOMES.get(store, store) in self.names

    def executor(self, store: str) -> Any:
        """Return what runs the operations of a store."""
        store = _HOMES.get(store, store)
        if store not in self._executors:
            made = self.pool.executor(_forms(store))
            self._executors[store] = observed(made, self._settings, self._metrics)
        return self._executors[store]

    def executor_or(self, store: str, other: Any) -> Any:
        """Return the executor of a store that is here, `other` for one that is not."""
        return self.executor(store) if self.holds(store) else other

    def refuse_other_executor(self, store: str, executor: Any) -> None:
        """Refuse to make a store that is here on the executor of a unit of work.

        Raises:
            NotConfiguredError: it would write to the SQL database.
        """
        if self.holds(store) and executor.dialect != "mongodb":
            raise NotConfiguredError(
                f"the {store} store is in MongoDB, which takes no part in a unit of work over SQL; use storage.{store}"
            )

    @property
    def writer(self) -> MongoWriter:
        """What brings documents of units of work here, and reads them."""
        from modules.storage.backends.mongodb_writer import DOCUMENT_FORMS, MongoWriter

        return MongoWriter(self.pool.executor(DOCUMENT_FORMS).documents)

    def join(self, outbox: Outbox, executor: Executor) -> None:
        """Be the target of `uow.documents`.

        Args:
            outbox: Of the manager.
            executor: Of the SQL database.
        """
        from modules.storage.backends.mongodb_writer import mongo_target

        outbox.targets.register(mongo_target(executor, self.writer))

    @property
    def backend(self) -> MongoDBBackend:
        """Administration of the database."""
        from modules.storage.backends.mongodb import MongoDBBackend

        return MongoDBBackend(self.pool)

    async def check(self) -> HealthResult:
        """Look at the server and the stores' indexes."""
        return await self.pool.finish(self._look(), self._settings.health_check_timeout_seconds)

    async def _look(self) -> HealthResult:
        from modules.storage.backends.mongodb_schema import store_version

        await self.pool.ping()
        abilities = self.pool.abilities
        details: Dict[str, Any] = {**abilities.to_dict(), **self.pool.statistics()}
        problems = []
        for name in self.names:
            forms = _forms(name)
            version = await store_version(self.pool, forms.store)
            details[f"{name}_index_version"] = version
            if version != forms.version:
                problems.append(f"the {name} store's indexes are not this release's; call ensure_schemas()")
        if not abilities.atomic_changes:
            problems.append(
                f"{abilities.server} does not apply a conditional change of a document atomically: two clients that "
                "write the same thing may both win; use MongoDB where more than one client writes"
            )
        return (HealthStatus.DEGRADED if problems else HealthStatus.HEALTHY), "; ".join(problems), details

    async def verify(self) -> Dict[str, bool]:
        """Return whether the server answers, and for each store whether its collections are there."""
        answers = await self.pool.health_check()
        found = {"mongo": answers}
        if answers and self.names:
            present = set(await self.backend.list_collections())
            for name in self.names:
                found[_COMPONENTS[name]] = present.issuperset(_forms(name).collections)
        return found

    async def close(self) -> None:
        """Close what `open()` opened."""
        self._executors = {}
        await self.pool.shutdown()


_HOMES: Dict[str, str] = {"job_queue": "jobs"}
_COMPONENTS: Dict[str, str] = {
    "conversations": "conversation_store",
    "jobs": "job_store",
    "kv": "kv_store",
}


async def open_mongo(settings: StorageSettings, metrics: Metrics) -> Optional[MongoStores]:
    """Return the open stores in MongoDB, None when the settings name no server."""
    if not is_mongo_configured(settings):
        return None
    stores = MongoStores(settings, metrics)
    await stores.open()
    return stores


class MongoAccess:
    """The part of the manager that hands out MongoDB."""

    _mongo: Optional[MongoStores]
    _open_pool: Callable[..., Any]

    @property
    def mongo_backend(self) -> MongoDBBackend:
        """Administration of MongoDB.

        Raises:
            NotConfiguredError: no server is configured.
        """
        return self._mongo_stores().backend

    def get_mongo_client(self) -> AsyncMongoClient[Dict[str, Any]]:
        """Return PyMongo's client for the running event loop."""
        return self._mongo_stores().pool.client

    def get_mongo_database(self) -> AsyncDatabase[Dict[str, Any]]:
        """Return the database of `mongo.database` on that client."""
        return self._mongo_stores().pool.database

    def _mongo_stores(self) -> MongoStores:
        self._open_pool()
        if self._mongo is None:
            raise NotConfiguredError(
                "MongoDB is not configured: set mongo.url, or keep a store there (use_mongo_for_conversations, kv.backend)"
            )
        return self._mongo

"""The vector store as tools see it: a small protocol, a service on top of it, a registry, and three functions.

    service = build_vector_store_service()               # the store of the configured storage manager
    await service.upsert_vectors("notes", [VectorRecord("a", (0.1, 0.9))])
    answer = await query_vectors("notes", [0.1, 0.8], top_k=3, service=service)     # JSON values, for an agent

The manager makes its store known here by `set_vector_store_provider`: this room imports neither the manager nor the
providers. `modules.storage.vectors.adapter.VectorProviderAdapter` makes a `VectorStoreAdapter` of any provider.
"""

from __future__ import annotations

from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Sequence, Union

from typing_extensions import Protocol

from modules.store_common.errors import AlreadyExistsError, InvalidValueError, NotConfiguredError
from modules.store_common.values import check_identifier
from modules.store_common.vector_records import (
    DeleteResponse,
    QueryMatch,
    QueryResponse,
    UpsertResponse,
    VectorRecord,
)

__all__ = [
    "AdapterFactory",
    "DeleteResponse",
    "QueryMatch",
    "QueryResponse",
    "StoreProvider",
    "UpsertResponse",
    "VectorRecord",
    "VectorStoreAdapter",
    "VectorStoreService",
    "available_vector_store_adapters",
    "build_vector_store_service",
    "create_storage_manager_adapter",
    "create_vector_store_adapter",
    "delete_namespace",
    "query_vectors",
    "register_storage_manager_adapter",
    "register_vector_store_adapter",
    "set_vector_store_provider",
    "upsert_vectors",
]

_DEFAULT_ADAPTER = "storage"
_DEFAULT_DIMENSION = 1536
_OPTIONS = frozenset(("collection_prefix", "default_dimension"))


class VectorStoreAdapter(Protocol):
    """What a store has to offer to tools. `VectorProviderAdapter` offers it."""

    async def upsert_vectors(
        self, namespace: str, vectors: Sequence[VectorRecord], *, tenant_id: Optional[str] = None
    ) -> UpsertResponse:
        """Store records, replacing those with the same id."""
        ...

    async def query_vectors(
        self,
        namespace: str,
        query: Sequence[float],
        *,
        top_k: int = 10,
        metadata_filter: Optional[Mapping[str, Any]] = None,
        include_values: bool = False,
        tenant_id: Optional[str] = None,
    ) -> QueryResponse:
        """Return the records nearest to `query`, best first."""
        ...

    async def delete_namespace(self, namespace: str, *, tenant_id: Optional[str] = None) -> DeleteResponse:
        """Delete a namespace with its records."""
        ...


#: Makes an adapter from its configuration.
AdapterFactory = Callable[[Mapping[str, Any]], VectorStoreAdapter]
#: Gives an adapter of the configured manager's store for a collection prefix and a default dimension.
StoreProvider = Callable[[str, int], Awaitable[VectorStoreAdapter]]

_provider: Optional[StoreProvider] = None


def set_vector_store_provider(provider: Optional[StoreProvider]) -> None:
    """Say where the adapter "storage" finds its store; None forgets it. Called by the storage manager."""
    global _provider
    _provider = provider


class _ManagedAdapter:
    """The store of the configured manager, asked for anew at each call: it may be closed and opened meanwhile."""

    def __init__(self, collection_prefix: str, default_dimension: int) -> None:
        self._collection_prefix = collection_prefix
        self._default_dimension = default_dimension

    async def _store(self) -> VectorStoreAdapter:
        if _provider is None:
            raise NotConfiguredError(
                "no storage manager is known to the vector tools: call get_storage_manager() first, or pass service=..."
            )
        return await _provider(self._collection_prefix, self._default_dimension)

    async def upsert_vectors(
        self, namespace: str, vectors: Sequence[VectorRecord], *, tenant_id: Optional[str] = None
    ) -> UpsertResponse:
        return await (await self._store()).upsert_vectors(namespace, vectors, tenant_id=tenant_id)

    async def query_vectors(
        self,
        namespace: str,
        query: Sequence[float],
        *,
        top_k: int = 10,
        metadata_filter: Optional[Mapping[str, Any]] = None,
        include_values: bool = False,
        tenant_id: Optional[str] = None,
    ) -> QueryResponse:
        store = await self._store()
        return await store.query_vectors(
            namespace,
            query,
            top_k=top_k,
            metadata_filter=metadata_filter,
            include_values=include_values,
            tenant_id=tenant_id,
        )

    async def delete_namespace(self, namespace: str, *, tenant_id: Optional[str] = None) -> DeleteResponse:
        return await (await self._store()).delete_namespace(namespace, tenant_id=tenant_id)


def create_storage_manager_adapter(config: Optional[Mapping[str, Any]] = None) -> VectorStoreAdapter:
    """Return an adapter over the vector store of the process's storage manager; opens nothing.

    Args:
        config: `collection_prefix` (default "") and `default_dimension` (1536), as for `VectorProviderAdapter`.

    Raises:
        InvalidValueError: another option.
    """
    given = dict(config or {})
    for option in given:
        if option not in _OPTIONS:
            raise InvalidValueError(
                f"{str(option)[:60]!r} is not an option of the storage adapter; known: {', '.join(sorted(_OPTIONS))}"
            )
    return _ManagedAdapter(
        given.get("collection_prefix", ""), given.get("default_dimension", _DEFAULT_DIMENSION)
    )


_factories: Dict[str, AdapterFactory] = {_DEFAULT_ADAPTER: create_storage_manager_adapter}


def register_vector_store_adapter(name: str, factory: AdapterFactory, *, replace: bool = False) -> None:
    """Make an adapter known by `name`.

    Args:
        name: An identifier.
        factory: Gets the configuration mapping and returns the adapter; opens nothing.
        replace: Take the place of one of the same name.

    Raises:
        AlreadyExistsError: the name is taken and `replace` is False.
    """
    check_identifier(name, "the adapter's name")
    if name in _factories and not replace:
        raise AlreadyExistsError(
            f"there is a vector store adapter {name!r} already; pass replace=True to replace it"
        )
    _factories[name] = factory


def register_storage_manager_adapter(name: str = "storage_manager") -> None:
    """Make the storage manager's store known by another name than "storage"; harmless when it is.

    Raises:
        AlreadyExistsError: the name is another adapter's.
    """
    if _factories.get(name) is not create_storage_manager_adapter:
        register_vector_store_adapter(name, create_storage_manager_adapter)


def available_vector_store_adapters() -> List[str]:
    """Return the names of the adapters known, sorted."""
    return sorted(_factories)


def create_vector_store_adapter(
    name: str = _DEFAULT_ADAPTER, config: Optional[Mapping[str, Any]] = None
) -> VectorStoreAdapter:
    """Return a new adapter.

    Args:
        name: One of `available_vector_store_adapters()`; "storage" is the configured manager's store.
        config: What the adapter's factory gets.

    Raises:
        NotConfiguredError: no adapter has this name.
    """
    factory = _factories.get(name)
    if factory is None:
        raise NotConfiguredError(
            f"there is no vector store adapter {name!r}; known are {', '.join(available_vector_store_adapters())}"
        )
    return factory({} if config is None else config)


def build_vector_store_service(
    adapter: Union[str, VectorStoreAdapter] = _DEFAULT_ADAPTER, config: Optional[Mapping[str, Any]] = None
) -> VectorStoreService:
    """Return a service over `adapter`: one of your own, or the name of a registered one with its `config`."""
    return VectorStoreService(
        create_vector_store_adapter(adapter, config) if isinstance(adapter, str) else adapter
    )


class VectorStoreService:
    """What tools call. Records may be given as mappings, as an agent writes them.

    Args:
        adapter: The store behind it.
    """

    def __init__(self, adapter: VectorStoreAdapter) -> None:
        self._adapter = adapter

    async def upsert_vectors(
        self,
        namespace: str,
        vectors: Sequence[Union[VectorRecord, Mapping[str, Any]]],
        *,
        tenant_id: Optional[str] = None,
    ) -> UpsertResponse:
        """Store records: `VectorRecord`, or mappings of `id`, `values`, `metadata`, `content`."""
        return await self._adapter.upsert_vectors(namespace, _records(vectors), tenant_id=tenant_id)

    async def query_vectors(
        self,
        namespace: str,
        query: Sequence[float],
        *,
        top_k: int = 10,
        metadata_filter: Optional[Mapping[str, Any]] = None,
        include_values: bool = False,
        tenant_id: Optional[str] = None,
    ) -> QueryResponse:
        """Return the records nearest to `query`, best first; see `VectorProviderAdapter.query_vectors`."""
        return await self._adapter.query_vectors(
            namespace,
            query,
            top_k=top_k,
            metadata_filter=metadata_filter,
            include_values=include_values,
            tenant_id=tenant_id,
        )

    async def delete_namespace(self, namespace: str, *, tenant_id: Optional[str] = None) -> DeleteResponse:
        """Delete a namespace with its records."""
        return await self._adapter.delete_namespace(namespace, tenant_id=tenant_id)


def _records(vectors: Any) -> List[VectorRecord]:
    if isinstance(vectors, (str, bytes, Mapping)) or not hasattr(vectors, "__iter__"):
        raise InvalidValueError("vectors is a list of records")
    return [_record(given, position) for position, given in enumerate(vectors)]


def _record(given: Any, position: int) -> VectorRecord:
    if isinstance(given, VectorRecord):
        return given
    if not isinstance(given, Mapping) or "values" not in given:
        raise InvalidValueError(f"record {position} is not a mapping with id and values")
    unknown = sorted(str(name)[:60] for name in set(given) - {"id", "values", "metadata", "content"})
    if unknown:
        raise InvalidValueError(f"record {position} has unknown fields: {', '.join(unknown)}")
    metadata = given.get("metadata")
    return VectorRecord(
        given.get("id") or "", given["values"], {} if metadata is None else metadata, given.get("content")
    )


def _service(service: Optional[VectorStoreService]) -> VectorStoreService:
    return build_vector_store_service() if service is None else service


async def upsert_vectors(
    namespace: str,
    vectors: Sequence[Union[VectorRecord, Mapping[str, Any]]],
    *,
    tenant_id: Optional[str] = None,
    service: Optional[VectorStoreService] = None,
) -> Dict[str, Any]:
    """Store records, for an agent; return `namespace`, `ids` and `upserted_count`."""
    return (await _service(service).upsert_vectors(namespace, vectors, tenant_id=tenant_id)).to_dict()


async def query_vectors(
    namespace: str,
    query: Sequence[float],
    *,
    top_k: int = 10,
    metadata_filter: Optional[Mapping[str, Any]] = None,
    include_values: bool = False,
    tenant_id: Optional[str] = None,
    service: Optional[VectorStoreService] = None,
) -> Dict[str, Any]:
    """Search, for an agent; return `namespace`, `matches`, `top_k`, `complete` and `reason` as JSON values."""
    answer = await _service(service).query_vectors(
        namespace,
        query,
        top_k=top_k,
        metadata_filter=metadata_filter,
        include_values=include_values,
        tenant_id=tenant_id,
    )
    return answer.to_dict()


async def delete_namespace(
    namespace: str, *, tenant_id: Optional[str] = None, service: Optional[VectorStoreService] = None
) -> Dict[str, Any]:
    """Delete a namespace, for an agent; return `namespace` and whether it was `deleted` (False: it was not there)."""
    return (await _service(service).delete_namespace(namespace, tenant_id=tenant_id)).to_dict()

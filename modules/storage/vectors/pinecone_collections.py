"""Pinecone: the provider's lifecycle and its collections; see `pinecone`."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Dict, List, Optional, Tuple, Union

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import CollectionSpec, check_dimension, require_no_options
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError, VectorStoreError
from modules.storage.vectors.models import Capabilities, DistanceMetric
from modules.storage.vectors.pinecone_client import Connection, Index, PineconeOptions
from modules.storage.vectors.pinecone_names import (
    METRICS,
    check_index_name,
    check_prefix,
    collection_prefix,
    index_name_for,
    namespace_name,
    registry_namespace,
)
from modules.storage.vectors.pinecone_registry import GENERATION, INDEX, Registry
from modules.storage.vectors.pinecone_search import MAX_TOP_K
from modules.storage.vectors.pinecone_space import Space, namespace_counts
from modules.store_common.errors import InvalidValueError, NotInitializedError
from modules.store_common.ids import new_id
from modules.store_common.tenancy import TenantPolicy

__all__ = ["PineconeCollections"]


class PineconeCollections(VectorProvider):
    """Opening and closing, indexes and collections; the arguments are those of `pinecone.PineconeProvider`."""

    def __init__(
        self,
        *,
        api_key: str,
        index_name: str = "atlas-vectors",
        dimension: int = 1536,
        metric: Union[DistanceMetric, str] = DistanceMetric.COSINE,
        cloud: str = "aws",
        region: str = "us-east-1",
        namespace: str = "atlas",
        host: Optional[str] = None,
        timeout_s: float = 30.0,
        ready_timeout_s: float = 300.0,
        visibility_timeout_s: float = 60.0,
        wait_for_visibility: bool = False,
        keep_created_at: bool = False,
        registry_ttl_s: float = 30.0,
        data_api_version: Optional[str] = "2026-04",
        tenancy: Optional[TenantPolicy] = None,
    ) -> None:
        super().__init__(tenancy=tenancy)
        if not isinstance(api_key, str) or not api_key.strip():
            raise InvalidValueError("Pinecone needs an API key; set vectors.pinecone_api_key")
        self._options = PineconeOptions(
            api_key.strip(), host, cloud, region, timeout_s, ready_timeout_s, data_api_version
        )
        self._index_name = check_index_name(index_name)
        self._dimension = check_dimension(dimension)
        self._metric = _metric(metric)
        self._prefix = check_prefix(namespace)
        self._visibility_timeout_s = visibility_timeout_s
        self._wait_for_visibility = wait_for_visibility
        self._keep_created_at = keep_created_at
        self._registry_ttl_s = registry_ttl_s
        self._opened: Optional[Tuple[Connection, Index, Registry]] = None
        self._seen: Dict[Tuple[str, str], float] = {}

    # --- lifecycle ----------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """Approximate search, filters mostly native, visible a little after a write."""
        return Capabilities(
            exact_search=False,
            native_filters=True,
            transactional=False,
            immediately_consistent=False,
            persistent=True,
            max_top_k=MAX_TOP_K,
            deletes_by_age=True,
            keeps_created_at=self._keep_created_at,
        )

    @property
    def place(self) -> str:
        """The index, and how the namespaces begin in it."""
        return f"pinecone {self._options.host or ''} {self._index_name} {self._prefix}"

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._opened is not None

    async def initialize(self) -> None:
        """Connect, make the base index if need be, and wait until it is ready.

        Raises:
            MissingDependencyError: the package pinecone (10 or later) is not installed.
            VectorUnavailableError: Pinecone did not answer, or the index was not ready in time.
        """
        if self._opened is not None:
            return
        connection = Connection(self._options)
        try:
            base = await connection.index(self._index_name, self._dimension, self._metric)
            if base is None:
                raise VectorStoreError(f"the Pinecone index {self._index_name!r} was not made")
        except BaseException:
            await connection.close()
            raise
        space = Space(connection, base, registry_namespace(self._prefix))
        self._opened = (connection, base, Registry(space, self._visibility_timeout_s))

    async def shutdown(self) -> None:
        """Close the connections."""
        opened, self._opened = self._opened, None
        self._specs.clear()
        self._seen.clear()
        if opened is not None:
            await opened[0].close()

    def _open(self) -> Tuple[Connection, Index, Registry]:
        if self._opened is None:
            raise NotInitializedError(f"the vector store {self.name}")
        return self._opened

    async def _ping(self) -> None:
        connection, base, _ = self._open()
        await connection.call("describe_index_stats", base.data.describe_index_stats)

    # --- collections --------------------------------------------------------------------------------------------

    async def _create_collection(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        require_no_options(spec, self.name)
        _, _, registry = self._open()
        if await registry.read(tenant_id, spec.name) is not None:
            raise VectorCollectionError(f"the vector collection {spec.name!r} exists already")
        index = await self._index_of(spec.dimension, METRICS[spec.metric])
        options = {GENERATION: new_id(), INDEX: index.name}
        made = replace(spec, index_type="pinecone", options=options)
        await registry.add(tenant_id, made)
        self._seen[tenant_id, spec.name] = time.monotonic()
        return made

    async def _index_of(self, dimension: int, metric: str) -> Index:
        connection, base, _ = self._open()
        if (base.dimension, base.metric) == (dimension, metric):
            return base
        name = index_name_for(self._index_name, dimension, metric)
        found = await connection.index(name, dimension, metric)
        if found is None or (found.dimension, found.metric) != (dimension, metric):
            raise VectorCollectionError(
                f"the Pinecone index {name!r} has another dimension or metric than {dimension} and {metric}"
            )
        return found

    async def _delete_collection(self, tenant_id: str, name: str) -> bool:
        connection, _, registry = self._open()
        spec = await registry.read(tenant_id, name)
        if spec is None:
            return False
        # first what makes it findable: what is left when the rest fails is never seen again
        await registry.remove(tenant_id, spec)
        self._seen.pop((tenant_id, name), None)
        index = await connection.index(
            spec.options[INDEX], spec.dimension, METRICS[spec.metric], create=False
        )
        if index is None:
            return True
        prefix = collection_prefix(self._prefix, tenant_id, spec.options[GENERATION])
        for namespace in await namespace_counts(connection, index, prefix):
            await Space(connection, index, namespace).drop()
        return True

    async def _read_collection(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        spec = await self._open()[2].read(tenant_id, name)
        if spec is not None:
            self._seen[tenant_id, name] = time.monotonic()
        return spec

    async def _list_collections(self, tenant_id: str) -> List[Tuple[CollectionSpec, int]]:
        connection, _, registry = self._open()
        specs = [spec async for group in registry.list(tenant_id) for spec in group]
        counts: Dict[str, int] = {}
        for name in sorted({spec.options[INDEX] for spec in specs}):
            index = await self._index_for(next(spec for spec in specs if spec.options[INDEX] == name))
            for namespace, count in (
                await namespace_counts(connection, index, collection_prefix(self._prefix, tenant_id, "")[:-1])
            ).items():
                generation = namespace.rpartition("-")[0] + "-"
                counts[generation] = counts.get(generation, 0) + count
        return [
            (spec, counts.get(collection_prefix(self._prefix, tenant_id, spec.options[GENERATION]), 0))
            for spec in specs
        ]

    async def _list_tenants(self) -> List[str]:
        return await self._open()[2].tenants()

    async def _index_for(self, spec: CollectionSpec) -> Index:
        found = await self._open()[0].index(
            spec.options[INDEX], spec.dimension, METRICS[spec.metric], create=False
        )
        if found is None:
            raise VectorStoreError(
                f"the Pinecone index {spec.options[INDEX]!r} of the collection {spec.name!r} is gone"
            )
        return found

    async def _current(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        """Return what the collection is now; looked up again when that was long ago."""
        key = (tenant_id, spec.name)
        if time.monotonic() - self._seen.get(key, float("-inf")) < self._registry_ttl_s:
            return spec
        found = await self._read_collection(tenant_id, spec.name)
        if found is None:
            self._forget(tenant_id, spec.name)
            raise VectorNotFoundError(
                f"there is no vector collection {spec.name!r}; create_collection makes one"
            )
        self._specs[key] = found
        if (found.dimension, found.metric) != (spec.dimension, spec.metric):
            raise VectorCollectionError(
                f"the vector collection {spec.name!r} was deleted and made anew with dimension {found.dimension} and "
                f"metric {found.metric.value}"
            )
        return found

    async def _space(self, tenant_id: str, spec: CollectionSpec, namespace: str) -> Space:
        current = await self._current(tenant_id, spec)
        name = namespace_name(self._prefix, tenant_id, current.options[GENERATION], namespace)
        return Space(self._open()[0], await self._index_for(current), name)


def _metric(given: Union[DistanceMetric, str]) -> str:
    """Return Pinecone's name of a metric given in our words or in its own."""
    if not isinstance(given, DistanceMetric) and given in METRICS.values():
        return given
    try:
        return METRICS[DistanceMetric(given)]
    except ValueError:
        known = ", ".join(sorted({*METRICS.values()}))
        raise InvalidValueError(f"the metric of a Pinecone index is one of {known}") from None

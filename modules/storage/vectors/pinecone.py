"""The vector store on Pinecone (https://www.pinecone.io), through its SDK's asyncio client; see docs/pinecone.md.

One base index holds the registry of collections and the collections of its own dimension and metric; another dimension
or metric gets an index of its own beside it. A collection is a generation of namespaces in one of these indexes. Pinecone
is eventually consistent: what was written is searchable a little later, unless one waits for it.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import (
    CollectionSpec,
    PreparedDocument,
    check_dimension,
    require_no_options,
)
from modules.storage.vectors.engine import Query
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError, VectorStoreError
from modules.storage.vectors.filters import Filter
from modules.storage.vectors.models import Capabilities, DistanceMetric, SearchResults, VectorDocument
from modules.storage.vectors.pinecone_client import Connection, Index, PineconeOptions, in_parallel
from modules.storage.vectors.pinecone_filters import compile_filter
from modules.storage.vectors.pinecone_names import (
    METRICS,
    check_index_name,
    check_prefix,
    collection_prefix,
    index_name_for,
    namespace_name,
    registry_namespace,
    to_record_id,
)
from modules.storage.vectors.pinecone_records import CREATED, STAMP, Record, to_document, to_record
from modules.storage.vectors.pinecone_registry import GENERATION, INDEX, Registry
from modules.storage.vectors.pinecone_search import MAX_TOP_K, passes, search_one
from modules.storage.vectors.pinecone_space import Space, namespace_counts
from modules.storage.vectors.registry import register_vector_provider
from modules.store_common.clock import utc_now
from modules.store_common.errors import InvalidValueError, NotInitializedError
from modules.store_common.ids import new_id
from modules.store_common.tenancy import TenantPolicy

__all__ = ["PineconeProvider"]

_wait: ContextVar[Optional[bool]] = ContextVar("atlas_pinecone_wait", default=None)


@register_vector_provider("pinecone")
class PineconeProvider(VectorProvider):
    """Vectors in Pinecone's serverless indexes.

    Args:
        api_key: The project's key; never logged.
        index_name: The base index; made when it is not there.
        dimension: Of a new base index.
        metric: Of a new base index.
        cloud: Where new indexes are made: aws, gcp or azure.
        region: Where new indexes are made, in the cloud's words.
        namespace: How all namespaces begin; lets several applications share an index.
        host: Of the control plane; None: Pinecone's own.
        timeout_s: How long one request may take, with all its repetitions.
        ready_timeout_s: How long a new index may take until it can be used.
        visibility_timeout_s: How long a write may take until it is visible, where that is waited for.
        wait_for_visibility: Upserts and deletes return only when they are visible; `upsert(wait=...)` says it per call.
        keep_created_at: Read a document before it is replaced, to keep its `created_at`; False saves that request.
        registry_ttl_s: How long a collection that was seen is taken to be there still (another process may delete it).
        data_api_version: API version of the data calls, the one this is tested against; None: the SDK's own.
        tenancy: How the tenant of a call is found.
    """

    name = "pinecone"

    def __init__(
        self,
        *,
        api_key: str,
        index_name: str = "atlas-vectors",
        dimension: int = 1536,
        metric: DistanceMetric = DistanceMetric.COSINE,
        cloud: str = "aws",
        region: str = "us-east-1",
        namespace: str = "atlas",
        host: Optional[str] = None,
        timeout_s: float = 30.0,
        ready_timeout_s: float = 300.0,
        visibility_timeout_s: float = 60.0,
        wait_for_visibility: bool = False,
        keep_created_at: bool = True,
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
        self._metric = METRICS[DistanceMetric(metric)]
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
        )

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
        index = await self._index_for(spec)
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

    # --- documents ----------------------------------------------------------------------------------------------

    async def upsert(
        self,
        collection: str,
        documents: Iterable[VectorDocument],
        *,
        namespace: Optional[str] = None,
        tenant_id: Optional[str] = None,
        wait: Optional[bool] = None,
    ) -> int:
        """Store documents, as `VectorProvider.upsert` does; several batches are not one transaction.

        Args:
            collection: Name given to `create_collection`.
            documents: What to store.
            namespace: Where.
            tenant_id: Whose.
            wait: Return only when searches find them; None: as the provider was told (`wait_for_visibility`).

        Raises:
            VectorUnavailableError: they are not visible in time (they may become so later), or Pinecone did not answer.
        """
        token = _wait.set(wait)
        try:
            return await super().upsert(collection, documents, namespace=namespace, tenant_id=tenant_id)
        finally:
            _wait.reset(token)

    def _waits(self) -> bool:
        asked = _wait.get()
        return self._wait_for_visibility if asked is None else asked

    async def _upsert(
        self, tenant_id: str, spec: CollectionSpec, documents: Sequence[PreparedDocument]
    ) -> None:
        spaces: Dict[str, List[Tuple[PreparedDocument, Record]]] = {}
        stamp, now = new_id(), utc_now()
        # every limit is checked before anything is sent
        for place, document in enumerate(documents):
            record = to_record(document, document.created_at or now, stamp, f"document {place}")
            spaces.setdefault(document.namespace, []).append((document, record))
        for namespace, part in spaces.items():
            space = await self._space(tenant_id, spec, namespace)
            await self._keep_created(space, part)
            records = [record for _, record in part]
            await space.upsert(records)
            if self._waits():
                await space.wait_until_written(records, self._visibility_timeout_s)

    async def _keep_created(self, space: Space, part: Sequence[Tuple[PreparedDocument, Record]]) -> None:
        """Give records of documents that tell no time the time of the record they replace."""
        asked = [record.id for document, record in part if document.created_at is None]
        if not asked or not self._keep_created_at:
            return
        found = await space.fetch(asked)
        for document, record in part:
            before = found.get(record.id)
            if document.created_at is None and before is not None and before.metadata:
                record.fields[CREATED] = before.metadata.get(CREATED, record.fields[CREATED])

    async def _delete(self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]) -> int:
        space = await self._space(tenant_id, spec, namespace)
        asked = [to_record_id(item) for item in ids]
        found = await space.fetch(asked)
        # what is not visible yet is deleted too
        await space.delete(asked)
        await self._until_gone(space, found)
        return len(found)

    async def _delete_where(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, tree: Optional[Filter]
    ) -> int:
        space = await self._space(tenant_id, spec, namespace)
        if tree is None:
            count = sum([len(page) async for page in space.ids()])
            await space.clear()
            return count
        gone: Dict[str, Any] = {}
        async for group in space.matching(compile_filter(tree).native):
            gone.update({key: item for key, item in group.items() if passes(tree, item.metadata)})
        await space.delete(list(gone))
        await self._until_gone(space, gone)
        return len(gone)

    async def _until_gone(self, space: Space, found: Mapping[str, Any]) -> None:
        if found and self._wait_for_visibility:
            stamps = {key: (item.metadata or {}).get(STAMP, "") for key, item in found.items()}
            await space.wait_until_gone(list(found), stamps, self._visibility_timeout_s)

    async def _get(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]
    ) -> List[VectorDocument]:
        space = await self._space(tenant_id, spec, namespace)
        found = await space.fetch([to_record_id(item) for item in ids])
        return [to_document(key, item.values, item.metadata or {}, namespace) for key, item in found.items()]

    async def _count(
        self, tenant_id: str, spec: CollectionSpec, namespace: Optional[str], tree: Optional[Filter]
    ) -> int:
        current = await self._current(tenant_id, spec)
        connection, index = self._open()[0], await self._index_for(current)
        prefix = collection_prefix(self._prefix, tenant_id, current.options[GENERATION])
        if namespace is not None:
            prefix = namespace_name(self._prefix, tenant_id, current.options[GENERATION], namespace)
        counts = await namespace_counts(connection, index, prefix)
        if tree is None:
            return sum(counts.values())
        native = compile_filter(tree).native
        total = 0
        for name in counts:
            async for group in Space(connection, index, name).matching(native):
                total += sum(passes(tree, item.metadata) for item in group.values())
        return total

    async def _scroll(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        namespace: str,
        tree: Optional[Filter],
        after_id: Optional[str],
        limit: int,
    ) -> List[VectorDocument]:
        space = await self._space(tenant_id, spec, namespace)
        after = None if after_id is None else to_record_id(after_id)
        found: List[VectorDocument] = []
        async for page in space.ids():
            asked = [key for key in page if after is None or key > after]
            records = await space.fetch(asked) if asked else {}
            found += [
                to_document(key, records[key].values, records[key].metadata or {}, namespace)
                for key in asked
                if key in records and passes(tree, records[key].metadata)
            ]
            if len(found) >= limit:
                break
        return found[:limit]

    async def _search(self, spec: CollectionSpec, query: Query) -> List[SearchResults]:
        space = await self._space(query.tenant_id, spec, query.namespace)
        compiled = compile_filter(query.filter)

        def one(vector: Any) -> Any:
            return lambda: search_one(space, spec.metric, query, vector, compiled)

        return await in_parallel([one(vector) for vector in query.vectors])

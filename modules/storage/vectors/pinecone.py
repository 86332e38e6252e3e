"""The vector store on Pinecone (https://www.pinecone.io), through its SDK's asyncio client; see docs/pinecone.md.

One base index holds the registry of collections and the collections of its own dimension and metric; another dimension
or metric gets an index of its own beside it. A collection is a generation of namespaces in one of these indexes. Pinecone
is eventually consistent: what was written is searchable a little later, unless one waits for it.
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime
from typing import Any, AsyncIterator, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from modules.storage.vectors.checks import CollectionSpec, PreparedDocument
from modules.storage.vectors.engine import Query
from modules.storage.vectors.filters import Filter
from modules.storage.vectors.models import SearchResults, VectorDocument
from modules.storage.vectors.pinecone_client import in_parallel
from modules.storage.vectors.pinecone_collections import PineconeCollections
from modules.storage.vectors.pinecone_filters import compile_filter
from modules.storage.vectors.pinecone_names import collection_prefix, namespace_name, to_record_id
from modules.storage.vectors.pinecone_records import CREATED, STAMP, Record, is_older, to_document, to_record
from modules.storage.vectors.pinecone_registry import GENERATION
from modules.storage.vectors.pinecone_search import passes, search_one
from modules.storage.vectors.pinecone_space import Space, namespace_counts
from modules.storage.vectors.registry import register_vector_provider
from modules.store_common.clock import utc_now
from modules.store_common.ids import new_id

__all__ = ["PineconeProvider"]

_wait: ContextVar[Optional[bool]] = ContextVar("atlas_pinecone_wait", default=None)


@register_vector_provider("pinecone")
class PineconeProvider(PineconeCollections):
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
        keep_created_at: Read a document before it is replaced, to keep its `created_at`. Each upsert then waits for one
            more request; False: a document without a time gets that of its last write.
        registry_ttl_s: How long a collection that was seen is taken to be there still (another process may delete it).
        data_api_version: API version of the data calls, the one this is tested against; None: the SDK's own.
        tenancy: How the tenant of a call is found.
    """

    name = "pinecone"

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

    async def _delete_older(
        self, tenant_id: str, spec: CollectionSpec, before: datetime
    ) -> AsyncIterator[int]:
        current = await self._current(tenant_id, spec)
        connection, index = self._open()[0], await self._index_for(current)
        prefix = collection_prefix(self._prefix, tenant_id, current.options[GENERATION])
        for name in await namespace_counts(connection, index, prefix):
            space = Space(connection, index, name)
            async for page in space.ids():
                found = await space.fetch(page)
                old = {key: item for key, item in found.items() if is_older(item.metadata or {}, before)}
                if old:
                    await space.delete(list(old))
                    await self._until_gone(space, old)
                yield len(old)

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

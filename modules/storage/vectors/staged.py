"""`uow.vectors` of a vector store that is not in the SQL database: writes are staged, reads see them.

What is written becomes a row of `staged_documents` and a dirty key of the outbox, both in the unit's transaction; nothing is
sent before COMMIT. Reads by id see the unit's own writes over what the store has; a search is answered by the store, and says
that it is not complete when the unit has written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from modules.storage.operations import Executor
from modules.storage.staged_documents import (
    COLLECTION_ID,
    DocumentKey,
    StagedDocument,
    digest_of,
    outbox_key,
    put,
    read_many,
    row_of,
    tombstone,
)
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import CollectionSpec, PreparedDocument
from modules.storage.vectors.engine import Query
from modules.storage.vectors.errors import VectorCollectionError, VectorStoreError
from modules.storage.vectors.models import (
    Capabilities,
    DistanceMetric,
    SearchResults,
    VectorDocument,
)
from modules.store_common.values import encode_json

if TYPE_CHECKING:
    from modules.storage.unit_staging import Staging
    from modules.storage.vectors.filters import Filter
    from modules.store_common.tenancy import TenantPolicy

__all__ = ["StagedVectors", "document_of", "spec_of"]

_UNSEEN = "what this unit of work has written is searchable only after it is committed and applied"


def document_of(staged: StagedDocument) -> VectorDocument:
    """Return what was staged as a document of the vector stores."""
    contents = staged.contents
    vector = np.frombuffer(b"" if staged.vector is None else staged.vector, dtype="<f4")
    return VectorDocument(
        id=staged.key[4],
        vector=vector,
        content=contents["content"],
        metadata=contents["metadata"],
        namespace=staged.key[3],
        created_at=staged.created_at,
    )


def spec_of(staged: StagedDocument) -> CollectionSpec:
    """Return the collection that was staged."""
    contents = staged.contents
    return CollectionSpec(
        staged.key[2],
        contents["dimension"],
        DistanceMetric(contents["metric"]),
        contents["index_type"],
        contents["metadata"],
        contents["options"],
    )


class StagedVectors(VectorProvider):
    """A vector store inside a unit of work that it cannot join.

    Args:
        provider: The store.
        target: Its name in the outbox.
        executor: The unit's.
        staging: The unit's.
        tenancy: How the tenant of a call is found.
    """

    def __init__(
        self,
        provider: VectorProvider,
        target: str,
        executor: Executor,
        staging: Staging,
        tenancy: TenantPolicy,
    ) -> None:
        super().__init__(tenancy=tenancy)
        self._provider = provider
        self._target = target
        self._executor = executor
        self._staging = staging
        self._wrote = False
        self._homed: Dict[Tuple[str, str], bool] = {}

    @property
    def capabilities(self) -> Capabilities:
        """Those of the store, which takes part in the unit by staging."""
        return replace(self._provider.capabilities, transactional=True, immediately_consistent=False)

    @property
    def is_initialized(self) -> bool:
        """Always: the store is opened by whoever applies what is staged."""
        return True

    async def initialize(self) -> None:
        """Nothing to do."""

    async def shutdown(self) -> None:
        """Nothing to do: the store belongs to the manager."""

    async def _ping(self) -> None:
        await self._provider._ping()

    # --- collections --------------------------------------------------------------------------------------------

    def _key(self, tenant_id: str, collection: str, namespace: str, id_: str) -> DocumentKey:
        return tenant_id, self._target, collection, namespace, id_

    async def _home_collection(self, tenant_id: str, name: str) -> Optional[StagedDocument]:
        (found,) = await self._executor.run(
            read_many, [self._key(tenant_id, name, COLLECTION_ID[0], COLLECTION_ID[1])]
        )
        return found

    async def _create_collection(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        if await self._read_collection(tenant_id, spec.name) is not None:
            raise VectorCollectionError(f"there is a vector collection {spec.name!r} already")
        await self._put_collection(tenant_id, spec, staged=True)
        return spec

    async def _put_collection(self, tenant_id: str, spec: CollectionSpec, *, staged: bool) -> None:
        contents = {
            "dimension": spec.dimension,
            "metric": spec.metric.value,
            "index_type": spec.index_type,
            "metadata": dict(spec.metadata),
            "options": dict(spec.options),
        }
        key = self._key(tenant_id, spec.name, *COLLECTION_ID)
        body = encode_json(contents, "the collection")
        await self._executor.run(put, [row_of(key, body, digest_of(contents))])
        self._homed[tenant_id, spec.name] = True
        if staged:
            self._staging.add(outbox_key(key))

    async def _delete_collection(self, tenant_id: str, name: str) -> bool:
        raise VectorStoreError(
            "a collection is not deleted inside a unit of work when its store is not in the SQL database; "
            "use storage.vectors.delete_collection() after the unit"
        )

    async def _read_collection(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        home = await self._home_collection(tenant_id, name)
        if home is not None and not home.deleted:
            self._homed[tenant_id, name] = True
            return spec_of(home)
        await self._provider.require_open()
        return await self._provider._read_collection(tenant_id, name)

    async def _list_collections(self, tenant_id: str) -> List[Tuple[CollectionSpec, int]]:
        await self._provider.require_open()
        return await self._provider._list_collections(tenant_id)

    # --- documents ----------------------------------------------------------------------------------------------

    async def _stage(self, tenant_id: str, spec: CollectionSpec, rows: List[Dict[str, Any]]) -> None:
        self._wrote = True
        if (tenant_id, spec.name) not in self._homed:
            # the collection was made outside of any unit: its home row lets a lost store be rebuilt
            await self._put_collection(tenant_id, spec, staged=False)
        rows.sort(key=lambda row: (row["namespace"], row["id"]))
        await self._executor.run(put, rows)
        for row in rows:
            key = self._key(tenant_id, spec.name, row["namespace"], row["id"])
            self._staging.add(outbox_key(key))

    async def _upsert(
        self, tenant_id: str, spec: CollectionSpec, documents: Sequence[PreparedDocument]
    ) -> None:
        rows = []
        for document in documents:
            contents = {"content": document.content, "metadata": document.metadata}
            vector = document.vector.astype("<f4").tobytes()
            rows.append(
                row_of(
                    self._key(tenant_id, spec.name, document.namespace, document.id),
                    encode_json(contents, "the document"),
                    digest_of(contents, vector),
                    vector,
                    document.created_at,
                )
            )
        await self._stage(tenant_id, spec, rows)

    async def _delete(self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]) -> int:
        keys = [self._key(tenant_id, spec.name, namespace, id_) for id_ in ids]
        known = await self._executor.run(read_many, keys)
        elsewhere = [id_ for id_, staged in zip(ids, known) if staged is None]
        there = sum(staged is not None and not staged.deleted for staged in known)
        if elsewhere:
            await self._provider.require_open()
            there += len(await self._provider._get(tenant_id, spec, namespace, elsewhere))
        await self._stage(tenant_id, spec, [tombstone(key) for key in keys])
        return there

    async def _delete_where(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, tree: Optional[Filter]
    ) -> int:
        raise VectorStoreError(
            "deleting by filter or namespace cannot be staged in a unit of work; name the ids, or use "
            "storage.vectors after the unit"
        )

    async def _get(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]
    ) -> List[VectorDocument]:
        keys = [self._key(tenant_id, spec.name, namespace, id_) for id_ in ids]
        known = await self._executor.run(read_many, keys)
        found = [document_of(staged) for staged in known if staged is not None and not staged.deleted]
        elsewhere = [id_ for id_, staged in zip(ids, known) if staged is None]
        if elsewhere:
            await self._provider.require_open()
            found += await self._provider._get(tenant_id, spec, namespace, elsewhere)
        return found

    async def _count(
        self, tenant_id: str, spec: CollectionSpec, namespace: Optional[str], tree: Optional[Filter]
    ) -> int:
        await self._provider.require_open()
        return await self._provider._count(tenant_id, spec, namespace, tree)

    async def _scroll(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        namespace: str,
        tree: Optional[Filter],
        after_id: Optional[str],
        limit: int,
    ) -> List[VectorDocument]:
        await self._provider.require_open()
        return await self._provider._scroll(tenant_id, spec, namespace, tree, after_id, limit)

    async def _search(self, spec: CollectionSpec, query: Query) -> List[SearchResults]:
        await self._provider.require_open()
        found = await self._provider._search(spec, query)
        if not self._wrote:
            return found
        return [SearchResults(hits, complete=False, reason=hits.reason or _UNSEEN) for hits in found]

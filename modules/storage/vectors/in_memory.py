"""The vector store for tests and tiny data: dictionaries and NumPy, exact, gone with the process."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import AsyncIterator, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import CollectionSpec, PreparedDocument, replace_spec, require_no_options
from modules.storage.vectors.engine import Query
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError
from modules.storage.vectors.filters import Filter, matches
from modules.storage.vectors.models import (
    Capabilities,
    DistanceMetric,
    SearchResults,
    VectorDocument,
    VectorSearchResult,
    named_result,
)
from modules.storage.vectors.ranking import nearest
from modules.storage.vectors.registry import register_vector_provider
from modules.store_common.clock import utc_now
from modules.store_common.tenancy import TenantPolicy
from modules.store_common.values import decode_json

__all__ = ["InMemoryProvider"]


@dataclass(frozen=True, eq=False)
class _Row:
    document: PreparedDocument
    created_at: datetime

    def passes(self, tree: Optional[Filter]) -> bool:
        return tree is None or matches(tree, self.document.metadata)

    def to_document(self, *, metadata: bool = True, vector: bool = True) -> VectorDocument:
        own = self.document
        return VectorDocument(
            id=own.id,
            vector=own.vector.copy() if vector else np.empty(0, dtype=np.float32),
            content=own.content if metadata else None,
            metadata=decode_json(own.metadata_json) if metadata else {},
            namespace=own.namespace,
            created_at=self.created_at,
        )


@dataclass
class _Collection:
    spec: CollectionSpec
    spaces: Dict[str, Dict[str, _Row]] = field(default_factory=dict)

    def rows(self, namespace: Optional[str]) -> List[_Row]:
        if namespace is None:
            return [row for space in self.spaces.values() for row in space.values()]
        return list(self.spaces.get(namespace, {}).values())


@register_vector_provider("in_memory")
class InMemoryProvider(VectorProvider):
    """Vectors in dictionaries of this object; `shutdown` forgets them."""

    name = "in_memory"

    def __init__(self, *, tenancy: Optional[TenantPolicy] = None) -> None:
        super().__init__(tenancy=tenancy)
        self._open = False
        self._collections: Dict[Tuple[str, str], _Collection] = {}

    @property
    def capabilities(self) -> Capabilities:
        """Exact, at once, and only for this object."""
        return Capabilities(
            exact_search=True,
            native_filters=True,
            transactional=False,
            immediately_consistent=True,
            persistent=False,
            deletes_by_age=True,
        )

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._open

    async def initialize(self) -> None:
        """Open it, empty."""
        self._open = True

    async def shutdown(self) -> None:
        """Forget everything."""
        self._open = False
        self._collections.clear()
        self._specs.clear()

    async def _ping(self) -> None:
        return None

    async def _create_collection(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        require_no_options(spec, self.name)
        if (tenant_id, spec.name) in self._collections:
            raise VectorCollectionError(f"the vector collection {spec.name!r} exists already")
        made = replace_spec(spec, index_type="exact")
        self._collections[tenant_id, spec.name] = _Collection(made)
        return made

    async def _delete_collection(self, tenant_id: str, name: str) -> bool:
        return self._collections.pop((tenant_id, name), None) is not None

    async def _read_collection(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        found = self._collections.get((tenant_id, name))
        return None if found is None else found.spec

    async def _list_collections(self, tenant_id: str) -> List[Tuple[CollectionSpec, int]]:
        return [
            (collection.spec, len(collection.rows(None)))
            for (tenant, _), collection in self._collections.items()
            if tenant == tenant_id
        ]

    def _collection(self, tenant_id: str, spec: CollectionSpec) -> _Collection:
        found = self._collections.get((tenant_id, spec.name))
        if found is None:
            self._forget(tenant_id, spec.name)
            raise VectorNotFoundError(
                f"there is no vector collection {spec.name!r}; create_collection makes one"
            )
        return found

    async def _upsert(
        self, tenant_id: str, spec: CollectionSpec, documents: Sequence[PreparedDocument]
    ) -> None:
        spaces = self._collection(tenant_id, spec).spaces
        now = utc_now()
        for document in documents:
            space = spaces.setdefault(document.namespace, {})
            before = space.get(document.id)
            kept = now if before is None else before.created_at
            own = _detached(document)
            space[own.id] = _Row(own, kept if own.created_at is None else own.created_at)

    async def _delete(self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]) -> int:
        space = self._collection(tenant_id, spec).spaces.get(namespace, {})
        return sum(space.pop(item, None) is not None for item in ids)

    async def _delete_where(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, tree: Optional[Filter]
    ) -> int:
        space = self._collection(tenant_id, spec).spaces.get(namespace, {})
        gone = [row.document.id for row in space.values() if row.passes(tree)]
        for item in gone:
            del space[item]
        return len(gone)

    async def _delete_older(
        self, tenant_id: str, spec: CollectionSpec, before: datetime
    ) -> AsyncIterator[int]:
        for space in self._collection(tenant_id, spec).spaces.values():
            gone = [item for item, row in space.items() if row.created_at < before]
            for item in gone:
                del space[item]
            yield len(gone)

    async def _list_tenants(self) -> List[str]:
        return sorted({tenant for tenant, _ in self._collections})

    async def _get(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]
    ) -> List[VectorDocument]:
        space = self._collection(tenant_id, spec).spaces.get(namespace, {})
        return [space[item].to_document() for item in ids if item in space]

    async def _count(
        self, tenant_id: str, spec: CollectionSpec, namespace: Optional[str], tree: Optional[Filter]
    ) -> int:
        return sum(row.passes(tree) for row in self._collection(tenant_id, spec).rows(namespace))

    async def _scroll(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        namespace: str,
        tree: Optional[Filter],
        after_id: Optional[str],
        limit: int,
    ) -> List[VectorDocument]:
        rows = [
            row
            for row in self._collection(tenant_id, spec).rows(namespace)
            if (after_id is None or row.document.id > after_id) and row.passes(tree)
        ]
        rows.sort(key=lambda row: row.document.id)
        return [row.to_document() for row in rows[:limit]]

    async def _search(self, spec: CollectionSpec, query: Query) -> List[SearchResults]:
        rows = [
            row
            for row in self._collection(query.tenant_id, spec).rows(query.namespace)
            if row.passes(query.filter)
        ]
        if not rows:
            return [SearchResults() for _ in query.vectors]
        matrix = np.stack([row.document.vector for row in rows])
        return [_answer(spec.metric, vector, matrix, rows, query) for vector in query.vectors]


def _answer(
    metric: DistanceMetric,
    vector: NDArray[np.float32],
    matrix: NDArray[np.float32],
    rows: List[_Row],
    query: Query,
) -> SearchResults:
    ids = [row.document.id for row in rows]
    ranked = nearest(metric, vector, matrix, None, ids, query.top_k)
    if query.ids_only:
        return SearchResults(
            named_result(ids[position], query.namespace, score, distance)
            for position, score, distance in zip(ranked.positions, ranked.scores, ranked.distances)
        )
    return SearchResults(
        VectorSearchResult(
            rows[position].to_document(metadata=query.include_metadata, vector=query.include_vectors),
            score,
            distance,
        )
        for position, score, distance in zip(ranked.positions, ranked.scores, ranked.distances)
    )


def _detached(document: PreparedDocument) -> PreparedDocument:
    """Return a copy that shares nothing with what the caller may change later."""
    return PreparedDocument(
        namespace=document.namespace,
        id=document.id,
        vector=document.vector.copy(),
        content=document.content,
        metadata=decode_json(document.metadata_json),
        metadata_json=document.metadata_json,
        created_at=document.created_at,
    )

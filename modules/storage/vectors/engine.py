"""`VectorEngine`: what a vector provider implements. Its hooks get values that `VectorProvider` has checked."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, AsyncIterator, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.errors import VectorStoreError

if TYPE_CHECKING:
    from modules.storage.vectors.checks import CollectionSpec, PreparedDocument
    from modules.storage.vectors.filters import Filter
    from modules.storage.vectors.models import Capabilities, SearchResults, VectorDocument

__all__ = ["Query", "VectorEngine"]


@dataclass(frozen=True, eq=False)
class Query:
    """A checked search, for the hook `_search`.

    Attributes:
        tenant_id: Whose documents.
        namespace: Where.
        vectors: float32, shape (queries, dimension).
        top_k: Results wanted for each query.
        filter: The parsed filter; None: all.
        include_metadata: False may leave metadata and content out.
        include_vectors: False may leave the vectors out.
        ids_only: Nothing but ids and scores is wanted; the two above are False then, and `created_at` may be left out.
    """

    tenant_id: str
    namespace: str
    vectors: NDArray[np.float32]
    top_k: int
    filter: Optional[Filter]
    include_metadata: bool
    include_vectors: bool
    ids_only: bool = False


class VectorEngine(abc.ABC):
    """The lifecycle and the hooks of a vector store."""

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What the engine does by itself."""

    @property
    @abc.abstractmethod
    def is_initialized(self) -> bool:
        """Whether the store is open."""

    @abc.abstractmethod
    async def initialize(self) -> None:
        """Open the store. Harmless when open; a failed call leaves nothing open."""

    @abc.abstractmethod
    async def shutdown(self) -> None:
        """Close what this provider opened. Harmless when closed."""

    @abc.abstractmethod
    async def _ping(self) -> None:
        """Ask the engine for a sign of life."""

    @abc.abstractmethod
    async def _create_collection(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        """Create it and return what it became (index_type set); `VectorCollectionError` if the name is taken."""

    @abc.abstractmethod
    async def _delete_collection(self, tenant_id: str, name: str) -> bool:
        """Delete it with its documents; whether it was there."""

    @abc.abstractmethod
    async def _read_collection(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        """Return it, None when there is none."""

    @abc.abstractmethod
    async def _list_collections(self, tenant_id: str) -> List[Tuple[CollectionSpec, int]]:
        """Return all of the tenant with their counts, in any order."""

    @abc.abstractmethod
    async def _upsert(
        self, tenant_id: str, spec: CollectionSpec, documents: Sequence[PreparedDocument]
    ) -> None:
        """Store documents, all of them or none where the engine can.

        A `created_at` of None keeps the one there is, where `capabilities.keeps_created_at` says so.
        """

    @abc.abstractmethod
    async def _delete(self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]) -> int:
        """Delete by id; how many were there."""

    @abc.abstractmethod
    async def _delete_where(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, tree: Optional[Filter]
    ) -> int:
        """Delete what passes the filter (None: all in the namespace); how many."""

    @abc.abstractmethod
    async def _get(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]
    ) -> List[VectorDocument]:
        """Return those that are there, in any order."""

    @abc.abstractmethod
    async def _count(
        self, tenant_id: str, spec: CollectionSpec, namespace: Optional[str], tree: Optional[Filter]
    ) -> int:
        """Count, in one namespace or (None) in all."""

    @abc.abstractmethod
    async def _scroll(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        namespace: str,
        tree: Optional[Filter],
        after_id: Optional[str],
        limit: int,
    ) -> List[VectorDocument]:
        """Return up to `limit` documents with ids after `after_id`, by id in code-point order."""

    @abc.abstractmethod
    async def _search(self, spec: CollectionSpec, query: Query) -> List[SearchResults]:
        """Answer every query vector."""

    def _delete_older(self, tenant_id: str, spec: CollectionSpec, before: datetime) -> AsyncIterator[int]:
        """Delete what was created before `before`, in all namespaces, in small steps; yield how many after each."""
        raise VectorStoreError(f"the vector store {type(self).__name__} cannot delete documents by their age")

    async def _list_tenants(self) -> List[str]:
        """Return the tenants that have collections, in any order; for upkeep across tenants."""
        raise VectorStoreError(f"the vector store {type(self).__name__} cannot list its tenants")

    async def _rebuild_index(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        """Rebuild the search index; the default has none."""
        return spec

"""The bridge to the tools: a vector provider as the tools' small protocol sees it.

A namespace of the tools is a collection of the provider; its dimension comes from the first vectors. The protocol, its
registry and its service are in `modules.Tools.Base_Tools.vector_store`; this room does not import it.
"""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import CollectionSpec, check_dimension, check_top_k, prepare_documents
from modules.storage.vectors.errors import VectorCollectionError, VectorDimensionError, VectorNotFoundError
from modules.storage.vectors.filters import parse_filter
from modules.storage.vectors.models import DistanceMetric, VectorDocument, VectorSearchResult
from modules.store_common.errors import InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier
from modules.store_common.vector_records import (
    DeleteResponse,
    QueryMatch,
    QueryResponse,
    UpsertResponse,
    VectorRecord,
)

__all__ = ["VectorProviderAdapter"]


class VectorProviderAdapter:
    """The tools' `VectorStoreAdapter` over a provider.

    Args:
        provider: Open, or opened by its first call; it stays its owner's.
        collection_prefix: How the names of its collections begin, so that others' are left alone.
        default_dimension: Of a namespace that `ensure_namespace` makes without being told one.
    """

    def __init__(
        self, provider: VectorProvider, *, collection_prefix: str = "", default_dimension: int = 1536
    ) -> None:
        if not isinstance(collection_prefix, str):
            raise InvalidValueError("collection_prefix is a text")
        if collection_prefix:
            check_identifier(collection_prefix, "collection_prefix")
        self._provider = provider
        self._prefix = collection_prefix
        self._default_dimension = check_dimension(default_dimension)

    @property
    def provider(self) -> VectorProvider:
        """The provider behind it."""
        return self._provider

    async def ensure_namespace(
        self, namespace: str, *, dimension: Optional[int] = None, tenant_id: Optional[str] = None
    ) -> bool:
        """Make a namespace that has no vectors yet; return whether it was made.

        Args:
            namespace: Which.
            dimension: Numbers in its vectors; None: the adapter's default.
            tenant_id: Whose; see `tenant_context`.
        """
        collection = self._collection(namespace)
        if await self._provider.get_collection(collection, tenant_id=tenant_id) is not None:
            return False
        wanted = self._default_dimension if dimension is None else dimension
        return await self._create(collection, wanted, tenant_id)

    async def upsert_vectors(
        self, namespace: str, vectors: Sequence[VectorRecord], *, tenant_id: Optional[str] = None
    ) -> UpsertResponse:
        """Store records, replacing those with the same id; a namespace that is missing is made.

        Raises:
            VectorDimensionError: a vector has another length than the namespace's (or the first one's); none was stored.
        """
        collection = self._collection(namespace)
        documents = _documents(vectors)
        if not documents:
            return UpsertResponse(namespace, (), 0)
        try:
            await self._provider.upsert(collection, documents, tenant_id=tenant_id)
        except VectorNotFoundError:
            # a namespace is not made for vectors that it would not take
            dimension = _dimension_of(documents[0])
            prepare_documents(
                documents,
                None,
                CollectionSpec(collection, dimension, DistanceMetric.COSINE, "", {}, {}),
            )
            await self._create(collection, dimension, tenant_id)
            await self._provider.upsert(collection, documents, tenant_id=tenant_id)
        # as the provider does it: of several with one id the last one counts
        ids = tuple(reversed(list(dict.fromkeys(document.id for document in reversed(documents)))))
        return UpsertResponse(namespace, ids, len(ids))

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
        """Return the records nearest to `query`; of a namespace that nothing was stored in, none.

        Args:
            namespace: Where to look.
            query: A vector of the namespace's dimension.
            top_k: Records wanted.
            metadata_filter: In the language of docs/vectors.md, "Filters".
            include_values: Return the vectors.
            tenant_id: Whose records; see `tenant_context`.
        """
        collection = self._collection(namespace)
        try:
            found = await self._provider.search(
                collection,
                query,
                top_k=top_k,
                filter=metadata_filter,
                include_vectors=include_values,
                tenant_id=tenant_id,
            )
        except VectorNotFoundError:
            parse_filter(metadata_filter)
            check_top_k(top_k, self._provider.capabilities.max_top_k)
            return QueryResponse(namespace, (), top_k)
        matches = tuple(_match(hit, include_values) for hit in found)
        return QueryResponse(namespace, matches, top_k, found.complete, found.reason)

    async def delete_namespace(self, namespace: str, *, tenant_id: Optional[str] = None) -> DeleteResponse:
        """Delete a namespace with its records; it may be made again with another dimension."""
        deleted = await self._provider.delete_collection(self._collection(namespace), tenant_id=tenant_id)
        return DeleteResponse(namespace, deleted)

    def _collection(self, namespace: str) -> str:
        check_identifier(namespace, "the namespace")
        return check_identifier(
            f"{self._prefix}{namespace}", "the namespace with the adapter's collection_prefix"
        )

    async def _create(self, collection: str, dimension: int, tenant_id: Optional[str]) -> bool:
        try:
            await self._provider.create_collection(collection, dimension, tenant_id=tenant_id)
        except VectorCollectionError:
            if await self._provider.get_collection(collection, tenant_id=tenant_id) is None:
                raise
            # somebody else made it at the same time
            return False
        return True


def _documents(vectors: Sequence[VectorRecord]) -> List[VectorDocument]:
    if isinstance(vectors, (str, bytes, Mapping)) or not hasattr(vectors, "__iter__"):
        raise InvalidValueError("vectors is a list of VectorRecord")
    documents = []
    for position, record in enumerate(vectors):
        if not isinstance(record, VectorRecord):
            raise InvalidValueError(f"vector {position} is a {type(record).__name__}, not a VectorRecord")
        blank = record.id is None or (isinstance(record.id, str) and not record.id.strip())
        documents.append(
            VectorDocument(
                new_id() if blank else record.id,
                record.values,
                content=record.content,
                metadata=record.metadata,
            )
        )
    return documents


def _dimension_of(document: VectorDocument) -> int:
    try:
        return check_dimension(len(document.vector))
    except TypeError:
        raise VectorDimensionError(
            f"the first vector is not a list of numbers but a {type(document.vector).__name__}"
        ) from None


def _match(hit: VectorSearchResult, include_values: bool) -> QueryMatch:
    own = hit.document
    return QueryMatch(
        own.id,
        hit.score,
        own.metadata,
        own.content,
        tuple(float(number) for number in own.vector) if include_values else None,
    )

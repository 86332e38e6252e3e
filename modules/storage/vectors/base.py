"""`VectorProvider`: the interface of every vector store, and the part of it that is the same for all.

The public methods check their arguments, find the tenant and know the collections; a provider implements the hooks of
`VectorEngine`, which get checked values only. See docs/vectors.md, "Write your own provider".
"""

from __future__ import annotations

import inspect
from datetime import datetime
from typing import (
    Any,
    Awaitable,
    Callable,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Union,
)

import numpy as np
from numpy.typing import NDArray

from modules.storage.opening import run_in_thread
from modules.storage.vectors.checks import (
    CollectionSpec,
    PreparedDocument,
    check_ids,
    check_top_k,
    namespace_of,
    namespace_or_none,
    prepare_documents,
    prepare_matrix,
)
from modules.storage.vectors.engine import Query
from modules.storage.vectors.errors import (
    VectorCollectionError,
    VectorDimensionError,
    VectorFilterError,
    VectorNotFoundError,
    VectorRateLimitedError,
    VectorStoreError,
    VectorUnavailableError,
)
from modules.storage.vectors.filters import parse_filter
from modules.storage.vectors.models import (
    Capabilities,
    CollectionInfo,
    DistanceMetric,
    SearchResults,
    Vector,
    VectorDocument,
    VectorPage,
    VectorSearchResult,
)
from modules.storage.vectors.provider_collections import ProviderCollections
from modules.store_common.clock import require_utc
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import (
    InvalidCursorError,
    InvalidValueError,
)

__all__ = [
    "Capabilities",
    "CollectionInfo",
    "CollectionSpec",
    "DistanceMetric",
    "EmbedFunction",
    "PreparedDocument",
    "Query",
    "SearchResults",
    "VectorCollectionError",
    "VectorDimensionError",
    "VectorDocument",
    "VectorFilterError",
    "VectorNotFoundError",
    "VectorPage",
    "VectorProvider",
    "VectorRateLimitedError",
    "VectorSearchResult",
    "VectorStoreError",
    "VectorUnavailableError",
]

#: Makes a vector of a text; a plain function is run in a thread.
EmbedFunction = Callable[[str], Union[Vector, Awaitable[Vector]]]


class VectorProvider(ProviderCollections):
    """A vector store. Construct without I/O, `initialize()`, use, `shutdown()`; all may be repeated.

    Collections belong to a tenant, like documents: two tenants may have different collections of one name.

    Args:
        tenancy: How the tenant of a call is found.
    """

    # --- documents ----------------------------------------------------------------------------------------------

    async def upsert(
        self,
        collection: str,
        documents: Iterable[VectorDocument],
        *,
        namespace: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Store documents, replacing those with the same id. Of several with one id in one call the last one counts.

        Returns:
            How many documents were stored.

        Raises:
            VectorDimensionError, InvalidValueError: one is wrong; none was stored.
            VectorNotFoundError: there is no such collection.
        """
        tenant, spec = await self._known(collection, tenant_id)
        prepared = prepare_documents(documents, namespace_or_none(namespace), spec)
        if prepared:
            await self._upsert(tenant, spec, prepared)
        return len(prepared)

    async def delete(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        namespace: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Delete documents by id and return how many were there."""
        tenant, spec = await self._known(collection, tenant_id)
        wanted = check_ids(ids)
        return await self._delete(tenant, spec, namespace_of(namespace), wanted) if wanted else 0

    async def delete_where(
        self,
        collection: str,
        filter: Mapping[str, Any],
        *,
        namespace: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Delete the documents that pass `filter` and return how many; an empty filter is refused."""
        tenant, spec = await self._known(collection, tenant_id)
        tree = parse_filter(filter)
        if tree is None:
            raise VectorFilterError(
                "delete_where needs a filter; clear_namespace deletes everything in a namespace"
            )
        return await self._delete_where(tenant, spec, namespace_of(namespace), tree)

    async def clear_namespace(
        self, collection: str, namespace: Optional[str] = None, *, tenant_id: Optional[str] = None
    ) -> int:
        """Delete every document in a namespace and return how many there were."""
        tenant, spec = await self._known(collection, tenant_id)
        return await self._delete_where(tenant, spec, namespace_of(namespace), None)

    async def delete_older(
        self, collection: str, before: datetime, *, tenant_id: Optional[str] = None
    ) -> int:
        """Delete the documents of all namespaces whose `created_at` is before `before`; return how many.

        Done in small steps, so that others' calls come in between. `retention.vector_days` does it for every collection.

        Args:
            collection: Name given to `create_collection`.
            before: Aware; a document of exactly this time stays.
            tenant_id: Whose.

        Raises:
            VectorStoreError: the provider, somebody else's, cannot do it.
        """
        tenant, spec = await self._known(collection, tenant_id)
        instant = require_utc(before, "before")
        if instant is None:
            raise InvalidValueError("before is an aware datetime")
        return sum([count async for count in self._delete_older(tenant, spec, instant)])

    async def get(
        self,
        collection: str,
        ids: Sequence[str],
        *,
        namespace: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> List[VectorDocument]:
        """Return the documents of `ids` that are there, in the order of `ids`."""
        tenant, spec = await self._known(collection, tenant_id)
        wanted = check_ids(ids)
        if not wanted:
            return []
        found = {item.id: item for item in await self._get(tenant, spec, namespace_of(namespace), wanted)}
        return [found[item] for item in wanted if item in found]

    async def count(
        self,
        collection: str,
        *,
        namespace: Optional[str] = None,
        filter: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Return how many documents there are: in `namespace` (None: in all), passing `filter`."""
        tenant, spec = await self._known(collection, tenant_id)
        return await self._count(tenant, spec, namespace_or_none(namespace), parse_filter(filter))

    async def scroll(
        self,
        collection: str,
        *,
        limit: int = 100,
        cursor: Optional[str] = None,
        namespace: Optional[str] = None,
        filter: Optional[Mapping[str, Any]] = None,
        tenant_id: Optional[str] = None,
    ) -> VectorPage:
        """Return a page of documents by id; pass `next_cursor` of one page to get the next."""
        tenant, spec = await self._known(collection, tenant_id)
        check_top_k(limit, 10_000, "limit")
        place = namespace_of(namespace)
        tree = parse_filter(filter)
        bound = [collection, place, dict(filter or {})]
        after = decode_cursor(cursor, tenant, "vectors", 1, filters=bound)
        if after is not None and not isinstance(after[0], str):
            raise InvalidCursorError("the cursor is damaged; start again without one")
        items = await self._scroll(tenant, spec, place, tree, None if after is None else after[0], limit + 1)
        more = len(items) > limit
        items = items[:limit]
        return VectorPage(
            items, encode_cursor(tenant, "vectors", [items[-1].id], filters=bound) if more else None
        )

    # --- search -------------------------------------------------------------------------------------------------

    async def search(
        self,
        collection: str,
        query_vector: Vector,
        *,
        top_k: int = 10,
        namespace: Optional[str] = None,
        filter: Optional[Mapping[str, Any]] = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        ids_only: bool = False,
        tenant_id: Optional[str] = None,
    ) -> SearchResults:
        """Return the documents nearest to `query_vector`, best first, ties by id.

        Args:
            collection: Name given to `create_collection`.
            query_vector: Shape (dimension,), finite; need not be normalised.
            top_k: Documents wanted, 1 to `capabilities.max_top_k`.
            namespace: Where to look; None: the default namespace.
            filter: In the language of `filters`; None: all.
            include_metadata: Return content and metadata.
            include_vectors: Return the vectors.
            ids_only: Nothing but ids and scores is wanted, whatever the two before say: the cheapest answer, above all
                for a large `top_k`. Documents have no metadata, content or vector then, and maybe no `created_at`.
            tenant_id: Whose documents.

        Returns:
            At most `top_k` results with scores by the formulas of `DistanceMetric`; `complete` is False when the index
            may have missed matches.

        Raises:
            VectorDimensionError, VectorFilterError: raised before the store is touched.
        """
        results = await self.search_many(
            collection,
            [query_vector],
            top_k=top_k,
            namespace=namespace,
            filter=filter,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            ids_only=ids_only,
            tenant_id=tenant_id,
        )
        return results[0]

    async def search_many(
        self,
        collection: str,
        query_vectors: Union[Sequence[Vector], NDArray[Any]],
        *,
        top_k: int = 10,
        namespace: Optional[str] = None,
        filter: Optional[Mapping[str, Any]] = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        ids_only: bool = False,
        tenant_id: Optional[str] = None,
    ) -> List[SearchResults]:
        """Answer several queries in one call, each as `search` would; in their order."""
        tenant, spec = await self._known(collection, tenant_id)
        tree = parse_filter(filter)
        check_top_k(top_k, self.capabilities.max_top_k)
        if not isinstance(query_vectors, (list, tuple, np.ndarray)):
            raise VectorDimensionError("the query vectors are a list of vectors or a matrix")
        if len(query_vectors) == 0:
            return []
        query = Query(
            tenant,
            namespace_of(namespace),
            prepare_matrix(query_vectors, spec, "the query vector"),
            top_k,
            tree,
            include_metadata and not ids_only,
            include_vectors and not ids_only,
            ids_only,
        )
        return await self._search(spec, query)

    async def search_by_text(
        self,
        collection: str,
        query_text: str,
        *,
        embed_fn: EmbedFunction,
        top_k: int = 10,
        namespace: Optional[str] = None,
        filter: Optional[Mapping[str, Any]] = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        tenant_id: Optional[str] = None,
    ) -> SearchResults:
        """Embed `query_text` and search; `embed_fn` may be async, or a plain function, which runs in a thread."""
        if not isinstance(query_text, str) or not query_text.strip():
            raise InvalidValueError("the query text is blank")
        if inspect.iscoroutinefunction(embed_fn):
            vector = await embed_fn(query_text)
        else:
            vector = await run_in_thread(lambda: embed_fn(query_text))
            if inspect.isawaitable(vector):
                vector = await vector
        return await self.search(
            collection,
            vector,
            top_k=top_k,
            namespace=namespace,
            filter=filter,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
            tenant_id=tenant_id,
        )

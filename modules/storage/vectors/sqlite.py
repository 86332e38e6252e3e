"""The embedded vector store: documents in the application's own SQLite database, searched exactly in memory.

Vectors are float32 BLOBs beside everything else, so an upsert joins the transaction of the messages it belongs to. A
search multiplies a matrix kept in memory for each namespace, which is brought up to date by the collection's change
counter before every search: other processes' writes are seen. A filter is answered in SQL first, and only what passes is
scored. Recall is 1.0 at any size, unless an approximate index is asked for (`sqlite_ann`).
"""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import (
    Any,
    AsyncIterator,
    Awaitable,
    Callable,
    Dict,
    List,
    Optional,
    Sequence,
    Tuple,
    TypeVar,
)

import numpy as np
from numpy.typing import NDArray

from modules.storage.opening import run_in_thread
from modules.storage.operations import Executor
from modules.storage.statements import Row
from modules.storage.vectors import sqlite_operations as operations
from modules.storage.vectors import sqlite_upkeep as upkeep
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import CollectionSpec, PreparedDocument, namespace_of, require_no_options
from modules.storage.vectors.engine import Query
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError, VectorStoreError
from modules.storage.vectors.filters import Filter
from modules.storage.vectors.models import Capabilities, DistanceMetric, SearchResults, VectorDocument
from modules.storage.vectors.registry import register_vector_provider
from modules.storage.vectors.sqlite_ann import AnnOptions, load_faiss
from modules.storage.vectors.sqlite_building import IndexBuilds, RecallReport
from modules.storage.vectors.sqlite_matrix import MatrixCache
from modules.storage.vectors.sqlite_operations import CollectionGoneError, Place
from modules.storage.vectors.sqlite_search import Search, document_of
from modules.store_common.errors import InvalidValueError, StatementError
from modules.store_common.tenancy import TenantPolicy
from modules.store_common.values import encode_json

__all__ = ["RecallReport", "SQLiteVectorProvider"]

T = TypeVar("T")

_CACHE_BYTES = 1024 * 1024 * 1024
_ATTEMPTS = 3


@register_vector_provider("sqlite")
class SQLiteVectorProvider(VectorProvider):
    """Vectors in a SQLite database, over its executor. The tables are made by migrations (or `sqlite_models.TABLES`).

    Args:
        executor: Of the database; stays open at `shutdown`.
        tenancy: How the tenant of a call is found.
        cache_bytes: How much memory the matrices may take together (a namespace that does not fit is read from the file
            at every search); 0: none are kept.
        ann_rows: Documents in a namespace from which on searches without a filter use an approximate index, kept in
            memory and built in the background (extra `ann`); 0: never, every search is exact.
        ann_recall: Share of the 10 nearest that it must find in its own measurement to be used, above 0 to 1.
    """

    name = "sqlite"

    def __init__(
        self,
        executor: Executor,
        *,
        tenancy: Optional[TenantPolicy] = None,
        cache_bytes: int = _CACHE_BYTES,
        ann_rows: int = 0,
        ann_recall: float = 0.98,
    ) -> None:
        super().__init__(tenancy=tenancy)
        if ann_rows < 0 or not 0 < ann_recall <= 1:
            raise InvalidValueError("ann_rows is 0 or more, ann_recall above 0 and at most 1")
        self._ann = AnnOptions(ann_rows, ann_recall)
        self._builds = IndexBuilds(self._ann)
        self._executor = executor
        self._cache = MatrixCache(cache_bytes)
        self._workers: Optional[ThreadPoolExecutor] = None
        self._joined = False

    @property
    def capabilities(self) -> Capabilities:
        """Exact, unless an approximate index was asked for; joins the database's transactions."""
        return Capabilities(
            exact_search=not self._ann.rows,
            native_filters=True,
            transactional=True,
            immediately_consistent=True,
            persistent=True,
            deletes_by_age=True,
        )

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._joined or self._workers is not None

    @property
    def cache_size_bytes(self) -> int:
        """About how much memory the matrices take."""
        return self._cache.size_bytes

    def within(self, executor: Executor) -> SQLiteVectorProvider:
        """Return a provider inside a unit of work's transaction. It keeps no matrices: what it sees may be undone."""
        made = SQLiteVectorProvider(executor, tenancy=self._tenancy, cache_bytes=0)
        made._workers = self._workers
        made._specs = dict(self._specs)
        made._joined = True
        return made

    async def initialize(self) -> None:
        """Open it.

        Raises:
            VectorStoreError: the tables are not there.
        """
        if self._workers is not None:
            return
        if self._executor.dialect != "sqlite":
            raise VectorStoreError(
                "the vector store sqlite needs a SQLite database; use pgvector on PostgreSQL"
            )
        try:
            await self._ping()
        except StatementError as exc:
            raise VectorStoreError(
                "the tables of the vector store are not in this database; run `atlas-storage migrate`"
            ) from exc
        if self._ann.rows:
            await run_in_thread(load_faiss)
        if self._workers is None:
            self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="atlas-vectors")

    async def shutdown(self) -> None:
        """Forget the matrices and end the worker threads; the executor stays open."""
        workers, self._workers = self._workers, None
        await self._builds.cancel()
        self._cache.clear()
        self._specs.clear()
        if workers is not None:
            await run_in_thread(workers.shutdown)

    async def _ping(self) -> None:
        await self._executor.run(operations.ping)

    # --- collections ----------------------------------------------------------------------------------------------

    async def _create_collection(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        require_no_options(spec, self.name)
        number = secrets.randbits(62)
        metadata = encode_json(dict(spec.metadata), "the collection's metadata")
        created = await self._executor.run(
            operations.create_collection,
            {
                "tenant": tenant_id,
                "name": spec.name,
                "collection": number,
                "dimension": spec.dimension,
                "metric": spec.metric.value,
                "metadata": metadata,
            },
        )
        if not created:
            raise VectorCollectionError(f"the vector collection {spec.name!r} exists already")
        return _spec_of((spec.name, spec.dimension, spec.metric.value, spec.metadata, number))

    async def _delete_collection(self, tenant_id: str, name: str) -> bool:
        return await self._executor.run(operations.delete_collection, tenant_id, name)

    async def _read_collection(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        row = await self._executor.run(operations.read_collection, tenant_id, name)
        return None if row is None else _spec_of(row)

    async def _list_collections(self, tenant_id: str) -> List[Tuple[CollectionSpec, int]]:
        rows = await self._executor.run(operations.list_collections, tenant_id)
        return [(_spec_of(row), row[5]) for row in rows]

    async def _present(
        self, tenant_id: str, spec: CollectionSpec, call: Callable[[CollectionSpec, int], Awaitable[T]]
    ) -> T:
        """Run `call(spec, collection_id)`; again with what took the collection's place, when it was made anew."""
        for _ in range(_ATTEMPTS):
            try:
                return await call(spec, spec.options["collection_id"])
            except CollectionGoneError:
                self._forget(tenant_id, spec.name)
                fresh = await self._read_collection(tenant_id, spec.name)
                if fresh is None:
                    break
                self._specs[tenant_id, spec.name] = fresh
                if (fresh.dimension, fresh.metric) != (spec.dimension, spec.metric):
                    raise VectorCollectionError(
                        f"the vector collection {spec.name!r} was made anew with another dimension or metric; call again"
                    ) from None
                spec = fresh
        raise VectorNotFoundError(f"there is no vector collection {spec.name!r}; create_collection makes one")

    # --- documents ------------------------------------------------------------------------------------------------

    async def _upsert(
        self, tenant_id: str, spec: CollectionSpec, documents: Sequence[PreparedDocument]
    ) -> None:
        rows = [_row_of(document) for document in documents]
        await self._present(
            tenant_id,
            spec,
            lambda spec, number: self._executor.run(operations.upsert, tenant_id, number, rows),
        )

    async def _delete(self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]) -> int:
        return await self._present(
            tenant_id,
            spec,
            lambda spec, number: self._executor.run(
                operations.delete_ids, Place(tenant_id, number, namespace), ids
            ),
        )

    async def _delete_where(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, tree: Optional[Filter]
    ) -> int:
        async def call(spec: CollectionSpec, number: int) -> int:
            place = Place(tenant_id, number, namespace)
            if tree is None:
                return await self._executor.run(operations.clear, place)
            return await self._executor.run(operations.delete_matching, place, tree)

        return await self._present(tenant_id, spec, call)

    async def _delete_older(
        self, tenant_id: str, spec: CollectionSpec, before: datetime
    ) -> AsyncIterator[int]:
        after: Optional[Tuple[str, str]] = ("", "")
        while after is not None:
            start = after
            gone, after = await self._present(
                tenant_id,
                spec,
                lambda spec, number, start=start: self._executor.run(  # type: ignore[misc]
                    upkeep.delete_older, tenant_id, number, before, start
                ),
            )
            yield gone

    async def _list_tenants(self) -> List[str]:
        return await self._executor.run(upkeep.list_tenants)

    async def _get(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]
    ) -> List[VectorDocument]:
        rows: List[Row] = await self._present(
            tenant_id,
            spec,
            lambda spec, number: self._executor.run(
                operations.get_documents, Place(tenant_id, number, namespace), ids
            ),
        )
        return [document_of(row, namespace) for row in rows]

    async def _count(
        self, tenant_id: str, spec: CollectionSpec, namespace: Optional[str], tree: Optional[Filter]
    ) -> int:
        return await self._present(
            tenant_id,
            spec,
            lambda spec, number: self._executor.run(operations.count, tenant_id, number, namespace, tree),
        )

    async def _scroll(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        namespace: str,
        tree: Optional[Filter],
        after_id: Optional[str],
        limit: int,
    ) -> List[VectorDocument]:
        rows: List[Row] = await self._present(
            tenant_id,
            spec,
            lambda spec, number: self._executor.run(
                operations.scroll, Place(tenant_id, number, namespace), tree, after_id or "", limit
            ),
        )
        return [document_of(row, namespace) for row in rows]

    async def _search(self, spec: CollectionSpec, query: Query) -> List[SearchResults]:
        return await self._present(
            query.tenant_id,
            spec,
            lambda spec, number: Search(
                self._executor,
                self._cache,
                self._work,
                Place(query.tenant_id, number, query.namespace),
                spec,
                query,
                self._ann,
                self._builds.begin if self._ann.rows and self._workers is not None else None,
            ).run(),
        )

    async def recall(
        self, collection: str, sample: int = 0, *, tenant_id: Optional[str] = None
    ) -> RecallReport:
        """Return what the index of the default namespace was measured to find; its own build takes the sample."""
        found = await self.index_ready(collection, tenant_id=tenant_id)
        return RecallReport(0, 1.0, 0, False) if found is None else found

    async def index_ready(
        self, collection: str, *, namespace: Optional[str] = None, tenant_id: Optional[str] = None
    ) -> Optional[RecallReport]:
        """Wait until the approximate index of a namespace is built, where it is large enough for one.

        Returns:
            What was measured after the build; None: it is searched exactly.
        """
        tenant, spec = await self._known(collection, tenant_id)
        place = Place(tenant, spec.options["collection_id"], namespace_of(namespace))
        zero = np.ones(spec.dimension, dtype=np.float32)
        await self.search(collection, zero, top_k=1, namespace=namespace, tenant_id=tenant_id)
        await self._builds.finish()
        matrix = self._cache.get(place)
        index = None if matrix is None else matrix.index
        return None if index is None else RecallReport(index.rows, index.recall, index.effort, index.is_used)

    async def _rebuild_index(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        self._cache.drop_collection(tenant_id, spec.options["collection_id"])
        return spec

    async def _work(self, function: Callable[[], T]) -> T:
        """Run `function` on a worker thread."""
        if self._workers is None:
            return function()
        return await asyncio.get_running_loop().run_in_executor(self._workers, function)


def _spec_of(row: Sequence[Any]) -> CollectionSpec:
    name, dimension, metric, metadata, number = row[:5]
    return CollectionSpec(
        name, dimension, DistanceMetric(metric), "exact", metadata, {"collection_id": number}
    )


def _row_of(document: PreparedDocument) -> Dict[str, Any]:
    vector: NDArray[Any] = np.ascontiguousarray(document.vector, dtype="<f4")
    return {
        "space": document.namespace,
        "id": document.id,
        "created_at": document.created_at,
        "metadata": document.metadata_json,
        "content": document.content,
        "vector": vector.tobytes(),
    }

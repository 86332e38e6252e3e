"""One search of the embedded vector store: bring the matrix up to date, score, read the documents, see that they agree.

Scoring and reading the documents are two looks at the database. Each hit carries the change number of the row that was
scored; a document that has another one by now, or is gone, makes the search begin again. A search that cannot settle
because its documents change all the time says that it is incomplete.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Coroutine, Dict, List, Optional, Sequence, TypeVar

import numpy as np
from numpy.typing import NDArray

from modules.storage.operations import Executor
from modules.storage.statements import Row
from modules.storage.vectors import sqlite_operations as operations
from modules.storage.vectors.checks import CollectionSpec
from modules.storage.vectors.engine import Query
from modules.storage.vectors.filters import matches
from modules.storage.vectors.models import (
    SearchResults,
    VectorDocument,
    VectorSearchResult,
    named_result,
)
from modules.storage.vectors.sqlite_ann import AnnOptions
from modules.storage.vectors.sqlite_matrix import NEVER, Hit, Matrix, MatrixCache
from modules.storage.vectors.sqlite_operations import Delta, Place, SearchView

__all__ = ["Search", "document_of"]

T = TypeVar("T")
_Work = Callable[[Callable[[], Any]], Coroutine[Any, Any, Any]]

_ATTEMPTS = 5
# Multiplications that are done at once on the loop: less than the way to a thread and back costs (about 0.1 ms).
_TRIFLE = 200_000
_STREAM_ROWS = 5_000
_NO_VECTOR: NDArray[np.float32] = np.empty(0, dtype=np.float32)


class Search:
    """A search under way.

    Args:
        executor: The database.
        cache: The matrices.
        work: Runs a function on a worker thread.
        place: Where to look.
        spec: The collection.
        query: What to look for.
        ann: When an approximate index is used.
        build: Begins to build one, in the background.
    """

    def __init__(
        self,
        executor: Executor,
        cache: MatrixCache,
        work: _Work,
        place: Place,
        spec: CollectionSpec,
        query: Query,
        ann: AnnOptions = NEVER,
        build: Optional[Callable[[Matrix], None]] = None,
    ) -> None:
        self._ann = ann
        self._build = build
        self._executor = executor
        self._cache = cache
        self._work = work
        self._place = place
        self._spec = spec
        self._query = query
        self._key = None if query.filter is None else repr(query.filter)

    async def run(self) -> List[SearchResults]:
        """Return the answer to each query vector."""
        results: List[SearchResults] = []
        for _ in range(_ATTEMPTS):
            hits = await self._hits()
            if hits is None:
                continue
            if self._query.ids_only:
                # as of when the matrix was brought up to date; nothing is read that could be of another time
                return [self._named(found) for found in hits]
            results = await self._results(hits)
            if all(answer.complete for answer in results):
                return results
        return results or [
            SearchResults(complete=False, reason="the collection changed all the time; search again")
            for _ in self._query.vectors
        ]

    # --- scoring ----------------------------------------------------------------------------------------------------

    async def _hits(self) -> Optional[List[List[Hit]]]:
        """Return the hits of each query; None: something changed meanwhile, try again."""
        matrix = self._cache.get(self._place)
        is_known = matrix is not None and self._key is not None and matrix.knows(self._key)
        view = await self._executor.run(
            operations.look,
            self._place,
            self._spec.dimension,
            None if matrix is None else matrix.seen,
            None if is_known else self._query.filter,
        )
        if view.few is not None:
            return await self._score_few(view.few)
        if matrix is None:
            if view.rows == 0:
                return [[] for _ in self._query.vectors]
            if not self._cache.fits(view.rows, self._spec.dimension):
                return await self._stream()
            matrix = await self._load(view)
        elif view.delta is not None and not await self._catch_up(matrix, view.delta):
            return None
        return await self._score(matrix, view)

    async def _score(self, matrix: Matrix, view: SearchView) -> Optional[List[List[Hit]]]:
        query = self._query
        rows = matrix.rows if view.matching is None else len(view.matching)

        if self._build is not None and matrix.wants_index:
            self._build(matrix)

        def score() -> Optional[List[List[Hit]]]:
            return matrix.search(query.vectors, query.top_k, self._key, view.matching, view.until)

        hits: Optional[List[List[Hit]]]
        hits = score() if rows * query.vectors.size <= _TRIFLE and matrix.is_free else await self._work(score)
        return hits

    async def _score_few(self, few: Delta) -> List[List[Hit]]:
        matrix = Matrix(self._spec.dimension, self._spec.metric)

        def score() -> List[List[Hit]]:
            matrix.add(few)
            return matrix.search(self._query.vectors, self._query.top_k) or []

        trifle = len(few.ids) * self._query.vectors.size <= _TRIFLE
        hits: List[List[Hit]] = score() if trifle else await self._work(score)
        return hits

    async def _catch_up(self, matrix: Matrix, delta: Delta) -> bool:
        if delta.must_reload:
            self._cache.drop(self._place)
            return False
        since = delta.since
        while not delta.is_whole:
            await self._work(partial(matrix.add, delta))
            delta = await self._chunk(since, int(delta.changes[-1]), delta.ids[-1])
            if delta.must_reload:
                self._cache.drop(self._place)
                return False
        applied: bool
        if len(delta.ids) * self._spec.dimension <= _TRIFLE and matrix.is_free:
            applied = matrix.apply(delta)
        else:
            applied = await self._work(lambda: matrix.apply(delta))
        if applied:
            self._cache.put(self._place, matrix)
        return applied

    async def _load(self, view: SearchView) -> Matrix:
        matrix = Matrix(self._spec.dimension, self._spec.metric, self._ann)
        matrix.reserve(view.rows)
        since = view.until
        delta = await self._chunk(since, 0, "")
        while not delta.is_whole and not delta.must_reload:
            await self._work(partial(matrix.add, delta))
            delta = await self._chunk(since, int(delta.changes[-1]), delta.ids[-1])
        if delta.must_reload:
            fresh = await self._executor.run(operations.look, self._place, self._spec.dimension, None, None)
            return await self._load(fresh)
        await self._work(lambda: matrix.complete(delta))
        self._cache.put(self._place, matrix)
        return matrix

    async def _chunk(self, since: int, seen: int, after: str) -> Delta:
        return await self._executor.run(
            operations.chunk, self._place, self._spec.dimension, since, seen, after
        )

    async def _stream(self) -> List[List[Hit]]:
        """Score the rows as they come from the file, keeping the best: for what does not fit into the cache."""
        query = self._query
        best: List[List[Hit]] = [[] for _ in query.vectors]
        after = ""
        while True:
            rows = await self._executor.run(operations.scroll, self._place, query.filter, after, _STREAM_ROWS)
            if rows:
                found = await self._score_few(_delta_of(rows, self._spec.dimension))
                best = [
                    sorted(kept + more, key=lambda hit: (-hit[1], hit[0]))[: query.top_k]
                    for kept, more in zip(best, found)
                ]
                after = rows[-1][0]
            if len(rows) < _STREAM_ROWS:
                return best

    # --- documents --------------------------------------------------------------------------------------------------

    async def _results(self, hits: List[List[Hit]]) -> List[SearchResults]:
        ids = list(dict.fromkeys(hit[0] for found in hits for hit in found))
        if not ids:
            return [SearchResults() for _ in hits]
        query = self._query
        # the filter looks at the metadata once more
        metadata = query.include_metadata or query.filter is not None
        rows = await self._executor.run(
            operations.get_documents, self._place, ids, metadata, query.include_vectors
        )
        by_id = {row[0]: row for row in rows}
        return [self._answer(found, by_id) for found in hits]

    def _named(self, found: Sequence[Hit]) -> SearchResults:
        namespace = self._query.namespace
        return SearchResults(
            named_result(item, namespace, score, distance) for item, score, distance, _ in found
        )

    def _answer(self, found: Sequence[Hit], by_id: Dict[str, Row]) -> SearchResults:
        query = self._query
        results = SearchResults()
        for item, score, distance, change in found:
            row = by_id.get(item)
            if row is None or row[1] != change or not matches(query.filter, row[3]):
                results.complete = False
                results.reason = "documents changed while they were searched; search again"
                continue
            document = document_of(
                row, query.namespace, metadata=query.include_metadata, vector=query.include_vectors
            )
            results.append(VectorSearchResult(document, score, distance))
        return results


def document_of(row: Row, namespace: str, *, metadata: bool = True, vector: bool = True) -> VectorDocument:
    """Return the document in a row of `operations.get_documents`."""
    item, _, created_at, details, content, blob = row[:6]
    return VectorDocument(
        id=item,
        vector=np.frombuffer(blob, dtype="<f4").astype(np.float32) if vector else _NO_VECTOR,
        content=content if metadata else None,
        metadata=details if metadata else {},
        namespace=namespace,
        created_at=created_at,
    )


def _delta_of(rows: Sequence[Row], dimension: int) -> Delta:
    vectors = np.frombuffer(b"".join([row[5] for row in rows]), dtype="<f4").reshape(len(rows), dimension)
    changes = np.fromiter((row[1] for row in rows), dtype=np.int64, count=len(rows))
    return Delta(0, 0, [row[0] for row in rows], changes, vectors, [], True, False)

"""Search in Chroma, never silently too little.

Chroma's HNSW is approximate, may return fewer rows than it was asked for when it filters, and needs time for a `where` in
proportion to the rows that pass (seen at 5,000 rows: 3 ms without, 40 ms with a `where` that all pass). So a search goes on
only as far as it must:

1. ask the index without a filter for more than is wanted, and keep what matches;
2. if that is too few, find the ids that may match; if they are few, score them all exactly;
3. else ask the index among these ids, twice with more;
4. else score exactly after all, or say that the answer is incomplete.

Rows of a whole namespace that were read for an exact answer are kept (`chroma_cache`), and answer until something changes.

Scores are always our own, in float64 from the vectors as they were given; `distance` is Chroma's.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.chroma_cache import CachedRows
from modules.storage.vectors.chroma_client import ChromaRefusedError
from modules.storage.vectors.chroma_records import Row
from modules.storage.vectors.chroma_rows import CHUNK_ROWS
from modules.storage.vectors.chroma_space import Space
from modules.storage.vectors.engine import Query
from modules.storage.vectors.filters import matches
from modules.storage.vectors.models import (
    DistanceMetric,
    SearchResults,
    VectorSearchResult,
    named_result,
)
from modules.storage.vectors.ranking import exact_scores, nearest

__all__ = ["SearchLimits", "search"]

logger = logging.getLogger(__name__)

_QUERIES_AT_ONCE = 32
_MOST_ROWS = 20_000
# SQLite takes 32,766 parameters
_MOST_IDS = 30_000


@dataclass(frozen=True)
class SearchLimits:
    """When rows are scored exactly instead of asking the index.

    Attributes:
        few: Up to so many rows always.
        many: Up to so many when the index gave too little; beyond, the answer is incomplete.
    """

    few: int = 1000
    many: int = 100_000


@dataclass(frozen=True)
class _Hit:
    """A row with its score and Chroma's distance."""

    row: Row
    score: float
    distance: float

    @property
    def order(self) -> Tuple[float, str]:
        return -self.score, self.row.id


class _Search:
    """One call of `search`.

    Args:
        space: Where the rows are.
        handle: Chroma's collection.
        metric: The collection's.
        query: What is asked.
        limits: See there.
        use_index: False: the index is known to be damaged.
    """

    def __init__(
        self,
        space: Space,
        handle: Any,
        metric: DistanceMetric,
        query: Query,
        limits: SearchLimits,
        use_index: bool,
    ) -> None:
        self._space = space
        self._handle = handle
        self._metric = metric
        self._query = query
        self._limits = limits
        self._use_index = use_index
        self._answers: Dict[int, List[_Hit]] = {}

    async def run(self) -> List[SearchResults]:
        """Answer every query vector."""
        kept = await self._space.of_cache(self._handle, self._query.namespace, self._search_kept)
        if kept is not None:
            self._answers.update(kept)
            return [self._results(position, "") for position in range(len(self._query.vectors))]
        open_ = list(range(len(self._query.vectors)))
        # one more than wanted tells whether the last place is a tie; a filter takes some away
        wanted = self._query.top_k + 1 if self._query.filter is None else 4 * self._query.top_k + 16
        if self._use_index:
            open_ = await self._ask(open_, wanted, None)
        reason = ""
        if open_:
            state = None if self._query.filter is not None else await self._space.state()
            ids = await self._space.candidates(self._handle, self._query.namespace, self._query.filter)
            if self._use_index and self._limits.few < len(ids):
                among = ids if len(ids) <= _MOST_IDS else None
                for more in (8, 64) if among is None else (1, 8):
                    open_ = await self._ask(open_, min(more * wanted, len(ids)), among)
            if open_ and len(ids) <= self._limits.many:
                await self._score_all(open_, ids, state)
            elif open_:
                reason = f"Chroma's index gave too few of {len(ids)} rows that may match, too many to score one by one"
        return [
            self._results(position, reason if position in open_ else "")
            for position in range(len(self._query.vectors))
        ]

    async def _ask(self, open_: Sequence[int], wanted: int, ids: Optional[Sequence[str]]) -> List[int]:
        """Ask the index; return the queries that it did not answer to the end."""
        left: List[int] = []
        for start in range(0, len(open_), _QUERIES_AT_ONCE):
            part = open_[start : start + _QUERIES_AT_ONCE]
            queries = [self._query.vectors[position] for position in part]
            most = min(wanted, _MOST_ROWS)
            try:
                found = await self._space.nearest(
                    self._handle, queries, most, ids, text=self._query.include_metadata
                )
            except ChromaRefusedError as exc:
                logger.warning(
                    "storage.vectors.index_failed",
                    extra={"store": "chroma", "error_type": type(exc.__cause__).__name__},
                )
                return list(open_)
            for position, (rows, distances) in zip(part, found):
                if not self._take(position, rows, distances, most):
                    left.append(position)
        return left

    def _take(
        self, position: int, rows: Sequence[Row], distances: Sequence[Optional[float]], wanted: int
    ) -> bool:
        """Keep what matches of an answer; whether it is enough, with the order of its last place beyond doubt."""
        if not rows:
            self._answers[position] = []
            return False
        vector = self._query.vectors[position]
        scored = exact_scores(self._metric, vector, np.stack([row.vector for row in rows])).tolist()
        hits = [
            _Hit(row, score, self._distance(score) if distance is None else float(distance))
            for row, score, distance in zip(rows, scored, distances)
            if row.namespace == self._query.namespace and matches(self._query.filter, row.metadata)
        ]
        hits.sort(key=lambda hit: hit.order)
        self._answers[position] = hits[: self._query.top_k]
        if len(rows) < wanted or len(hits) < self._query.top_k:
            return False
        # rows as near as the last one may lie beyond what was asked for, with smaller ids
        return bool(min(scored) < self._answers[position][-1].score)

    def _search_kept(self, kept: CachedRows) -> Dict[int, List[_Hit]]:
        """Score all rows of the namespace."""
        query = self._query
        if not len(kept):
            return {}
        matrix = kept.matrix
        passing: Optional[NDArray[np.int64]] = None
        if query.filter is not None:
            places = [place for place, row in enumerate(kept.rows) if matches(query.filter, row.metadata)]
            passing = np.asarray(places, dtype=np.int64)
        shared = query.include_metadata or query.include_vectors
        found: Dict[int, List[_Hit]] = {}
        for position, vector in enumerate(query.vectors):
            ranked = nearest(self._metric, vector, matrix, None, kept.ids, query.top_k, passing)
            found[position] = [
                _Hit(kept.rows[place].again() if shared else kept.rows[place], score, self._distance(score))
                for place, score in zip(ranked.positions, ranked.scores)
            ]
        return found

    async def _score_all(self, open_: Sequence[int], ids: Sequence[str], state: Any) -> None:
        """Score the rows of `ids`; with a `state` they are all of the namespace, and are kept for the next search."""
        keeps = state is not None and len(ids) <= CHUNK_ROWS
        best: Dict[int, List[_Hit]] = {position: [] for position in open_}
        for start in range(0, len(ids), CHUNK_ROWS):
            rows = await self._space.matching(
                self._handle,
                ids[start : start + CHUNK_ROWS],
                self._query.filter,
                text=self._query.include_metadata or keeps,
            )
            if keeps:
                await self._space.keep(self._handle, self._query.namespace, rows, state)
            if rows:
                matrix = np.stack([row.vector for row in rows])
                for position in open_:
                    best[position] = self._merged(best[position], rows, matrix, self._query.vectors[position])
        self._answers.update(best)

    def _merged(
        self, best: List[_Hit], rows: List[Row], matrix: NDArray[np.float32], vector: NDArray[np.float32]
    ) -> List[_Hit]:
        ranked = nearest(self._metric, vector, matrix, None, [row.id for row in rows], self._query.top_k)
        found = [
            _Hit(rows[position], score, self._distance(score))
            for position, score in zip(ranked.positions, ranked.scores)
        ]
        return sorted(best + found, key=lambda hit: hit.order)[: self._query.top_k]

    def _distance(self, score: float) -> float:
        """Return the distance as Chroma defines it: 1 - cosine, the square of the length, or 1 - product.

        Source:
            Chroma documentation, "Configure collections", hnsw:space.
        """
        if self._metric is DistanceMetric.EUCLIDEAN:
            return (1.0 / score - 1.0) ** 2 if score else float("inf")
        return 1.0 - score

    def _results(self, position: int, reason: str) -> SearchResults:
        query = self._query
        answer = self._answers.get(position, [])
        if query.ids_only:
            hits = (named_result(hit.row.id, query.namespace, hit.score, hit.distance) for hit in answer)
            return SearchResults(hits, complete=not reason, reason=reason)
        return SearchResults(
            [
                VectorSearchResult(
                    hit.row.to_document(metadata=query.include_metadata, vector=query.include_vectors),
                    hit.score,
                    hit.distance,
                )
                for hit in answer
            ],
            complete=not reason,
            reason=reason,
        )


async def search(
    space: Space,
    handle: Any,
    metric: DistanceMetric,
    query: Query,
    *,
    limits: SearchLimits,
    use_index: bool = True,
) -> List[SearchResults]:
    """Answer every query vector.

    Args:
        space: Where the rows are.
        handle: Chroma's collection.
        metric: The collection's.
        query: What is asked.
        limits: When rows are scored exactly.
        use_index: False: score exactly, the index is known to be damaged.
    """
    return await _Search(space, handle, metric, query, limits, use_index).run()

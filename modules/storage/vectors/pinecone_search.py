"""Pinecone: the search. Filters are made exact by asking for more until enough of it passes, and limits are said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.engine import Query
from modules.storage.vectors.filters import Filter, matches
from modules.storage.vectors.models import (
    DistanceMetric,
    SearchResults,
    VectorDocument,
    VectorSearchResult,
    named_result,
)
from modules.storage.vectors.pinecone_filters import Compiled
from modules.storage.vectors.pinecone_names import from_record_id
from modules.storage.vectors.pinecone_records import (
    METADATA,
    rows_per_result,
    sendable,
    to_document,
)
from modules.storage.vectors.pinecone_space import Space
from modules.storage.vectors.ranking import exact_scores
from modules.store_common.values import decode_json

__all__ = ["MAX_TOP_K", "passes", "search_one"]

#: https://docs.pinecone.io/reference/api/database-limits/operation-limits
MAX_TOP_K = 10_000
_FIRST_LOOK = 100
_GROWTH = 4


@dataclass(frozen=True, eq=False)
class _Match:
    """A match of Pinecone with what is known of its record; values and fields are empty when nothing needs them."""

    id: str
    score: float
    values: Optional[Sequence[float]]
    fields: Mapping[str, Any]


def passes(tree: Optional[Filter], fields: Optional[Mapping[str, Any]]) -> bool:
    """Return whether the document of a record passes the filter."""
    return tree is None or matches(tree, decode_json((fields or {})[METADATA]))


async def search_one(
    space: Space, metric: DistanceMetric, query: Query, vector: NDArray[np.float32], compiled: Compiled
) -> SearchResults:
    """Return the nearest documents of one query vector."""
    size = query.top_k if compiled.exact else min(MAX_TOP_K, max(_GROWTH * query.top_k, _FIRST_LOOK))
    while True:
        found, seen = await _look(space, metric, query, vector, compiled, size)
        hits = [match for match in found if passes(query.filter, match.fields)]
        if len(hits) >= query.top_k or seen < size:
            return _ranked(metric, query, vector, hits)
        if size == MAX_TOP_K:
            reason = (
                f"Pinecone gives at most the nearest {MAX_TOP_K} documents, and only {len(hits)} of them pass the "
                "part of the filter that it cannot answer itself"
                if query.filter is not None
                else "documents were deleted while they were read; search again"
            )
            return _ranked(metric, query, vector, hits, reason)
        size = min(MAX_TOP_K, size * _GROWTH)


async def _look(
    space: Space,
    metric: DistanceMetric,
    query: Query,
    vector: NDArray[np.float32],
    compiled: Compiled,
    size: int,
) -> Tuple[List[_Match], int]:
    """Return the nearest `size` matches with what is needed of their records, and how many Pinecone named."""
    # small squared distances lose their digits on the way: the score of euclidean is computed here, from the vectors
    values = query.include_vectors or metric is DistanceMetric.EUCLIDEAN
    # created_at, the id of the write and the mark of a zero vector lie there too
    metadata = not query.ids_only or query.filter is not None
    inline = size <= rows_per_result(space.index.dimension, metadata, values)
    answer = await space.query(
        sendable(vector).astype(np.float64).tolist(),
        size,
        compiled.native,
        metadata=inline and metadata,
        values=inline and values,
    )
    if inline:
        return [_Match(item.id, item.score, item.values, item.metadata or {}) for item in answer], len(answer)
    # too much for one answer: the records are fetched by id
    records = await space.fetch([item.id for item in answer])
    return [
        _Match(item.id, item.score, records[item.id].values, records[item.id].metadata or {})
        for item in answer
        if item.id in records
    ], len(answer)


def _ranked(
    metric: DistanceMetric,
    query: Query,
    vector: NDArray[np.float32],
    found: List[_Match],
    reason: str = "",
) -> SearchResults:
    scores = _scores(metric, vector, found)
    results = [
        named_result(from_record_id(match.id), query.namespace, score, float(match.score))
        if query.ids_only
        else VectorSearchResult(_document(match, query), score, float(match.score))
        for match, score in zip(found, scores)
    ]
    results.sort(key=lambda item: (-item.score, item.document.id))
    return SearchResults(results[: query.top_k], complete=not reason, reason=reason)


def _document(match: _Match, query: Query) -> VectorDocument:
    return to_document(
        match.id,
        match.values if query.include_vectors else None,
        match.fields,
        query.namespace,
        metadata=query.include_metadata,
    )


def _scores(metric: DistanceMetric, vector: NDArray[np.float32], found: List[_Match]) -> List[float]:
    if metric is DistanceMetric.EUCLIDEAN:
        if not found:
            return []
        rows = np.asarray([match.values for match in found], dtype=np.float32)
        return [float(score) for score in exact_scores(metric, vector, rows)]
    if metric is DistanceMetric.COSINE:
        return [min(1.0, max(-1.0, float(match.score))) for match in found]
    return [float(match.score) for match in found]

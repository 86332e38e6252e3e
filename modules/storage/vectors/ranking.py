"""Exact nearest rows of a float32 matrix: fast float32 products to find the candidates, float64 to score and order them.

BLAS gives equal rows sums that differ in the last bit, depending on where they lie; so the fast pass only leaves out what
cannot be among the nearest whatever its rounding error was. The scores of the rest are computed in float64 and rounded to
float32: equal vectors have equal scores, and ties go by id.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.models import DistanceMetric

__all__ = ["Ranked", "exact_scores", "nearest", "row_norms"]

# Numbers that are widened to float64 at a time: what stays in the processor's cache is scored in a quarter of the time.
_CHUNK_NUMBERS = 100_000
# Below one row in this many it is cheaper to copy the rows together than to multiply all.
_SPARSE = 6
_EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Ranked:
    """The nearest rows of one query, best first.

    Attributes:
        positions: Rows of the matrix.
        scores: By `DistanceMetric`, float32 precision.
        distances: 1 - cosine, the Euclidean distance, or the negated product.
    """

    positions: List[int]
    scores: List[float]
    distances: List[float]


def row_norms(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the length of each row, shape (rows,); infinity where float32 cannot hold it."""
    norms = np.empty(len(matrix), dtype=np.float32)
    with np.errstate(over="ignore"):
        for part in _parts(matrix):
            rows = matrix[part].astype(np.float64)
            norms[part] = np.sqrt(np.sum(rows * rows, axis=1))
    return norms


def _parts(matrix: NDArray[np.float32]) -> Iterator[slice]:
    step = max(16, _CHUNK_NUMBERS // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        yield slice(start, start + step)


def exact_scores(
    metric: DistanceMetric, query: NDArray[np.float32], rows: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the score of each row, computed in float64 and rounded to float32; shape (rows,)."""
    result = np.empty(len(rows), dtype=np.float64)
    wide = query.astype(np.float64)
    for part in _parts(rows):
        result[part] = _scores(metric, wide, rows[part].astype(np.float64))
    with np.errstate(over="ignore"):
        rounded: NDArray[np.float32] = result.astype(np.float32)
    # a product that only float64 can hold keeps its value
    return np.where(np.isfinite(rounded), rounded.astype(np.float64), result)


def _scores(
    metric: DistanceMetric, query: NDArray[np.float64], rows: NDArray[np.float64]
) -> NDArray[np.float64]:
    if metric is DistanceMetric.EUCLIDEAN:
        difference = rows - query
        near: NDArray[np.float64] = 1.0 / (1.0 + np.sqrt(np.sum(difference * difference, axis=1)))
        return near
    products: NDArray[np.float64] = np.sum(rows * query, axis=1)
    if metric is DistanceMetric.COSINE:
        lengths = np.sqrt(np.sum(rows * rows, axis=1)) * np.sqrt(np.sum(query * query))
        return np.clip(products / np.where(lengths == 0, 1.0, lengths), -1.0, 1.0)
    return products


def nearest(
    metric: DistanceMetric,
    query: NDArray[np.float32],
    matrix: NDArray[np.float32],
    norms: Optional[NDArray[np.float32]],
    ids: Sequence[str],
    top_k: int,
    rows: Optional[NDArray[np.int64]] = None,
) -> Ranked:
    """Return the `top_k` nearest rows, ties by id.

    Args:
        metric: The collection's.
        query: Shape (dimension,).
        matrix: Shape (rows, dimension).
        norms: What `row_norms` gives for `matrix`; None: computed here.
        ids: Of each row of `matrix`.
        top_k: Rows wanted.
        rows: Only these rows of `matrix`; None: all.
    """
    count = len(matrix) if rows is None else len(rows)
    if not count:
        return Ranked([], [], [])
    chosen = _candidates(metric, query, matrix, norms, top_k, rows)
    found = exact_scores(metric, query, matrix[chosen])
    if len(chosen) > 4 * top_k:
        # order the few that count: everything from the last wanted score upwards
        kept = found >= _kth_largest(found, top_k)
        chosen, found = chosen[kept], found[kept]
    ranked = sorted(zip((-found).tolist(), chosen.tolist()), key=lambda item: (item[0], ids[item[1]]))[:top_k]
    scores = [-negated for negated, _ in ranked]
    return Ranked(
        [position for _, position in ranked], scores, [_distance(metric, score) for score in scores]
    )


def _distance(metric: DistanceMetric, score: float) -> float:
    if metric is DistanceMetric.COSINE:
        return 1.0 - score
    if metric is DistanceMetric.EUCLIDEAN:
        return 1.0 / score - 1.0 if score else float("inf")
    return -score


def _kth_largest(values: NDArray[Any], k: int) -> Any:
    return np.partition(values, len(values) - k)[len(values) - k]


def _candidates(
    metric: DistanceMetric,
    query: NDArray[np.float32],
    matrix: NDArray[np.float32],
    norms: Optional[NDArray[np.float32]],
    top_k: int,
    rows: Optional[NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Return every row, of `rows`, that may be among the `top_k` nearest."""
    everything: NDArray[np.int64] = np.arange(len(matrix)) if rows is None else rows
    if len(everything) <= 2 * top_k:
        return everything
    if norms is None:
        norms = row_norms(matrix)
    is_sparse = rows is not None and len(rows) * _SPARSE < len(matrix)
    if is_sparse:
        matrix, norms = matrix[rows], norms[rows]
    with np.errstate(all="ignore"):
        estimate, error = _estimate(metric, query, matrix, norms)
        if rows is not None and not is_sparse:
            estimate = estimate[rows]
            error = error[rows] if error.ndim else error
        if not (np.isfinite(estimate).all() and np.isfinite(error).all()):
            return everything
        if error.ndim:
            near = estimate + error >= _kth_largest(estimate - error, top_k)
        else:
            near = estimate >= _kth_largest(estimate, top_k) - 2 * error
    found: NDArray[np.int64] = everything[np.flatnonzero(near)]
    return found


def _estimate(
    metric: DistanceMetric,
    query: NDArray[np.float32],
    matrix: NDArray[np.float32],
    norms: NDArray[np.float32],
) -> Tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a value of each row that orders the rows as their scores do, and how far off it may be."""
    length = float(np.sqrt(np.sum(query.astype(np.float64) ** 2)))
    # rounding error of a float32 dot product, generously: a few times sqrt(dimension) units in the last place
    unit = _EPSILON * (8 + 4 * float(np.sqrt(matrix.shape[1])))
    estimate: NDArray[np.float32] = matrix @ query
    error: NDArray[np.float32] = np.asarray(unit * length, dtype=np.float32)
    if metric is DistanceMetric.COSINE:
        estimate /= np.where(norms == 0, np.float32(1), norms)
    elif metric is DistanceMetric.EUCLIDEAN:
        squares = norms * norms
        estimate *= 2
        estimate -= squares
        error = (squares + np.float32(length * length)) * np.float32(2 * unit)
    else:
        error = norms * np.float32(unit * length)
    return estimate, error

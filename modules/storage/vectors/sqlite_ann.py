"""The approximate index of the embedded vector store: faiss' HNSW over a matrix, for namespaces above a chosen size.

It lives in memory beside its matrix and is made of the BLOBs' numbers whenever it is not there, so no file of it can be lost,
damaged or out of step. It only proposes candidates: the matrix scores them exactly, drops those that are gone, and adds
every row that was written since the index was built. After each build its recall is measured on a sample against exact
search, with growing effort; where the target is not reached (hard data) the namespace stays with exact search.

Source: faiss wiki, "Guidelines to choose an index" (HNSW) and "FAQ" (efSearch).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.models import DistanceMetric
from modules.store_common.errors import MissingDependencyError

__all__ = ["AnnOptions", "ApproximateIndex", "Snapshot", "build", "load_faiss"]

_LINKS = 32
_EFFORT_OF_BUILD = 100
_EFFORTS = (64, 128, 256, 512)
_SAMPLE = 100
_SAMPLE_TOP_K = 10
#: Candidates asked for, for each result wanted: near-equal vectors change places by rounding.
_OVERFETCH = 4
_CHUNK = 10
_ADDED_ROWS = 10_000


@dataclass(frozen=True)
class AnnOptions:
    """When an approximate index is used.

    Attributes:
        rows: From so many documents in a namespace on; 0: never.
        recall: Share of the 10 nearest that it must find, in its own measurement, to be used.
        most: Largest `top_k` that it answers; above it search is exact.
    """

    rows: int = 0
    recall: float = 0.98
    most: int = 100


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state of a matrix.

    Attributes:
        metric: The collection's.
        vectors: A copy, shape (rows, dimension).
        ids: Of the rows.
        until: The change number of the state.
    """

    metric: DistanceMetric
    vectors: NDArray[np.float32]
    ids: Sequence[str]
    until: int


class ApproximateIndex:
    """Proposes the rows that are probably nearest.

    Args:
        faiss_index: Built.
        snapshot: Of what; its vectors are not kept.
    """

    def __init__(self, faiss_index: Any, snapshot: Snapshot) -> None:
        self._index = faiss_index
        self._ids = snapshot.ids
        self._metric = snapshot.metric
        self.until = snapshot.until
        self.rows = len(snapshot.ids)
        self.effort = 0
        self.recall = 0.0
        self.is_used = False

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes: the vectors once more, and the links."""
        return int(self.rows * (4 * self._index.d + 2 * 4 * _LINKS))

    def nearest(self, query: NDArray[np.float32], top_k: int) -> List[str]:
        """Return ids, more of them than wanted."""
        wanted = min(self.rows, _OVERFETCH * top_k)
        _, found = self._index.search(_prepared(self._metric, query.reshape(1, -1)), wanted)
        return [self._ids[row] for row in found[0].tolist() if row >= 0]

    def measure(self, snapshot: Snapshot, target: float) -> None:
        """Choose the least effort that reaches `target` by a standard error; `is_used` stays False when none does."""
        rows = len(snapshot.ids)
        chance = np.random.default_rng(0)
        drawn = np.sort(chance.choice(rows, min(_SAMPLE, rows), replace=False))
        sample = snapshot.vectors[drawn]
        # questions lie some way off documents (a cosine of about 0.7), and the document itself is too easy to find
        noise = chance.standard_normal(sample.shape, dtype=np.float32)
        lengths = np.linalg.norm(sample, axis=1, keepdims=True)
        asked = sample + noise * (lengths / np.float32(np.sqrt(sample.shape[1])))
        nearest = _exact(self._metric, asked, snapshot.vectors).tolist()
        truth = [set(near) - {own} for near, own in zip(nearest, drawn.tolist())]
        for effort in _EFFORTS:
            self._index.hnsw.efSearch = effort
            _, found = self._index.search(
                _prepared(self._metric, asked), min(rows, _OVERFETCH * _SAMPLE_TOP_K)
            )
            shares = [len(near & set(got)) / max(1, len(near)) for near, got in zip(truth, found.tolist())]
            self.effort, self.recall = effort, float(np.mean(shares)) if rows > 1 else 1.0
            # the first effort that happens to meet the target mostly does not: by a standard error it does
            error = float(np.std(shares)) / len(shares) ** 0.5
            if self.recall - error >= target:
                self.is_used = True
                return


def _prepared(metric: DistanceMetric, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    if metric is DistanceMetric.COSINE:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = rows / np.where(lengths == 0, np.float32(1), lengths)
    return np.ascontiguousarray(rows, dtype=np.float32)


def _exact(
    metric: DistanceMetric, asked: NDArray[np.float32], vectors: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the rows that are nearest to each question, one more than count; a sample is no place for ties."""
    k = min(_SAMPLE_TOP_K + 1, len(vectors))
    squares = np.einsum("ij,ij->i", vectors, vectors)
    near = []
    for start in range(0, len(asked), _CHUNK):
        products = asked[start : start + _CHUNK] @ vectors.T
        if metric is DistanceMetric.COSINE:
            products /= np.sqrt(np.where(squares == 0, np.float32(1), squares))
        elif metric is DistanceMetric.EUCLIDEAN:
            products = 2 * products - squares
        near.append(np.argpartition(-products, k - 1, axis=1)[:, :k])
    found: NDArray[np.int64] = np.concatenate(near)
    return found


def load_faiss() -> Any:
    """Import faiss.

    Raises:
        MissingDependencyError: names the extra.
    """
    try:
        import faiss
    except ImportError as exc:
        raise MissingDependencyError("faiss-cpu", "ann") from exc
    return faiss


def build(snapshot: Snapshot, options: AnnOptions) -> Optional[ApproximateIndex]:
    """Build an index and measure it; takes seconds, on a thread of its own. None where there is nothing to index."""
    if not snapshot.ids:
        return None
    faiss = load_faiss()
    euclidean = snapshot.metric is DistanceMetric.EUCLIDEAN
    kind = faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexHNSWFlat(int(snapshot.vectors.shape[1]), _LINKS, kind)
    index.hnsw.efConstruction = _EFFORT_OF_BUILD
    for start in range(0, len(snapshot.vectors), _ADDED_ROWS):
        # in parts: all of them scaled to length 1 would be in memory once more
        index.add(_prepared(snapshot.metric, snapshot.vectors[start : start + _ADDED_ROWS]))
    made = ApproximateIndex(index, snapshot)
    made.measure(snapshot, options.recall)
    return made

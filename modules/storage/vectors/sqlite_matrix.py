"""The matrices of the embedded vector store: one namespace's vectors, contiguous in memory, and a bounded cache of them.

A matrix is changed and searched under its lock, on a worker thread. Deltas may come late or twice: one that is older than
the matrix is left out, one that overlaps is applied over it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.models import DistanceMetric
from modules.storage.vectors.ranking import nearest, row_norms
from modules.storage.vectors.sqlite_ann import AnnOptions, ApproximateIndex, Snapshot
from modules.storage.vectors.sqlite_operations import Delta, Place

__all__ = ["NEVER", "Hit", "Matrix", "MatrixCache"]

#: No approximate index.
NEVER = AnnOptions()

#: id, score, distance and the change number of the row that was scored.
Hit = Tuple[str, float, float, int]

_KEPT_FILTERS = 16
# Rows written since an index was built, which every search looks at besides, until it is built anew.
_MOST_NEWER = 5_000
# Python's own cost of a row besides its vector: id text, its place in the table of ids, change number, norm
_ROW_BYTES = 200


class Matrix:
    """The vectors of one namespace.

    Args:
        dimension: Numbers in a vector.
        metric: The collection's.
        ann: When an approximate index is used.
    """

    def __init__(self, dimension: int, metric: DistanceMetric, ann: AnnOptions = NEVER) -> None:
        self.seen = 0
        self.is_building = False
        self._ann = ann
        self._index: Optional[ApproximateIndex] = None
        self._metric = metric
        self._lock = threading.Lock()
        self._ids: List[str] = []
        self._places: Dict[str, int] = {}
        self._vectors: NDArray[np.float32] = np.empty((0, dimension), dtype=np.float32)
        self._norms: NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._changes: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        # filter, as its repr (1 and True are equal keys) -> (state, rows): again it costs nothing while nothing changes
        self._filtered: OrderedDict[str, Tuple[int, NDArray[np.int64]]] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes."""
        index = 0 if self._index is None else self._index.size_bytes
        return int(self._vectors.nbytes) + _ROW_BYTES * len(self._ids) + index

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return len(self._ids)

    @property
    def is_free(self) -> bool:
        """Whether nobody works on it at the moment, so that the lock costs no wait."""
        return not self._lock.locked()

    def knows(self, key: str) -> bool:
        """Whether the matches of the filter `key` are known for the present state."""
        found = self._filtered.get(key)
        return found is not None and found[0] == self.seen

    def reserve(self, rows: int) -> None:
        """Make room for `rows` rows at once."""
        with self._lock:
            self._grow(rows)

    def add(self, delta: Delta) -> None:
        """Apply one part of a load; `seen` stays."""
        with self._lock:
            self._write(delta)

    def complete(self, delta: Delta) -> None:
        """Apply the last part of a load."""
        with self._lock:
            self._bury(delta.gone)
            self._write(delta)
            self.seen = delta.until

    def apply(self, delta: Delta) -> bool:
        """Bring the matrix to the state of `delta`; False when it does not fit and a new look is needed."""
        with self._lock:
            if delta.until <= self.seen:
                return True
            if delta.since > self.seen:
                return False
            self._bury(delta.gone)
            self._write(delta)
            self.seen = delta.until
            return True

    # --- the approximate index ------------------------------------------------------------------------------------

    @property
    def index(self) -> Optional[ApproximateIndex]:
        """The approximate index, used or found wanting; None: there is none."""
        return self._index

    @property
    def wants_index(self) -> bool:
        """Whether it is large enough for an index, and has none, or one of before much was written."""
        rows = len(self._ids)
        if not self._ann.rows or rows < self._ann.rows or self.is_building:
            return False
        if self._index is None:
            return True
        if not self._index.is_used:
            # it did not reach the target; perhaps with other data
            return rows >= 2 * self._index.rows
        return len(self._newer()) > max(_MOST_NEWER, self._index.rows // 5)

    def snapshot(self) -> Snapshot:
        """Return what an index is built of."""
        with self._lock:
            count = len(self._ids)
            return Snapshot(self._metric, self._vectors[:count].copy(), list(self._ids), self.seen)

    def take_index(self, index: Optional[ApproximateIndex]) -> None:
        """Use an index that was built of a snapshot of this matrix."""
        with self._lock:
            self._index = index

    def _newer(self) -> NDArray[np.int64]:
        """Return the rows that the index does not know in their present state."""
        index = self._index
        since = 0 if index is None else index.until
        rows: NDArray[np.int64] = np.flatnonzero(self._changes[: len(self._ids)] > since)
        return rows

    def _candidates(self, query: NDArray[np.float32], top_k: int) -> Optional[NDArray[np.int64]]:
        """Return the rows among which the nearest probably are; None: all must be looked at."""
        index = self._index
        if index is None or not index.is_used or top_k > self._ann.most:
            return None
        places = self._places
        known = [places[item] for item in index.nearest(query, top_k) if item in places]
        rows: NDArray[np.int64] = np.union1d(np.array(known, dtype=np.int64), self._newer())
        return rows if len(rows) >= min(top_k, len(self._ids)) else None

    def search(
        self,
        queries: NDArray[np.float32],
        top_k: int,
        key: Optional[str] = None,
        matching: Optional[Sequence[str]] = None,
        until: int = 0,
    ) -> Optional[List[List[Hit]]]:
        """Return the nearest of each query; None when the matches are not known any more.

        Args:
            queries: Shape (queries, dimension).
            top_k: Hits wanted for each.
            key: The `repr` of the filter.
            matching: The ids that pass it in the state `until`; None: they are known, or there is no filter.
            until: See `matching`.
        """
        with self._lock:
            count = len(self._ids)
            rows: Optional[NDArray[np.int64]] = None
            if key is not None:
                rows = self._rows_of(key, matching, until)
                if rows is None:
                    return None
            hits: List[List[Hit]] = []
            for query in queries:
                among = self._candidates(query, top_k) if key is None else rows
                ranked = nearest(
                    self._metric, query, self._vectors[:count], self._norms[:count], self._ids, top_k, among
                )
                changes = [int(self._changes[place]) for place in ranked.positions]
                named = [self._ids[place] for place in ranked.positions]
                hits.append(list(zip(named, ranked.scores, ranked.distances, changes)))
            return hits

    # --- under the lock -------------------------------------------------------------------------------------------

    def _rows_of(
        self, key: str, matching: Optional[Sequence[str]], until: int
    ) -> Optional[NDArray[np.int64]]:
        if matching is None:
            known = self._filtered.get(key)
            if known is None or known[0] != self.seen:
                return None
            self._filtered.move_to_end(key)
            return known[1]
        places = self._places
        found = [places[item] for item in matching if item in places]
        rows: NDArray[np.int64] = np.array(found, dtype=np.int64)
        rows.sort()
        if until == self.seen:
            self._filtered[key] = (until, rows)
            while len(self._filtered) > _KEPT_FILTERS:
                self._filtered.popitem(last=False)
        return rows

    def _grow(self, rows: int) -> None:
        if rows <= len(self._vectors):
            return
        room = max(rows, len(self._vectors) * 5 // 4, 64)
        count = len(self._ids)
        vectors = np.empty((room, self._vectors.shape[1]), dtype=np.float32)
        vectors[:count] = self._vectors[:count]
        norms, changes = np.empty(room, dtype=np.float32), np.empty(room, dtype=np.int64)
        norms[:count], changes[:count] = self._norms[:count], self._changes[:count]
        self._vectors, self._norms, self._changes = vectors, norms, changes

    def _write(self, delta: Delta) -> None:
        places = self._places
        new = [item for item in delta.ids if item not in places]
        self._grow(len(self._ids) + len(new))
        for item in new:
            places[item] = len(self._ids)
            self._ids.append(item)
        rows = np.fromiter((places[item] for item in delta.ids), dtype=np.int64, count=len(delta.ids))
        self._vectors[rows] = delta.vectors
        self._norms[rows] = row_norms(delta.vectors)
        self._changes[rows] = delta.changes

    def _bury(self, gone: Sequence[Any]) -> None:
        for item, change in gone:
            place = self._places.get(item)
            if place is None or self._changes[place] > change:
                continue
            del self._places[item]
            last = len(self._ids) - 1
            if place != last:
                moved = self._ids[last]
                self._ids[place] = moved
                self._places[moved] = place
                for array in (self._vectors, self._norms, self._changes):
                    array[place] = array[last]
            self._ids.pop()


class MatrixCache:
    """Matrices by place, the least recently used go first. Used on one event loop at a time.

    Args:
        limit_bytes: All together; 0 keeps none.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._matrices: OrderedDict[Place, Matrix] = OrderedDict()

    def fits(self, rows: int, dimension: int) -> bool:
        """Whether a matrix of this size can be kept at all."""
        return rows * (4 * dimension + _ROW_BYTES) <= self.limit_bytes

    def get(self, place: Place) -> Optional[Matrix]:
        """Return the matrix, now the most recently used one."""
        found = self._matrices.get(place)
        if found is not None:
            self._matrices.move_to_end(place)
        return found

    def put(self, place: Place, matrix: Matrix) -> None:
        """Keep a matrix, and drop others when they are too many together."""
        self._matrices[place] = matrix
        self._matrices.move_to_end(place)
        while (
            len(self._matrices) > 1 and sum(m.size_bytes for m in self._matrices.values()) > self.limit_bytes
        ):
            self._matrices.popitem(last=False)

    def drop(self, place: Place) -> None:
        """Forget a matrix."""
        self._matrices.pop(place, None)

    def drop_collection(self, tenant: str, collection: int) -> None:
        """Forget the matrices of a collection."""
        for place in [p for p in self._matrices if (p.tenant, p.collection) == (tenant, collection)]:
            del self._matrices[place]

    def clear(self) -> None:
        """Forget all."""
        self._matrices.clear()

    @property
    def size_bytes(self) -> int:
        """About how much memory they take."""
        return sum(matrix.size_bytes for matrix in self._matrices.values())

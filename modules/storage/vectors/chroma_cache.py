"""Rows of an embedded Chroma that were read, kept in memory: Chroma needs 0.1 ms to read the metadata of one row.

A namespace that was read whole is kept, and searched exactly, until something in Chroma's directory changes that this
provider did not write itself. Whether anything did is what Chroma's own SQLite file says: its change counter, and the number
of its last write. What this provider writes is taken over, when it is all that was written in between.

Everything here blocks, and runs in the one thread that the connection was made in.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, Optional, Sequence, Tuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.chroma_names import split_id
from modules.storage.vectors.chroma_records import Row

__all__ = ["CachedRows", "RowCache"]

logger = logging.getLogger(__name__)

#: Change counter of the file, and number of the last write.
_State = Tuple[int, int]

_BUSY_S = 1.0
# seq_id is the key of the table, and Chroma never deletes its last row
_LAST_WRITE = "SELECT coalesce(max(seq_id), 0) FROM embeddings_queue"
_IS_THERE = "SELECT 1 FROM collections WHERE id = ?"


class CachedRows:
    """The rows of one namespace, with the matrix of their vectors.

    Args:
        rows: All of them, with their vectors.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {row.key: row for row in rows}
        self._matrix: Optional[NDArray[np.float32]] = None
        self.size_bytes = sum(map(_size, self._rows.values()))
        #: In the order of `matrix`, as of its last use; and their ids.
        self.rows: List[Row] = []
        self.ids: List[str] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def matrix(self) -> NDArray[np.float32]:
        """Shape (rows, dimension), in the order of `rows` and `ids`; there must be rows."""
        if self._matrix is None:
            self.rows = list(self._rows.values())
            self.ids = [row.id for row in self.rows]
            self._matrix = np.stack([row.vector for row in self.rows])
        return self._matrix

    def put(self, row: Row) -> None:
        """Take over that a row was written."""
        self.remove(row.key)
        self._rows[row.key] = row
        self.size_bytes += _size(row)
        self._matrix = None

    def remove(self, key: str) -> None:
        """Take over that a row was deleted."""
        row = self._rows.pop(key, None)
        if row is not None:
            self.size_bytes -= _size(row)
            self._matrix = None


def _size(row: Row) -> int:
    """Return about how many bytes a row takes; the matrix has its vector once more."""
    return row.size_bytes + row.vector.nbytes


class RowCache:
    """The namespaces of one directory that were read.

    Args:
        database: Chroma's SQLite file; must be there.
        most_rows: Of a namespace that is kept.
        most_bytes: That all of them may take; those that were not used for longest go first.
    """

    def __init__(self, database: Path, *, most_rows: int = 1000, most_bytes: int = 64 << 20) -> None:
        self.most_rows = most_rows
        self._most_bytes = most_bytes
        self._state: Optional[_State] = None
        self._kept: OrderedDict[Tuple[UUID, str], CachedRows] = OrderedDict()
        self._connection = sqlite3.connect(
            f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=_BUSY_S, isolation_level=None
        )

    def close(self) -> None:
        """Close the file; harmless when closed."""
        self._kept.clear()
        self._connection.close()

    def _look(self) -> Optional[_State]:
        """Return the state of Chroma's file; None when it cannot be read now."""
        try:
            counter = self._connection.execute("PRAGMA data_version").fetchone()[0]
            return int(counter), int(self._connection.execute(_LAST_WRITE).fetchone()[0])
        except sqlite3.Error as exc:
            # every row is read from Chroma then
            logger.debug(
                "storage.vectors.cache_unused", extra={"store": "chroma", "error_type": type(exc).__name__}
            )
            return None

    def refresh(self) -> Optional[_State]:
        """Forget everything if anything was written by others; returns the state, None when it is not known."""
        state = self._look()
        if state is None or state != self._state:
            self._forget()
            self._state = state
        return state

    def has(self, collection: UUID, namespace: str) -> bool:
        """Return whether a namespace is kept, maybe of an older state; may be called by any thread."""
        return (collection, namespace) in self._kept

    def get(self, collection: UUID, namespace: str) -> Optional[CachedRows]:
        """Return the rows of a namespace as they are now; None when they are not kept."""
        self.refresh()
        found = self._kept.get((collection, namespace))
        if found is not None:
            self._kept.move_to_end((collection, namespace))
        return found

    def put(self, collection: UUID, namespace: str, rows: Sequence[Row], state: Optional[_State]) -> None:
        """Keep all rows of a namespace.

        Args:
            collection: Whose.
            namespace: Whose.
            rows: All that it has, with their texts and vectors.
            state: What `refresh` gave before the first of them was looked for.
        """
        if state is None or len(rows) > self.most_rows or self.refresh() != state:
            return
        self._kept[collection, namespace] = CachedRows(rows)
        self._kept.move_to_end((collection, namespace))
        self._shrink()

    def _shrink(self) -> None:
        size = sum(kept.size_bytes for kept in self._kept.values())
        while size > self._most_bytes:
            size -= self._kept.popitem(last=False)[1].size_bytes

    @contextmanager
    def writing(
        self, collection: UUID, keys: Sequence[str], make: Optional[Callable[[int], Row]] = None
    ) -> Iterator[None]:
        """Take over what the block writes.

        Args:
            collection: Whose.
            keys: Chroma's ids of all that is written or deleted, each once.
            make: Returns the row of a position in `keys` as it is then, with text and vector; None: they are deleted.
        """
        before = self.refresh() if self._kept else None
        if before is None:
            yield
            return
        try:
            yield
        except BaseException:
            self._forget()
            raise
        after = self._look()
        # Chroma numbers each row that is written or deleted: with more of them somebody else wrote as well
        if after is None or after[1] - before[1] != len(keys) or not self._are_there():
            self._forget()
            return
        self._state = after
        for position, key in enumerate(keys):
            place = (collection, split_id(key)[0])
            kept = self._kept.get(place)
            if kept is None:
                continue
            if make is None:
                kept.remove(key)
            else:
                kept.put(make(position))
            if len(kept) > self.most_rows:
                del self._kept[place]
        self._shrink()

    def _forget(self) -> None:
        self._kept.clear()
        self._state = None

    def _are_there(self) -> bool:
        """Return whether every collection of which rows are kept is there still; a deletion has no number."""
        collections = {place[0] for place in self._kept}
        try:
            return all(self._connection.execute(_IS_THERE, (str(item),)).fetchone() for item in collections)
        except sqlite3.Error:
            return False

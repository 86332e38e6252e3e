"""The vectors of an embedded Chroma once more, in an SQLite file of ours beside its own: `atlas-vectors.sqlite3`.

Chroma keeps a vector in its index files only, and a cosine collection gives it back with another last bit. From these
copies a damaged index is made anew exactly, and searches are scored from the vectors as they were given.

Which copy belongs to a row is said by the row itself: it holds a digest of its vector. A copy is written before its row, and
the copy of what the row was before is deleted after it; so whatever process dies when, a row finds its own copy, and one
that no row names is never read. A row without a copy (the file was lost, another program wrote the row) takes the vector
that Chroma gives.

Everything here blocks, and runs in the one thread that the connection was made in.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple
from uuid import UUID

from modules.storage.vectors.errors import VectorStoreError, VectorUnavailableError
from modules.store_common.errors import StorageError, StorageFullError

__all__ = ["COPIES_FILE", "VectorCopies", "digest_of"]

logger = logging.getLogger(__name__)

COPIES_FILE = "atlas-vectors.sqlite3"
_DIGEST_BYTES = 8
_BUSY_S = 10.0
_FULL = "is full"

_CREATE = """
CREATE TABLE IF NOT EXISTS copies (
    collection BLOB NOT NULL, id TEXT NOT NULL, digest TEXT NOT NULL, vector BLOB NOT NULL,
    PRIMARY KEY (collection, id, digest))
"""
_ADD = "INSERT OR IGNORE INTO copies VALUES (?, ?, ?, ?)"
_READ = "SELECT vector FROM copies WHERE collection = ? AND id = ? AND digest = ?"
_DISCARD = "DELETE FROM copies WHERE collection = ? AND id = ? AND digest = ?"
_REMOVE = "DELETE FROM copies WHERE collection = ? AND id = ?"
_DROP = "DELETE FROM copies WHERE collection = ?"
_COLLECTIONS = "SELECT DISTINCT collection FROM copies"


def digest_of(vector: bytes) -> str:
    """Return what names a vector among the copies of its row."""
    return hashlib.blake2b(vector, digest_size=_DIGEST_BYTES).hexdigest()


class VectorCopies:
    """The copies of one directory.

    Args:
        directory: Chroma's; must be there.

    Raises:
        VectorStoreError: the file cannot be opened or written.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / COPIES_FILE
        with _as_ours():
            try:
                self._connection = self._open()
            except sqlite3.DatabaseError as exc:
                if isinstance(exc, sqlite3.OperationalError):
                    raise
                self._set_aside()
                self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(str(self._file), timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # as Chroma's own file: a power cut may take the last copies, a killed process takes none
            connection.execute("PRAGMA synchronous = NORMAL")
            if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check")
            connection.execute(_CREATE)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self) -> None:
        """Chroma's own vectors do for what was in a damaged file; it is kept for whoever wants to look."""
        logger.warning("storage.vectors.copies_damaged", extra={"store": "chroma"})
        for suffix in ("-wal", "-shm"):
            self._file.with_name(self._file.name + suffix).unlink(missing_ok=True)
        self._file.replace(self._file.with_name("atlas-damaged-" + self._file.name))

    def close(self) -> None:
        """Close the file; harmless when closed."""
        self._connection.close()

    def add(self, collection: UUID, rows: Sequence[Tuple[str, str, bytes]]) -> None:
        """Keep a vector for each row: (Chroma's id, digest, float32 numbers)."""
        self._write(_ADD, [(collection.bytes, *row) for row in rows])

    def discard(self, collection: UUID, rows: Sequence[Tuple[str, str]]) -> None:
        """Delete these copies: (Chroma's id, digest)."""
        self._tidy(_DISCARD, [(collection.bytes, *row) for row in rows])

    def remove(self, collection: UUID, ids: Sequence[str]) -> None:
        """Delete every copy of these rows."""
        self._tidy(_REMOVE, [(collection.bytes, item) for item in ids])

    def drop(self, collection: UUID) -> None:
        """Delete every copy of a collection."""
        self._tidy(_DROP, [(collection.bytes,)])

    def _tidy(self, statement: str, rows: List[Tuple[Any, ...]]) -> None:
        """Delete what no row names any more; Chroma has done its part, so what cannot be deleted stays, unread."""
        try:
            self._write(statement, rows)
        except StorageError as exc:
            logger.warning(
                "storage.vectors.copies_left", extra={"store": "chroma", "error_type": type(exc).__name__}
            )

    def _write(self, statement: str, rows: List[Tuple[Any, ...]]) -> None:
        if not rows:
            return
        with _as_ours():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(statement, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, collection: UUID, wanted: Sequence[Tuple[str, str]]) -> Dict[str, bytes]:
        """Return the vectors that are there, by Chroma's id; wanted by (id, digest)."""
        found: Dict[str, bytes] = {}
        try:
            for item, digest in wanted:
                row = self._connection.execute(_READ, (collection.bytes, item, digest)).fetchone()
                if row is not None and digest_of(row[0]) == digest:
                    found[item] = row[0]
        except sqlite3.DatabaseError as exc:
            # those that are missing are asked of Chroma
            logger.warning(
                "storage.vectors.copies_damaged", extra={"store": "chroma", "error_type": type(exc).__name__}
            )
        return found

    def forget_unknown(self, database: Path) -> None:
        """Delete the copies of collections that are not there any more.

        Args:
            database: Chroma's own SQLite file.
        """
        with _as_ours():
            # first ours, then Chroma's: a collection is there before its first copy is
            kept = [row[0] for row in self._connection.execute(_COLLECTIONS)]
            if not kept or not database.exists():
                return
            with closing(
                sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)
            ) as theirs:
                known = {UUID(row[0]).bytes for row in theirs.execute("SELECT id FROM collections")}
            gone = [(item,) for item in kept if item not in known]
        self._tidy(_DROP, gone)


@contextmanager
def _as_ours() -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.Error as exc:
        error: Optional[Exception] = None
        if _FULL in str(exc):
            error = StorageFullError(
                f"the disk (or quota) under {COPIES_FILE} of the Chroma directory is full; free space and try again"
            )
        elif "locked" in str(exc):
            error = VectorUnavailableError(
                f"another process holds {COPIES_FILE} of the Chroma directory; one process at a time may use it"
            )
        raise error or VectorStoreError(
            f"the file {COPIES_FILE} of the Chroma directory cannot be used ({type(exc).__name__}); check its "
            "permissions, or open the store anew (see docs/chroma.md, Damage)"
        ) from exc

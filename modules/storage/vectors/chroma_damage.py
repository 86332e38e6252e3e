"""Is the directory of an embedded Chroma whole? Asked of its files before Chroma opens them.

Chroma itself opens a truncated index without a word and answers from what is left. So we compare: the SQLite file with
its own check, the index files of each collection with the counts in their header, and those with the rows in SQLite.
Layout as of chromadb 1.5: `chroma.sqlite3`, and for each collection a directory named like its vector segment.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import List, Optional, Tuple

from modules.storage.vectors.errors import VectorCollectionError

__all__ = [
    "DATABASE",
    "MARKER",
    "check_database",
    "damaged_collections",
    "discard_set_aside",
    "leave_marker",
    "set_aside",
]

#: Says that a store was here, so that a database file that vanished is noticed.
MARKER = "atlas-chroma.json"
_SET_ASIDE = "atlas-damaged-"
DATABASE = "chroma.sqlite3"
_INDEX_FILES = ("header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle")
_VECTOR_SEGMENTS = """
SELECT c.name, s.id, m.seq_id,
       (SELECT count(*) FROM segments t JOIN embeddings e ON e.segment_id = t.id
        WHERE t.collection = c.id AND t.scope = 'METADATA'),
       (SELECT count(DISTINCT q.id) FROM embeddings_queue q
        WHERE q.topic LIKE '%' || c.id AND q.seq_id > coalesce(m.seq_id, -1))
FROM collections c
JOIN collection_metadata k ON k.collection_id = c.id AND k.key = 'atlas_format'
JOIN segments s ON s.collection = c.id AND s.scope = 'VECTOR'
LEFT JOIN max_seq_id m ON m.segment_id = s.id
ORDER BY c.name
"""


def leave_marker(directory: Path) -> None:
    """Note that a store is kept here."""
    marker = directory / MARKER
    if not marker.exists():
        marker.write_text('{"format": 1}\n', encoding="ascii")


def check_database(directory: Path) -> None:
    """Check the database file of the directory; a directory without any store in it is fine.

    Raises:
        VectorCollectionError: it is damaged or gone; says what to do.
    """
    database = directory / DATABASE
    if not database.exists() or database.stat().st_size == 0:
        if (directory / MARKER).exists() or any(directory.glob("*/header.bin")):
            raise _lost(directory, "its database file chroma.sqlite3 is gone or empty")
        return
    try:
        with closing(_connect(database)) as connection:
            found = connection.execute("PRAGMA quick_check(1)").fetchone()
            if found != ("ok",):
                raise _lost(directory, "SQLite's own check of chroma.sqlite3 fails")
            connection.execute(_VECTOR_SEGMENTS).fetchall()
    except sqlite3.OperationalError as exc:
        if "locked" in str(exc) or "unable to open" in str(exc):
            return
        raise _lost(directory, "chroma.sqlite3 lacks tables of Chroma") from exc
    except sqlite3.DatabaseError as exc:
        raise _lost(directory, "chroma.sqlite3 is not a sound SQLite database") from exc


def _connect(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True, timeout=5.0)


def _lost(directory: Path, why: str) -> VectorCollectionError:
    return VectorCollectionError(
        f"the Chroma directory {str(directory)!r} is damaged: {why}. Restore it from a backup, or move it away and "
        "store the documents again from where they come from (see docs/chroma.md, Damage)"
    )


def damaged_collections(directory: Path) -> List[Tuple[str, str, str]]:
    """Return our collections whose index files are damaged: Chroma's name, the index directory, the reason."""
    database = directory / DATABASE
    if not database.exists():
        return []
    with closing(_connect(database)) as connection:
        segments = connection.execute(_VECTOR_SEGMENTS).fetchall()
    found = []
    for name, segment, persisted, rows, waiting in segments:
        why = _index_damage(directory / segment, persisted is not None, rows - waiting)
        if why is not None:
            found.append((name, segment, why))
    return found


def set_aside(directory: Path, segment: str) -> None:
    """Move a damaged index away: with its files there, Chroma refuses to read even the rows."""
    if (directory / segment).exists():
        target = directory / (_SET_ASIDE + segment)
        shutil.rmtree(target, ignore_errors=True)
        (directory / segment).rename(target)


def discard_set_aside(directory: Path) -> None:
    """Delete what `set_aside` kept, once the index was made anew."""
    for kept in directory.glob(_SET_ASIDE + "*"):
        shutil.rmtree(kept, ignore_errors=True)


def _index_damage(segment: Path, persisted: bool, expected: int) -> Optional[str]:
    if not persisted:
        return None if expected <= 0 else f"{expected} rows are neither in the index nor in the log"
    sizes = {}
    for file in _INDEX_FILES:
        try:
            sizes[file] = (segment / file).stat().st_size
        except FileNotFoundError:
            return f"{file} is missing"
    with (segment / "header.bin").open("rb") as stream:
        header = stream.read()
    if len(header) < 100:
        return "header.bin is truncated"
    version, _, _, count, width = struct.unpack_from("<iQQQQ", header)
    if version != 1 or not width:
        # another layout than the one we know: nothing can be said
        return None
    if sizes["data_level0.bin"] % width or sizes["data_level0.bin"] < count * width:
        return "data_level0.bin does not fit header.bin"
    if sizes["length.bin"] * width != sizes["data_level0.bin"] * 4:
        return "length.bin does not fit data_level0.bin"
    if not _ends_like_a_pickle(segment / "index_metadata.pickle"):
        return "index_metadata.pickle is truncated"
    if not _links_fit(segment / "link_lists.bin", count):
        return "link_lists.bin does not fit header.bin"
    return None if count >= expected else f"the index holds {count} rows of {expected}"


def _ends_like_a_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        if file.stat().st_size < 2:
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"."


def _links_fit(file: Path, count: int) -> bool:
    data = file.read_bytes()
    at = 0
    for _ in range(count):
        if at + 4 > len(data):
            return False
        at += 4 + int(struct.unpack_from("<I", data, at)[0])
    return at <= len(data)

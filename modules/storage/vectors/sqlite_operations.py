"""What the embedded vector store does in the database, in transactions. Runs on the database's threads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import orjson
from numpy.typing import NDArray

from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row
from modules.storage.vectors.errors import VectorNotFoundError
from modules.storage.vectors.filters import Filter, matches
from modules.storage.vectors.sqlite_filters import FilterParts, parts_of
from modules.storage.vectors.sqlite_statements import (
    BARE,
    BUMP,
    CHANGED,
    COLLECTION,
    COLLECTIONS,
    COUNT,
    COUNT_ALL,
    CREATE,
    DELETE,
    DELETE_COLLECTION,
    DELETE_ROWS,
    DELETE_SPACE,
    DOCUMENTS,
    FOLLOWING,
    FORGET_TOMBSTONES,
    MANY_GONE,
    SET_TOMBSTONES,
    STATE,
    TOMBSTONE,
    TOMBSTONES,
    UPSERT,
    VECTORS,
    WITHOUT_VECTORS,
    find,
    following,
)

__all__ = [
    "CHUNK_ROWS",
    "CollectionGoneError",
    "Delta",
    "Place",
    "SearchView",
    "chunk",
    "clear",
    "count",
    "create_collection",
    "delete_collection",
    "delete_ids",
    "delete_matching",
    "delete_rows",
    "get_documents",
    "list_collections",
    "look",
    "ping",
    "read_collection",
    "read_state",
    "scroll",
    "upsert",
]

#: Rows read in one operation, so that others' reads come in between, and little is in memory twice.
CHUNK_ROWS = 5_000
#: Ids deleted in one call that still get a tombstone each; more: the caches load anew.
_MAX_TOMBSTONES = 2_000
_ALL_TOMBSTONES = 20_000
#: Matches of a filter that are scored from their rows when no matrix is in memory.
_FEW = 2_000


class CollectionGoneError(VectorNotFoundError):
    """The collection was deleted meanwhile, and perhaps made anew; the provider looks again."""


@dataclass(frozen=True)
class Place:
    """A namespace of a collection.

    Attributes:
        tenant: Whose.
        collection: Its `collection_id`.
        space: The namespace.
    """

    tenant: str
    collection: int
    space: str

    @property
    def params(self) -> Dict[str, Any]:
        """As parameters of the statements."""
        return {"tenant": self.tenant, "collection": self.collection, "space": self.space}


@dataclass(frozen=True, eq=False)
class Delta:
    """What changed in a namespace.

    Attributes:
        since: It holds every change above this number ...
        until: ... up to this one.
        ids: Of the rows that were written.
        changes: Their change numbers, shape (rows,).
        vectors: Shape (rows, dimension).
        gone: (id, change) of what was deleted.
        is_whole: False: more rows follow, after `ids[-1]`.
        must_reload: Deletes above `since` are not known one by one: begin again from 0.
    """

    since: int
    until: int
    ids: List[str]
    changes: NDArray[np.int64]
    vectors: NDArray[np.float32]
    gone: List[Row]
    is_whole: bool
    must_reload: bool


@dataclass(frozen=True, eq=False)
class SearchView:
    """What a search needs of the database, all of one state of it.

    Attributes:
        delta: What a matrix in memory lacks; None when `few` answers, or when nothing is to be loaded.
        matching: Ids that pass the filter; None: not asked, or more than are worth reading one by one.
        few: Rows that pass the filter, to be scored without a matrix.
        rows: Documents in the namespace; only counted where there was no matrix.
        until: The change number of this state.
    """

    delta: Optional[Delta]
    matching: Optional[List[str]]
    few: Optional[Delta]
    rows: int
    until: int


# --- collections ----------------------------------------------------------------------------------------------------


@read
async def ping(tx: Transaction) -> None:
    """Touch the table; raises when it is not there."""
    await tx.first(COLLECTION, tenant="", name="")


@write
async def create_collection(tx: Transaction, params: Mapping[str, Any]) -> bool:
    """Create a collection; False when the name is taken."""
    return await tx.first(CREATE, **params) is not None


@write
async def delete_collection(tx: Transaction, tenant: str, name: str) -> bool:
    """Delete a collection with its documents; whether it was there."""
    row = await tx.first(DELETE_COLLECTION, tenant=tenant, name=name)
    if row is None:
        return False
    await tx.run(DELETE_ROWS, tenant=tenant, collection=row[0])
    await tx.run(FORGET_TOMBSTONES, tenant=tenant, collection=row[0])
    return True


@read
async def read_collection(tx: Transaction, tenant: str, name: str) -> Optional[Row]:
    """Return (name, dimension, metric, metadata, collection_id)."""
    return await tx.first(COLLECTION, tenant=tenant, name=name)


@read
async def list_collections(tx: Transaction, tenant: str) -> List[Row]:
    """Return the rows of `read_collection`, each with its count."""
    return await tx.all(COLLECTIONS, tenant=tenant)


# --- writes ---------------------------------------------------------------------------------------------------------


@write
async def upsert(tx: Transaction, tenant: str, collection: int, rows: Sequence[Dict[str, Any]]) -> None:
    """Store rows (parameters of UPSERT without tenant, collection and change)."""
    change, _ = await _bump(tx, tenant, collection)
    stamp = {"tenant": tenant, "collection": collection, "change": change}
    await tx.run_many(UPSERT, [{**row, **stamp} for row in rows])


@write
async def delete_ids(tx: Transaction, place: Place, ids: Sequence[str]) -> int:
    """Delete by id; how many were there."""
    return await delete_rows(tx, place, ids)


@write
async def delete_matching(tx: Transaction, place: Place, tree: Filter) -> int:
    """Delete what passes the filter; how many."""
    return await delete_rows(tx, place, await _matching(tx, place, tree))


@write
async def clear(tx: Transaction, place: Place) -> int:
    """Delete everything in the namespace; how many."""
    change, _ = await _bump(tx, place.tenant, place.collection)
    gone = await tx.run(DELETE_SPACE, **place.params)
    await _forget_tombstones(tx, place, change)
    return gone


async def _bump(tx: Transaction, tenant: str, collection: int) -> Tuple[int, int]:
    row = await tx.first(BUMP, tenant=tenant, collection=collection)
    if row is None:
        raise CollectionGoneError("the vector collection was deleted")
    return row[0], row[1]


async def read_state(tx: Transaction, tenant: str, collection: int) -> Row:
    """Return (changes, changes_known), within an operation.

    Raises:
        CollectionGoneError: it is not there any more.
    """
    row = await tx.first(STATE, tenant=tenant, collection=collection)
    if row is None:
        raise CollectionGoneError("the vector collection was deleted")
    return row


async def delete_rows(tx: Transaction, place: Place, ids: Sequence[str]) -> int:
    """Delete by id, within an operation; how many were there."""
    change, tombstones = await _bump(tx, place.tenant, place.collection)
    if not ids:
        return 0
    gone = await tx.all(DELETE, **place.params, ids=_json(ids))
    if len(gone) > _MAX_TOMBSTONES or tombstones + len(gone) > _ALL_TOMBSTONES:
        await _forget_tombstones(tx, place, change)
    elif gone:
        await tx.run_many(TOMBSTONE, [{**place.params, "change": change, "id": row[0]} for row in gone])
        counted = tombstones + len(gone)
        await tx.run(SET_TOMBSTONES, tenant=place.tenant, collection=place.collection, tombstones=counted)
    return len(gone)


async def _forget_tombstones(tx: Transaction, place: Place, change: int) -> None:
    await tx.run(FORGET_TOMBSTONES, tenant=place.tenant, collection=place.collection)
    await tx.run(MANY_GONE, tenant=place.tenant, collection=place.collection, change=change)


# --- reads ----------------------------------------------------------------------------------------------------------


@read
async def get_documents(
    tx: Transaction, place: Place, ids: Sequence[str], metadata: bool = True, vectors: bool = True
) -> List[Row]:
    """Return (id, change, created_at, metadata, content, vector) of those that are there.

    Args:
        tx: The transaction.
        place: Where.
        ids: Which.
        metadata: False, without vectors: None stands for metadata and content.
        vectors: False: None stands for the vector.
    """
    await read_state(tx, place.tenant, place.collection)
    statement = DOCUMENTS if vectors else WITHOUT_VECTORS if metadata else BARE
    return await tx.all(statement, **place.params, ids=_json(ids))


@read(snapshot=True)
async def count(
    tx: Transaction, tenant: str, collection: int, space: Optional[str], tree: Optional[Filter]
) -> int:
    """Count what passes."""
    await read_state(tx, tenant, collection)
    if tree is not None:
        return len(
            await _matching(tx, Place(tenant, collection, space or ""), tree, everywhere=space is None)
        )
    if space is None:
        return int((await tx.one(COUNT_ALL, tenant=tenant, collection=collection))[0])
    return int((await tx.one(COUNT, tenant=tenant, collection=collection, space=space))[0])


@read(snapshot=True)
async def scroll(tx: Transaction, place: Place, tree: Optional[Filter], after: str, limit: int) -> List[Row]:
    """Return the next rows (as `get_documents`) that pass, by id."""
    await read_state(tx, place.tenant, place.collection)
    parts = None if tree is None else parts_of(tree)
    statement = FOLLOWING if tree is None else following(parts)
    found: List[Row] = []
    while len(found) < limit:
        wanted = limit - len(found)
        # where `matches` decides all, read more at a time
        step = wanted if tree is None or parts is not None else max(wanted, 1000)
        named = {} if parts is None else parts.params
        rows = await tx.all(statement, **place.params, after=after, limit=step, **named)
        found += rows if tree is None else [row for row in rows if not row[6] or matches(tree, row[3])]
        if len(rows) < step:
            break
        after = rows[-1][0]
    return found[:limit]


async def _matching(tx: Transaction, place: Place, tree: Filter, *, everywhere: bool = False) -> List[str]:
    """Return the ids that pass; `everywhere` one for each namespace that has it."""
    parts: Optional[FilterParts] = parts_of(tree)
    params = place.params
    if everywhere:
        del params["space"]
    rows = await tx.all(
        find(parts, everywhere=everywhere), **params, **({} if parts is None else parts.params)
    )
    return [row[1] for row in rows if row[2] is None or matches(tree, row[2])]


@read(snapshot=True)
async def look(
    tx: Transaction, place: Place, dimension: int, seen: Optional[int], tree: Optional[Filter]
) -> SearchView:
    """Return what a search needs.

    Args:
        tx: The transaction.
        place: Where.
        dimension: Of the collection.
        seen: The change number of the matrix in memory; None when there is none.
        tree: The filter, where its matches are not known already.
    """
    state = await read_state(tx, place.tenant, place.collection)
    until: int = state[0]
    matching = None if tree is None else await _matching(tx, place, tree)
    if seen is not None:
        delta = None if seen == until else await _delta(tx, place, dimension, seen, seen + 1, "", state)
        return SearchView(delta, matching, None, 0, until)
    if matching is not None and len(matching) <= _FEW:
        rows = await tx.all(VECTORS, **place.params, ids=_json(matching)) if matching else []
        return SearchView(None, matching, _as_delta(rows, dimension, 0, until), 0, until)
    counted = await tx.one(COUNT, **place.params)
    return SearchView(None, matching, None, counted[0], until)


@read(snapshot=True)
async def chunk(tx: Transaction, place: Place, dimension: int, since: int, seen: int, after: str) -> Delta:
    """Return the next rows of a load that began at the state `since`.

    Args:
        tx: The transaction.
        place: Where.
        dimension: Of the collection.
        since: Deletes above this number are told.
        seen: Rows from this change number on ...
        after: ... and within it from this id on are given.
    """
    state = await read_state(tx, place.tenant, place.collection)
    return await _delta(tx, place, dimension, since, seen, after, state)


async def _delta(
    tx: Transaction, place: Place, dimension: int, since: int, seen: int, after: str, state: Row
) -> Delta:
    rows = await tx.all(CHANGED, **place.params, seen=seen, after=after, limit=CHUNK_ROWS)
    is_whole = len(rows) < CHUNK_ROWS
    gone = await tx.all(TOMBSTONES, **place.params, seen=since) if is_whole else []
    return _as_delta(rows, dimension, since, state[0], gone, is_whole, state[1] > since)


def _as_delta(
    rows: List[Row],
    dimension: int,
    since: int,
    until: int,
    gone: Sequence[Row] = (),
    is_whole: bool = True,
    must_reload: bool = False,
) -> Delta:
    vectors = np.frombuffer(b"".join([row[2] for row in rows]), dtype="<f4").reshape(len(rows), dimension)
    changes = np.fromiter((row[1] for row in rows), dtype=np.int64, count=len(rows))
    return Delta(since, until, [row[0] for row in rows], changes, vectors, list(gone), is_whole, must_reload)


def _json(ids: Sequence[str]) -> str:
    return orjson.dumps(list(ids)).decode()

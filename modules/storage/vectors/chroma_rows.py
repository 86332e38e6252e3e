"""The rows of a collection inside Chroma: found, read with their vectors, written, deleted and copied."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, TypeVar
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from modules.storage.vectors.checks import PreparedDocument
from modules.storage.vectors.chroma_cache import CachedRows
from modules.storage.vectors.chroma_client import ChromaLink, ChromaRefusedError
from modules.storage.vectors.chroma_copies import VectorCopies, digest_of
from modules.storage.vectors.chroma_filters import OVERFLOW, Both, Leaf, Plan, candidate_plan
from modules.storage.vectors.chroma_names import document_id
from modules.storage.vectors.chroma_records import (
    Row,
    row_digest,
    row_fields,
    row_text,
    row_time,
    vector_bytes,
)
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.filters import Filter, matches
from modules.store_common.clock import utc_now

__all__ = ["CHUNK_ROWS", "RowSpace"]

_Found = TypeVar("_Found")

#: Rows read at once; SQLite takes 32,766 parameters, and a row has its vector with it.
CHUNK_ROWS = 1000
#: A set of candidates that is not worth making smaller.
_ENOUGH_ROWS = 100
_COPY_ROWS = 500


class RowSpace:
    """What is done to rows, by Chroma's handle of their collection.

    Args:
        link: The way to Chroma.
    """

    def __init__(self, link: ChromaLink) -> None:
        self.link = link

    async def count(self, handle: Any) -> int:
        """Return how many rows the collection has."""
        return int(await self.link.run("count", handle.count))

    async def candidates(self, handle: Any, namespace: Optional[str], tree: Optional[Filter]) -> List[str]:
        """Return Chroma's ids of the rows that may match, in code-point order; every match is among them."""
        plan = candidate_plan(tree)
        if plan is None:
            where = None if namespace is None else {"ns": {"$eq": namespace}}
            return sorted(await self._ids(handle, where))
        found = await self._find(handle, plan) | await self._ids(handle, OVERFLOW)
        if namespace is None:
            return sorted(found)
        start = document_id(namespace, "")
        return sorted(item for item in found if item.startswith(start))

    async def _find(self, handle: Any, plan: Plan) -> Set[str]:
        if isinstance(plan, Leaf):
            return await self._ids(handle, plan.where)
        if isinstance(plan, Both):
            found = await self._find(handle, plan.parts[0])
            for part in plan.parts[1:]:
                if len(found) <= _ENOUGH_ROWS:
                    # reading these few is cheaper than another condition
                    break
                found &= await self._find(handle, part)
            return found
        found = set()
        for part in plan.parts:
            found |= await self._find(handle, part)
        return found

    async def _ids(self, handle: Any, where: Optional[Dict[str, Any]]) -> Set[str]:
        found = await self.link.run("read ids", lambda: handle.get(where=where, include=[]))
        return set(found["ids"])

    async def rows(
        self, handle: Any, ids: Sequence[str], *, text: bool = True, vectors: bool = True
    ) -> List[Row]:
        """Return the rows of `ids` that are there, at most `CHUNK_ROWS` ids."""
        include = ["metadatas", "documents"] if text else ["metadatas"]

        def take(found: Any, copies: Optional[VectorCopies]) -> List[Row]:
            texts = found["documents"] if text else [None] * len(found["ids"])
            rows = [Row(*item) for item in zip(found["ids"], found["metadatas"], texts)]
            if vectors and copies is not None:
                _give_copies(copies, handle.id, rows)
            return rows

        rows = await self._ask("read rows", partial(handle.get, ids=list(ids), include=include), take)
        if vectors:
            await self._complete(handle, rows)
        return list(rows)

    async def nearest(
        self, handle: Any, queries: Sequence[Any], wanted: int, ids: Optional[Sequence[str]], *, text: bool
    ) -> List[Tuple[List[Row], List[Optional[float]]]]:
        """Return what the index gives for each query: rows with their vectors, and Chroma's distances."""
        include = ["metadatas", "distances", *(["documents"] if text else [])]
        ask = partial(
            handle.query, query_embeddings=list(queries), n_results=wanted, ids=ids, include=include
        )

        def take(found: Any, copies: Optional[VectorCopies]) -> List[Tuple[List[Row], List[Optional[float]]]]:
            answers = []
            for number, keys in enumerate(found["ids"]):
                texts = found["documents"][number] if text else [None] * len(keys)
                rows = [Row(*item) for item in zip(keys, found["metadatas"][number], texts)]
                if copies is not None:
                    _give_copies(copies, handle.id, rows)
                answers.append((rows, list(found["distances"][number])))
            return answers

        answers: List[Tuple[List[Row], List[Optional[float]]]] = await self._ask("search", ask, take)
        await self._complete(handle, [row for rows, _ in answers for row in rows])
        return answers

    async def _ask(
        self, what: str, call: Callable[[], Any], take: Callable[[Any, Optional[VectorCopies]], Any]
    ) -> Any:
        """Call Chroma and take what it gives: in its thread, where the copies are, if it has one."""
        copies = self.link.copies
        if copies is None:
            return take(await self.link.run(what, call), None)
        return await self.link.run(what, lambda: take(call(), copies))

    async def _complete(self, handle: Any, rows: Sequence[Row]) -> None:
        """Give rows that have no vector, neither in a copy nor in themselves, the one that Chroma has."""
        missing = {row.key: row for row in rows if row.needs_vector}
        keys = list(missing)
        for start in range(0, len(keys), CHUNK_ROWS):
            ask = partial(handle.get, ids=keys[start : start + CHUNK_ROWS], include=["embeddings"])
            try:
                found = await self.link.run("read vectors", ask)
            except ChromaRefusedError as exc:
                raise VectorCollectionError(
                    "the index of a Chroma collection is damaged, and there is no copy of some of its vectors; "
                    "store its documents again (see docs/chroma.md, Damage)"
                ) from exc
            given = dict(zip(found["ids"], found["embeddings"]))
            for row in rows:
                if row.key in given and row.needs_vector:
                    row.give_vector(given[row.key])

    async def of_cache(
        self, handle: Any, namespace: str, use: Callable[[CachedRows], _Found]
    ) -> Optional[_Found]:
        """Return what `use` makes of all rows of a namespace, in Chroma's thread; None when they are not kept."""
        cache = self.link.cache
        if cache is None or not cache.has(handle.id, namespace):
            return None

        def look() -> Optional[_Found]:
            rows = cache.get(handle.id, namespace)
            return None if rows is None else use(rows)

        found: Optional[_Found] = await self.link.run("search", look)
        return found

    async def state(self) -> Any:
        """Return what `keep` wants to know, before rows are looked for; None: rows are not kept."""
        cache = self.link.cache
        return None if cache is None else await self.link.run("look for changes", cache.refresh)

    async def keep(self, handle: Any, namespace: str, rows: Sequence[Row], state: Any) -> None:
        """Keep all rows of a namespace, if nothing changed since `state`."""
        cache = self.link.cache
        if cache is not None and state is not None:
            # `rows` go to the caller, who may write into their metadata and vectors
            await self.link.run(
                "keep rows", lambda: cache.put(handle.id, namespace, [row.again() for row in rows], state)
            )

    async def matching(
        self,
        handle: Any,
        ids: Sequence[str],
        tree: Optional[Filter],
        *,
        text: bool = True,
        vectors: bool = True,
    ) -> List[Row]:
        """Return the rows of `ids` that pass the filter."""
        rows = await self.rows(handle, ids, text=text, vectors=vectors)
        return rows if tree is None else [row for row in rows if matches(tree, row.metadata)]

    async def matching_ids(self, handle: Any, namespace: Optional[str], tree: Optional[Filter]) -> List[str]:
        """Return Chroma's ids of exactly the rows that match."""
        ids = await self.candidates(handle, namespace, tree)
        if tree is None:
            return ids
        found: List[str] = []
        for start in range(0, len(ids), CHUNK_ROWS):
            part = ids[start : start + CHUNK_ROWS]
            rows = await self.matching(handle, part, tree, text=False, vectors=False)
            found += [row.key for row in rows]
        return found

    # --- writing ------------------------------------------------------------------------------------------------

    async def store(self, handle: Any, batch: Sequence[PreparedDocument]) -> None:
        """Write documents, at most `CHUNK_ROWS`."""
        ids = [document_id(document.namespace, document.id) for document in batch]
        found = await self.link.run("read rows", lambda: handle.get(ids=ids, include=["metadatas"]))
        before = dict(zip(found["ids"], found["metadatas"]))
        now = utc_now()
        written = _Written()
        for item, document in zip(ids, batch):
            old = before.get(item)
            digest = self._digest(document.vector)
            at = document.created_at or (None if old is None else row_time(old)) or now
            fields = row_fields(document, at, old, digest)
            written.add(item, document.vector, fields, row_text(document), digest)
            was = None if old is None else row_digest(old)
            if was is not None and was != digest:
                written.stale.append((item, was))
        await self._put(handle, written)

    def _digest(self, vector: NDArray[np.float32]) -> Optional[str]:
        return None if self.link.copies is None else digest_of(vector_bytes(vector))

    async def _put(self, handle: Any, written: _Written) -> None:
        copies, cache = self.link.copies, self.link.cache

        def put() -> Any:
            if copies is not None:
                copies.add(handle.id, written.copies)
            with nullcontext() if cache is None else cache.writing(handle.id, written.ids, written.row):
                answer = handle.upsert(
                    ids=written.ids,
                    embeddings=written.vectors,
                    metadatas=written.fields,
                    documents=written.texts,
                )
            if copies is not None:
                copies.discard(handle.id, written.stale)
            return answer

        await self.link.run("store documents", put)

    async def remove(self, handle: Any, ids: Sequence[str]) -> int:
        """Delete rows; how many were there."""
        gone = 0
        copies, cache = self.link.copies, self.link.cache
        for start in range(0, len(ids), CHUNK_ROWS):
            part = list(ids[start : start + CHUNK_ROWS])
            # Chroma's own count includes ids that were never there
            found = await self.link.run("read ids", partial(handle.get, ids=part, include=[]))
            there = found["ids"]

            def delete(there: List[str] = there) -> Any:
                with nullcontext() if cache is None else cache.writing(handle.id, there):
                    answer = handle.delete(ids=there)
                if copies is not None:
                    copies.remove(handle.id, there)
                return answer

            if there:
                await self.link.run("delete documents", delete)
                gone += len(there)
        return gone

    async def copy(self, source: Any, target: Any) -> int:
        """Write every row of `source` into `target`, with its vector as it was given; return how many."""
        ids = await self.candidates(source, None, None)
        step = min(self.link.max_batch, _COPY_ROWS)
        done = 0
        for start in range(0, len(ids), step):
            written = _Written()
            for row in await self.rows(source, ids[start : start + step]):
                digest = self._digest(row.vector)
                written.add(row.key, row.vector, row.moved(digest), row.text, digest)
            await self._put(target, written)
            done += len(written.ids)
        return done


class _Written:
    """What one upsert of Chroma writes, and the copies that go with it."""

    def __init__(self) -> None:
        self.ids: List[str] = []
        self.vectors: List[NDArray[np.float32]] = []
        self.fields: List[Dict[str, Any]] = []
        self.texts: List[str] = []
        self.copies: List[Tuple[str, str, bytes]] = []
        self.stale: List[Tuple[str, str]] = []

    def add(
        self, item: str, vector: NDArray[np.float32], fields: Dict[str, Any], text: str, digest: Optional[str]
    ) -> None:
        """Add a row; a digest says that its vector is to be copied."""
        self.ids.append(item)
        self.vectors.append(vector)
        self.fields.append(fields)
        self.texts.append(text)
        if digest is not None:
            self.copies.append((item, digest, vector_bytes(vector)))

    def row(self, position: int) -> Row:
        """Return a row as it will be read; nobody asks it for more of its fields."""
        row = Row(self.ids[position], {"atlas": self.fields[position]["atlas"]}, self.texts[position])
        row.give_vector(self.vectors[position])
        return row


def _give_copies(copies: VectorCopies, collection: UUID, rows: Sequence[Row]) -> None:
    """Give rows the copies of their vectors, where there are any."""
    wanted = [(row.key, row.digest) for row in rows if row.digest is not None]
    found = copies.read(collection, wanted)
    for row in rows:
        if row.key in found:
            row.give_vector(found[row.key])

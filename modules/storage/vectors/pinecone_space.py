"""Pinecone: the records of one of its namespaces: read, written, counted, and waited for."""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any, AsyncIterator, Callable, Dict, List, Mapping, Optional, Sequence

from modules.storage.vectors.errors import VectorUnavailableError
from modules.storage.vectors.pinecone_client import Connection, Index, in_parallel
from modules.storage.vectors.pinecone_records import STAMP, Record, batches, fetch_groups

__all__ = ["Space", "namespace_counts", "until"]

_PAGE = 100
#: By this word an answer "not found" is about the namespace, and not about the whole index.
_NAMESPACE = "namespace"
_DELETE_IDS = 1000
_PARALLEL_WRITES = 4
_MAX_TOP_K = 10_000
_POLL_S = 0.02
_LONGEST_POLL_S = 1.0


class Space:
    """One namespace of one index.

    Args:
        connection: Open.
        index: Where.
        namespace: Pinecone's name of it.
    """

    def __init__(self, connection: Connection, index: Index, namespace: str) -> None:
        self._connection = connection
        self.index = index
        self.namespace = namespace

    async def fetch(self, record_ids: Sequence[str]) -> Dict[str, Any]:
        """Return the SDK's vectors of the ids that are there, by id."""

        def one(group: List[str]) -> Any:
            return lambda: self._call("fetch", self.index.data.fetch, ids=group)

        found: Dict[str, Any] = {}
        for answer in await in_parallel([one(group) for group in fetch_groups(record_ids)] or [_nothing]):
            if answer is not None:
                found.update(answer.vectors)
        return found

    async def query(
        self,
        vector: List[float],
        top_k: int,
        native: Optional[Mapping[str, Any]],
        *,
        metadata: bool = False,
        values: bool = False,
    ) -> List[Any]:
        """Return the SDK's matches, best first."""
        answer = await self._call(
            "query",
            self.index.data.query,
            vector=vector,
            top_k=top_k,
            filter=native,
            include_metadata=metadata,
            include_values=values,
        )
        return [] if answer is None else list(answer.matches)

    async def ids(self, prefix: Optional[str] = None) -> AsyncIterator[List[str]]:
        """Yield pages of record ids, in byte order."""
        token: Optional[str] = None
        while True:
            answer = await self._call(
                "list", self.index.data.list_paginated, prefix=prefix, limit=_PAGE, pagination_token=token
            )
            page = [] if answer is None else [item.id for item in answer.vectors if item.id]
            if page:
                yield page
            token = None if answer is None or answer.pagination is None else answer.pagination.next
            if not token:
                return

    async def matching(self, native: Optional[Mapping[str, Any]]) -> AsyncIterator[Dict[str, Any]]:
        """Yield the records that pass, by id, in groups; None: all."""
        if native is None:
            async for page in self.ids():
                yield await self.fetch(page)
            return
        token: Optional[str] = None
        while True:
            answer = await self._call(
                "fetch_by_metadata",
                self.index.data.fetch_by_metadata,
                filter=native,
                limit=_PAGE,
                pagination_token=token,
            )
            if answer is None:
                return
            yield dict(answer.vectors)
            token = None if answer.pagination is None else answer.pagination.next
            if not token:
                return

    async def upsert(self, records: Sequence[Record]) -> None:
        """Send the records, in batches."""

        def one(batch: List[Record]) -> Any:
            vectors = [{"id": item.id, "values": item.values, "metadata": item.fields} for item in batch]
            send = functools.partial(self.index.data.upsert, vectors=vectors, namespace=self.namespace)
            return lambda: self._connection.call("upsert", send)

        await in_parallel([one(batch) for batch in batches(records)], _PARALLEL_WRITES)

    async def delete(self, record_ids: Sequence[str]) -> None:
        """Delete by id; ids that are not there do no harm."""
        for start in range(0, len(record_ids), _DELETE_IDS):
            part = list(record_ids[start : start + _DELETE_IDS])
            await self._call("delete", self.index.data.delete, ids=part)

    async def clear(self) -> None:
        """Delete every record."""
        await self._call("delete", self.index.data.delete, delete_all=True)

    async def drop(self) -> None:
        """Delete the namespace with its records."""
        await self._connection.call(
            "delete_namespace",
            lambda: self.index.data.delete_namespace(name=self.namespace),
            missing=_NAMESPACE,
        )

    async def wait_until_written(self, records: Sequence[Record], timeout_s: float) -> None:
        """Wait until queries and fetches answer with these records, or with later ones of the same ids.

        Raises:
            VectorUnavailableError: they did not in time; they are stored, or will be.
        """
        for start in range(0, len(records), _MAX_TOP_K):
            part = records[start : start + _MAX_TOP_K]

            async def seen(part: Sequence[Record] = part) -> bool:
                return await self._written(part)

            await until(seen, timeout_s, "the documents were sent, but Pinecone does not show them yet")

    async def _written(self, records: Sequence[Record]) -> bool:
        stamps = sorted({item.fields[STAMP] for item in records})
        shown = await self.query(records[0].values, min(len(records), _MAX_TOP_K), {STAMP: {"$in": stamps}})
        searchable = {match.id for match in shown}
        found = await self.fetch([item.id for item in records])
        return all(_is_shown(found.get(item.id), item, item.id in searchable) for item in records)

    async def wait_until_gone(
        self, record_ids: Sequence[str], stamps: Mapping[str, str], timeout_s: float
    ) -> None:
        """Wait until the records with these stamps are not found any more; see `wait_until_written`."""

        async def gone() -> bool:
            found = await self.fetch(record_ids)
            return not any(
                (item.metadata or {}).get(STAMP, "") <= stamps.get(key, "") for key, item in found.items()
            )

        await until(gone, timeout_s, "the deletion was sent, but Pinecone still shows some of the documents")

    async def _call(self, operation: str, method: Callable[..., Any], **arguments: Any) -> Any:
        # a namespace without records does not exist for Pinecone, which some calls answer with 404
        return await self._connection.call(
            operation, lambda: method(namespace=self.namespace, **arguments), missing=_NAMESPACE
        )


def _is_shown(found: Any, record: Record, searchable: bool) -> bool:
    if found is None:
        return False
    stamp = (found.metadata or {}).get(STAMP, "")
    own = record.fields[STAMP]
    return bool(stamp > own or (stamp == own and searchable))


async def _nothing() -> None:
    return None


async def until(done: Callable[[], Any], timeout_s: float, otherwise: str) -> None:
    """Poll until `done()`; `VectorUnavailableError` with `otherwise` when it does not happen in time."""
    ends = time.monotonic() + timeout_s
    pause = _POLL_S
    while not await done():
        if time.monotonic() + pause > ends:
            raise VectorUnavailableError(f"{otherwise} after {timeout_s:g} s")
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_POLL_S)


async def namespace_counts(connection: Connection, index: Index, prefix: str) -> Dict[str, int]:
    """Return the number of records of each namespace that begins so; Pinecone's counts lag behind writes."""
    counts: Dict[str, int] = {}
    token: Optional[str] = None

    async def page(after: Optional[str]) -> Any:
        return await index.data.list_namespaces_paginated(prefix=prefix, limit=_PAGE, pagination_token=after)

    while True:
        answer = await connection.call("list_namespaces", functools.partial(page, token))
        counts.update(
            {item.name: item.record_count for item in answer.namespaces if item.name.startswith(prefix)}
        )
        token = None if answer.pagination is None else answer.pagination.next
        if not token:
            return counts

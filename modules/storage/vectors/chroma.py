"""The vector store on Chroma: embedded in this process, or a Chroma server over HTTP.

A collection of a tenant is one collection of Chroma. Rooms: `chroma_client` (the way there), `chroma_space` (collections
and rows), `chroma_records` (a document as a row), `chroma_filters`, `chroma_search`, `chroma_damage`. See docs/chroma.md.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import CollectionSpec, PreparedDocument, replace_spec, require_no_options
from modules.storage.vectors.chroma_client import ChromaLink, ChromaNotFoundError, ServerLink
from modules.storage.vectors.chroma_embedded import EmbeddedLink
from modules.storage.vectors.chroma_names import REBUILD_SUFFIX, document_id, physical_name, split_id
from modules.storage.vectors.chroma_records import Row, row_time
from modules.storage.vectors.chroma_rows import CHUNK_ROWS
from modules.storage.vectors.chroma_search import SearchLimits, search
from modules.storage.vectors.chroma_space import INDEX_OPTIONS, Space, check_options
from modules.storage.vectors.engine import Query
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError
from modules.storage.vectors.filters import Filter
from modules.storage.vectors.models import Capabilities, SearchResults, VectorDocument
from modules.storage.vectors.registry import register_vector_provider
from modules.store_common.errors import InvalidValueError
from modules.store_common.tenancy import TenantPolicy

__all__ = ["ChromaProvider"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# the client writes a vector twice, as numbers and as our text; a server takes 40 MB in one request
_BATCH_BYTES = 8 * 1024 * 1024


@register_vector_provider("chroma")
class ChromaProvider(VectorProvider):
    """Vectors in Chroma 1.x.

    Args:
        persist_directory: Embedded: where its files are.
        host: Of a Chroma server (`https://...` for TLS); None: embedded.
        port: TCP port of the server.
        auth_token: For the server, sent as bearer token and as `X-Chroma-Token`.
        chroma_tenant: Chroma's own tenant, not ours.
        chroma_database: Its database.
        timeout_s: Seconds that a call of Chroma may take, greater than 0.
        on_damage: What to do at `initialize` when a collection's index is damaged and its rows are not: "refuse" raises,
            "rebuild" makes the index anew from the rows.
        limits: When rows are scored exactly instead of asking the index.
        tenancy: How the tenant of a call is found.
    """

    name = "chroma"

    def __init__(
        self,
        *,
        persist_directory: str = ".atlas/chroma",
        host: Optional[str] = None,
        port: int = 8000,
        auth_token: Optional[str] = None,
        chroma_tenant: str = "default_tenant",
        chroma_database: str = "default_database",
        timeout_s: float = 60.0,
        on_damage: str = "refuse",
        limits: Optional[SearchLimits] = None,
        tenancy: Optional[TenantPolicy] = None,
    ) -> None:
        super().__init__(tenancy=tenancy)
        if on_damage not in ("refuse", "rebuild"):
            raise InvalidValueError('on_damage is "refuse" or "rebuild"')
        if not timeout_s > 0:
            raise InvalidValueError("timeout_s is a number of seconds greater than 0")
        self._link: ChromaLink = (
            EmbeddedLink(
                str(persist_directory),
                chroma_tenant,
                chroma_database,
                timeout_s,
                repair=on_damage == "rebuild",
            )
            if host is None
            else ServerLink(host, port, auth_token, chroma_tenant, chroma_database, timeout_s)
        )
        self._space = Space(self._link)
        self._on_damage = on_damage
        self._limits = limits if limits is not None else SearchLimits()
        self._writing: Dict[Tuple[str, str], asyncio.Lock] = {}
        self._opening: Optional[asyncio.Lock] = None

    # --- lifecycle ----------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """Approximate, at once, filters partly in the engine."""
        return Capabilities(
            exact_search=False,
            native_filters=False,
            transactional=False,
            immediately_consistent=True,
            persistent=True,
            deletes_by_age=True,
        )

    @property
    def place(self) -> str:
        """The directory or the server, and the database there."""
        return self._link.place

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._link.is_open

    async def initialize(self) -> None:
        """Open the directory, or connect to the server.

        Raises:
            VectorCollectionError: the directory is damaged; says what to do.
            VectorUnavailableError: the server does not answer.
            MissingDependencyError: chromadb is not installed.
        """
        if self._opening is None:
            self._opening = asyncio.Lock()
        async with self._opening:
            if self._link.is_open:
                return
            await self._link.open()
            try:
                if self._link.damaged:
                    await self._meet_damage()
            except BaseException:
                await self._close()
                raise

    async def _meet_damage(self) -> None:
        physical, why = next(iter(sorted(self._link.damaged.items())))
        if self._on_damage == "refuse":
            raise VectorCollectionError(
                f"the index of {len(self._link.damaged)} Chroma collection(s) is damaged, the first is {physical!r}: "
                f'{why}. Its rows are readable: open with on_damage="rebuild" to make the index anew from them '
                "(see docs/chroma.md, Damage)"
            )
        for physical in list(self._link.damaged):
            tenant_id, spec = await self._space.described(physical)
            logger.warning("storage.vectors.rebuilding", extra={"store": "chroma", "tenant_id": tenant_id})
            if spec is not None:
                await self._rebuild_index(tenant_id, spec)
        await self._link.repaired()

    async def shutdown(self) -> None:
        """Close the files or the connections."""
        await self._close()
        self._opening = None

    async def _close(self) -> None:
        self._specs.clear()
        self._space.forget()
        self._writing.clear()
        await self._link.close()

    async def _ping(self) -> None:
        client = self._link.client
        await self._link.run("answer", client.heartbeat)

    # --- collections --------------------------------------------------------------------------------------------

    async def _create_collection(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        require_no_options(spec, self.name, INDEX_OPTIONS)
        check_options(spec)
        if await self._space.find(tenant_id, spec.name) is not None:
            raise VectorCollectionError(f"the vector collection {spec.name!r} exists already")
        try:
            await self._space.create(tenant_id, spec)
        except VectorCollectionError as exc:
            raise VectorCollectionError(f"the vector collection {spec.name!r} exists already") from exc
        return replace_spec(spec, index_type="hnsw")

    async def _delete_collection(self, tenant_id: str, name: str) -> bool:
        return await self._space.delete(tenant_id, name)

    async def _read_collection(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        return await self._space.find(tenant_id, name)

    async def _list_collections(self, tenant_id: str) -> List[Tuple[CollectionSpec, int]]:
        found = []
        for spec in await self._space.all(tenant_id):
            try:
                found.append((spec, await self._space.count(await self._space.handle(tenant_id, spec))))
            except ChromaNotFoundError:
                # deleted by somebody else meanwhile
                self._space.forget(tenant_id, spec.name)
        return found

    async def _on(
        self, tenant_id: str, spec: CollectionSpec, work: Callable[[Any], Awaitable[Result]]
    ) -> Result:
        """Do `work` with Chroma's handle; once more where somebody made the collection anew, just like it was."""
        for attempt in (1, 2):
            try:
                return await work(await self._space.handle(tenant_id, spec))
            except ChromaNotFoundError:
                self._forget(tenant_id, spec.name)
                self._space.forget(tenant_id, spec.name)
                found = await self._space.find(tenant_id, spec.name)
                if found is None or attempt == 2:
                    break
                if (found.dimension, found.metric) != (spec.dimension, spec.metric):
                    raise VectorCollectionError(
                        f"the vector collection {spec.name!r} was made anew with another dimension or metric"
                    ) from None
        raise VectorNotFoundError(f"there is no vector collection {spec.name!r}; create_collection makes one")

    def _lock(self, tenant_id: str, spec: CollectionSpec) -> asyncio.Lock:
        """Writers of a collection in this process: a write reads what is there first."""
        return self._writing.setdefault((tenant_id, spec.name), asyncio.Lock())

    # --- documents ----------------------------------------------------------------------------------------------

    async def _upsert(
        self, tenant_id: str, spec: CollectionSpec, documents: Sequence[PreparedDocument]
    ) -> None:
        async def work(handle: Any) -> None:
            for batch in _batches(documents, min(self._link.max_batch, CHUNK_ROWS)):
                await self._space.store(handle, batch)

        async with self._lock(tenant_id, spec):
            await self._on(tenant_id, spec, work)

    async def _delete(self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]) -> int:
        wanted = [document_id(namespace, item) for item in ids]

        async def work(handle: Any) -> int:
            return await self._space.remove(handle, wanted)

        async with self._lock(tenant_id, spec):
            return await self._on(tenant_id, spec, work)

    async def _delete_where(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, tree: Optional[Filter]
    ) -> int:
        async def work(handle: Any) -> int:
            return await self._space.remove(handle, await self._space.matching_ids(handle, namespace, tree))

        async with self._lock(tenant_id, spec):
            return await self._on(tenant_id, spec, work)

    async def _delete_older(
        self, tenant_id: str, spec: CollectionSpec, before: datetime
    ) -> AsyncIterator[int]:
        async def list_ids(handle: Any) -> List[str]:
            return await self._space.candidates(handle, None, None)

        ids = await self._on(tenant_id, spec, list_ids)
        for start in range(0, len(ids), CHUNK_ROWS):
            part = ids[start : start + CHUNK_ROWS]

            async def work(handle: Any, part: List[str] = part) -> int:
                found = await self._link.run("read rows", lambda: handle.get(ids=part, include=["metadatas"]))
                times = zip(found["ids"], map(row_time, found["metadatas"]))
                return await self._space.remove(
                    handle, [item for item, at in times if at is not None and at < before]
                )

            async with self._lock(tenant_id, spec):
                yield await self._on(tenant_id, spec, work)

    async def _list_tenants(self) -> List[str]:
        return await self._space.tenants()

    async def _get(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]
    ) -> List[VectorDocument]:
        wanted = [document_id(namespace, item) for item in ids]

        async def work(handle: Any) -> List[VectorDocument]:
            found: List[Row] = []
            for start in range(0, len(wanted), CHUNK_ROWS):
                found += await self._space.rows(handle, wanted[start : start + CHUNK_ROWS])
            return [row.to_document() for row in found]

        return await self._on(tenant_id, spec, work)

    async def _count(
        self, tenant_id: str, spec: CollectionSpec, namespace: Optional[str], tree: Optional[Filter]
    ) -> int:
        async def work(handle: Any) -> int:
            if namespace is None and tree is None:
                return await self._space.count(handle)
            return len(await self._space.matching_ids(handle, namespace, tree))

        return await self._on(tenant_id, spec, work)

    async def _scroll(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        namespace: str,
        tree: Optional[Filter],
        after_id: Optional[str],
        limit: int,
    ) -> List[VectorDocument]:
        async def work(handle: Any) -> List[VectorDocument]:
            ids = await self._space.candidates(handle, namespace, tree)
            if after_id is not None:
                ids = [item for item in ids if split_id(item)[1] > after_id]
            found: List[Row] = []
            start = 0
            while start < len(ids) and len(found) < limit:
                part = ids[start : start + min(CHUNK_ROWS, limit if tree is None else 2 * limit)]
                start += len(part)
                found += sorted(await self._space.matching(handle, part, tree), key=lambda row: row.id)
            return [row.to_document() for row in found[:limit]]

        return await self._on(tenant_id, spec, work)

    # --- search -------------------------------------------------------------------------------------------------

    async def _search(self, spec: CollectionSpec, query: Query) -> List[SearchResults]:
        async def work(handle: Any) -> List[SearchResults]:
            return await search(self._space, handle, spec.metric, query, limits=self._limits)

        return await self._on(query.tenant_id, spec, work)

    async def _rebuild_index(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        """Copy every row, its vector from our own text, into a new collection, which takes the place of the old one."""
        physical = physical_name(tenant_id, spec.name)

        async def work(handle: Any) -> None:
            # left by a rebuild that died before it was whole
            await self._space.drop(physical + REBUILD_SUFFIX)
            copy = await self._space.create(tenant_id, spec, suffix=REBUILD_SUFFIX)
            done = await self._space.copy(handle, copy)
            if done != await self._space.count(copy):
                raise VectorCollectionError(
                    f"the copy of the vector collection {spec.name!r} is not whole; nothing was changed, try again"
                )
            await self._space.drop(physical)
            self._space.forget(tenant_id, spec.name)
            await self._space.find(tenant_id, spec.name)
            self._link.damaged.pop(physical, None)

        async with self._lock(tenant_id, spec):
            await self._on(tenant_id, spec, work)
        return replace_spec(spec, index_type="hnsw")


def _batches(documents: Sequence[PreparedDocument], most: int) -> List[List[PreparedDocument]]:
    """Split by count and by bytes."""
    made: List[List[PreparedDocument]] = [[]]
    size = 0
    for document in documents:
        own = 12 * len(document.vector) + 2 * len(document.metadata_json) + len(document.content or "")
        if made[-1] and (len(made[-1]) >= most or size + own > _BATCH_BYTES):
            made.append([])
            size = 0
        made[-1].append(document)
        size += own
    return made

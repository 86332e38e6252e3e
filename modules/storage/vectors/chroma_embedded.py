"""Chroma inside this process: its files checked and opened, its calls in one thread."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

from modules.storage.vectors.chroma_cache import RowCache
from modules.storage.vectors.chroma_client import ChromaLink, load_chroma, make_settings
from modules.storage.vectors.chroma_copies import VectorCopies
from modules.storage.vectors.chroma_damage import (
    DATABASE,
    check_database,
    damaged_collections,
    discard_set_aside,
    leave_marker,
    set_aside,
)
from modules.storage.vectors.chroma_worker import Worker
from modules.storage.vectors.errors import VectorUnavailableError
from modules.store_common.errors import NotInitializedError, OverloadedError

__all__ = ["EmbeddedLink"]

logger = logging.getLogger(__name__)

_WAITING_CALLS = 1000
_Opened = Tuple[Any, VectorCopies, RowCache]


class EmbeddedLink(ChromaLink):
    """Chroma inside this process, its files in one directory.

    Args:
        directory: Made when it is not there.
        tenant: Chroma's own tenant; made when it is not there.
        database: Its database; made when it is not there.
        timeout_s: Seconds that a call may take.
        repair: Move damaged indexes aside when it is opened; they are then made anew.
    """

    def __init__(
        self, directory: str, tenant: str, database: str, timeout_s: float, *, repair: bool = False
    ) -> None:
        super().__init__(tenant, database, timeout_s)
        self._repair = repair
        self._directory = Path(directory)
        self._worker: Optional[Worker] = None

    @property
    def place(self) -> str:
        """The directory, and the database in it."""
        return f"chroma {self._directory.expanduser().absolute()} {self._tenant} {self._database}"

    async def open(self) -> None:
        """Check the files and open them, in the thread."""
        if self._client is not None:
            return
        worker = self._worker = Worker("atlas-chroma", _WAITING_CALLS)
        opened: List[_Opened] = []
        try:
            await self.run("open its directory", lambda: opened.append(self._open()))
        except BaseException:
            self._worker = None
            # a late success must not stay open
            worker.finish(lambda: _shut_all(opened))
            raise
        self._client, self.copies, self.cache = opened[0]

    def _open(self) -> _Opened:
        directory = self._directory.resolve()
        chromadb = load_chroma()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            check_database(directory)
            found = damaged_collections(directory)
            self.damaged = {name: why for name, _, why in found}
            if self._repair:
                for _, segment, _ in found:
                    set_aside(directory, segment)
            leave_marker(directory)
        except OSError as exc:
            raise VectorUnavailableError(
                f"the Chroma directory {str(directory)!r} cannot be made or read ({type(exc).__name__})"
            ) from exc
        settings = make_settings(
            chromadb,
            chroma_api_impl="chromadb.api.rust.RustBindingsAPI",
            is_persistent=True,
            persist_directory=str(directory),
        )
        if (self._tenant, self._database) != ("default_tenant", "default_database"):
            self._make_database(chromadb, settings)
        client = chromadb.PersistentClient(
            path=str(directory), settings=settings, tenant=self._tenant, database=self._database
        )
        try:
            self.max_batch = min(self.max_batch, int(client.get_max_batch_size()))
            copies = VectorCopies(directory)
        except BaseException:
            client.close()
            raise
        copies.forget_unknown(directory / DATABASE)
        return client, copies, RowCache(directory / DATABASE)

    def _make_database(self, chromadb: Any, settings: Any) -> None:
        """Chroma opens no tenant or database that is not there; in a directory of ours nobody else can make them."""
        first = chromadb.PersistentClient(path=settings.persist_directory, settings=settings)
        try:
            admin: Any = first._admin_client
            missing = chromadb.errors.NotFoundError
            try:
                admin.get_tenant(self._tenant)
            except missing:
                admin.create_tenant(self._tenant)
            try:
                admin.get_database(self._database, self._tenant)
            except missing:
                admin.create_database(self._database, self._tenant)
        finally:
            first.close()

    async def repaired(self) -> None:
        """Delete what was moved aside."""
        await super().repaired()
        await self.run("delete damaged files", lambda: discard_set_aside(self._directory.resolve()))

    async def close(self) -> None:
        """Close the files after the calls that wait."""
        client, self._client = self._client, None
        copies, self.copies = self.copies, None
        cache, self.cache = self.cache, None
        worker, self._worker = self._worker, None
        self.damaged = {}
        if worker is None or client is None or copies is None or cache is None:
            return
        try:
            await asyncio.wait_for(worker.run(partial(_shut, client, copies, cache)), self._timeout_s)
        except (OverloadedError, asyncio.TimeoutError) as exc:
            logger.warning(
                "storage.vectors.close_failed", extra={"store": "chroma", "error_type": type(exc).__name__}
            )
        finally:
            # closing twice is harmless; the thread ends after it
            worker.finish(partial(_shut, client, copies, cache))

    async def _call(self, call: Callable[[], Any]) -> Any:
        if self._worker is None:
            raise NotInitializedError("the vector store chroma")
        return await self._worker.run(call)


def _shut_all(opened: List[_Opened]) -> None:
    for parts in opened:
        _shut(*parts)


def _shut(client: Any, copies: VectorCopies, cache: RowCache) -> None:
    """Close them; harmless when closed."""
    client.close()
    copies.close()
    cache.close()

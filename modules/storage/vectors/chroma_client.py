"""The way to Chroma: a server over HTTP here, the embedded client in `chroma_embedded`; one `run` for both.

Chroma's collections have the same methods in both worlds, blocking in one and coroutines in the other. A call is handed
over as a function; `run` waits for it, within the deadline, and turns Chroma's errors into ours.
"""

from __future__ import annotations

import abc
import asyncio
import inspect
import logging
import time
import warnings
from typing import Any, Callable, Dict, Optional

from modules.storage.opening import run_in_thread
from modules.storage.vectors.chroma_cache import RowCache
from modules.storage.vectors.chroma_copies import VectorCopies
from modules.storage.vectors.errors import VectorCollectionError, VectorStoreError, VectorUnavailableError
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import (
    MissingDependencyError,
    NotInitializedError,
    PermissionDeniedError,
    StorageError,
)

__all__ = [
    "ChromaLink",
    "ChromaNotFoundError",
    "ChromaRefusedError",
    "ServerLink",
    "load_chroma",
    "make_settings",
]

logger = logging.getLogger(__name__)


class ChromaNotFoundError(VectorStoreError):
    """Chroma has no such collection; never leaves this provider."""


class ChromaRefusedError(VectorStoreError):
    """Chroma refused a call, or failed in it."""


class ChromaLink(abc.ABC):
    """An open or closed way to one Chroma.

    Args:
        tenant: Chroma's own tenant.
        database: Its database.
        timeout_s: Seconds that a call may take.
    """

    def __init__(self, tenant: str, database: str, timeout_s: float) -> None:
        self._tenant = tenant
        self._database = database
        self._timeout_s = timeout_s
        self._client: Any = None
        #: Rows that one call may carry.
        self.max_batch = 1000
        #: Collections, by Chroma's name, whose index was found damaged, with the reason.
        self.damaged: Dict[str, str] = {}
        #: The vectors once more, used inside `run` only; None: rows hold their own.
        self.copies: Optional[VectorCopies] = None
        #: Rows that were read, used inside `run` only; None: others may write without that it could be noticed.
        self.cache: Optional[RowCache] = None

    @property
    @abc.abstractmethod
    def place(self) -> str:
        """Which Chroma this is; two of one place see the same."""

    @property
    def is_open(self) -> bool:
        """Whether it is open."""
        return self._client is not None

    @property
    def client(self) -> Any:
        """Chroma's client; its methods are called inside `run` only."""
        if self._client is None:
            raise NotInitializedError("the vector store chroma")
        return self._client

    @abc.abstractmethod
    async def open(self) -> None:
        """Connect; a failed call leaves nothing open."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Disconnect; harmless when closed."""

    @abc.abstractmethod
    async def _call(self, call: Callable[[], Any]) -> Any:
        """Return what `call` gives."""

    async def repaired(self) -> None:
        """Every damaged collection was made anew; a server has nothing to do."""
        self.damaged = {}

    async def run(self, what: str, call: Callable[[], Any]) -> Any:
        """Return what `call` gives, within the deadline.

        Args:
            what: For messages: "read a collection".
            call: Calls Chroma, once.
        """
        patience = deadline_after(self._timeout_s) - time.monotonic()
        try:
            return await asyncio.wait_for(self._call(call), max(patience, 0.001))
        except asyncio.TimeoutError as exc:
            raise VectorUnavailableError(
                f"Chroma did not {what} within {max(patience, 0):.1f} s; a write may still be applied, "
                "and may be repeated"
            ) from exc
        except (StorageError, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # the edge: whatever Chroma raises, a panic of Rust included
            raise _translated(exc, what) from exc


def _translated(exc: BaseException, what: str) -> StorageError:
    """Return our error for one of Chroma's; its text may hold values, so only its kind is told."""
    kinds = {kind.__name__ for kind in type(exc).__mro__}
    text = str(exc)
    if kinds & {"NotFoundError"}:
        return ChromaNotFoundError(f"Chroma found nothing to {what}")
    if kinds & {"UniqueConstraintError"} or "already exists" in text:
        return VectorCollectionError(f"Chroma could not {what}: the name is taken")
    if kinds & {"AuthorizationError", "ChromaAuthError"}:
        return PermissionDeniedError(
            f"Chroma did not allow to {what}; check the token, the tenant and the database"
        )
    if kinds & {"TransportError", "OSError", "RateLimitError"} or "Could not connect" in text:
        return VectorUnavailableError(
            f"Chroma could not be reached to {what} ({type(exc).__name__}); is its server running?"
        )
    if "malformed" in text or "not a database" in text:
        return VectorCollectionError(
            f"Chroma could not {what}: its database is damaged (see docs/chroma.md, Damage)"
        )
    if type(exc) is Exception:
        # the client's form of an answer that is not Chroma's: a proxy, a server that is starting or ending
        return VectorUnavailableError(f"what answered to {what} is not Chroma, or not able to; try again")
    return ChromaRefusedError(
        f"Chroma could not {what} ({type(exc).__name__}); if it stays so, an index may be damaged "
        "(see docs/chroma.md, Damage)"
    )


def load_chroma() -> Any:
    """Import chromadb, which takes seconds; its warnings about itself are not the application's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import chromadb
            import chromadb.api.async_client
            import chromadb.config
            import chromadb.errors
        except ImportError as exc:
            raise MissingDependencyError("chromadb", "chroma") from exc
    return chromadb


def make_settings(chromadb: Any, **values: Any) -> Any:
    """Return Chroma's settings."""
    # no .env file of the working directory, no telemetry
    return chromadb.config.Settings(_env_file=None, anonymized_telemetry=False, **values)


class ServerLink(ChromaLink):
    """Chroma behind HTTP.

    Args:
        host: Of the server; `https://...` for TLS.
        port: Its TCP port.
        token: Sent as bearer token and as `X-Chroma-Token`; None: nothing is sent.
        tenant: Chroma's own tenant; must be there.
        database: Its database; must be there.
        timeout_s: Seconds that a call may take.
    """

    def __init__(
        self, host: str, port: int, token: Optional[str], tenant: str, database: str, timeout_s: float
    ) -> None:
        super().__init__(tenant, database, timeout_s)
        self._host = host
        self._port = port
        self._token = token
        self._server: Any = None

    @property
    def place(self) -> str:
        """The server, and the database on it."""
        return f"chroma {self._host} {self._port} {self._tenant} {self._database}"

    async def open(self) -> None:
        """Connect and see that tenant and database are there."""
        if self._client is not None:
            return
        chromadb = await run_in_thread(load_chroma)
        client = self._make_client(chromadb)
        try:
            await self.run("answer", self._server.heartbeat)
            await self.run(
                "find the tenant and database",
                lambda: self._server.get_database(self._database, self._tenant),
            )
            self.max_batch = min(
                self.max_batch,
                int(await self.run("answer", self._server.get_max_batch_size)) or self.max_batch,
            )
        except ChromaNotFoundError as exc:
            await self._release(client)
            raise VectorCollectionError(
                f"the Chroma server has no database {self._database!r} of the tenant {self._tenant!r}; "
                "make it there, or change the settings"
            ) from exc
        except BaseException:
            await self._release(client)
            raise
        self._client = client

    def _make_client(self, chromadb: Any) -> Any:
        """Return a client of its own HTTP connections.

        `AsyncHttpClient` shares one connection pool, with its headers, between all clients of a loop: a second provider
        would send the first one's token. So the same client is put together here with a pool of its own.
        """
        headers = {}
        if self._token is not None:
            headers = {"Authorization": f"Bearer {self._token}", "X-Chroma-Token": self._token}
        host = self._host.partition("://")[2] if "://" in self._host else self._host
        settings = make_settings(
            chromadb,
            chroma_api_impl="chromadb.api.async_fastapi.AsyncFastAPI",
            chroma_server_host=host.rstrip("/"),
            chroma_server_http_port=self._port,
            chroma_server_ssl_enabled=self._host.startswith("https://"),
            chroma_server_headers=headers,
        )
        client = chromadb.api.async_client.AsyncClient(settings=settings)
        self._server = client._system.instance(chromadb.api.AsyncServerAPI)
        self._server._clients = {}
        client._server = self._server
        client.tenant, client.database = self._tenant, self._database
        return client

    async def _release(self, client: Any) -> None:
        server, self._server = self._server, None
        try:
            if server is not None:
                await asyncio.wait_for(server._cleanup(), 5.0)
        except (OSError, RuntimeError, asyncio.TimeoutError) as exc:
            logger.warning(
                "storage.vectors.close_failed", extra={"store": "chroma", "error_type": type(exc).__name__}
            )
        finally:
            type(client)._identifier_to_system.pop(client._identifier, None)
            type(client)._decrement_refcount(client._identifier)

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await self._release(client)

    async def _call(self, call: Callable[[], Any]) -> Any:
        answer = call()
        return await answer if inspect.isawaitable(answer) else answer

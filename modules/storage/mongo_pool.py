"""`MongoPool`: one MongoDB database, opened and closed. The stores' door is `executor(forms)`; `database` is for users' code.

PyMongo's asynchronous client belongs to one event loop, so the pool keeps one for each loop that asks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from datetime import timezone
from typing import TYPE_CHECKING, Any, Coroutine, Dict, List, Optional, Set, TypeVar

from modules.storage.opening import OpenOnce
from modules.storage.settings import MongoBackendSettings
from modules.store_common.deadlines import within
from modules.store_common.errors import (
    DeadlineExceededError,
    MissingDependencyError,
    NotInitializedError,
    StorageError,
    UnavailableError,
    WrongProcessError,
)

if TYPE_CHECKING:
    from pymongo import AsyncMongoClient
    from pymongo.asynchronous.collection import AsyncCollection
    from pymongo.asynchronous.database import AsyncDatabase

    from modules.storage.backends.mongodb_abilities import MongoAbilities
    from modules.storage.backends.mongodb_executor import MongoExecutor
    from modules.storage.documents import DocumentForms

__all__ = [
    "MongoPool",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 10.0
# How long shutdown waits for calls under way before it cancels them.
_PATIENCE_S = 2.0
# How long a measurement of the server's clock is good for: two quartz clocks part by less than 10 ms in this time.
_CLOCK_GOOD_FOR_S = 60.0


class MongoPool:
    """Connections to one MongoDB database. Nothing is opened before `initialize()`; it may be opened again after `shutdown()`.

    Writes are acknowledged by a majority of the servers; instants come back as aware UTC `datetime`.

    Args:
        settings: The database; None: `localhost`.
    """

    def __init__(self, settings: Optional[MongoBackendSettings] = None) -> None:
        self._settings = settings if settings is not None else MongoBackendSettings()
        self._clients: Dict[asyncio.AbstractEventLoop, AsyncMongoClient[Dict[str, Any]]] = {}
        # the last client's, by name
        self._collections: Dict[str, AsyncCollection[Dict[str, Any]]] = {}
        self._abilities: Optional[MongoAbilities] = None
        self._running: Set[asyncio.Task[Any]] = set()
        self._lock = threading.Lock()
        self._opening = OpenOnce()
        self._process = os.getpid()
        # server's microseconds less our monotonic ones, and when that was measured
        self._clock_offset = 0
        self._clock_read_at = -_CLOCK_GOOD_FOR_S

    @property
    def settings(self) -> MongoBackendSettings:
        """The settings of this database."""
        return self._settings

    @property
    def is_initialized(self) -> bool:
        """Whether the pool is open."""
        return self._abilities is not None

    @property
    def abilities(self) -> MongoAbilities:
        """What the server can do, as it said when the pool was opened.

        Raises:
            NotInitializedError: before `initialize()` and after `shutdown()`.
        """
        if self._abilities is None:
            raise NotInitializedError("the MongoDB pool")
        return self._abilities

    @property
    def client(self) -> AsyncMongoClient[Dict[str, Any]]:
        """PyMongo's client for the running event loop.

        Raises:
            NotInitializedError: before `initialize()` and after `shutdown()`.
            WrongProcessError: the pool was opened before a fork.
        """
        if self._abilities is None:
            raise NotInitializedError("the MongoDB pool")
        return self._client_here()

    @property
    def database(self) -> AsyncDatabase[Dict[str, Any]]:
        """The database, on `client`."""
        return self.client[self._settings.database]

    def get_collection(self, name: str) -> AsyncCollection[Dict[str, Any]]:
        """Return a collection of the database by its name; it need not exist.

        It is made once for each name: making one costs a tenth of a millisecond, and a store needs it in every call.
        """
        client = self.client
        found = self._collections.get(name)
        if found is None or found.database.client is not client:
            found = self._collections[name] = self.database[name]
        return found

    def collection(self, name: str) -> Any:
        """Return the same, for the stores."""
        return self.get_collection(name)

    def executor(self, forms: DocumentForms) -> MongoExecutor:
        """Return what runs a store's operations on this pool."""
        from modules.storage.backends.mongodb_executor import MongoExecutor

        return MongoExecutor(self, forms)

    async def initialize(self) -> None:
        """Connect and ask the server what it can do. Harmless when open; concurrent calls open it once.

        Raises:
            UnavailableError, DeadlineExceededError: the server did not answer within `mongo.server_selection_timeout_ms`
                and `mongo.connect_timeout_ms`; nothing stays open.
            PermissionDeniedError: it refused the credentials.
            MissingDependencyError: PyMongo is not installed.
        """
        await self._opening.run(lambda: self._abilities is not None, self._open)

    async def _open(self) -> None:
        started = time.monotonic()
        try:
            from modules.storage.backends.mongodb_abilities import abilities_of
            from modules.storage.backends.mongodb_errors import DRIVER_ERRORS, translate
        except ImportError as exc:
            raise MissingDependencyError("pymongo", "mongo") from exc
        self._process = os.getpid()
        patience_s = (self._settings.server_selection_timeout_ms + self._settings.connect_timeout_ms) / 1000
        try:
            admin = self._client_here().admin
            hello = await within(admin.command("hello"), patience_s)
            build = await within(admin.command("buildInfo"), patience_s)
        except asyncio.TimeoutError as exc:
            await self._close_all()
            raise DeadlineExceededError(
                f"MongoDB at {self._settings.get_safe_url()} did not answer within {patience_s:g} s"
            ) from exc
        except DRIVER_ERRORS as exc:
            await self._close_all()
            problem = translate(exc)
            if isinstance(problem, UnavailableError):
                problem = UnavailableError(
                    f"MongoDB at {self._settings.get_safe_url()} cannot be reached; check that it runs, and mongo.url"
                )
            raise problem from exc
        except BaseException:
            await self._close_all()
            raise
        self._abilities = abilities_of(hello, build)
        if not self._abilities.atomic_changes:
            logger.warning("storage.mongo.not_atomic", extra={"backend": "mongodb"})
        duration_ms = round((time.monotonic() - started) * 1000, 1)
        logger.info("storage.pool.initialized", extra={"backend": "mongodb", "duration_ms": duration_ms})

    def _client_here(self) -> AsyncMongoClient[Dict[str, Any]]:
        if os.getpid() != self._process:
            # a connection of the parent must not be used, nor closed, by its child
            raise WrongProcessError(
                "this pool was opened before a fork; open a new StorageManager in the child process"
            )
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            with self._lock:
                for other in [known for known in self._clients if known.is_closed()]:
                    del self._clients[other]
                client = self._clients[loop] = self._make_client()
        return client

    def _make_client(self) -> AsyncMongoClient[Dict[str, Any]]:
        from pymongo import AsyncMongoClient
        from pymongo.errors import ConfigurationError, InvalidURI

        from modules.storage.backends.mongodb_errors import translate

        options: Dict[str, Any] = {
            "tz_aware": True,
            "w": "majority",
            "appname": "atlas-storage",
            "uuidRepresentation": "standard",
            "socketTimeoutMS": int(self._settings.command_timeout_s * 1000),
            "waitQueueTimeoutMS": int(self._settings.command_timeout_s * 1000),
            **self._settings.get_client_kwargs(),
        }
        try:
            return AsyncMongoClient(self._settings.get_url(), **options)
        except (ConfigurationError, InvalidURI) as exc:
            raise translate(exc) from exc

    async def shutdown(self) -> None:
        """Close every connection of ours. Harmless when closed; never waits for ever."""
        if self._abilities is None:
            return
        if os.getpid() == self._process:
            await self._end_running()
        self._abilities = None
        await self._close_all()
        logger.info("storage.pool.shutdown", extra={"backend": "mongodb"})

    async def _close_all(self) -> None:
        with self._lock:
            clients, self._clients = self._clients, {}
        self._collections.clear()
        self._clock_read_at = -_CLOCK_GOOD_FOR_S
        if os.getpid() != self._process:
            return
        here = asyncio.get_running_loop()
        for loop, client in clients.items():
            if loop is here:
                await _close(client)
            elif loop.is_running():
                asyncio.run_coroutine_threadsafe(_close(client), loop)

    async def health_check(self, timeout: float = 5.0) -> bool:
        """Return whether the server answers within `timeout` seconds. Never raises but for cancellation."""
        if self._abilities is None:
            return False
        try:
            await self.finish(self.ping(), timeout)
        except (StorageError, asyncio.TimeoutError):
            return False
        return True

    async def ping(self) -> None:
        """Ask the server for nothing.

        Raises:
            StorageError: it does not answer.
        """
        from modules.storage.backends.mongodb_errors import DRIVER_ERRORS, translate

        try:
            await self.client.admin.command("ping")
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc

    async def server_time(self) -> int:
        """Return the server's time in microseconds since 1970.

        The server is asked once a minute; between, our monotonic clock carries its time on. So a wrong clock of this
        machine does no harm; the error is at most half a round trip and a millisecond.
        """
        if time.monotonic() - self._clock_read_at >= _CLOCK_GOOD_FOR_S:
            await self._read_clock()
        return self._clock_offset + time.monotonic_ns() // 1000

    async def _read_clock(self) -> None:
        from modules.storage.backends.mongodb_errors import DRIVER_ERRORS, translate
        from modules.store_common.clock import to_microseconds

        before = time.monotonic_ns()
        try:
            hello = await self.client.admin.command("hello")
        except DRIVER_ERRORS as exc:
            raise translate(exc) from exc
        middle = (before + time.monotonic_ns()) // 2000
        # answers to hello come without a time zone whatever the client's options say; BSON's instants are UTC
        server = hello["localTime"].replace(tzinfo=timezone.utc)
        self._clock_offset = to_microseconds(server) - middle
        self._clock_read_at = time.monotonic()

    async def finish(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Await `work`, which uses the client, for at most `seconds`.

        When the caller is cancelled, the work goes on by itself until then: PyMongo (4.20) does not close the socket of a
        connection whose opening is cancelled. What it does is such that it may be done or not.

        Raises:
            asyncio.TimeoutError: it took longer, and was cancelled.
            UnavailableError: `shutdown()` cancelled it.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(work)
        self.track(task)
        try:
            await asyncio.wait({task}, timeout=seconds)
        except asyncio.CancelledError:
            loop.call_later(seconds, task.cancel)
            raise
        if not task.done():
            task.cancel()
            raise asyncio.TimeoutError
        if task.cancelled():
            from modules.storage.backends.mongodb_errors import cut_off

            raise cut_off()
        return task.result()

    def track(self, task: asyncio.Task[Any]) -> None:
        """Let `shutdown()` wait for a task that uses the client."""
        self._running.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # whoever waited has it from the task; nobody may have
            task.exception()

    async def _end_running(self) -> None:
        """Wait for the tasks of this loop a little, then cancel them."""
        here = asyncio.get_running_loop()
        mine = {
            task for task in self._running if task.get_loop() is here and task is not asyncio.current_task()
        }
        if mine:
            _, late = await asyncio.wait(mine, timeout=_PATIENCE_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_PATIENCE_S)

    def statistics(self) -> Dict[str, int]:
        """Return the pool in numbers, for health and metrics; empty when closed."""
        return {} if self._abilities is None else {"event_loops": len(self._clients)}


async def _close(client: Any) -> None:
    closed: List[Any] = [asyncio.ensure_future(client.close())]
    await asyncio.wait(closed, timeout=_CLOSE_TIMEOUT_S)

"""Running the application with uvicorn: listen, tell where, drain at the end.

The end, at SIGTERM or `stop()`: readiness fails, event streams end, answers say `Connection: close`; after a moment for
clients and balancers to see that, nothing new is accepted, and what was accepted is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional

from modules.Server.app import create_app
from modules.Server.protocol import http_protocol
from modules.store_common.errors import MissingDependencyError, UnavailableError

if TYPE_CHECKING:
    from modules.Server.services import Services
    from modules.storage.manager import StorageManager
    from modules.storage.settings import ServerSettings

__all__ = ["HttpServer"]

logger = logging.getLogger(__name__)

# Seconds in which clients with open connections are told to close them, before nothing new is accepted.
_DRAIN_S = 0.5
_BACKLOG = 2048
_KEEP_ALIVE_S = 15


class HttpServer:
    """The API and the dashboard of one storage, at one address.

    Args:
        storage: Open; stays the caller's to close.
        settings: None: those of the storage.
    """

    def __init__(self, storage: StorageManager, settings: Optional[ServerSettings] = None) -> None:
        self.settings = settings or storage.get_settings().server
        self._app = create_app(storage, self.settings)
        self._services: Services = self._app.state.services
        self._server: Any = None
        self._task: Optional[asyncio.Task[None]] = None
        self._history: Optional[asyncio.Task[None]] = None
        self._port = 0

    @property
    def url(self) -> str:
        """Where the dashboard is, and the API below it."""
        host = f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host
        return f"http://{host}:{self._port}"

    async def start(self) -> None:
        """Listen; returns when requests are served.

        Raises:
            UnavailableError: the address cannot be had.
        """
        listening = _listen(self.settings)
        self._port = listening.getsockname()[1]
        if not self.settings.is_local:
            logger.warning("server.not_on_loopback", extra={"detail": self.settings.host})
        self._server = _quiet_server(self._app, self.settings)
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]), name="atlas-storage-server")
        while not self._server.started and not self._task.done():  # noqa: ASYNC110 - uvicorn gives no signal
            await asyncio.sleep(0.01)
        if self._task.done():
            await self._task
        self._history = asyncio.create_task(self._services.history.run(), name="atlas-storage-server-history")
        logger.info("server.started", extra={"detail": self.url})

    async def stop(self) -> None:
        """Answer what was accepted, then close. Harmless when stopped."""
        task, self._task = self._task, None
        if task is None:
            return
        self._services.traffic.draining = True
        self._services.feed.wake_all()
        await asyncio.sleep(_DRAIN_S)
        self._server.should_exit = True
        await task
        if self._history is not None:
            self._history.cancel()
            await asyncio.wait({self._history})
        await self._services.authenticator.close()
        logger.info("server.stopped")

    async def wait(self) -> None:
        """Return when the server has ended: after `stop()`, or by itself when it died.

        Raises:
            Exception: what it died of.
        """
        if self._task is not None:
            await asyncio.shield(self._task)

    async def run(self, ready: Optional[Callable[[], None]] = None) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends it without grace.

        Args:
            ready: Called when requests are served.
        """
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        taken: List[signal.Signals] = []

        def ask() -> None:
            if asked.is_set() and self._server is not None:
                self._server.force_exit = True
            asked.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in a thread
                loop.add_signal_handler(number, ask)
                taken.append(number)
        try:
            if self._task is None:
                await self.start()
            if ready is not None:
                ready()
            await self._until(asked)
        finally:
            await self.stop()
            for number in taken:
                loop.remove_signal_handler(number)

    async def _until(self, asked: asyncio.Event) -> None:
        assert self._task is not None  # noqa: S101 - started
        waiting = asyncio.create_task(asked.wait())
        try:
            await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()


def _listen(settings: ServerSettings) -> socket.socket:
    """Return a socket that listens: before uvicorn, which ends the process when it cannot."""
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise UnavailableError(f"cannot listen at {settings.host}: {exc.strerror or exc}") from exc
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError as exc:
        listening.close()
        raise UnavailableError(
            f"cannot listen at {settings.host} port {settings.port}: {exc.strerror or exc}; "
            "choose another with --port or server.port"
        ) from exc
    return listening


def _quiet_server(app: Any, settings: ServerSettings) -> Any:
    try:
        import uvicorn
    except ImportError as exc:
        raise MissingDependencyError("uvicorn", "server") from exc

    class Server(uvicorn.Server):
        """Leaves the signals of the process to us."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            http=http_protocol(),
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, int(settings.shutdown_grace_seconds)),
            backlog=_BACKLOG,
        )
    )

"""A real server on loopback, on a loop in a thread of its own, for clients that block: HTTP libraries, browsers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any, Coroutine, Dict, List, Optional, Sequence, TypeVar

__all__ = ["LiveServer", "park"]

T = TypeVar("T")


class LiveServer:
    """A server on a database of its own.

    Attributes:
        url: Where it listens.
        storage: Its storage manager; call it through `call`.
    """

    def __init__(self, database: Path, **server: Any) -> None:
        self._settings = {
            "sql": {"url": f"sqlite:///{database}", "auto_migrate": False},
            "server": {"port": 0, **server},
        }
        self._thread = threading.Thread(target=self._run, name="live-server", daemon=True)
        self._ready = threading.Event()
        self._failure: Optional[BaseException] = None
        self._loop: Any = None
        self._stop: Any = None
        self._clients: List[Any] = []
        self.server: Any = None
        self.url = ""
        self.storage: Any = None

    def __enter__(self) -> LiveServer:
        self._thread.start()
        assert self._ready.wait(60), "the server did not start"
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *error: Any) -> None:
        for client in self._clients:
            client.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server did not end"

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def token(self, *scopes: str, tenant: str = "acme", others: Any = ()) -> str:
        """Return the text of a new token."""
        made = self.call(
            self.storage.access.create_token("test", scopes=scopes, other_tenants=others, tenant_id=tenant)
        )
        return str(made.text)

    def session(self, *scopes: str, tenant: str = "acme") -> str:
        """Return the cookie of a new login of the dashboard."""
        return str(self.server._services.sessions.open(self.token(*scopes, tenant=tenant)))

    def client(self, *scopes: str, tenant: str = "acme", **more: Any) -> Any:
        """Return an HTTP client with a token of these scopes; without scopes, without a token."""
        import httpx

        headers: Dict[str, str] = {}
        if scopes:
            headers["Authorization"] = f"Bearer {self.token(*scopes, tenant=tenant)}"
        client = httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **more)
        self._clients.append(client)
        return client

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as exc:
            self._failure = exc
        finally:
            self._ready.set()

    async def _main(self) -> None:
        from modules.Server.serving import HttpServer
        from modules.storage.manager import StorageManager

        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        async with StorageManager(self._settings) as storage:
            self.storage = storage
            self.server = HttpServer(storage)
            await self.server.start()
            self.url = self.server.url
            self._ready.set()
            await self._stop.wait()
            await self.server.stop()


async def park(storage: Any, tenant: str, keys: Sequence[str], reason: str) -> None:
    """Leave keys in the outbox, each parked for `reason`, and one that waits; no relay knows their target."""
    from modules.storage.outbox_queue import claim, fail, stage_many

    target = f"elsewhere-of-{tenant}"

    def waiting(names: Sequence[str]) -> Any:
        return [((tenant, target, "customer", key), '{"name": "Ada"}') for key in sorted(names)]

    await storage.executor.run(stage_many, waiting(keys))
    entries = await storage.executor.run(claim, target, "test", len(keys), 60.0)
    await storage.executor.run(fail, [(entry, reason) for entry in entries], 1)
    await storage.executor.run(stage_many, waiting(["waits"]))

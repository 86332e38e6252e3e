"""Fixtures for the HTTP API and the dashboard; without the `server` extra nothing here is collected.

api      a client of the application on the `storage` fixture, in this process: every back end, no network
live     a `LiveServer` on SQLite, one for each file
browser  a real browser, one for each file
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, AsyncIterator, Dict, Iterator, Optional

import pytest

from tests.support import sqlite as sqlite_support

if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "httpx", "jinja2", "prometheus_client")):
    collect_ignore_glob = ["test_*.py"]


class Api:
    """A client whose calls are those of a token."""

    def __init__(self, client: Any, storage: Any, services: Any) -> None:
        self.client = client
        self.storage = storage
        self.services = services

    async def login(self, *scopes: str, tenant: str = "acme", **more: Any) -> Dict[str, str]:
        """Return the headers of a new token."""
        made = await self.storage.access.create_token("test", scopes=scopes, tenant_id=tenant, **more)
        return {"Authorization": f"Bearer {made.text}"}

    async def use(self, *scopes: str, tenant: str = "acme", **more: Any) -> None:
        """Let all calls be those of a new token."""
        self.client.headers.update(await self.login(*scopes, tenant=tenant, **more))

    async def __call__(self, method: str, path: str, status: Optional[int] = None, **more: Any) -> Any:
        """Send a request; `status` is what must be answered."""
        answer = await self.client.request(method, path, **more)
        if status is not None:
            assert answer.status_code == status, (method, path, answer.status_code, answer.text)
        return answer


@asynccontextmanager
async def api_over(storage: Any) -> AsyncIterator[Api]:
    """Serve `storage` without a socket; calls are those of a token that may write."""
    import httpx

    from modules.Server.app import create_app

    app = create_app(storage)
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        made = Api(client, storage, app.state.services)
        await made.use("write")
        yield made
        await app.state.services.authenticator.close()


@pytest.fixture
async def api(storage: Any) -> AsyncIterator[Api]:
    async with api_over(storage) as made:
        yield made


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from tests.support.live import LiveServer

    path: Path = tmp_path_factory.mktemp("live") / "storage.sqlite3"
    shutil.copyfile(sqlite_support.migrated_template(), path)
    with LiveServer(path) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from tests.support.browser import SHOTS, Browser

    SHOTS.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Playwright's own
        with Browser() as opened:
            yield opened

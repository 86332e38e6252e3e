"""The application: gate, routes, errors, dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from fastapi import FastAPI

from modules.Server import dashboard, openapi, problems
from modules.Server.api import conversations, jobs, kv, messages, outbox, probes, tasks, tenants, vectors
from modules.Server.gate import Gate
from modules.Server.services import Services
from modules.storage.version import __version__

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager
    from modules.storage.settings import ServerSettings

__all__ = ["ROOMS", "create_app"]

#: The routers of the API, one for each store.
ROOMS = (probes, tenants, conversations, messages, kv, vectors, tasks, jobs, outbox)


def create_app(storage: StorageManager, settings: Optional[ServerSettings] = None) -> FastAPI:
    """Return the ASGI application over an open storage manager, which stays the caller's to close.

    Args:
        storage: Open before the first request.
        settings: None: those of the storage.
    """
    settings = settings or storage.get_settings().server
    services = Services(storage, settings)
    app = FastAPI(title="ATLAS storage", version=__version__, openapi_url=None)
    app.state.services = services
    problems.install(app)
    openapi.install(app)
    for room in ROOMS:
        # as they are: `include_router` makes every route anew at the first request, which takes half a second
        app.router.routes.extend(room.router.routes)
    dashboard.install(app)
    app.add_middleware(Gate, settings=settings, traffic=services.traffic, observe=services.metrics.observe)
    return app

"""Is it alive, is it ready, how is it, what are its numbers."""

from __future__ import annotations

from typing import Any, Dict, Optional

from fastapi import APIRouter, Request
from starlette.responses import Response

from modules.Server.callers import Monitor, bearer_of
from modules.Server.metrics import CONTENT_TYPE
from modules.Server.models import HealthOut, ProbeOut
from modules.Server.problems import ApiError
from modules.Server.replies import Json
from modules.Server.services import Services, services_of
from modules.storage.health import HealthStatus, StorageHealthStatus
from modules.storage.version import __version__
from modules.store_common.errors import StorageError

__all__ = ["document", "health", "livez", "metrics", "readyz", "router"]

router = APIRouter(tags=["probes"])
_HEALTH_MEDIA_TYPE = "application/health+json"
# The words of the draft "Health Check Response Format for HTTP APIs".
_WORDS = {HealthStatus.HEALTHY: "pass", HealthStatus.DEGRADED: "warn"}


@router.get("/livez", response_model=ProbeOut, openapi_extra={"security": []})
async def livez() -> Json:
    """Whether the process answers. Needs no token, looks at nothing."""
    return Json({"status": "pass"})


@router.get(
    "/readyz",
    response_model=ProbeOut,
    responses={503: {"description": "Not now.", "model": ProbeOut}},
    openapi_extra={"security": []},
)
async def readyz(request: Request) -> Json:
    """Whether requests can be served: the database answers and the server is not shutting down. Needs no token."""
    services = services_of(request)
    ready = (
        not services.traffic.draining
        and services.storage.is_initialized
        and await services.storage.sql_pool.health_check(timeout=2.0)
    )
    return Json({"status": "pass" if ready else "fail"}, 200 if ready else 503)


@router.get(
    "/health",
    response_model=HealthOut,
    responses={
        200: {"content": {_HEALTH_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/HealthOut"}}}},
        503: {
            "description": "A component is unhealthy.",
            "content": {_HEALTH_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/HealthOut"}}},
        },
    },
    openapi_extra={"security": [{}, {"bearer": []}]},
)
async def health(request: Request) -> Json:
    """How every store is, checked now. The components are shown to tokens with the scope `monitor`; others see one word."""
    services = services_of(request)
    found = await services.storage.health_check()
    word = _WORDS.get(found.overall, "fail")
    body: Dict[str, Any] = {"status": word}
    if await _may_look(services, request):
        body.update(version=__version__, checks=_checks(found))
    return Json(body, 503 if word == "fail" else 200, media_type=_HEALTH_MEDIA_TYPE)


# Balancers and watchers ask by HEAD, too; the server leaves out the body.
for _path, _probe in (("/livez", livez), ("/readyz", readyz), ("/health", health)):
    router.add_api_route(_path, _probe, methods=["HEAD"], include_in_schema=False)


async def _may_look(services: Services, request: Request) -> bool:
    if "authorization" not in request.headers:
        return False
    try:
        token = await services.authenticator.token_of(bearer_of(request))
    except (ApiError, StorageError):
        return False
    return "monitor" in token.granted


def _checks(found: StorageHealthStatus) -> Dict[str, Any]:
    return {
        name: [
            {
                "status": _WORDS.get(component.status, "fail"),
                "time": _text(component.checked_at),
                "observedValue": component.latency_ms,
                "observedUnit": "ms",
                "output": component.message,
                "details": dict(component.details),
            }
        ]
        for name, component in found.components.items()
    }


def _text(instant: Any) -> Optional[str]:
    return None if instant is None else instant.isoformat()


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Metrics."}},
)
async def metrics(caller: Monitor) -> Response:
    """Everything countable, in Prometheus's text format. Needs the scope `monitor`."""
    return Response(caller.services.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/openapi.json", include_in_schema=False)
async def document(request: Request) -> Json:
    """The OpenAPI document, for any token: it says nothing of anybody's data, but which release this is."""
    await services_of(request).authenticator.token_of(bearer_of(request))
    return Json(request.app.openapi())

"""The OpenAPI document: what FastAPI knows of the routes, and what holds for every route."""

from __future__ import annotations

from typing import Any, Dict

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from modules.Server.models import ProblemOut
from modules.Server.problems import MEDIA_TYPE

__all__ = ["install"]

_ABOUT = """\
Conversations, keys, vectors, tasks and jobs of AI agents, by tenant.

Every call but the probes needs a token: `Authorization: Bearer ...` (`atlas-storage token create`). Errors are problem
details (RFC 9457); decide by their `code`. Lists give a `next_cursor`. Versions are ETags; `If-Match` makes a change
conditional. With an `Idempotency-Key` a request that is sent again has no second effect. See docs/http-api.md.
"""
# What any request may be answered with, whatever its route.
_ALWAYS: Dict[str, str] = {
    "400": "The path or the cursor is damaged.",
    "401": "The token is missing or not valid.",
    "403": "The token may not do this, or not for this tenant.",
    "413": "The body is too large.",
    "421": "The server is not called by that name.",
    "422": "The request, or a value in it, is not valid.",
    "500": "The storage failed.",
    "503": "Try again later.",
    "504": "Not answered in time.",
}
_ONCE = "Not part of this installation: with an Idempotency-Key, effect and answer share a transaction of the SQL database."
_OPEN = ("/livez", "/readyz", "/health")
_OF_OPEN = ("400", "421", "500", "503", "504")


def install(app: FastAPI) -> None:
    """Let `app` serve the completed document."""

    def document() -> Dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(app: FastAPI) -> Dict[str, Any]:
    found: Dict[str, Any] = get_openapi(
        title="ATLAS storage", version=app.version, description=_ABOUT, routes=app.routes
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["ProblemOut"] = ProblemOut.model_json_schema(ref_template="#/components/schemas/{model}")
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "Made by `atlas-storage token create`."}
    }
    found["security"] = [{"bearer": []}]
    for path, methods in found["paths"].items():
        for operation in methods.values():
            _complete_operation(path, operation)
    return found


def _complete_operation(path: str, operation: Dict[str, Any]) -> None:
    responses = operation["responses"]
    for status in _OF_OPEN if path in _OPEN else _ALWAYS:
        if status == "422" or status not in responses:
            responses[status] = {"description": _ALWAYS[status], "content": _problem()}
    if any(parameter["name"] == "idempotency-key" for parameter in operation.get("parameters", ())):
        responses.setdefault("501", {"description": _ONCE, "content": _problem()})
    for status, response in responses.items():
        # a model given in `responses` is put under application/json as well
        if status >= "400" and MEDIA_TYPE in response.get("content", {}):
            response["content"] = _problem()


def _problem() -> Dict[str, Any]:
    return {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}

"""The outbox: what waits for its target and what was parked. Of the whole installation, so for administrators."""

from __future__ import annotations

from typing import Any, Dict, List

from fastapi import APIRouter, Request
from starlette.responses import Response

from modules.Server.dashboard.rendering import back, page
from modules.Server.dashboard.visitors import Visitor, VisitorHere
from modules.Server.problems import ApiError

__all__ = ["act", "outbox", "router"]

router = APIRouter(include_in_schema=False)
_SHOWN = 50
_STATES = ("parked", "pending", "done")


@page(router, "/outbox", "outbox.html")
async def outbox(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load what waits by target, and keys in a state."""
    _admin(visitor)
    state = request.query_params.get("state", "parked")
    state = state if state in _STATES else "parked"
    stats = await visitor.storage.outbox.stats()
    records: List[Any] = []
    async for record in visitor.storage.outbox.stream(state):
        records.append(record)
        if len(records) == _SHOWN:
            break
    return {"targets": stats.targets, "state": state, "states": _STATES, "records": records, "shown": _SHOWN}


@router.post("/outbox")
async def act(request: Request, visitor: VisitorHere) -> Response:
    """Try a parked key again, or give it up."""
    _admin(visitor)
    form: Any = await request.form()
    address = tuple(str(form.get(name, "")) for name in ("tenant_id", "target", "kind", "key"))
    store = visitor.storage.outbox
    if form.get("what") == "discard":
        count = await store.discard([address])  # type: ignore[list-item]
        return back("/outbox", "Given up." if count else "It is not there any more.")
    count = await store.redrive([address])  # type: ignore[list-item]
    return back("/outbox", "It is tried again." if count else "It is not parked any more.")


def _admin(visitor: Visitor) -> None:
    if not visitor.may("admin"):
        raise ApiError(
            403, "forbidden", "this page is about the whole installation: it needs the scope `admin`"
        )

"""The outbox: what waits for its target, what was parked; trying again and giving up. Of the whole installation."""

from __future__ import annotations

from typing import Annotated, Any, Dict, List, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from modules.Server.api.parameters import PartOf100
from modules.Server.callers import Admin
from modules.Server.models import CountOut, Input, PageOf
from modules.Server.models_jobs import OutboxOut
from modules.Server.replies import Json
from modules.store_common.cursors import decode_cursor, encode_cursor

__all__ = ["Address", "Addresses", "discard_keys", "list_keys", "outbox_state", "redrive_keys", "router"]

router = APIRouter(prefix="/v1/outbox", tags=["outbox"])

_LIST = "outbox"
# tenant, target, kind, key
_KEY_PARTS = 4


class Address(Input):
    """Where an effect goes."""

    tenant_id: str
    target: str
    kind: str
    key: str


class Addresses(Input):
    """Which keys."""

    keys: List[Address] = Field(max_length=1000)


def _addresses(body: Addresses) -> Any:
    return [(one.tenant_id, one.target, one.kind, one.key) for one in body.keys]


@router.get("", response_model=OutboxOut)
async def outbox_state(caller: Admin) -> Json:
    """Get how many keys wait for each target, how many are parked, and how old the oldest is. Needs the scope `admin`."""
    found = await caller.storage.outbox.stats()
    targets: Dict[str, Any] = {
        name: {"pending": one.pending, "parked": one.parked, "lag_s": one.lag_s}
        for name, one in found.targets.items()
    }
    return Json({"targets": targets})


@router.get("/keys", response_model=PageOf[Dict[str, Any]])
async def list_keys(
    caller: Admin,
    part: PartOf100,
    state: Annotated[Literal["pending", "parked", "done"], Query()] = "parked",
    target: Annotated[str, Query(description="Only those; unset: of all targets.")] = "",
) -> Json:
    """List keys in a state. Needs the scope `admin`."""
    filters = [state, target]
    begin: Any = decode_cursor(part.cursor, caller.tenant_id, _LIST, _KEY_PARTS, filters=filters)
    found: List[Any] = []
    async for record in caller.storage.outbox.stream(state, target=target, after=begin):
        found.append(record)
        if len(found) > part.limit:
            break
    items = [{**record.to_dict(), "payload": None} for record in found[: part.limit]]
    more = len(found) > part.limit
    last = found[part.limit - 1].address if more else None
    cursor = None if last is None else encode_cursor(caller.tenant_id, _LIST, last, filters=filters)
    return Json({"items": items, "next_cursor": cursor})


@router.post("/redrive", response_model=CountOut)
async def redrive_keys(caller: Admin, body: Addresses) -> Json:
    """Have parked keys tried again from the first attempt. Needs the scope `admin`."""
    return Json({"count": await caller.storage.outbox.redrive(_addresses(body))})


@router.post("/discard", response_model=CountOut)
async def discard_keys(caller: Admin, body: Addresses) -> Json:
    """Give keys up: what is staged for them will not be applied. Needs the scope `admin`."""
    return Json({"count": await caller.storage.outbox.discard(_addresses(body))})

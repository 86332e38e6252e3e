"""The browser of the key-value store: namespaces, keys, one value."""

from __future__ import annotations

from typing import Any, Dict
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from modules.Server.dashboard.rendering import back, page
from modules.Server.dashboard.visitors import Visitor, VisitorHere
from modules.store_common.errors import ConcurrencyError, StorageError
from modules.Tools.Base_Tools.kv_store import KeyNotFoundError

__all__ = ["change", "key", "namespaces", "router"]

router = APIRouter(include_in_schema=False)
_PAGE = 50


@page(router, "/kv", "kv.html")
async def namespaces(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load the namespaces, and the keys of the chosen one."""
    store, key = visitor.storage.kv, {"tenant_id": visitor.tenant_id}
    names = await store.list_namespaces(limit=200, tenant_id=visitor.tenant_id)
    chosen = request.query_params.get("namespace") or (names.namespaces[0] if names.namespaces else "")
    prefix = request.query_params.get("prefix", "")
    found: Any = None
    if chosen:
        found = await store.list(
            chosen, prefix, limit=_PAGE, cursor=request.query_params.get("cursor"), **key
        )
    return {"names": names.namespaces, "chosen": chosen, "prefix": prefix, "found": found}


@page(router, "/kv/{namespace:segment}/{key:segment}", "key.html")
async def key(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load one entry."""
    namespace, name = request.path_params["namespace"], request.path_params["key"]
    entry = await visitor.storage.kv.get_entry(namespace, name, tenant_id=visitor.tenant_id)
    if entry is None:
        raise KeyNotFoundError(f"there is no key {name!r} in namespace {namespace!r}")
    is_bytes = isinstance(entry.value, bytes)
    text = "" if is_bytes else orjson.dumps(entry.value, option=orjson.OPT_INDENT_2).decode()
    return {"entry": entry, "is_bytes": is_bytes, "text": text}


@router.post("/kv")
async def change(request: Request, visitor: VisitorHere) -> Response:
    """Store or delete a key, if it is still what the page showed."""
    form: Any = await request.form()
    namespace, name = str(form.get("namespace", "")), str(form.get("key", ""))
    version = str(form.get("version", ""))
    expected = int(version) if version.isdigit() and len(version) < 18 else None
    here = f"/kv/{quote(namespace, safe='')}/{quote(name, safe='')}"
    store = visitor.storage.kv
    try:
        if form.get("what") == "delete":
            await store.delete(namespace, name, expected_version=expected, tenant_id=visitor.tenant_id)
            return back(f"/kv?namespace={quote(namespace, safe='')}", "Deleted.")
        value = _parsed(str(form.get("value", "")))
        await store.set(namespace, name, value, expected_version=expected, tenant_id=visitor.tenant_id)
    except ConcurrencyError:
        return back(here, "Somebody changed it meanwhile: nothing was written. This is how it is now.")
    except StorageError as exc:
        return back("/kv", str(exc))
    return back(here, "Stored.")


def _parsed(text: str) -> Any:
    """Return the JSON value in a form; what is no JSON is text."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text.replace("\r\n", "\n")

"""Keys and values: get, put, delete, list, count up, compare and set by ETag.

A value is JSON or bytes. In JSON bodies `encoding` says which: with `base64` the value is the text of its bytes, in what is
read as in what is written, so that an entry can be sent back as it came. `/bytes` takes and gives them as they are.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Dict, Literal, Optional

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from modules.Server.api.parameters import (
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    PartOf100,
    errors,
    expected_version,
    not_modified,
)
from modules.Server.callers import Caller, Reader, Writer
from modules.Server.models import EntryOut, Input, PageOf, ValueOut, VersionOut
from modules.Server.once import Reply, once
from modules.Server.problems import ApiError
from modules.Server.replies import Json, etag
from modules.Tools.Base_Tools.kv_store import InvalidValueTypeError, KeyNotFoundError, KeyValueEntry

__all__ = [
    "Increment",
    "Value",
    "delete_key",
    "get_bytes",
    "get_key",
    "increment_key",
    "list_keys",
    "list_namespaces",
    "put_bytes",
    "put_key",
    "router",
]

router = APIRouter(prefix="/v1/kv", tags=["key-value"])
_Namespace = Annotated[str, Path(description="Namespace; encode a slash as %2F.", examples=["settings"])]
_Key = Annotated[str, Path(description="Key; encode a slash as %2F.", examples=["greeting"])]
_Ttl = Annotated[
    Optional[float],
    Field(ge=0, le=3.2e9, description="Seconds to live; 0 for ever; unset: the configured default."),
]


_OnlyIfAbsent = Annotated[Optional[str], Header(description="`*`: only if there is no entry.")]
_BINARY: Dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class Value(Input):
    """A value to store."""

    value: Any = Field(examples=["hello"], description="Any JSON value; with `encoding` base64 a text.")
    encoding: Literal["json", "base64"] = Field(
        "json", description="base64: `value` is the text of bytes, and the bytes are stored."
    )
    ttl_seconds: _Ttl = None

    def decoded(self) -> Any:
        """Return what is to be stored.

        Raises:
            ApiError: `value` is not base64.
        """
        if self.encoding == "json":
            return self.value
        try:
            return base64.b64decode(self.value if isinstance(self.value, str) else "?", validate=True)
        except (binascii.Error, ValueError) as exc:
            raise ApiError(422, "invalid_request", "value is not base64 (RFC 4648, with padding)") from exc


class Increment(Input):
    """What to add."""

    amount: int = Field(1, ge=-(2**63), lt=2**63)
    initial: int = Field(0, ge=-(2**63), lt=2**63, description="What to start from when there is no entry.")
    ttl_seconds: _Ttl = None


def _entry(entry: KeyValueEntry) -> Dict[str, Any]:
    told = {**entry.to_dict(), "encoding": "json"}
    if isinstance(entry.value, bytes):
        told.update(value=base64.b64encode(entry.value).decode(), encoding="base64")
    return told


def _expected(if_match: Optional[str], if_none_match: Optional[str]) -> Optional[int]:
    """Return the version that a write expects: 0 for none, None for any."""
    expected = expected_version(if_match)
    if if_none_match is not None:
        if if_none_match.strip() != "*" or expected is not None:
            raise ApiError(422, "invalid_request", "If-None-Match must be * here, and without If-Match")
        return 0
    if if_match is not None and expected is None:
        raise ApiError(422, "invalid_request", "If-Match needs an ETag here")
    return expected


async def _set(
    caller: Caller,
    namespace: str,
    key: str,
    value: Any,
    *,
    ttl_seconds: Optional[float],
    expected: Optional[int],
) -> Json:
    version = await caller.storage.kv.set(
        namespace,
        key,
        value,
        ttl_seconds=ttl_seconds,
        expected_version=expected,
        tenant_id=caller.tenant_id,
    )
    return Json({"namespace": namespace, "key": key, "version": version}, headers=etag(version))


async def _require(caller: Caller, namespace: str, key: str) -> KeyValueEntry:
    found = await caller.storage.kv.get_entry(namespace, key, tenant_id=caller.tenant_id)
    if found is None:
        raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
    return found


@router.get("", response_model=PageOf[str])
async def list_namespaces(caller: Reader, part: PartOf100) -> Json:
    """List the namespaces that hold keys."""
    page = await caller.storage.kv.list_namespaces(**part.of(caller))
    return Json({"items": page.namespaces, "next_cursor": page.next_cursor})


@router.get("/{namespace:segment}", response_model=PageOf[EntryOut])
async def list_keys(
    caller: Reader,
    part: PartOf100,
    namespace: _Namespace,
    prefix: Annotated[str, Query(description="Only keys that begin with this.")] = "",
) -> Json:
    """List the entries of a namespace in the order of their keys."""
    page = await caller.storage.kv.list(namespace, prefix, **part.of(caller))
    return Json({"items": [_entry(entry) for entry in page.entries], "next_cursor": page.next_cursor})


@router.get("/{namespace:segment}/{key:segment}", response_model=EntryOut, responses=errors(304, 404))
async def get_key(
    caller: Reader, request: Request, namespace: _Namespace, key: _Key, if_none_match: IfNoneMatch = None
) -> Response:
    """Get a value with its version and times."""
    found = await _require(caller, namespace, key)
    if not_modified(request, found.version):
        return Response(status_code=304, headers=etag(found.version))
    return Json(_entry(found), headers=etag(found.version))


@router.put("/{namespace:segment}/{key:segment}", response_model=VersionOut, responses=errors(412, 507))
async def put_key(
    caller: Writer,
    namespace: _Namespace,
    key: _Key,
    body: Value,
    if_match: IfMatch = None,
    if_none_match: _OnlyIfAbsent = None,
) -> Json:
    """Store a value. With If-Match only over that version, with `If-None-Match: *` only where there is none."""
    expected = _expected(if_match, if_none_match)
    return await _set(caller, namespace, key, body.decoded(), ttl_seconds=body.ttl_seconds, expected=expected)


@router.get(
    "/{namespace:segment}/{key:segment}/bytes",
    response_class=Response,
    response_model=None,
    responses={200: {"description": "The bytes.", "content": _BINARY}, **errors(304, 404, 409)},
)
async def get_bytes(
    caller: Reader, request: Request, namespace: _Namespace, key: _Key, if_none_match: IfNoneMatch = None
) -> Response:
    """Get bytes as they are. A value that is JSON is refused (409)."""
    found = await _require(caller, namespace, key)
    if not isinstance(found.value, bytes):
        raise InvalidValueTypeError(f"the value under key {key!r} is JSON, not bytes")
    if not_modified(request, found.version):
        return Response(status_code=304, headers=etag(found.version))
    return Response(found.value, headers=etag(found.version), media_type="application/octet-stream")


@router.put(
    "/{namespace:segment}/{key:segment}/bytes",
    response_model=VersionOut,
    responses=errors(412, 507),
    openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
)
async def put_bytes(
    caller: Writer,
    request: Request,
    namespace: _Namespace,
    key: _Key,
    ttl_seconds: Annotated[_Ttl, Query()] = None,
    if_match: IfMatch = None,
    if_none_match: _OnlyIfAbsent = None,
) -> Json:
    """Store the body as it is, whatever its Content-Type; the conditions are those of a JSON value."""
    expected = _expected(if_match, if_none_match)
    return await _set(
        caller, namespace, key, await request.body(), ttl_seconds=ttl_seconds, expected=expected
    )


@router.delete(
    "/{namespace:segment}/{key:segment}",
    status_code=204,
    response_model=None,
    responses=errors(404, 412),
)
async def delete_key(caller: Writer, namespace: _Namespace, key: _Key, if_match: IfMatch = None) -> Response:
    """Remove a key."""
    was_there = await caller.storage.kv.delete(
        namespace, key, expected_version=expected_version(if_match), tenant_id=caller.tenant_id
    )
    if not was_there:
        raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
    return Response(status_code=204)


@router.post(
    "/{namespace:segment}/{key:segment}/increment", response_model=ValueOut, responses=errors(409, 507)
)
async def increment_key(
    caller: Writer,
    request: Request,
    namespace: _Namespace,
    key: _Key,
    body: Increment,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Add to the integer under a key, atomically."""

    async def effect(stores: Any) -> Reply:
        value = await stores.kv.increment(
            namespace,
            key,
            body.amount,
            initial=body.initial,
            ttl_seconds=body.ttl_seconds,
            tenant_id=caller.tenant_id,
        )
        return Reply({"namespace": namespace, "key": key, "value": value})

    return await once(request, caller, effect, body.model_dump())

"""What routes answer with: JSON by orjson, entity tags, lines of JSON, server-sent events."""

from __future__ import annotations

import base64
import re
from datetime import datetime, timezone
from typing import Any, Dict, Mapping, Optional

import orjson
from starlette.responses import Response

__all__ = ["Json", "etag", "event", "plain", "version_of", "versioned"]

_TAG = re.compile(r'(?:W/)?"v?(\d{1,18})"\Z')


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def __init__(
        self,
        content: Any,
        status_code: int = 200,
        headers: Optional[Mapping[str, str]] = None,
        media_type: Optional[str] = None,
    ) -> None:
        super().__init__(content, status_code, dict(headers or {}), media_type)

    def render(self, content: Any) -> bytes:
        """Return the bytes of the body; an int beyond 64 bits cannot be in it, by the value contract."""
        return orjson.dumps(content, default=plain)


def plain(value: Any) -> Any:
    """Return a value that JSON knows for one that it does not: instants as RFC 3339, bytes as base64 in an object."""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(bytes(value)).decode()}
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def etag(version: int) -> Dict[str, str]:
    """Return the header that names a version."""
    return {"ETag": f'"v{version}"'}


def versioned(thing: Any, status: int = 200) -> Json:
    """Return a thing as an answer, with its version as its ETag."""
    return Json(thing.to_dict(), status, etag(thing.version))


def version_of(tag: Optional[str]) -> Optional[int]:
    """Return the version that an entity tag of ours names, None for another text."""
    found = _TAG.match(tag.strip()) if tag else None
    return int(found.group(1)) if found else None


def event(data: Any, *, name: Optional[str] = None, id: Optional[str] = None) -> bytes:
    """Return a server-sent event; JSON has no line breaks, so it is one line."""
    lines = []
    if id is not None:
        lines.append(b"id: " + id.encode())
    if name is not None:
        lines.append(b"event: " + name.encode())
    lines.append(b"data: " + orjson.dumps(data, default=plain))
    return b"\n".join(lines) + b"\n\n"

"""Opaque page cursors, bound to one tenant and one query.

A cursor is base64url of a tag and a position. The tag is a digest of the tenant, the kind of list and its filters, so
that a cursor of another tenant or another query is refused instead of giving a wrong page. It is no secret: what a
caller may see is decided by the tenant of the call, never by the cursor.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Any, List, Optional, Sequence

import orjson

from modules.store_common.errors import InvalidCursorError

__all__ = ["decode_cursor", "encode_cursor"]

_TAG_BYTES = 12


def _tag(tenant_id: str, kind: str, filters: Any) -> bytes:
    scope = orjson.dumps([tenant_id, kind, filters], option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(scope, digest_size=_TAG_BYTES).digest()


def encode_cursor(tenant_id: str, kind: str, position: Sequence[Any], *, filters: Any = None) -> str:
    """Return the cursor that stands behind `position`.

    Args:
        tenant_id: The tenant of the call.
        kind: Which list, for example "messages".
        position: JSON values: the sort key of the last row given out.
        filters: JSON value: whatever else decides which rows the list has, and their order.
    """
    return (
        base64.urlsafe_b64encode(_tag(tenant_id, kind, filters) + orjson.dumps(list(position)))
        .decode()
        .rstrip("=")
    )


def decode_cursor(
    cursor: Optional[str], tenant_id: str, kind: str, length: int, *, filters: Any = None
) -> Optional[List[Any]]:
    """Return the position in `cursor`, None for None.

    Args:
        cursor: What `encode_cursor` returned.
        tenant_id: The tenant of this call.
        kind: The list of this call.
        length: How many values the position of such a list has.
        filters: The filters of this call.

    Raises:
        InvalidCursorError: it is damaged, or was made for another tenant, list or filter.
    """
    if cursor is None:
        return None
    if not isinstance(cursor, str):
        raise InvalidCursorError(f"a cursor is a str, not {type(cursor).__name__}")
    try:
        data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (UnicodeEncodeError, binascii.Error, ValueError):
        raise InvalidCursorError("the cursor is damaged; start again without one") from None
    if data[:_TAG_BYTES] != _tag(tenant_id, kind, filters):
        raise InvalidCursorError(
            "the cursor was not made for this list with these filters; start again without one"
        )
    try:
        position = orjson.loads(data[_TAG_BYTES:])
    except orjson.JSONDecodeError:
        raise InvalidCursorError("the cursor is damaged; start again without one") from None
    if not isinstance(position, list) or len(position) != length:
        raise InvalidCursorError("the cursor is damaged; start again without one")
    return position

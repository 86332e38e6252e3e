"""Identifiers: UUIDv7 text, so that ids made later sort later."""

from __future__ import annotations

import uuid_utils

__all__ = ["new_id"]


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562, section 5.7) in its 36-character text form."""
    return str(uuid_utils.uuid7())

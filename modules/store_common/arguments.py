"""Checks of the arguments that every store's methods take: limits, labels, optional ids and texts, metadata."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional

from modules.store_common.errors import InvalidValueError
from modules.store_common.values import JsonText, check_identifier, check_text, encode_json

__all__ = [
    "KEEP",
    "MAX_LABEL_BYTES",
    "MAX_PAGE",
    "check_label",
    "check_limit",
    "check_optional_id",
    "check_optional_integer",
    "check_optional_text",
    "encode_metadata",
]

MAX_PAGE = 10_000
# A role or a type is a word, not a text.
MAX_LABEL_BYTES = 64

_EMPTY = JsonText("{}")
# Roles and types repeat: those that passed once are not looked at again. Bounded, as callers choose them.
_known_labels: Dict[str, None] = {}


class _Keep:
    """The default of a change: leave what is there (None is a value of its own)."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Any = _Keep()


def check_limit(limit: int, where: str = "limit", most: int = MAX_PAGE) -> int:
    """Return `limit` if it is an int from 1 to `most`."""
    if type(limit) is not int or not 1 <= limit <= most:
        raise InvalidValueError(f"{where} must be an int from 1 to {most}")
    return limit


def check_optional_id(value: Optional[str], where: str) -> Optional[str]:
    """Return `value` if it is None or an identifier."""
    return None if value is None else check_identifier(value, where)


def check_optional_integer(value: Optional[int], where: str) -> Optional[int]:
    """Return `value` if it is None or an int from 0 to 2^63 - 1."""
    if value is not None and (type(value) is not int or not 0 <= value < 2**63):
        raise InvalidValueError(f"{where} must be an int from 0 to 2^63 - 1")
    return value


def check_optional_text(value: Optional[str], where: str, max_bytes: int = 4096) -> Optional[str]:
    """Return `value` if it is None or a text."""
    return None if value is None else check_text(value, where, max_bytes=max_bytes)


def check_label(value: str, where: str) -> str:
    """Return `value` if it may serve as a role or type."""
    if isinstance(value, str) and value in _known_labels:
        return value
    check_identifier(value, where, max_bytes=MAX_LABEL_BYTES)
    if len(_known_labels) < 1000:
        _known_labels[value] = None
    return value


def encode_metadata(metadata: Optional[Mapping[str, Any]], where: str = "metadata") -> JsonText:
    """Return the JSON text of `metadata`, an object; None is the empty one."""
    if not metadata:
        if metadata is None or isinstance(metadata, Mapping):
            return _EMPTY
    elif isinstance(metadata, Mapping):
        return encode_json(dict(metadata), where)
    raise InvalidValueError(f"{where} must be a mapping, not {type(metadata).__name__}")

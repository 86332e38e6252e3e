"""What the key-value store gives back, and how a caller's value becomes what is stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Dict, List, NamedTuple, Optional

from modules.store_common.errors import InvalidValueError
from modules.store_common.values import JsonText, encode_json
from modules.Tools.Base_Tools.kv_errors import ValueSerializationError

__all__ = [
    "MAX_VALUE_BYTES",
    "EncodedValue",
    "KeyValueEntry",
    "KeyValuePage",
    "NamespacePage",
    "encode_value",
]

#: The longest value, in bytes: JSON as it is written, or raw bytes. The same limit as the value contract's.
MAX_VALUE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class KeyValueEntry:
    """One live entry.

    Attributes:
        namespace: Its namespace.
        key: Its key.
        value: JSON value or bytes.
        version: 1 at first, one more at each write; starts again at 1 after a delete or after expiry.
        size_bytes: What quotas count: UTF-8 bytes of the key and of the JSON text, or raw bytes.
        created_at: When the entry came into being, aware UTC, by the database's clock.
        updated_at: When its value was last written.
        expires_at: When it expires, None for never.
    """

    namespace: str
    key: str
    value: Any
    version: int
    size_bytes: int
    created_at: datetime
    updated_at: datetime
    expires_at: Optional[datetime] = None

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as a dict; instants stay `datetime`, bytes stay bytes."""
        return asdict(self)


@dataclass(frozen=True)
class KeyValuePage:
    """A page of entries in the order of their keys (by code point).

    Attributes:
        entries: The live entries of this page.
        next_cursor: What to pass for the next page, None when this is the last one.
    """

    entries: List[KeyValueEntry]
    next_cursor: Optional[str] = None


@dataclass(frozen=True)
class NamespacePage:
    """A page of the names of namespaces that hold live entries, in the order of code points.

    Attributes:
        namespaces: The names.
        next_cursor: What to pass for the next page, None when this is the last one.
    """

    namespaces: List[str]
    next_cursor: Optional[str] = None


class EncodedValue(NamedTuple):
    """A value that passed the contract: JSON text or bytes, one of both, and its length in bytes."""

    text: Optional[JsonText]
    data: Optional[bytes]
    size_bytes: int


def encode_value(value: Any) -> EncodedValue:
    """Check `value` and return what is stored for it; bytearray and memoryview are copied.

    Raises:
        ValueSerializationError: it is neither bytes nor JSON of the value contract, or longer than `MAX_VALUE_BYTES`.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _encode_bytes(value)
    try:
        text = encode_json(value, "the value", max_bytes=MAX_VALUE_BYTES)
    except InvalidValueError as exc:
        raise ValueSerializationError(str(exc)) from exc
    return EncodedValue(text, None, len(text) if text.isascii() else len(text.encode()))


def _encode_bytes(value: Any) -> EncodedValue:
    try:
        data = bytes(value)
    except ValueError as exc:
        raise ValueSerializationError("the value is a memoryview that was released") from exc
    if len(data) > MAX_VALUE_BYTES:
        raise ValueSerializationError(
            f"the value is {len(data)} bytes long; at most {MAX_VALUE_BYTES} are stored"
        )
    return EncodedValue(None, data, len(data))

"""The value contract: what may be stored, checked before any store is touched, the same for every backend.

A JSON value is None, bool, int within 64 signed bits, finite float, str without lone surrogates, list, or dict with str
keys; at most `MAX_DEPTH` levels deep and `MAX_JSON_BYTES` long when written. It comes back equal and of the same types,
or is refused with `InvalidValueError`.

PostgreSQL cannot hold the character NUL in text. On every backend alike, text is therefore stored with NUL written as
U+E000 "0" and U+E000 (a private-use character) as U+E000 "1". The map is one-to-one and works character by character,
so prefixes and substrings stay what they were.
"""

from __future__ import annotations

import math
from typing import Any, Optional, Union

import orjson

from modules.store_common.errors import InvalidValueError

__all__ = [
    "MAX_DEPTH",
    "MAX_IDENTIFIER_BYTES",
    "MAX_JSON_BYTES",
    "MAX_TEXT_BYTES",
    "JsonText",
    "check_identifier",
    "check_json",
    "check_text",
    "decode_json",
    "decode_text",
    "encode_json",
    "encode_text",
]

MAX_DEPTH = 100
MAX_JSON_BYTES = 16 * 1024 * 1024
MAX_TEXT_BYTES = 1024 * 1024
# PostgreSQL's B-tree takes index rows up to 2,704 bytes; three identifiers and a sequence fit well below that.
MAX_IDENTIFIER_BYTES = 255

_MAX_INTEGER = 2**63 - 1
_MIN_INTEGER = -(2**63)
_ESCAPE = "\ue000"
_ESCAPE_BYTES = _ESCAPE.encode()


class JsonText(str):
    """JSON text that passed the contract and is ready to be stored (NUL already encoded)."""

    __slots__ = ()


def check_identifier(value: str, where: str, *, max_bytes: int = MAX_IDENTIFIER_BYTES) -> str:
    """Return `value` if it may serve as an id, name of a namespace or key.

    Args:
        value: Text of 1 to `max_bytes` UTF-8 bytes, without control characters (U+0000 to U+001F, U+007F), lone
            surrogates, or white space at its ends.
        where: How error messages call it.
        max_bytes: The longest allowed, in UTF-8 bytes.

    Raises:
        InvalidValueError: it is something else.
    """
    if type(value) is not str and not isinstance(value, str):
        raise InvalidValueError(f"{where} must be a str, not {type(value).__name__}")
    if not value or value[0].isspace() or value[-1].isspace():
        raise InvalidValueError(f"{where} must not be blank or have white space at its ends")
    if not value.isprintable() and any(character < " " or character == "\x7f" for character in value):
        raise InvalidValueError(f"{where} holds a control character; identifiers are printable text")
    if (len(value) if value.isascii() else len(_utf8(value, where))) > max_bytes:
        raise InvalidValueError(f"{where} is longer than {max_bytes} bytes in UTF-8")
    return value


def check_text(value: str, where: str, *, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return `value` if it is text without lone surrogates of at most `max_bytes` UTF-8 bytes.

    Raises:
        InvalidValueError: it is something else.
    """
    if not isinstance(value, str):
        raise InvalidValueError(f"{where} must be a str, not {type(value).__name__}")
    if len(_utf8(value, where)) > max_bytes:
        raise InvalidValueError(f"{where} is longer than {max_bytes} bytes in UTF-8")
    return value


def _utf8(value: str, where: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as exc:
        raise InvalidValueError(
            f"{where} holds a lone surrogate at position {exc.start}, which UTF-8 cannot say"
        ) from None


def check_json(value: Any, where: str) -> None:
    """Check `value` against the contract, without recursion.

    Raises:
        InvalidValueError: names the path of the first part that breaks it.
    """
    kind = type(value)
    if kind is not dict and kind is not list:
        _check_scalar(value, kind, where)
        return
    stack = [(value, where, 1)]
    while stack:
        item, path, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise InvalidValueError(f"{where} is nested deeper than {MAX_DEPTH} levels")
        if type(item) is dict:
            for key, child in item.items():
                if type(key) is not str:
                    raise InvalidValueError(
                        f"{path} has a key of type {type(key).__name__}; keys must be str"
                    )
                if not key.isascii():
                    _utf8(key, f"a key of {path}")
                kind = type(child)
                # the commonest children are looked at here: a path is made for what may be refused only
                if (kind is str and child.isascii()) or kind is bool or child is None:
                    continue
                if kind is int and _MIN_INTEGER <= child <= _MAX_INTEGER:
                    continue
                below = f"{path}.{key}" if len(path) < 200 else path
                if kind is dict or kind is list:
                    stack.append((child, below, depth + 1))
                else:
                    _check_scalar(child, kind, below)
        else:
            below = f"{path}[]" if len(path) < 200 else path
            for child in item:
                kind = type(child)
                if kind is dict or kind is list:
                    stack.append((child, below, depth + 1))
                elif kind is not str or not child.isascii():
                    _check_scalar(child, kind, below)


def _check_scalar(item: Any, kind: type, path: str) -> None:
    if kind is str:
        if not item.isascii():
            _utf8(item, path)
    elif item is None or kind is bool:
        return
    elif kind is int:
        if not _MIN_INTEGER <= item <= _MAX_INTEGER:
            raise InvalidValueError(f"{path} is an integer outside 64 signed bits; store it as text")
    elif kind is float:
        if not math.isfinite(item):
            raise InvalidValueError(f"{path} is not a finite number, which JSON cannot say")
    else:
        raise InvalidValueError(
            f"{path} is of type {kind.__name__}; a value is None, bool, int, float, str, list or dict, exactly"
        )


def encode_json(value: Any, where: str, *, max_bytes: int = MAX_JSON_BYTES) -> JsonText:
    """Check `value` and return the JSON text that is stored for it.

    Raises:
        InvalidValueError: `value` breaks the contract or is longer than `max_bytes`.
    """
    check_json(value, where)
    try:
        data = orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError) as exc:
        raise InvalidValueError(f"{where} cannot be written as JSON") from exc
    # looked for in the text: in bytes it takes Python five times as long
    text = data.decode()
    if "\\u0000" in text or _ESCAPE in text:
        data = orjson.dumps(_map_text(value, encode_text))
        text = data.decode()
    if len(data) > max_bytes:
        raise InvalidValueError(f"{where} is {len(data)} bytes of JSON; at most {max_bytes} are stored")
    return JsonText(text)


def decode_json(text: Union[str, bytes]) -> Any:
    """Return the value that `encode_json` wrote."""
    # orjson takes str itself only, no subclass
    value = orjson.loads(str(text) if type(text) is JsonText else text)
    if (_ESCAPE if isinstance(text, str) else _ESCAPE_BYTES) in text:  # type: ignore[operator]
        return _map_text(value, decode_text)
    return value


def _map_text(value: Any, change: Any) -> Any:
    """Return a copy of the checked JSON `value` with every text and key changed; its depth is bounded by the contract."""
    if type(value) is str:
        return change(value)
    if type(value) is list:
        return [_map_text(item, change) for item in value]
    if type(value) is dict:
        return {change(key): _map_text(item, change) for key, item in value.items()}
    return value


def encode_text(value: Optional[str]) -> Any:
    """Return the text that is stored for `value`: without NUL (see the module's docstring). None stays None."""
    if value is None or ("\x00" not in value and _ESCAPE not in value):
        return value
    return value.replace(_ESCAPE, _ESCAPE + "1").replace("\x00", _ESCAPE + "0")


def decode_text(value: Optional[str]) -> Any:
    """Return the text that `encode_text` was given."""
    if value is None or _ESCAPE not in value:
        return value
    return value.replace(_ESCAPE + "0", "\x00").replace(_ESCAPE + "1", _ESCAPE)

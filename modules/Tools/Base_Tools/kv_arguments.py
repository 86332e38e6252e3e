"""Checks of the key-value store's arguments, made before any store is touched."""

from __future__ import annotations

import math
from typing import Optional

from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier, check_text
from modules.Tools.Base_Tools.kv_errors import CounterOverflowError

__all__ = [
    "MAX_KEY_BYTES",
    "MAX_PAGE",
    "MAX_TTL_SECONDS",
    "check_counter_start",
    "check_integer",
    "check_key",
    "check_page",
    "check_prefix",
    "check_ttl",
    "check_version",
    "fits_integer",
    "upper_bound",
]

#: The longest key, in UTF-8 bytes; a namespace is an identifier of at most 255.
MAX_KEY_BYTES = 1024
#: The longest page of a list.
MAX_PAGE = 1000
#: The longest time to live: 100 years.
MAX_TTL_SECONDS = 100 * 365.25 * 86400
_MAX_INTEGER = 2**63 - 1
_MIN_INTEGER = -(2**63)
_LAST = "\U0010ffff"


def check_key(key: str) -> str:
    """Return `key` if it is an identifier of at most `MAX_KEY_BYTES` UTF-8 bytes."""
    return check_identifier(key, "the key", max_bytes=MAX_KEY_BYTES)


def check_prefix(prefix: str) -> str:
    """Return `prefix` if keys may begin with it; "" is the prefix of all."""
    check_text(prefix, "the prefix", max_bytes=MAX_KEY_BYTES)
    if any(character < " " or character == "\x7f" for character in prefix):
        raise InvalidValueError("the prefix holds a control character, which no key can")
    return prefix


def check_ttl(seconds: Optional[float], default_us: Optional[int]) -> Optional[int]:
    """Return a time to live in microseconds, None for ever.

    Args:
        seconds: None means `default_us`, 0 for ever; otherwise up to `MAX_TTL_SECONDS`.
        default_us: The store's default, None for ever.
    """
    if seconds is None:
        return default_us
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        raise InvalidValueError("a time to live is a finite number of seconds, 0 for ever")
    if not 0 <= seconds <= MAX_TTL_SECONDS:
        raise InvalidValueError("a time to live is at least 0 seconds (for ever) and at most 100 years")
    return max(1, round(seconds * 1_000_000)) if seconds else None


def fits_integer(value: int) -> bool:
    """Return whether `value` has 64 signed bits."""
    return _MIN_INTEGER <= value <= _MAX_INTEGER


def check_counter_start(amount: int, initial: int) -> None:
    """Check what a counter that does not exist yet would become.

    Raises:
        CounterOverflowError: the sum leaves 64 signed bits.
    """
    if not fits_integer(check_integer(amount, "amount") + check_integer(initial, "initial")):
        raise CounterOverflowError("initial + amount leaves 64 signed bits")


def check_integer(value: int, where: str) -> int:
    """Return `value` if it is an int (not a bool) of 64 signed bits."""
    if type(value) is not int or not fits_integer(value):
        raise InvalidValueError(f"{where} must be an int within 64 signed bits")
    return value


def check_version(version: int) -> int:
    """Return `version` if it may be expected: 0 (does not exist) or more."""
    if check_integer(version, "expected_version") < 0:
        raise InvalidValueError("expected_version is 0 (the key does not exist) or more")
    return version


def check_page(limit: int) -> int:
    """Return `limit` if a page may have so many rows."""
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise InvalidValueError(f"limit must be an int from 1 to {MAX_PAGE}")
    return limit


def upper_bound(prefix: str) -> Optional[str]:
    """Return the least text, by code point, above every text that begins with `prefix`; None when there is none."""
    head = prefix.rstrip(_LAST)
    if not head:
        return None
    following = ord(head[-1]) + 1
    # U+D800 to U+DFFF are surrogates: no text in UTF-8 holds one
    return head[:-1] + chr(0xE000 if following == 0xD800 else following)

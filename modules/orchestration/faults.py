"""What is kept of an exception that a handler raised: type, message and traceback, without what looks like a secret.

A traceback holds lines of source and messages, no values of variables. Messages of drivers and HTTP libraries do hold
URLs and headers, so what stands where secrets stand is masked before anything is stored or logged.
"""

from __future__ import annotations

import re
import traceback
from typing import List

__all__ = ["LONGEST_MESSAGE", "LONGEST_TRACEBACK", "describe", "masked", "message_of", "storable"]

LONGEST_MESSAGE = 4_000
LONGEST_TRACEBACK = 20_000
_MASK = "***"
_DEEPEST = 60

# In each, what stands in the group "secret" is replaced. Every repetition is bounded or begins at a boundary: texts may be
# long and made by others, and the search must stay linear.
_SECRETS = [
    # user:password@host in any URL
    re.compile(
        r"(?P<before>\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,200}:)(?P<secret>[^\s/@]{1,500}|\S{1,500})(?=@)",
        re.IGNORECASE,
    ),
    # password=..., "api_key": "...", token: ..., --secret ...
    re.compile(
        r"(?P<before>(?:password|passwd|pwd|secret|token|api[_-]?key|apikey|access[_-]?key|private[_-]?key|credential)s?"
        r"[\"']?\s*[=:]\s*[\"']?)(?P<secret>[^\s\"'&,;)}\]]+)",
        re.IGNORECASE,
    ),
    # Authorization: Bearer ..., Basic ...
    re.compile(r"(?P<before>\b(?:bearer|basic)\s+)(?P<secret>[A-Za-z0-9._~+/=-]{8,})", re.IGNORECASE),
    # keys that say what they are
    re.compile(r"(?P<before>\b)(?P<secret>(?:sk|pk|rk|ghp|gho|xox[abp]|AKIA|AIza)[-_A-Za-z0-9]{12,})"),
    # JSON web tokens
    re.compile(r"(?P<before>\b)(?P<secret>eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*)"),
]


def masked(text: str) -> str:
    """Return `text` with what looks like a secret replaced by ***."""
    for pattern in _SECRETS:
        text = pattern.sub(lambda found: found.group("before") + _MASK, text)
    return text


def describe(error: BaseException) -> str:
    """Return the traceback of `error` as text: the end of it where it is long, the causes included, secrets masked."""
    lines: List[str] = traceback.format_exception(type(error), error, error.__traceback__, limit=-_DEEPEST)
    text = masked("".join(lines)[-4 * LONGEST_TRACEBACK :])
    if len(text) > LONGEST_TRACEBACK:
        text = "...\n" + text[-LONGEST_TRACEBACK:]
    return storable(text)


def message_of(error: BaseException) -> str:
    """Return the message of `error`, cut to what is kept, secrets masked."""
    try:
        text = str(error)
    except Exception as exc:  # noqa: BLE001 - a broken __str__ must not lose the run
        text = f"(its message cannot be read: {type(exc).__name__})"
    return storable(masked(text[: 2 * LONGEST_MESSAGE])[:LONGEST_MESSAGE])


def storable(text: str) -> str:
    """Return `text` with lone surrogates replaced: no store takes them."""
    return text.encode("utf-8", "replace").decode("utf-8")

"""How long a call may take: the configured default, or what a surrounding `with deadline(seconds):` says.

Durations come from the monotonic clock. A deadline inside another one can only shorten it.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Iterator, Optional

from modules.store_common.errors import InvalidValueError

__all__ = ["deadline", "deadline_after"]

_current: ContextVar[Optional[float]] = ContextVar("atlas_storage_deadline", default=None)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Let every storage call inside the block end within `seconds` of now, by `DeadlineExceededError` if need be.

    Args:
        seconds: Greater than 0.
    """
    if not math.isfinite(seconds) or seconds <= 0:
        raise InvalidValueError("a deadline is a finite number of seconds greater than 0")
    token = _current.set(deadline_after(seconds))
    try:
        yield
    finally:
        _current.reset(token)


def deadline_after(default_seconds: float) -> float:
    """Return the monotonic time (seconds) at which a call starting now has to end."""
    own = time.monotonic() + default_seconds
    outer = _current.get()
    return own if outer is None or own < outer else outer

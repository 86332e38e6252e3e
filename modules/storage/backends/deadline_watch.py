"""The deadlines of all calls that wait on one event loop, watched by one timer.

A timer for each call costs 3 us (a heap entry made and cancelled), and nearly every call ends long before its deadline.
Here a call costs a place in a set; the one timer is set again only when a call comes with an earlier deadline than it
stands for.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Optional, Set

from typing_extensions import Protocol

__all__ = ["DeadlineWatch", "Watched"]


class Watched(Protocol):
    """Something that waits."""

    #: Monotonic time in seconds at which `expire` is to be called.
    deadline: float

    def expire(self) -> Optional[float]:
        """End the wait. Returns the time at which to be called again; None: never."""
        ...


class DeadlineWatch:
    """Watches what waits on `loop`; used on that loop only."""

    __slots__ = ("_at", "_loop", "_timer", "_waiting", "discard")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: Set[Watched] = set()
        self._timer: Optional[asyncio.TimerHandle] = None
        self._at = math.inf
        #: Stop watching; harmless when it is not watched.
        self.discard = self._waiting.discard

    def watch(self, waiting: Watched) -> None:
        """Call `waiting.expire()` at its deadline, unless it is discarded before."""
        self._waiting.add(waiting)
        if waiting.deadline < self._at:
            self._set_timer(waiting.deadline)

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = self._loop.call_later(max(0.0, at - time.monotonic()), self._look)

    def _look(self) -> None:
        """Expire what is due, and set the timer for what is left."""
        self._timer = None
        self._at = math.inf
        now = time.monotonic()
        earliest = math.inf
        for waiting in list(self._waiting):
            if waiting.deadline <= now:
                again = waiting.expire()
                if again is None:
                    self._waiting.discard(waiting)
                    continue
                waiting.deadline = again
            earliest = min(earliest, waiting.deadline)
        if earliest < self._at:
            self._set_timer(earliest)

"""A call on its way from a task to a database thread and back.

The task makes a `Call`, puts it into a thread's queue and waits for the call's future. The thread claims it, runs it and
hands its outcome back with all others of the same batch in one wake-up of the loop. The deadline is watched on the
loop: a call that has not started is dropped; one that has started is interrupted, and the caller gets
`DeadlineExceededError` either way. A cancelled caller's call is dropped if it has not started; a started one is
finished and its result discarded.
"""

from __future__ import annotations

import asyncio
import enum
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from modules.store_common.errors import DeadlineExceededError

__all__ = ["Call", "CallState", "Outcome", "deliver"]


class CallState(enum.Enum):
    """Where a call is. Changes from QUEUED race by design; each side only ever leaves QUEUED once."""

    QUEUED = "queued"
    STARTED = "started"
    DROPPED = "dropped"


class Call:
    """One piece of work for a database thread.

    Attributes:
        work: What the thread runs; its meaning is the thread's (an operation, or a function of the connection).
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """

    __slots__ = ("_timer", "args", "future", "kwargs", "loop", "state", "work")

    def __init__(self, work: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.state = CallState.QUEUED
        self._timer: Optional[asyncio.TimerHandle] = None

    def claim(self) -> bool:
        """Start the call, on the database thread. False: its caller has gone, leave it."""
        if self.state is not CallState.QUEUED:
            return False
        self.state = CallState.STARTED
        return True

    async def result(self, deadline: float, interrupt: Callable[[Call], None]) -> Any:
        """Wait for the outcome, on the loop.

        Args:
            deadline: Monotonic time in seconds.
            interrupt: Called with this call when it has to stop.
        """
        self._timer = self.loop.call_later(max(0.0, deadline - self.loop.time()), self._expire, interrupt)
        try:
            return await self.future
        except asyncio.CancelledError:
            if self.state is CallState.QUEUED:
                self.state = CallState.DROPPED
            raise
        finally:
            self._timer.cancel()

    def _expire(self, interrupt: Callable[[Call], None]) -> None:
        if self.future.done():
            return
        if self.state is CallState.QUEUED:
            self.state = CallState.DROPPED
            what = "it was still waiting for its turn and was not started"
        else:
            interrupt(self)
            what = "it had started; whether it was applied is not known"
        self.future.set_exception(
            DeadlineExceededError(f"the SQLite call did not end within its deadline: {what}")
        )


#: A call, its result and its exception (None: it succeeded).
Outcome = Tuple[Call, Any, Optional[BaseException]]


def deliver(outcomes: Sequence[Outcome]) -> None:
    """Hand outcomes to their callers, from a database thread, with one wake-up for each loop."""
    by_loop: Dict[asyncio.AbstractEventLoop, List[Outcome]] = {}
    for outcome in outcomes:
        by_loop.setdefault(outcome[0].loop, []).append(outcome)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, theirs)
        except RuntimeError:
            # the loop was closed while its call was under way: nobody is left to tell
            continue


def _settle(outcomes: Sequence[Outcome]) -> None:
    for call, result, error in outcomes:
        future = call.future
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

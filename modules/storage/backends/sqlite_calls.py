"""A call on its way from a task to a database thread and back.

The task makes a `Call`, puts it into a thread's queue and waits for the call's future. The thread claims it, runs it and
hands its outcome back with all others of the same batch in one wake-up of the loop. The deadline is watched on the
loop: a call that has not started is dropped; one that has started is interrupted, and the caller gets
`DeadlineExceededError` either way. A cancelled caller's call is dropped if it has not started; a started one is
finished and its result discarded.

A `Lane` is what one event loop keeps of a database: the watch over the deadlines of its calls, and whether they come in
crowds. After a batch of several, their callers come back in one turn of the loop and call again; a thread that sleeps
then is woken at the end of that turn, so that it finds all of them and not the first alone. (Running a batch while the
loop is still making calls is slow on both sides: each statement gives the GIL away and has to get it back.)
"""

from __future__ import annotations

import asyncio
import enum
import time
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from typing_extensions import Protocol

from modules.storage.backends.deadline_watch import DeadlineWatch
from modules.store_common.errors import DeadlineExceededError

__all__ = ["Call", "CallState", "Lane", "Outcome", "Runner", "Tally", "deliver"]

# How often a call that passed its deadline is stopped again, in seconds: an interrupt that comes between two statements
# stops neither of them.
_STOP_AGAIN_S = 0.05


class CallState(enum.Enum):
    """Where a call is. Changes from QUEUED race by design; each side only ever leaves QUEUED once."""

    QUEUED = "queued"
    STARTED = "started"
    DROPPED = "dropped"


class Runner(Protocol):
    """A database thread, as its callers' loops see it."""

    def interrupt(self, call: Call) -> bool:
        """Stop `call` if it is under way; False: it is not."""
        ...

    def wake(self) -> None:
        """Wake the thread if it sleeps."""
        ...


class Lane:
    """One event loop's calls to one database. Used on that loop, but for `loop`."""

    __slots__ = ("_crowded", "_waking", "loop", "watch")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.watch = DeadlineWatch(loop)
        self._crowded = False
        self._waking: Set[Runner] = set()

    def wake(self, thread: Runner) -> None:
        """Wake a sleeping thread: now, or at the end of this turn if others are about to call as well."""
        if not self._crowded:
            thread.wake()
        elif thread not in self._waking:
            self._waking.add(thread)
            self.loop.call_soon(self._wake_now, thread)

    def _wake_now(self, thread: Runner) -> None:
        self._waking.discard(thread)
        thread.wake()

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Give outcomes to those who wait for them."""
        self._crowded = len(outcomes) > 1
        for call, result, error in outcomes:
            future = call.future
            if future.done():
                self.watch.discard(call)
            elif error is None:
                future.set_result(result)
            else:
                future.set_exception(error)


class Call:
    """One piece of work for a database thread.

    Attributes:
        work: What the thread runs; its meaning is the thread's (an operation, or a function of the connection).
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        deadline: Monotonic time in seconds.
        made_at: Monotonic time in seconds; it is queued at once.
    """

    __slots__ = ("_thread", "args", "deadline", "future", "kwargs", "lane", "made_at", "state", "work")

    def __init__(self, lane: Lane, work: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        self.work = work
        self.args = args
        self.kwargs = kwargs
        self.lane = lane
        self.future: asyncio.Future[Any] = lane.loop.create_future()
        self.state = CallState.QUEUED
        self.made_at = time.monotonic()

    def claim(self) -> bool:
        """Start the call, on the database thread. False: its caller has gone, leave it."""
        if self.state is not CallState.QUEUED:
            return False
        self.state = CallState.STARTED
        return True

    async def result(self, deadline: float, thread: Optional[Runner]) -> Any:
        """Wait for the outcome, on the loop.

        Args:
            deadline: Monotonic time in seconds.
            thread: Who is told when the call has to stop; None: nobody, it ends by itself.
        """
        self.deadline = deadline
        self._thread = thread
        watch = self.lane.watch
        watch.watch(self)
        try:
            result = await self.future
        except asyncio.CancelledError:
            if self.state is CallState.QUEUED:
                self.state = CallState.DROPPED
            elif self.future.cancelled():
                # the thread works on for a caller who has gone, until the deadline at most
                raise
            watch.discard(self)
            raise
        except Exception:
            if self.deadline == deadline:
                watch.discard(self)
            # else it has passed, and the call is being stopped
            raise
        watch.discard(self)
        return result

    def expire(self) -> Optional[float]:
        """Tell the caller that the deadline has passed, and stop the call; again and again while it is under way."""
        if not self.future.done():
            self.future.set_exception(
                DeadlineExceededError(f"the SQLite call did not end within its deadline: {self._give_up()}")
            )
        if self.state is CallState.STARTED and self._thread is not None and self._thread.interrupt(self):
            return time.monotonic() + _STOP_AGAIN_S
        return None

    def _give_up(self) -> str:
        if self.state is CallState.QUEUED:
            self.state = CallState.DROPPED
            return "it was still waiting for its turn and was not started"
        return "it had started; whether it was applied is not known"


class Tally:
    """What a database thread has served so far; written by that thread alone.

    Attributes:
        batches: How often it took calls from its queue.
        calls: Calls in them.
        turns: Units of work and maintenance, which have the thread for themselves.
        waited_s: Seconds for which calls and turns were in the queue, summed up.
    """

    __slots__ = ("batches", "calls", "turns", "waited_s")

    def __init__(self) -> None:
        self.batches = self.calls = self.turns = 0
        self.waited_s = 0.0

    def batch(self, calls: Sequence[Call]) -> None:
        """Count calls that are about to run."""
        self.batches += 1
        self.calls += len(calls)
        self.waited_s += time.monotonic() * len(calls) - sum([call.made_at for call in calls])

    def turn(self, call: Call) -> None:
        """Count a turn that begins, by the call that asked for it."""
        self.turns += 1
        self.waited_s += time.monotonic() - call.made_at

    def numbers(self, name: str) -> Dict[str, int]:
        """Return it for health and metrics, each number under `name` and its own."""
        return {
            f"{name}_batches": self.batches,
            f"{name}_calls": self.calls,
            f"{name}_turns": self.turns,
            f"{name}_wait_ms": int(self.waited_s * 1000),
        }


#: A call, its result and its exception (None: it succeeded).
Outcome = Tuple[Call, Any, Optional[BaseException]]


def deliver(outcomes: Sequence[Outcome]) -> None:
    """Hand outcomes to their callers, from a database thread, with one wake-up for each loop."""
    by_lane: Dict[Lane, List[Outcome]] = {}
    for outcome in outcomes:
        by_lane.setdefault(outcome[0].lane, []).append(outcome)
    for lane, theirs in by_lane.items():
        try:
            lane.loop.call_soon_threadsafe(lane.settle, theirs)
        except RuntimeError:
            # the loop was closed while its call was under way: nobody is left to tell
            continue

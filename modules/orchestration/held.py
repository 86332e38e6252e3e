"""The jobs that a worker holds: claimed, waiting or running, or ended and not settled yet. Also what it has counted."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Deque, Dict, Iterator, List, Optional, Tuple

if TYPE_CHECKING:
    from modules.job_store.records import ClaimedJob, Outcome
    from modules.orchestration.context import JobContext
    from modules.orchestration.threads import ThreadCall

__all__ = ["Held", "Holdings", "WorkerStatistics"]

_Key = Tuple[str, str, int]


class Held:
    """One claimed job.

    Attributes:
        claim: What proves that it is ours.
        key: What tells the claim from all others.
        extended_at: Monotonic time at which its lease was asked for last, and given.
        context: What its handler got; None while it waits.
        task: What runs it; None while it waits.
        call: Its thread's call, of a plain handler.
        timer: Ends it at its timeout, or gives it up after that.
        outcome: How it ended; None until then.
    """

    __slots__ = ("call", "claim", "context", "extended_at", "key", "outcome", "task", "timer")

    def __init__(self, claim: ClaimedJob, extended_at: float) -> None:
        self.claim = claim
        self.key: _Key = (claim.tenant_id, claim.id, claim.fence)
        self.extended_at = extended_at
        self.context: Optional[JobContext] = None
        self.task: Optional[asyncio.Task[None]] = None
        self.call: Optional[ThreadCall] = None
        self.timer: Optional[asyncio.TimerHandle] = None
        self.outcome: Optional[Outcome] = None


class Holdings:
    """All of them, by what they are doing."""

    def __init__(self) -> None:
        self._all: Dict[_Key, Held] = {}
        #: Claimed ahead, oldest first.
        self.waiting: Deque[Held] = deque()
        #: In the hands of their handlers.
        self.running: Dict[_Key, Held] = {}

    def add(self, claims: List[ClaimedJob], extended_at: float) -> None:
        """Take over what was claimed."""
        for claim in claims:
            held = Held(claim, extended_at)
            self._all[held.key] = held
            self.waiting.append(held)

    def next_waiting(self) -> Optional[Held]:
        """Take the oldest that waits out of the waiting ones; it runs from now on."""
        while self.waiting:
            held = self.waiting.popleft()
            if held.key in self._all:
                self.running[held.key] = held
                return held
        return None

    def find(self, claim: ClaimedJob) -> Optional[Held]:
        """Return what is held under `claim`."""
        return self._all.get((claim.tenant_id, claim.id, claim.fence))

    def ended(self, held: Held) -> None:
        """Its handler has it no longer; it stays held until it is settled."""
        self.running.pop(held.key, None)

    def drop(self, held: Held) -> None:
        """Hold it no longer."""
        self._all.pop(held.key, None)
        self.running.pop(held.key, None)

    def take_waiting(self) -> List[Held]:
        """Empty the waiting ones and return them; they stay held."""
        taken = [held for held in self.waiting if held.key in self._all]
        self.waiting.clear()
        return taken

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._all.values()))

    def __len__(self) -> int:
        return len(self._all)

    @property
    def unstarted(self) -> int:
        """How many wait."""
        return len(self.waiting)


@dataclass
class WorkerStatistics:
    """What a worker has counted since it was started.

    Attributes:
        claimed: Jobs claimed.
        succeeded: Ended well.
        failed: Failed for good.
        retried: Failed, and to be tried again.
        cancelled: Stopped because somebody cancelled them.
        released: Given back unfinished.
        lost: Ended after others had been given the job; what they did counts no more.
        timed_out: Stopped by their timeout; counted under failed or retried as well.
        abandoned: Runs that ignored being stopped and were left behind.
        running: Under way now.
        waiting: Claimed ahead, not started.
        unsettled: Ended, not stored yet.
        outages: Times that the database could not be reached.
        by_handler: Ended well, by handler.
    """

    claimed: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    released: int = 0
    lost: int = 0
    timed_out: int = 0
    abandoned: int = 0
    running: int = 0
    waiting: int = 0
    unsettled: int = 0
    outages: int = 0
    by_handler: Dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        """Runs whose end was stored."""
        return self.succeeded + self.failed + self.retried + self.cancelled

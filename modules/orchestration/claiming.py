"""Fetches jobs: as many as there are free slots, and ahead as many as will be run within a moment.

How far ahead follows what the worker really does: a quarter of a second's work at its present speed, so a worker with long
jobs holds none that another could have started, and one with tiny jobs never waits for the database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Callable, Optional, Sequence

from modules.orchestration.held import Holdings, WorkerStatistics
from modules.orchestration.outages import Outages
from modules.store_common.deadlines import within
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.job_store.queue import JobQueue
    from modules.orchestration.running import Runner
    from modules.orchestration.settling import Settler

__all__ = ["Claimer", "Pace"]

logger = logging.getLogger(__name__)

_AHEAD_S = 0.25
_MOST = 1000
_SHORTEST_WAIT_S = 0.001
_BLOCKED_S = 0.05


class Pace:
    """How many jobs end per second, lately."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._ended = 0
        self.per_s = 0.0

    def count(self) -> None:
        """One has ended."""
        self._ended += 1

    def look(self) -> float:
        """Return jobs per second, of about the last tenth of a second in which something happened."""
        now = time.monotonic()
        passed = now - self._since
        if passed >= 0.1:
            fresh = self._ended / passed
            # up at once, down by halves: a pause between two bursts is not the end of the work
            self.per_s = max(fresh, self.per_s / 2)
            self._since, self._ended = now, 0
        elif self._ended > self.per_s * passed:
            self.per_s = max(self.per_s, min(self._ended / max(passed, 0.01), 1e6))
        return self.per_s


class Claimer:
    """Claims jobs until it is stopped.

    Args:
        queue: The job store's face for workers.
        runner: What starts them.
        settler: What must not fall behind.
        holdings: Where claimed jobs go.
        statistics: Where to count.
        worker: The worker's name.
        queues: Where from.
        prefetch: The most that is claimed ahead.
        lease_s: Of a claim, in seconds.
        poll_s: Gives how many seconds to wait at most before looking, should a wake-up be missed.
        idle: Called when nothing was found and nothing is held.
    """

    def __init__(
        self,
        queue: JobQueue,
        runner: Runner,
        settler: Settler,
        holdings: Holdings,
        statistics: WorkerStatistics,
        *,
        worker: str,
        queues: Sequence[str],
        prefetch: int,
        lease_s: float,
        poll_s: Callable[[], float],
        idle: Callable[[], None],
    ) -> None:
        self._queue = queue
        self._runner = runner
        self._settler = settler
        self._holdings = holdings
        self._statistics = statistics
        self._worker = worker
        self._queues = tuple(queues)
        self._prefetch = prefetch
        self._lease_s = lease_s
        self._poll_s = poll_s
        self._idle = idle
        self._wake: Optional[asyncio.Event] = None
        self._room: Optional[asyncio.Event] = None
        self._stopping = False
        self._blocked_s = _BLOCKED_S
        self._pace = Pace()
        self._outages = Outages("claim", statistics)

    def wake(self) -> None:
        """Look now: something may be due."""
        if self._wake is not None:
            self._wake.set()

    def freed(self) -> None:
        """A run has ended, so there may be room."""
        self._pace.count()
        if self._room is not None:
            self._room.set()

    def stop(self) -> None:
        """Claim no more. A claim under way is waited for: what it got is released, not lost for the time of a lease."""
        self._stopping = True
        self.wake()
        if self._room is not None:
            self._room.set()

    async def run(self) -> None:
        """Claim until stopped."""
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        while not self._stopping:
            wanted = self._wanted()
            if wanted <= 0:
                self._room.clear()
                if self._wanted() <= 0 and not self._stopping:
                    await self._room.wait()
                continue
            self._wake.clear()
            try:
                found = await self._claim(wanted)
            except StorageError as exc:
                if not exc.retryable:
                    raise
                await self._outage(exc)
                continue
            self._outages.over()
            if found < wanted and not self._stopping:
                await self._pause(found)

    def _wanted(self) -> int:
        """Return how many to claim now: 0 while enough is here."""
        ahead = 0
        if self._prefetch:
            ahead = min(self._prefetch, int(self._pace.look() * _AHEAD_S))
        waiting = self._holdings.unstarted
        room = self._runner.free + ahead - waiting
        if waiting > ahead // 2 and self._runner.free <= waiting:
            # half of what is ahead is there still: ask once for many, not often for few
            return 0
        if len(self._settler) > 2 * _MOST:
            # the database does not keep up with what is done already
            return 0
        return min(_MOST, room)

    async def _claim(self, wanted: int) -> int:
        asked_at = time.monotonic()
        claims = await self._queue.claim(self._worker, self._queues, limit=wanted, lease_s=self._lease_s)
        if claims:
            self._statistics.claimed += len(claims)
            self._holdings.add(claims, asked_at)
            if not self._stopping:
                self._runner.fill()
        return len(claims)

    async def _pause(self, found: int) -> None:
        """Wait for a wake-up, for the next due time, or for a look (which only reads) to find something."""
        wake = self._wake
        assert wake is not None  # noqa: S101 - made by run()
        if not found and not len(self._holdings) and not wake.is_set():
            # woken while the claim was under way: it may have looked before a job came back
            self._idle()
        while not wake.is_set():
            try:
                due_s = await self._queue.next_due_in(self._queues)
            except StorageError as exc:
                if not exc.retryable:
                    raise
                await self._outage(exc)
                return
            seconds = self._poll_s()
            if due_s is None:
                self._blocked_s = _BLOCKED_S
            elif due_s > 0:
                self._blocked_s = _BLOCKED_S
                seconds = min(seconds, max(due_s, _SHORTEST_WAIT_S))
            elif found:
                return
            else:
                # due and yet not claimed: a limit holds it back, or another worker is about to take it
                self._blocked_s = seconds = min(2 * self._blocked_s, seconds)
            try:
                await within(wake.wait(), seconds)
            except asyncio.TimeoutError:
                if due_s is not None and due_s <= seconds:
                    return

    async def _outage(self, error: StorageError) -> None:
        """Wait, but not when stopping."""
        if not self._stopping:
            await self._outages.wait(error)

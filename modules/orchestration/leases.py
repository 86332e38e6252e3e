"""Keeps the leases of everything that a worker holds, by one call for all; learns from it what to stop.

A worker that could not reach the database for as long as a lease must take its jobs for lost: others may have them by
now. It stops them by itself then, without having been told. Time is the monotonic clock's, from before the call that
extended the lease, so a worker that was frozen (SIGSTOP, a suspended machine) notices as soon as it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Callable, List, Optional

from modules.job_store.errors import JobLeaseLostError
from modules.job_store.records import Heartbeat
from modules.orchestration.context import CANCELLED, LEASE_LOST
from modules.orchestration.held import Held, Holdings, WorkerStatistics
from modules.store_common.deadlines import deadline, within
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.job_store.queue import JobQueue

__all__ = ["LeaseKeeper"]

logger = logging.getLogger(__name__)

_MOST = 1000
_RETRY_S = 0.5


class LeaseKeeper:
    """Sends heartbeats.

    Args:
        queue: The job store's face for workers.
        holdings: What is held.
        statistics: Where to count.
        lease_s: How long the lease of a claim is, in seconds.
        heartbeat_s: Between two heartbeats, in seconds.
        stop: Called with a job that is to stop, and why.
    """

    def __init__(
        self,
        queue: JobQueue,
        holdings: Holdings,
        statistics: WorkerStatistics,
        *,
        lease_s: float,
        heartbeat_s: float,
        stop: Callable[[Held, str], None],
    ) -> None:
        self._queue = queue
        self._holdings = holdings
        self._statistics = statistics
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._stop = stop
        self._kick: Optional[asyncio.Event] = None
        self._away = False

    def kick(self) -> None:
        """Send a heartbeat now: something may have been cancelled."""
        if self._kick is not None:
            self._kick.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        self._kick = asyncio.Event()
        pause = self._heartbeat_s
        while True:
            await self._pause(self._kick, pause)
            self._kick.clear()
            pause = self._heartbeat_s
            try:
                await self.beat()
            except StorageError as exc:
                if not exc.retryable:
                    raise
                if not self._away:
                    self._away = True
                    logger.warning("orchestration.heartbeat_failed", extra={"error_type": type(exc).__name__})
                pause = min(_RETRY_S, self._heartbeat_s)
            else:
                self._away = False
            self.expire()

    async def beat(self) -> None:
        """Extend every lease, hand over progress and lines, and stop what is to stop."""
        held = list(self._holdings)
        for start in range(0, len(held), _MOST):
            await self._beat_part(held[start : start + _MOST])

    def expire(self) -> None:
        """Stop what could not be extended for as long as a lease."""
        oldest = time.monotonic() - self._lease_s
        for held in self._holdings:
            if held.extended_at < oldest and held.outcome is None:
                self._lost(held)

    async def _beat_part(self, part: List[Held]) -> None:
        asked_at = time.monotonic()
        with deadline(max(self._heartbeat_s, 1.0)):
            try:
                beat = await self._queue.heartbeat([held.claim for held in part], lease_s=self._lease_s)
            except JobLeaseLostError:
                # of a single claim it is told this way
                beat = Heartbeat((), (), tuple(held.claim for held in part))
        for claim in beat.kept:
            held = self._holdings.find(claim)
            if held is not None:
                held.extended_at = asked_at
        for claim in beat.cancelled:
            held = self._holdings.find(claim)
            if held is not None and held.outcome is None:
                self._stop(held, CANCELLED)
        for claim in beat.lost:
            held = self._holdings.find(claim)
            if held is not None and held.outcome is None:
                self._lost(held)

    def _lost(self, held: Held) -> None:
        logger.warning(
            "orchestration.lease_lost",
            extra={
                "entity_id": held.claim.id, "tenant_id": held.claim.tenant_id, "operation": held.claim.handler,
                "attempt": held.claim.attempt,
            },
        )  # fmt: skip
        self._stop(held, LEASE_LOST)

    @staticmethod
    async def _pause(kick: asyncio.Event, seconds: float) -> None:
        try:
            await within(kick.wait(), seconds)
        except asyncio.TimeoutError:
            return

"""Carries the ends of runs to the database: many at once when there are many, a lone one at once.

While one batch is under way the next gathers, so its size follows the load by itself and nothing waits for a timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Callable, Deque, List, Optional

from modules.orchestration.faults import message_of
from modules.orchestration.held import Held, Holdings, WorkerStatistics
from modules.orchestration.outages import Outages
from modules.orchestration.upkeep import tell
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.job_store.queue import JobQueue

__all__ = ["Settler"]

logger = logging.getLogger(__name__)

_MOST = 500
_COUNTED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "cancelled"}


class Settler:
    """Settles what has ended.

    Args:
        queue: The job store's face for workers.
        holdings: What is held; a settled job is dropped from it.
        statistics: Where to count.
        settled: Called with each job that was settled and its new status; None: the claim was lost.
    """

    def __init__(
        self,
        queue: JobQueue,
        holdings: Holdings,
        statistics: WorkerStatistics,
        settled: Callable[[Held, Optional[str]], None],
    ) -> None:
        self._queue = queue
        self._holdings = holdings
        self._statistics = statistics
        self._settled = settled
        self._ended: Deque[Held] = deque()
        self._under_way: List[Held] = []
        self._arrived: Optional[asyncio.Event] = None
        self._closed = False
        self._outages = Outages("settle", statistics)

    def __len__(self) -> int:
        return len(self._ended) + len(self._under_way)

    def add(self, held: Held) -> None:
        """Take over a job that has an outcome."""
        self._ended.append(held)
        if self._arrived is not None:
            self._arrived.set()

    async def run(self) -> None:
        """Settle until `close()` was called and nothing is left."""
        self._arrived = asyncio.Event()
        while True:
            if len(self):
                await self._settle_next()
            elif self._closed:
                return
            else:
                self._arrived.clear()
                await self._arrived.wait()

    def close(self) -> None:
        """Let `run()` end once everything is settled."""
        self._closed = True
        if self._arrived is not None:
            self._arrived.set()

    async def _settle_next(self) -> None:
        # what a failed call had in hand is sent again: a second settlement of the same claim changes nothing
        if not self._under_way:
            self._under_way = [self._ended.popleft() for _ in range(min(_MOST, len(self._ended)))]
        batch = [held for held in self._under_way if self._holdings.find(held.claim) is held]
        try:
            statuses = await self._send(batch)
        except StorageError as exc:
            if exc.retryable:
                await self._outages.wait(exc)
                return
            if len(batch) == 1:
                self._refused(batch[0], exc)
                return
            # one of them is refused for what it holds: find it by settling them one by one
            self._under_way = batch[:1]
            self._ended.extendleft(reversed(batch[1:]))
            return
        self._outages.over()
        self._under_way = []
        for held, status in zip(batch, statuses):
            self._count(held, status)
            self._holdings.drop(held)
            self._settled(held, status)

    async def _send(self, batch: List[Held]) -> List[Optional[str]]:
        for held in batch:
            if held.context is not None and held.context.has_news:
                await tell(self._queue, held)
        outcomes = [held.outcome for held in batch if held.outcome is not None]
        return await self._queue.settle_to(outcomes) if outcomes else []

    def _refused(self, held: Held, error: StorageError) -> None:
        """The store does not take this outcome; say so in its place, and if it does not take that, let it go."""
        self._under_way = []
        outcome = held.outcome
        logger.error(
            "orchestration.outcome_refused",
            extra={
                "entity_id": held.claim.id, "tenant_id": held.claim.tenant_id, "operation": held.claim.handler,
                "attempt": held.claim.attempt, "error_type": type(error).__name__,
            },
        )  # fmt: skip
        if outcome is None or outcome.error_type == type(error).__name__:
            # its lease will run out, and others will try
            self._holdings.drop(held)
            self._settled(held, None)
            return
        held.outcome = replace(
            outcome, kind="failed", result=None, error_type=type(error).__name__, error_message=message_of(error),
            error_details=None, retry=None, delay_s=None,
        )  # fmt: skip
        self._ended.append(held)

    def _count(self, held: Held, status: Optional[str]) -> None:
        statistics, outcome = self._statistics, held.outcome
        if status is None:
            statistics.lost += 1
        elif status == "scheduled":
            if outcome is not None and outcome.kind == "released":
                statistics.released += 1
            else:
                statistics.retried += 1
        elif status in _COUNTED:
            setattr(statistics, _COUNTED[status], getattr(statistics, _COUNTED[status]) + 1)
            if status == "succeeded":
                name = held.claim.handler
                statistics.by_handler[name] = statistics.by_handler.get(name, 0) + 1

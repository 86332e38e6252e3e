"""What a worker tells besides the ends of runs: that it is there, how far its runs are, and the lines that they wrote."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Dict, Optional, Set, Tuple

from modules.job_store.errors import JobLeaseLostError
from modules.orchestration.held import Held, Holdings
from modules.orchestration.outages import Outages
from modules.store_common.deadlines import deadline, within
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.job_store.queue import JobQueue

__all__ = ["Upkeep", "tell"]

logger = logging.getLogger(__name__)

# News of a run travels at most this often, in seconds.
_NEWS_EVERY_S = 0.5
_CALL_S = 10.0


async def tell(queue: JobQueue, held: Held) -> None:
    """Store the progress and the lines of a run that were not stored yet. Of a run that was lost nobody wants them."""
    context = held.context
    if context is None:
        return
    try:
        lines = context.untold_lines()
        if lines:
            await queue.log(held.claim, lines)
            context.told_lines(len(lines))
        changed, progress = context.take_progress()
        if changed:
            await queue.progress(held.claim, progress)
    except JobLeaseLostError:
        return


class Upkeep:
    """Of one worker.

    Args:
        queue: The job store's face for workers.
        holdings: What is held.
        name: The worker's name.
        queues: What it serves.
        info: More about it, for people.
        every_s: How often it tells that it is there, in seconds.
    """

    def __init__(
        self,
        queue: JobQueue,
        holdings: Holdings,
        *,
        name: str,
        queues: Tuple[str, ...],
        info: Dict[str, Any],
        every_s: float,
    ) -> None:
        self._queue = queue
        self._holdings = holdings
        self._name = name
        self._queues = queues
        self._info = info
        self._every_s = every_s
        self._news: Set[Held] = set()
        self._arrived: Optional[asyncio.Event] = None

    def news(self, held: Held) -> None:
        """A run has something to tell. On the event loop."""
        self._news.add(held)
        if self._arrived is not None:
            self._arrived.set()

    async def run(self) -> None:
        """Tell until cancelled."""
        arrived = self._arrived = asyncio.Event()
        outages = Outages("register")
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                if loop.time() >= due:
                    with deadline(_CALL_S):
                        await self._queue.register_worker(
                            self._name, self._queues, running=len(self._holdings.running), info=self._info
                        )
                    due = loop.time() + self._every_s
                await self._tell_news()
            except StorageError as exc:
                if not exc.retryable:
                    raise
                await outages.wait(exc)
                continue
            outages.over()
            try:
                await within(arrived.wait(), max(0.0, due - loop.time()))
                arrived.clear()
                await asyncio.sleep(_NEWS_EVERY_S)
            except asyncio.TimeoutError:
                continue

    async def leave(self, seconds: float) -> None:
        """Tell that the worker is gone, within a moment; if that fails, it is forgotten by itself."""
        try:
            with deadline(seconds):
                await self._queue.forget_worker(self._name)
        except StorageError as exc:
            logger.info("orchestration.not_unregistered", extra={"error_type": type(exc).__name__})

    async def _tell_news(self) -> None:
        while self._news:
            held = self._news.pop()
            # what has ended tells the rest together with its end
            if held.outcome is None and self._holdings.find(held.claim) is held:
                await tell(self._queue, held)

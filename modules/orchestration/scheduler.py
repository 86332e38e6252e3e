"""`Scheduler`: makes jobs when their schedules say so.

Any number of schedulers may run, in any number of processes; none is the leader. Each looks which schedules are due, by the
database's clock, computes which of their times run (missed ones by each schedule's own policy), and asks the store to make
those jobs and to move the schedule on, in one transaction that succeeds only if nobody has moved it meanwhile. So every
nominal time is made once, whoever is first, and a scheduler that dies in between has done nothing or all of it.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional, Type

from modules.job_store.limits import check_seconds
from modules.job_store.schedules import due_times
from modules.orchestration.crew import to_the_end
from modules.orchestration.errors import OrchestrationError
from modules.orchestration.outages import Outages
from modules.store_common.deadlines import within
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from datetime import datetime

    from modules.job_store.queue import JobQueue
    from modules.job_store.records import Schedule
    from modules.storage import StorageManager

__all__ = ["Scheduler"]

logger = logging.getLogger(__name__)

#: Jobs that one schedule makes in one transaction; what is left of a long backlog follows in the next.
_TIMES = 100
_SCHEDULES = 100
_DEFAULT_POLL_S = 5.0
_LEAST_S = 0.005
_STOP_S = 1.0


class Scheduler:
    """Makes jobs when their schedules say so.

    Args:
        storage: An open `StorageManager`; the scheduler does not close it.
        poll_s: Looks at least this often, in seconds, for schedules that were added or changed meanwhile.
        tenant_id: Only schedules of this tenant; None: of all.
    """

    def __init__(
        self, storage: StorageManager, *, poll_s: Optional[float] = None, tenant_id: Optional[str] = None
    ) -> None:
        self._storage = storage
        self._poll_s = check_seconds(_DEFAULT_POLL_S if poll_s is None else poll_s, "poll_s", least=0.001)
        self._tenant_id = tenant_id
        #: Called with the name of a schedule and how many jobs were made.
        self.on_fired: Optional[Callable[[str, int], None]] = None
        #: Jobs made since it was started.
        self.made = 0
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._stop_asked: Optional[asyncio.Event] = None
        self._stop_early = False
        self._background: Optional[asyncio.Task[None]] = None

    async def run(self) -> None:
        """Make jobs until `stop()` is called. A database that is away is waited for.

        Raises:
            OrchestrationError: it runs already.
            StorageError: the database refuses what the scheduler needs.
        """
        if self._stop_asked is not None:
            raise OrchestrationError("this scheduler runs already")
        self._loop = asyncio.get_running_loop()
        stop_asked = self._stop_asked = asyncio.Event()
        if self._stop_early:
            self._stop_early = False
            stop_asked.set()
        work = asyncio.ensure_future(self._work(stop_asked))
        waiter = asyncio.ensure_future(stop_asked.wait())
        logger.info("orchestration.scheduler_started")
        try:
            await asyncio.wait({work, waiter}, return_when=asyncio.FIRST_COMPLETED)
            # a transaction under way is let end
            await asyncio.wait({work}, timeout=_STOP_S)
        finally:
            self._stop_asked = None
            await to_the_end(_end(work, waiter))
            logger.info("orchestration.scheduler_stopped", extra={"count": self.made})
        if not work.cancelled():
            work.result()

    def stop(self) -> None:
        """Stop, from any thread; harmless when stopped. Called before the first `run()`, that one ends at once."""
        loop, asked = self._loop, self._stop_asked
        if loop is None:
            self._stop_early = True
        if loop is not None and asked is not None and not loop.is_closed():
            loop.call_soon_threadsafe(asked.set)

    async def __aenter__(self) -> Scheduler:
        self._background = asyncio.ensure_future(self.run())
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        task, self._background = self._background, None
        if task is not None:
            if self._stop_asked is None and not task.done():
                await asyncio.sleep(0)  # let it begin, so that it can be told to stop
            self.stop()
            await task

    async def fire_due(self) -> int:
        """Make the jobs that are due now, once, and return how many this scheduler made."""
        queue = self._storage.job_queue
        if self._tenant_id is not None:
            queue = self._storage.jobs.queue(tenant_id=self._tenant_id)
        made = 0
        while True:
            due = await queue.due_schedules(limit=_SCHEDULES)
            progress = False
            for schedule in due.schedules:
                count = await self._fire(queue, schedule, due.now)
                if count is not None:
                    progress = True
                    made += count
            if not progress:
                self.made += made
                return made

    async def _fire(self, queue: JobQueue, schedule: Schedule, now: datetime) -> Optional[int]:
        """Make the jobs of one schedule; None: another scheduler was first, or it cannot be done."""
        if schedule.next_at is None:
            return None
        found = due_times(schedule.recurrence, schedule.next_at, now, limit=_TIMES)
        where = {"entity_id": schedule.id, "tenant_id": schedule.tenant_id}
        try:
            jobs = await queue.fire_schedule(schedule, found.times, found.next_at)
        except StorageError as exc:
            if exc.retryable:
                raise
            # one that cannot be fired must not keep the others from it
            logger.exception("orchestration.schedule_failed", extra=where)
            return None
        if jobs is None:
            return None
        if found.missed:
            logger.info("orchestration.runs_missed", extra=where)
        if jobs and self.on_fired is not None:
            self.on_fired(schedule.name, len(jobs))
        return len(jobs)

    async def _work(self, stop_asked: asyncio.Event) -> None:
        outages = Outages("schedule")
        while not stop_asked.is_set():
            try:
                await self.fire_due()
                seconds = await self._storage.job_queue.next_schedule_in()
            except StorageError as exc:
                if not exc.retryable:
                    raise
                await outages.wait(exc)
                continue
            outages.over()
            pause = self._poll_s if seconds is None else min(self._poll_s, max(seconds, _LEAST_S))
            try:
                await within(stop_asked.wait(), pause)
            except asyncio.TimeoutError:
                continue


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=_STOP_S)

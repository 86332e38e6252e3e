"""The parts of a running worker, put together: how they start, and in which order they stop so that nothing is lost."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Coroutine, Dict, Iterable, List, Optional, Tuple, TypeVar

from modules.job_store.base import CANCEL_CHANNEL, job_channel
from modules.job_store.records import Outcome
from modules.orchestration.claiming import Claimer
from modules.orchestration.context import SHUTDOWN, JobContext
from modules.orchestration.held import Held, Holdings, WorkerStatistics
from modules.orchestration.leases import LeaseKeeper
from modules.orchestration.running import Runner
from modules.orchestration.settling import Settler
from modules.orchestration.threads import HandlerThreads
from modules.orchestration.upkeep import Upkeep

if TYPE_CHECKING:
    from modules.orchestration.handlers import HandlerRegistry
    from modules.storage import StorageManager

__all__ = ["Crew", "CrewOptions", "to_the_end"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# After the grace: so long for handlers to end when cancelled, and so long to store what is left. Together with closing the
# storage it stays below the two seconds that are promised.
_CANCEL_S = 0.6
_CANCEL_AGAIN_S = 0.1
_STORE_S = 0.7
_THREADS_S = 0.2
_LISTEN_S = 3600.0


@dataclass(frozen=True)
class CrewOptions:
    """What `Worker` was told; see there."""

    name: str
    queues: Tuple[str, ...]
    tenant_id: Optional[str]
    concurrency: int
    prefetch: int
    lease_s: float
    heartbeat_s: float
    poll_s: Optional[float]
    timeout_s: Optional[float]
    until_idle: bool
    info: Dict[str, Any]


class Crew:
    """One run of a worker.

    Args:
        storage: Where the jobs are, and for the handlers.
        handlers: Who runs what.
        options: See `Worker`.
        statistics: Where to count.
        settled: Called with each job whose end was stored, and its status.
        idle: Called when no job is due and none is held.
    """

    def __init__(
        self,
        storage: StorageManager,
        handlers: HandlerRegistry,
        options: CrewOptions,
        *,
        statistics: WorkerStatistics,
        settled: Callable[[Held, Optional[str]], None],
        idle: Callable[[], None],
    ) -> None:
        queue = storage.job_queue
        if options.tenant_id is not None:
            queue = storage.jobs.queue(tenant_id=options.tenant_id)
        self._storage = storage
        self._options = options
        self._statistics = statistics
        self._holdings = Holdings()
        self._threads = HandlerThreads(options.concurrency, f"atlas-job-{options.name}")
        self._told = settled
        self._settler = Settler(queue, self._holdings, statistics, self._settled)
        self._upkeep = Upkeep(
            queue, self._holdings, name=options.name, queues=options.queues, info=options.info,
            every_s=options.heartbeat_s,
        )  # fmt: skip
        self._runner = Runner(
            storage, handlers, self._threads, self._holdings, statistics,
            concurrency=options.concurrency, default_timeout_s=options.timeout_s, ended=self._ended, news=self._upkeep.news,
        )  # fmt: skip
        self._claimer = Claimer(
            queue, self._runner, self._settler, self._holdings, statistics,
            worker=options.name, queues=options.queues, prefetch=options.prefetch,
            lease_s=options.lease_s, poll_s=self._poll_s, idle=idle,
        )  # fmt: skip
        self._keeper = LeaseKeeper(
            queue, self._holdings, statistics,
            lease_s=options.lease_s, heartbeat_s=options.heartbeat_s, stop=self._runner.stop,
        )  # fmt: skip
        self._changed: Optional[asyncio.Event] = None
        self._tasks: Dict[str, asyncio.Task[None]] = {}

    @property
    def left_behind(self) -> int:
        """Runs that ignored being stopped."""
        return self._runner.left_behind

    @property
    def running(self) -> List[JobContext]:
        """The runs under way."""
        return [held.context for held in self._holdings.running.values() if held.context is not None]

    def measure(self) -> None:
        """Write into the statistics how many jobs are where."""
        statistics = self._statistics
        statistics.running = len(self._holdings.running)
        statistics.waiting = self._holdings.unstarted
        statistics.unsettled = len(self._settler)

    def start(self) -> List[asyncio.Task[None]]:
        """Start everything; none of the tasks ends by itself but by an error."""
        self._changed = asyncio.Event()
        for name, work in (
            ("claim", self._claimer.run()),
            ("settle", self._settler.run()),
            ("keep", self._keeper.run()),
            ("upkeep", self._upkeep.run()),
            ("wake", self._listen()),
        ):
            self._tasks[name] = asyncio.create_task(work, name=f"atlas-worker-{name}")
        return list(self._tasks.values())

    async def shut_down(self, grace_s: float) -> None:
        """Stop: claim no more, give back what waits, let runs end for `grace_s`, cancel them, store, give back the rest."""
        deadline = time.monotonic() + grace_s
        self._runner.close()
        self._claimer.stop()
        self._give_back()
        await self._let_end(deadline)
        await self._end_task("claim", _CANCEL_S if grace_s else 0.1)
        self._give_back()
        await self._cancel_runs()
        self._settler.close()
        await self._end_task("settle", _STORE_S)
        self._threads.close()
        for task in self._tasks.values():
            task.cancel()
        await _all_ended(self._tasks.values())
        await self._upkeep.leave(_THREADS_S)
        self._threads.join(_THREADS_S)
        self.measure()

    # --- inside -------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Pass wake-ups on."""
        channels = [job_channel(queue) for queue in self._options.queues]
        async with self._storage.wakeups.subscribe(CANCEL_CHANNEL, *channels) as subscription:
            while True:
                woken = await subscription.wait(timeout_s=_LISTEN_S)
                if CANCEL_CHANNEL in woken and len(self._holdings):
                    self._keeper.kick()
                if woken - {CANCEL_CHANNEL}:
                    self._claimer.wake()

    def _poll_s(self) -> float:
        given = self._options.poll_s
        return self._storage.wakeups.poll_s if given is None else given

    def _settled(self, held: Held, status: Optional[str]) -> None:
        self._told(held, status)
        if self._options.until_idle and not len(self._holdings):
            # was that all? Nobody else may wake us to look
            self._claimer.wake()

    def _ended(self, held: Held) -> None:
        if held.outcome is None:
            self._statistics.lost += 1
            self._holdings.drop(held)
        else:
            self._settler.add(held)
        self._claimer.freed()
        if self._changed is not None:
            self._changed.set()

    def _give_back(self) -> None:
        for held in self._holdings.take_waiting():
            held.outcome = Outcome(held.claim, "released")
            self._settler.add(held)

    async def _let_end(self, deadline: float) -> None:
        """Wait until no run is under way, or the deadline is there."""
        changed = self._changed
        assert changed is not None  # noqa: S101 - start() was called
        while self._holdings.running:
            left = deadline - time.monotonic()
            if left <= 0:
                return
            changed.clear()
            waiter = asyncio.ensure_future(changed.wait())
            await asyncio.wait({waiter}, timeout=left)
            waiter.cancel()

    async def _cancel_runs(self) -> None:
        """Cancel what runs, more than once: a handler may swallow a cancellation. What does not end is left behind."""
        end = time.monotonic() + _CANCEL_S
        while self._holdings.running and time.monotonic() < end:
            for held in list(self._holdings.running.values()):
                self._runner.stop(held, SHUTDOWN)
            await self._let_end(min(end, time.monotonic() + _CANCEL_AGAIN_S))
        for held in list(self._holdings.running.values()):
            self._runner.give_up(held)

    async def _end_task(self, name: str, seconds: float) -> None:
        """Wait for a task that was told to end; what takes longer is cancelled."""
        task = self._tasks[name]
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            logger.warning("orchestration.part_cancelled", extra={"operation": name})
            task.cancel()
            await _all_ended([task])


async def _all_ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until they have ended, cancelling again what swallowed a cancellation."""
    left = {task for task in tasks if not task.done()}
    while left:
        _, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN_S)
        for task in left:
            task.cancel()


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work` to its end even if the calling task is cancelled meanwhile; then let the cancellation pass."""
    task = asyncio.ensure_future(work)
    cancelled: Optional[asyncio.CancelledError] = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            cancelled = exc
        except Exception:  # noqa: BLE001 - the task's own error, raised below
            break
    if cancelled is not None and not task.cancelled():
        task.exception()
        raise cancelled
    return task.result()

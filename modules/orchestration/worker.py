"""`Worker`: claims jobs, runs their handlers, and stores how they ended.

    async with StorageManager() as storage:
        worker = Worker(storage, queues=["default"], concurrency=10)
        await worker.run()                      # until worker.stop()

    async with Worker(storage):                 # beside the rest of an application
        ...

Every job is run at least once: a worker that dies or is frozen loses its jobs to others when their lease runs out, and
the database refuses what it says of them later. So handlers must bear being run twice; see docs/orchestration.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Type

from modules.job_store.limits import LeasePolicy, check_integer, check_names, check_seconds
from modules.orchestration.crew import Crew, CrewOptions, to_the_end
from modules.orchestration.errors import OrchestrationError
from modules.orchestration.handlers import HandlerRegistry, default_handlers
from modules.orchestration.held import Held, WorkerStatistics
from modules.store_common.values import check_identifier

if TYPE_CHECKING:
    from modules.job_store.records import Outcome
    from modules.orchestration.context import JobContext
    from modules.storage import StorageManager

__all__ = ["EndListener", "Worker"]

logger = logging.getLogger(__name__)

#: Called with how a run ended and what its job became: a status, or None when the claim was lost.
EndListener = Callable[["Outcome", Optional[str]], None]


class Worker:
    """Runs jobs of some queues.

    Args:
        storage: An open `StorageManager`; the worker does not close it.
        handlers: Who runs what; None: what `@handler` registered.
        queues: Names of queues.
        concurrency: Jobs at the same time, 1 to 1,000.
        prefetch: The most jobs claimed ahead of the free slots, 0 to 1,000. How many it is follows the speed of the work.
        lease_s: A job whose worker is silent for so many seconds is given to another.
        heartbeat_s: Seconds between heartbeats; None: a quarter of the lease.
        poll_s: Looks for jobs at least this often, in seconds, should a wake-up be missed; None: as the database suggests,
            5 s on PostgreSQL, 0.5 s on SQLite, where other processes cannot be heard.
        grace_s: Seconds that running jobs get to end when the worker stops.
        timeout_s: For jobs that have no timeout of their own; None: no limit.
        name: Unique among running workers; None: made of host, process and chance.
        tenant_id: Serve this tenant only; None: all.

    Raises:
        InvalidValueError: an argument cannot work.
        JobLeaseTooShortError: the lease is shorter than two heartbeats.
    """

    def __init__(
        self,
        storage: StorageManager,
        handlers: Optional[HandlerRegistry] = None,
        *,
        queues: Sequence[str] = ("default",),
        concurrency: int = 10,
        prefetch: int = 500,
        lease_s: float = 60.0,
        heartbeat_s: Optional[float] = None,
        poll_s: Optional[float] = None,
        grace_s: float = 30.0,
        timeout_s: Optional[float] = None,
        name: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> None:
        beat_s = lease_s / 4 if heartbeat_s is None else heartbeat_s
        LeasePolicy(lease_s, beat_s, timeout_s)
        check_integer(concurrency, "concurrency", 1, 1000)
        check_integer(prefetch, "prefetch", 0, 1000)
        self._storage = storage
        self._handlers = default_handlers if handlers is None else handlers
        self._queues = check_names(queues, "queues")
        self._concurrency = concurrency
        self._prefetch = prefetch
        self._lease_s = lease_s
        self._heartbeat_s = beat_s
        self._poll_s = None if poll_s is None else check_seconds(poll_s, "poll_s", least=0.001)
        self._grace_s = check_seconds(grace_s, "grace_s")
        self._timeout_s = timeout_s
        self._tenant_id = None if tenant_id is None else check_identifier(tenant_id, "tenant_id")
        self.name = _name() if name is None else check_identifier(name, "name of a worker")
        #: Called when a run has ended and that was stored.
        self.on_ended: Optional[EndListener] = None
        self._statistics = WorkerStatistics()
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._stop_asked: Optional[asyncio.Event] = None
        self._crew: Optional[Crew] = None
        self._stop_early = False
        self._until_idle = False
        self._background: Optional[asyncio.Task[WorkerStatistics]] = None
        self._left_behind = 0

    # --- use ----------------------------------------------------------------------------------------------------

    async def run(self) -> WorkerStatistics:
        """Work until `stop()` is called, and return what was counted.

        When the calling task is cancelled the worker stops at once: handlers are cancelled, their jobs given back.

        Raises:
            OrchestrationError: it runs already.
            StorageError: the database refuses what the worker needs (not: it is away; that is waited for).
        """
        if self._stop_asked is not None:
            raise OrchestrationError(
                "this worker runs already; make another one, or give it more concurrency"
            )
        self._loop = asyncio.get_running_loop()
        self._stop_asked = asyncio.Event()
        if self._stop_early:
            self._stop_early = False
            self._stop_asked.set()
        self._statistics = WorkerStatistics()
        try:
            return await self._work(self._stop_asked)
        finally:
            self._stop_asked = None

    async def run_until_idle(self) -> WorkerStatistics:
        """Work until no job is due and none runs, for scripts and tests; what is due later is left."""
        self._until_idle = True
        try:
            return await self.run()
        finally:
            self._until_idle = False

    def stop(self) -> None:
        """Begin to stop: claim no more, let running jobs end within the grace. From any thread; harmless when stopped.

        Called before the first `run()`, that one ends at once: a signal may come while a process is still starting.
        """
        loop, asked = self._loop, self._stop_asked
        if loop is None:
            self._stop_early = True
        if loop is None or asked is None or loop.is_closed():
            return
        loop.call_soon_threadsafe(asked.set)

    async def __aenter__(self) -> Worker:
        if self._background is not None:
            raise OrchestrationError("this worker runs already")
        self._background = asyncio.ensure_future(self.run())
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        task, self._background = self._background, None
        if task is None:
            return
        if self._stop_asked is None and not task.done():
            await asyncio.sleep(0)  # let it begin, so that it can be told to stop
        self.stop()
        await task

    @property
    def statistics(self) -> WorkerStatistics:
        """What was counted until now."""
        if self._crew is not None:
            self._crew.measure()
        return self._statistics

    @property
    def handlers(self) -> List[str]:
        """Names of the handlers that it has."""
        return self._handlers.names

    @property
    def left_behind(self) -> int:
        """Runs that ignored being stopped and still hold a task or a thread of this process."""
        return self._left_behind

    @property
    def running(self) -> List[JobContext]:
        """The runs under way, for showing them."""
        return [] if self._crew is None else self._crew.running

    # --- inside -------------------------------------------------------------------------------------------------

    def _make_crew(self) -> Crew:
        return Crew(
            self._storage,
            self._handlers,
            CrewOptions(
                name=self.name, queues=self._queues, tenant_id=self._tenant_id, concurrency=self._concurrency,
                prefetch=self._prefetch, lease_s=self._lease_s, heartbeat_s=self._heartbeat_s, poll_s=self._poll_s,
                timeout_s=self._timeout_s, until_idle=self._until_idle, info=_info(self._concurrency),
            ),
            statistics=self._statistics,
            settled=self._settled,
            idle=self._idle,
        )  # fmt: skip

    async def _work(self, stop_asked: asyncio.Event) -> WorkerStatistics:
        crew = self._crew = self._make_crew()
        tasks = crew.start()
        logger.info(
            "orchestration.worker_started", extra={"operation": self.name, "detail": ", ".join(self._queues)}
        )
        waiter = asyncio.ensure_future(stop_asked.wait())
        grace_s = 0.0
        try:
            done, _ = await asyncio.wait({waiter, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            failure = next((task.exception() for task in done if task is not waiter), None)
            grace_s = self._grace_s if failure is None else 0.0
        finally:
            waiter.cancel()
            # to its end, even when the calling task is cancelled, and cancelled again
            await to_the_end(crew.shut_down(grace_s))
            self._left_behind = crew.left_behind
            logger.info(
                "orchestration.worker_stopped",
                extra={"operation": self.name, "count": self._statistics.ended, "detail": self._left_behind},
            )
        if failure is not None:
            raise failure
        return self._statistics

    def _settled(self, held: Held, status: Optional[str]) -> None:
        if self.on_ended is not None and held.outcome is not None:
            self.on_ended(held.outcome, status)

    def _idle(self) -> None:
        if self._until_idle and self._stop_asked is not None:
            self._stop_asked.set()


def _name() -> str:
    return f"{platform.node()[:100] or 'host'}-{os.getpid()}-{secrets.token_hex(3)}"


def _info(concurrency: int) -> Dict[str, Any]:
    return {"host": platform.node()[:100], "process": os.getpid(), "concurrency": concurrency}

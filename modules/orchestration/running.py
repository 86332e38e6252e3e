"""Runs claimed jobs: each in a task of its own, as its tenant, within its timeout; and says how it ended."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
from typing import TYPE_CHECKING, Any, Callable, Optional, Set

from modules.job_store.records import Outcome
from modules.orchestration.context import CANCELLED, LEASE_LOST, SHUTDOWN, TIMEOUT, JobContext
from modules.orchestration.errors import (
    GiveUpJobError,
    HandlerNotFoundError,
    JobStoppedError,
    JobTimeoutError,
    RetryJobError,
)
from modules.orchestration.faults import describe, message_of
from modules.orchestration.held import Held, Holdings, WorkerStatistics
from modules.store_common.errors import InvalidValueError
from modules.store_common.tenancy import tenant_context
from modules.store_common.values import check_json

if TYPE_CHECKING:
    from modules.job_store.records import ClaimedJob
    from modules.orchestration.handlers import Handler, HandlerRegistry
    from modules.orchestration.threads import HandlerThreads
    from modules.storage import StorageManager

__all__ = ["PATIENCE_S", "Runner"]

logger = logging.getLogger(__name__)

#: A run that was told to stop and goes on is told once more, and left behind after this many seconds.
PATIENCE_S = 5.0


class Runner:
    """Starts waiting jobs while there are free slots.

    Args:
        storage: For the handlers.
        handlers: Who runs what.
        threads: For plain handlers.
        holdings: Where the jobs wait.
        statistics: Where to count.
        concurrency: Slots.
        default_timeout_s: For jobs that have none; None: no limit.
        news: Called with a job that has progress or lines to store.
        ended: Called with each job whose `outcome` is known; without an outcome it is not ours to settle.
    """

    def __init__(
        self,
        storage: StorageManager,
        handlers: HandlerRegistry,
        threads: HandlerThreads,
        holdings: Holdings,
        statistics: WorkerStatistics,
        *,
        concurrency: int,
        default_timeout_s: Optional[float],
        ended: Callable[[Held], None],
        news: Callable[[Held], None],
    ) -> None:
        self._storage = storage
        self._handlers = handlers
        self._threads = threads
        self._holdings = holdings
        self._statistics = statistics
        self._concurrency = concurrency
        self._default_timeout_s = default_timeout_s
        self._ended = ended
        self._news = news
        self._left_behind: Set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def free(self) -> int:
        """Slots without a job."""
        return self._concurrency - len(self._holdings.running)

    @property
    def left_behind(self) -> int:
        """Runs that were given up and have not ended."""
        return len(self._left_behind) + self._threads.abandoned

    def fill(self) -> None:
        """Start waiting jobs until the slots are full."""
        while not self._closed and len(self._holdings.running) < self._concurrency:
            held = self._holdings.next_waiting()
            if held is None:
                return
            held.task = asyncio.ensure_future(self._run(held))

    def close(self) -> None:
        """Start nothing any more."""
        self._closed = True

    def stop(self, held: Held, reason: str) -> None:
        """Tell a run to stop. One that waits still is only taken out.

        Async handlers are cancelled. Threads cannot be: theirs are told, and where the outcome is known without them
        (their time is up, the job is another's) they are left to themselves.
        """
        context, task = held.context, held.task
        if context is None or task is None:
            self._end(held, self._stopped_outcome(held, reason))
            return
        repeated = context.stop_reason is not None
        context.stop(reason)
        if held.call is None:
            task.cancel()
        elif reason in (TIMEOUT, LEASE_LOST):
            self.give_up(held)
            return
        if not repeated and reason != SHUTDOWN and (held.call is None or reason != CANCELLED):
            self._set_timer(held, PATIENCE_S, self.give_up)

    def give_up(self, held: Held) -> None:
        """Wait for a run no longer: its outcome is what it was told to stop for."""
        if held.outcome is not None or held.task is None or held.task.done():
            return
        reason = (held.context.stop_reason if held.context is not None else None) or SHUTDOWN
        self._statistics.abandoned += 1
        logger.warning(
            "orchestration.run_left_behind",
            extra={
                "entity_id": held.claim.id, "tenant_id": held.claim.tenant_id, "operation": held.claim.handler,
                "attempt": held.claim.attempt, "detail": reason,
            },
        )  # fmt: skip
        task, call = held.task, held.call
        self._end(held, self._stopped_outcome(held, reason))
        if call is not None and self._threads.abandon(call):
            return
        self._left_behind.add(task)
        task.add_done_callback(self._left_behind.discard)

    # --- one run ------------------------------------------------------------------------------------------------

    async def _run(self, held: Held) -> None:
        claim = held.claim
        outcome: Optional[Outcome]
        handler = self._handlers.get(claim.handler)
        if handler is None:
            self._end(held, _failed(claim, HandlerNotFoundError(claim.handler), with_traceback=False))
            return
        context = held.context = JobContext(
            claim, self._storage, asyncio.get_running_loop(), functools.partial(self._news, held)
        )
        timeout_s = claim.timeout_s if claim.timeout_s is not None else self._default_timeout_s
        if timeout_s is not None:
            context.limit(timeout_s)
            self._set_timer(held, timeout_s, self._time_out)
        try:
            with tenant_context(claim.tenant_id):
                result = await self._call(held, handler, context)
            outcome = self._returned(held, result)
        except asyncio.CancelledError as exc:
            outcome = self._cancelled(held, exc)
        except JobStoppedError as exc:
            stopped = context.stop_reason
            outcome = _failed(claim, exc) if stopped is None else self._stopped_outcome(held, stopped)
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - whatever a handler raises is the outcome of its run
            outcome = self._raised(held, exc)
        self._end(held, outcome)

    async def _call(self, held: Held, handler: Handler, context: JobContext) -> Any:
        if handler.is_async:
            return await handler.function(context)
        own = contextvars.copy_context()
        held.call = self._threads.submit(functools.partial(own.run, handler.function, context))
        return await held.call.future

    def _returned(self, held: Held, result: Any) -> Outcome:
        context = held.context
        if context is not None and context.stop_reason == TIMEOUT:
            # It came to an end, but too late: others may count on the limit.
            return self._stopped_outcome(held, TIMEOUT)  # type: ignore[return-value]
        if result is None:
            return Outcome(held.claim, "succeeded")
        try:
            check_json(result, "the result")
        except InvalidValueError as exc:
            return _failed(held.claim, exc, with_traceback=False)
        return Outcome(held.claim, "succeeded", result=result)

    def _cancelled(self, held: Held, error: asyncio.CancelledError) -> Optional[Outcome]:
        reason = held.context.stop_reason if held.context is not None else None
        if reason is None:
            # a cancellation of the handler's own making
            return _failed(held.claim, error)
        return self._stopped_outcome(held, reason)

    def _raised(self, held: Held, error: BaseException) -> Optional[Outcome]:
        reason = held.context.stop_reason if held.context is not None else None
        if reason in (TIMEOUT, LEASE_LOST):
            return self._stopped_outcome(held, reason or TIMEOUT)
        logger.info(
            "orchestration.run_failed",
            extra={
                "entity_id": held.claim.id, "tenant_id": held.claim.tenant_id, "operation": held.claim.handler,
                "attempt": held.claim.attempt, "error_type": type(error).__name__,
            },
        )  # fmt: skip
        return _failed(held.claim, error)

    def _stopped_outcome(self, held: Held, reason: str) -> Optional[Outcome]:
        if reason == LEASE_LOST:
            return None
        if reason == CANCELLED:
            return Outcome(held.claim, "cancelled")
        if reason == SHUTDOWN:
            return Outcome(held.claim, "released")
        limit = held.claim.timeout_s if held.claim.timeout_s is not None else self._default_timeout_s
        return _failed(held.claim, JobTimeoutError(limit or 0.0), with_traceback=False)

    def _time_out(self, held: Held) -> None:
        self._statistics.timed_out += 1
        held.timer = None
        self.stop(held, TIMEOUT)

    def _set_timer(self, held: Held, seconds: float, then: Callable[[Held], None]) -> None:
        if held.timer is not None:
            held.timer.cancel()
        held.timer = asyncio.get_running_loop().call_later(seconds, then, held)

    def _end(self, held: Held, outcome: Optional[Outcome]) -> None:
        if held.outcome is not None or self._holdings.find(held.claim) is not held:
            # it was given up, and its outcome told, before it came to an end
            return
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        held.outcome = outcome
        self._holdings.ended(held)
        self._ended(held)
        self.fill()


def _failed(claim: ClaimedJob, error: BaseException, *, with_traceback: bool = True) -> Outcome:
    retry: Optional[bool] = None
    delay_s: Optional[float] = None
    if isinstance(error, RetryJobError):
        retry, delay_s = True, error.delay_s
    elif isinstance(error, GiveUpJobError):
        retry = False
    return Outcome(
        claim,
        "failed",
        error_type=type(error).__name__,
        error_message=message_of(error),
        error_details={"traceback": describe(error)} if with_traceback else None,
        retry=retry,
        delay_s=delay_s,
    )

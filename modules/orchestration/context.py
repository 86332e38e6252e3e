"""What a handler gets: its job, how long it has, whether it is to stop, and ways to tell how far it is."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Coroutine,
    List,
    Mapping,
    MutableMapping,
    Optional,
    Tuple,
    TypeVar,
)

from modules.orchestration.errors import JobStoppedError
from modules.orchestration.faults import masked, storable
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_json

if TYPE_CHECKING:
    from modules.job_store.records import ClaimedJob
    from modules.storage import StorageManager

__all__ = ["CANCELLED", "LEASE_LOST", "SHUTDOWN", "TIMEOUT", "JobContext"]

T = TypeVar("T")

#: Values of `JobContext.stop_reason`.
CANCELLED = "cancelled"
TIMEOUT = "timeout"
LEASE_LOST = "lease_lost"
SHUTDOWN = "shutdown"

_LEVELS = ("debug", "info", "warning", "error")
_LONGEST_LINE = 4_000
_MOST_LINES = 1_000


class JobContext:
    """One run of a job, as its handler sees it. Safe to use from the handler's thread.

    Attributes:
        storage: The worker's `StorageManager`. Its calls are those of the job's tenant.
        stop_reason: None while all is well; then why the run is to stop: "cancelled" by somebody, "timeout", "lease_lost"
            (another worker may have the job), "shutdown" of the worker. An async handler is cancelled at that moment; a
            plain one has to look.
    """

    __slots__ = (
        "_deadline",
        "_lines",
        "_logger",
        "_loop",
        "_news",
        "_progress",
        "_progress_changed",
        "_started",
        "_stopped",
        "claim",
        "stop_reason",
        "storage",
    )

    def __init__(
        self,
        claim: ClaimedJob,
        storage: StorageManager,
        loop: asyncio.AbstractEventLoop,
        news: Optional[Callable[[], None]] = None,
    ) -> None:
        self.claim = claim
        self.storage = storage
        self.stop_reason: Optional[str] = None
        self._loop = loop
        self._news = news
        self._deadline: Optional[float] = None
        self._started = time.monotonic()
        self._stopped: Optional[threading.Event] = None
        self._progress: Any = None
        self._progress_changed = False
        self._lines: List[Tuple[str, str]] = []
        self._logger: Optional[logging.LoggerAdapter[logging.Logger]] = None

    # --- the job ------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The job's id: the same in every attempt, so good for making effects idempotent."""
        return self.claim.id

    @property
    def payload(self) -> Any:
        """What was enqueued."""
        return self.claim.payload

    @property
    def handler(self) -> str:
        """The name under which the handler is registered."""
        return self.claim.handler

    @property
    def name(self) -> Optional[str]:
        """The job's name, None without one."""
        return self.claim.name

    @property
    def queue(self) -> str:
        """The queue it came from."""
        return self.claim.queue

    @property
    def tenant_id(self) -> str:
        """Whose job it is."""
        return self.claim.tenant_id

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self.claim.attempt

    @property
    def max_attempts(self) -> int:
        """After this many attempts it is failed for good."""
        return self.claim.retry.max_attempts

    @property
    def is_last_attempt(self) -> bool:
        """Whether a failure now is final."""
        return self.claim.attempt >= self.claim.retry.max_attempts

    # --- time and stopping --------------------------------------------------------------------------------------

    @property
    def remaining_s(self) -> Optional[float]:
        """Seconds until the run times out, not below 0; None: it has no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @property
    def should_stop(self) -> bool:
        """Whether the run is to stop; `stop_reason` says why."""
        return self.stop_reason is not None

    def raise_if_stopped(self) -> None:
        """Raise `JobStoppedError` if the run is to stop."""
        if self.stop_reason is not None:
            raise JobStoppedError(self.stop_reason)

    def wait_stopped(self, seconds: float) -> bool:
        """Wait in a handler's thread until the run is to stop, at most `seconds`; returns whether it is."""
        if self._stopped is None:
            made = threading.Event()
            self._stopped = made
            if self.stop_reason is not None:
                made.set()
        return self._stopped.wait(seconds)

    def stop(self, reason: str) -> None:
        """Tell the handler to stop; the first reason stays. The worker calls it."""
        if self.stop_reason is None:
            self.stop_reason = reason
            if self._stopped is not None:
                self._stopped.set()

    # --- telling ------------------------------------------------------------------------------------------------

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that adds the job's id, tenant, handler and attempt to what is logged."""
        if self._logger is None:
            self._logger = _JobLogger(
                logging.getLogger(f"atlas.jobs.{self.claim.handler}"),
                {
                    "entity_id": self.claim.id,
                    "tenant_id": self.claim.tenant_id,
                    "operation": self.claim.handler,
                    "attempt": self.claim.attempt,
                },
            )
        return self._logger

    def progress(self, value: Any) -> None:
        """Say how far the run is: a share from 0 to 1, a text, or any JSON value. Stored within a second.

        Raises:
            InvalidValueError: it is no JSON value.
        """
        check_json(value, "progress")
        self._progress = value
        self._progress_changed = True
        self._tell()

    @property
    def last_progress(self) -> Any:
        """What `progress` was told last."""
        return self._progress

    def log(self, message: str, level: str = "info") -> None:
        """Keep a line with the run, for those who look at the job; what looks like a secret is masked.

        Args:
            message: At most 4,000 characters are kept.
            level: debug, info, warning or error.

        Raises:
            InvalidValueError: there is no such level.
        """
        if level not in _LEVELS:
            raise InvalidValueError(f"level must be one of {', '.join(_LEVELS)}")
        if len(self._lines) < _MOST_LINES:
            self._lines.append((level, storable(masked(str(message)[:_LONGEST_LINE]))))
            self._tell()

    def call(self, coroutine: Coroutine[Any, Any, T], timeout: Optional[float] = None) -> T:
        """Run a coroutine on the worker's loop, from a plain handler: `job.call(job.storage.kv.get("a", "b"))`.

        Args:
            coroutine: What to await, as the job's tenant.
            timeout: Seconds; None: until the run times out.

        Raises:
            RuntimeError: called on the event loop, where it would wait for itself; use `await`.
        """
        from modules.store_common.tenancy import tenant_context

        try:
            running: Optional[asyncio.AbstractEventLoop] = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self._loop:
            coroutine.close()
            raise RuntimeError("job.call() is for plain handlers; in an async one, await the call")

        async def as_tenant() -> T:
            with tenant_context(self.claim.tenant_id):
                return await coroutine

        future = asyncio.run_coroutine_threadsafe(as_tenant(), self._loop)
        try:
            return future.result(self.remaining_s if timeout is None else timeout)
        except BaseException:
            future.cancel()
            raise

    def _tell(self) -> None:
        if self._news is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._news)

    # --- for the worker -----------------------------------------------------------------------------------------

    def limit(self, seconds: float) -> None:
        """Let the run time out so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    @property
    def has_news(self) -> bool:
        """Whether something was told that is not stored yet."""
        return self._progress_changed or bool(self._lines)

    def take_progress(self) -> Tuple[bool, Any]:
        """Return whether there is news since the last call, and the last progress."""
        changed, self._progress_changed = self._progress_changed, False
        return changed, self._progress

    def untold_lines(self) -> List[Tuple[str, str]]:
        """Return the lines (level, message) that are not stored yet."""
        return list(self._lines)

    def told_lines(self, count: int) -> None:
        """The first `count` of them are stored now."""
        del self._lines[:count]


class _JobLogger(logging.LoggerAdapter):  # type: ignore[type-arg] # not generic at run time on 3.9 and 3.10
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> Tuple[Any, MutableMapping[str, Any]]:
        own: Mapping[str, Any] = self.extra or {}
        return msg, {**kwargs, "extra": {**own, **kwargs.get("extra", {})}}

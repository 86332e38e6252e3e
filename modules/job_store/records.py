"""What the job store takes and gives: frozen dataclasses, no database row crosses the API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Dict, Optional, Tuple

from modules.job_store.schedules import Recurrence
from modules.store_common.records import Page, Record, page_of

__all__ = [
    "Assignment",
    "ClaimedJob",
    "Heartbeat",
    "Job",
    "JobEvent",
    "JobLog",
    "JobRun",
    "NewJob",
    "NextDue",
    "Outcome",
    "Page",
    "QueueLimit",
    "QueueStatistics",
    "RetryPolicy",
    "Schedule",
    "WorkerInfo",
    "page_of",
]


@dataclass(frozen=True)
class RetryPolicy(Record):
    """When a failed job is tried again: exponential back-off with full jitter (`store_common.backoff`).

    Attributes:
        max_attempts: Runs that may fail or be lost before the job is failed for good, 1 to 1,000.
        base_s: The bound of the random wait after the first failure, in seconds; it doubles with each.
        cap_s: The largest bound, in seconds.
        retry_on: Names of errors (see `Outcome.error_type`) that are tried again; None: all but those of `give_up_on`.
        give_up_on: Names of errors that are not.
    """

    max_attempts: int = 5
    base_s: float = 1.0
    cap_s: float = 3600.0
    retry_on: Optional[Tuple[str, ...]] = None
    give_up_on: Tuple[str, ...] = ()


@dataclass(frozen=True)
class NewJob(Record):
    """A job to enqueue.

    Attributes:
        handler: Name of the handler that runs it.
        payload: JSON value for the handler.
        name: Unique per tenant among jobs that are not final; None: it has none.
        queue: Which queue.
        priority: -100 to 100; higher is claimed sooner.
        run_at: Not before this instant (aware); None: at once, or after `delay_s`.
        delay_s: Seconds from now by the database's clock.
        draft: Keep it as a draft until `schedule()` is called.
        retry: When it is tried again.
        timeout_s: Seconds that one run may take; None: no limit.
        idempotency_key: The same key enqueues once, whatever becomes of the job; another body is a conflict.
        unique_key: While a job of this key is not final, another is not enqueued: the one there is returned.
        unique_window_s: With `unique_key`: nor within this many seconds after it was enqueued.
        concurrency_key: At most `concurrency_limit` jobs of this key run at once, over all workers.
        concurrency_limit: See `concurrency_key`.
        keep_result_s: Seconds after which the result is forgotten; None: with the job.
        task_ids: Tasks to link it to.
    """

    handler: str
    payload: Any = None
    name: Optional[str] = None
    queue: str = "default"
    priority: int = 0
    run_at: Optional[datetime] = None
    delay_s: float = 0.0
    draft: bool = False
    retry: RetryPolicy = RetryPolicy()
    timeout_s: Optional[float] = None
    idempotency_key: Optional[str] = None
    unique_key: Optional[str] = None
    unique_window_s: Optional[float] = None
    concurrency_key: Optional[str] = None
    concurrency_limit: int = 1
    keep_result_s: Optional[float] = None
    task_ids: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Job(Record):
    """A job.

    Attributes:
        status: draft, scheduled, running, succeeded, failed or cancelled.
        attempts: Runs that count towards `retry.max_attempts`, since it was enqueued or run again.
        runs: How often it was claimed, ever; the number of its last run.
        version: Starts at 1, grows with every change but heartbeats and progress.
        progress: What the handler told last, None before.
        reason: Why it is failed or cancelled.
        cancel_requested: It runs, and its worker is told to stop.
        worker: Who runs it.
        lease_until: When its worker counts as lost, by the database's clock.
        started_at: Beginning of the last run.
        waiting_for_key: It is due and waits for a running job of its concurrency key.
        scheduled_for: The nominal time of its schedule.
    """

    id: str
    name: Optional[str]
    handler: str
    queue: str
    status: str
    priority: int
    payload: Any
    run_at: datetime
    attempts: int
    runs: int
    version: int
    retry: RetryPolicy
    timeout_s: Optional[float]
    concurrency_key: Optional[str]
    concurrency_limit: Optional[int]
    keep_result_s: Optional[float]
    waiting_for_key: bool
    progress: Any
    reason: Optional[str]
    cancel_requested: bool
    worker: Optional[str]
    lease_until: Optional[datetime]
    started_at: Optional[datetime]
    finished_at: Optional[datetime]
    schedule_id: Optional[str]
    scheduled_for: Optional[datetime]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class JobRun(Record):
    """One run of a job.

    Attributes:
        number: 1 for the job's first run ever; the fence of its claim.
        attempt: Which attempt it was, 1 for the first since the job was enqueued or run again.
        status: running, succeeded, failed, cancelled, released (given back unfinished) or lost (its lease ran out).
        error: None, or `{"type": ..., "message": ..., "details": ...}`.
        result: What the handler returned; None when it was forgotten (`keep_result_s`).
    """

    job_id: str
    number: int
    attempt: int
    status: str
    worker: Optional[str]
    started_at: datetime
    finished_at: Optional[datetime]
    error: Optional[Dict[str, Any]]
    result: Any


@dataclass(frozen=True)
class ClaimedJob(Record):
    """A job that is a worker's until `lease_until`, and what proves it.

    Attributes:
        tenant_id: Whose job it is.
        fence: Number of the claim; also that of the run. A write with an older one is `JobLeaseLostError`.
        attempt: 1 for the first.
        lease_until: By the database's clock; a heartbeat moves it.
        claimed_at: By the database's clock.
    """

    tenant_id: str
    id: str
    fence: int
    handler: str
    payload: Any
    name: Optional[str]
    queue: str
    priority: int
    attempt: int
    retry: RetryPolicy
    timeout_s: Optional[float]
    run_at: datetime
    claimed_at: datetime
    lease_until: datetime
    concurrency_key: Optional[str] = None
    keep_result_s: Optional[float] = None
    schedule_id: Optional[str] = None
    scheduled_for: Optional[datetime] = None


@dataclass(frozen=True)
class Outcome(Record):
    """How a claimed job ended, for `settle`. Make it with `succeeded`, `failed`, `released` or `cancelled`.

    Attributes:
        claim: What `claim` gave.
        kind: "succeeded", "failed", "released" or "cancelled".
        result: JSON value, of a success.
        error_type: Name of the error, compared with `RetryPolicy.retry_on` and `give_up_on`.
        error_message: Text for people.
        error_details: JSON value, for example a traceback.
        retry: Of a failure: None: as the job's policy says; False: never; True: unless attempts are used up.
        delay_s: Seconds to wait before the next attempt, or before a released job is due; None: the policy's, 0.
    """

    claim: ClaimedJob
    kind: str
    result: Any = None
    error_type: Optional[str] = None
    error_message: Optional[str] = None
    error_details: Any = None
    retry: Optional[bool] = None
    delay_s: Optional[float] = None


@dataclass(frozen=True)
class Heartbeat(Record):
    """What a heartbeat found.

    Attributes:
        kept: Claims whose lease was extended.
        cancelled: Those of `kept` whose job is to be cancelled: stop them.
        lost: Claims that are the worker's no longer: stop them, what they do counts no more.
    """

    kept: Tuple[ClaimedJob, ...]
    cancelled: Tuple[ClaimedJob, ...]
    lost: Tuple[ClaimedJob, ...]


@dataclass(frozen=True)
class JobLog(Record):
    """A line that a run wrote."""

    id: str
    job_id: str
    run: int
    level: str
    message: str
    created_at: datetime


@dataclass(frozen=True)
class JobEvent(Record):
    """Something that happened to a job.

    Attributes:
        type: created, run_started, run_finished, or what was done by hand: updated, scheduled, cancelled ...
        data: More about it.
    """

    job_id: str
    type: str
    data: Dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class Assignment(Record):
    """Who answers for a job: pending, accepted, declined or completed."""

    job_id: str
    assignee: str
    status: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class NextDue(Record):
    """A job that is due next."""

    job_id: str
    name: Optional[str]
    handler: str
    queue: str
    priority: int
    run_at: datetime


@dataclass(frozen=True)
class Schedule(Record):
    """When jobs are made by themselves.

    Attributes:
        recurrence: When.
        job: What; its `run_at` and keys are set anew each time.
        next_at: The next nominal time; None when it is over.
        last_at: The last nominal time for which a job was made.
        version: Grows with each change by hand, not when it fires.
    """

    tenant_id: str
    id: str
    name: str
    enabled: bool
    recurrence: Recurrence
    job: NewJob
    next_at: Optional[datetime]
    last_at: Optional[datetime]
    version: int
    created_at: datetime
    updated_at: datetime

    def to_dict(self) -> Dict[str, Any]:
        """Return the fields as plain JSON values."""
        recurrence = self.recurrence.to_dict()
        for name, value in recurrence.items():
            recurrence[name] = value.isoformat() if isinstance(value, datetime) else value
        return {**super().to_dict(), "recurrence": recurrence}


@dataclass(frozen=True)
class QueueLimit(Record):
    """What limits a queue over all tenants.

    Attributes:
        paused: Nothing is claimed from it.
        rate_per_s: Jobs that may start per second on average; None: any number.
        burst: Jobs that may start at once after a pause.
    """

    queue: str
    paused: bool = False
    rate_per_s: Optional[float] = None
    burst: Optional[float] = None


@dataclass(frozen=True)
class QueueStatistics(Record):
    """How a queue stands."""

    queue: str
    scheduled: int
    due: int
    running: int
    oldest_due_at: Optional[datetime]


@dataclass(frozen=True)
class WorkerInfo(Record):
    """A worker process, as it last told of itself.

    Attributes:
        id: Its name; unique among those that run.
        queues: What it claims from.
        running: Jobs it was running when it last told.
        info: Host, process id and whatever else it says; JSON.
        seen_at: By the database's clock.
    """

    id: str
    queues: Tuple[str, ...]
    running: int
    info: Dict[str, Any]
    started_at: datetime
    seen_at: datetime

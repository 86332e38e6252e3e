"""Jobs: list, enqueue, cancel, retry, runs, logs, events, dead letters, queues, schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Dict, List, Literal, Optional

from fastapi import APIRouter, Body, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from modules.job_store.errors import JobNotFoundError, ScheduleNotFoundError
from modules.job_store.records import NewJob, RetryPolicy, Schedule
from modules.job_store.schedules import Recurrence
from modules.Server.api.parameters import (
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    PartOf50,
    PartOf100,
    errors,
    expected_version,
    other_than,
    unless_known,
)
from modules.Server.callers import Reader, Writer
from modules.Server.models import CountOut, Input, PageOf
from modules.Server.models_jobs import (
    JobCountsOut,
    JobEventOut,
    JobLogOut,
    JobOut,
    JobRunOut,
    QueueOut,
    ScheduleOut,
)
from modules.Server.once import Reply, key_of_request, once
from modules.Server.replies import Json, etag, versioned

__all__ = [
    "NewJobIn",
    "NewScheduleIn",
    "Reason",
    "RecurrenceIn",
    "Redrive",
    "RetryIn",
    "ScheduleChange",
    "cancel_job",
    "change_schedule",
    "count_jobs",
    "create_schedule",
    "delete_schedule",
    "enqueue_job",
    "get_job",
    "get_schedule",
    "job_events",
    "job_logs",
    "job_runs",
    "list_dead_letters",
    "list_jobs",
    "list_queues",
    "list_schedules",
    "redrive_dead_letters",
    "retry_job",
    "router",
]

router = APIRouter(prefix="/v1", tags=["jobs"])
_JobId = Annotated[
    str, Path(description="Id of the job.", examples=["j1"], json_schema_extra=other_than("counts"))
]
_ScheduleId = Annotated[str, Path(description="Id of the schedule.", examples=["s1"])]
_Status = Literal["draft", "scheduled", "running", "succeeded", "failed", "cancelled"]
_Seconds = Annotated[Optional[float], Field(ge=0, le=1e8, allow_inf_nan=False)]


class RetryIn(Input):
    """When a failed job is tried again."""

    max_attempts: int = Field(5, ge=1, le=1000)
    base_s: float = Field(1.0, gt=0, le=1e6, allow_inf_nan=False)
    cap_s: float = Field(3600.0, gt=0, le=1e7, allow_inf_nan=False)


class NewJobIn(Input):
    """A job to enqueue."""

    handler: str = Field(examples=["send_mail"], description="Name of the handler that a worker runs.")
    payload: Any = Field(None, examples=[{"to": "ada@example.com"}])
    name: Optional[str] = None
    queue: str = "default"
    priority: int = Field(0, ge=-100, le=100)
    run_at: Optional[datetime] = Field(None, description="With a time zone.")
    delay_s: float = Field(0.0, ge=0, le=1e8, allow_inf_nan=False)
    draft: bool = False
    retry: RetryIn = Field(default_factory=RetryIn)
    timeout_s: _Seconds = None
    unique_key: Optional[str] = None
    concurrency_key: Optional[str] = None
    concurrency_limit: int = Field(1, ge=1, le=10_000)

    def to_job(self, idempotency_key: Optional[str] = None) -> NewJob:
        """Return it as the store takes it."""
        given = self.model_dump(exclude={"retry"})
        return NewJob(**given, retry=RetryPolicy(**self.retry.model_dump()), idempotency_key=idempotency_key)


class Reason(Input):
    """Why."""

    reason: Optional[str] = None


class Redrive(Input):
    """Which dead letters."""

    queue: Optional[str] = None
    handler: Optional[str] = None
    limit: int = Field(1000, ge=1, le=1000)


class RecurrenceIn(Input):
    """When: exactly one of cron, every_s and at."""

    cron: Optional[str] = Field(None, examples=["0 3 * * *"])
    every_s: Optional[float] = Field(None, ge=1, le=1e8, allow_inf_nan=False)
    at: Optional[datetime] = None
    timezone: str = "UTC"
    start_at: Optional[datetime] = None
    end_at: Optional[datetime] = None
    jitter_s: float = Field(0.0, ge=0, le=1e6, allow_inf_nan=False)


class NewScheduleIn(Input):
    """A schedule to make."""

    name: str = Field(examples=["nightly"])
    recurrence: RecurrenceIn
    job: NewJobIn
    enabled: bool = True


class ScheduleChange(Input):
    """What to change; what is left out stays."""

    enabled: Optional[bool] = None
    name: Optional[str] = None


def _schedule(schedule: Schedule) -> Json:
    return Json(_plain(schedule), headers=etag(schedule.version))


def _plain(schedule: Schedule) -> Dict[str, Any]:
    recurrence = {**schedule.recurrence.__dict__, "missed": schedule.recurrence.missed.value}
    return {**schedule.to_dict(), "recurrence": recurrence}


@router.get("/jobs", response_model=PageOf[JobOut])
async def list_jobs(
    caller: Reader,
    part: PartOf50,
    status: Annotated[Optional[_Status], Query()] = None,
    queue: Annotated[Optional[str], Query(description="Only of this queue.")] = None,
    handler: Annotated[Optional[str], Query(description="Only with this handler.")] = None,
    schedule_id: Annotated[Optional[str], Query(description="Only made by this schedule.")] = None,
) -> Json:
    """List jobs, the newest first."""
    page = await caller.storage.jobs.list_jobs(
        status=status,
        queue=queue,
        handler=handler,
        schedule_id=schedule_id,
        **part.of(caller),
    )
    return Json(page.to_dict())


@router.post("/jobs", status_code=201, response_model=JobOut, responses=errors(409))
async def enqueue_job(
    caller: Writer, request: Request, body: NewJobIn, idempotency_key: IdempotencyKey = None
) -> Json:
    """Enqueue a job. With a known Idempotency-Key: the job of then, as it is now."""
    made = await caller.storage.jobs.enqueue_job(
        body.to_job(key_of_request(request)), tenant_id=caller.tenant_id
    )
    return versioned(await caller.storage.jobs.require(made.id, tenant_id=caller.tenant_id), 201)


@router.get("/jobs/counts", response_model=JobCountsOut)
async def count_jobs(caller: Reader) -> Json:
    """Count the jobs by status."""
    return Json({"counts": await caller.storage.jobs.counts(tenant_id=caller.tenant_id)})


@router.get("/queues", response_model=PageOf[QueueOut])
async def list_queues(caller: Reader) -> Json:
    """Say how each queue with scheduled or running jobs stands."""
    found = await caller.storage.jobs.queue_statistics(tenant_id=caller.tenant_id)
    return Json({"items": [one.to_dict() for one in found], "next_cursor": None})


@router.get("/dead-letters", response_model=PageOf[JobOut])
async def list_dead_letters(
    caller: Reader,
    part: PartOf50,
    queue: Annotated[Optional[str], Query(description="Only of this queue.")] = None,
    handler: Annotated[Optional[str], Query(description="Only with this handler.")] = None,
) -> Json:
    """List the jobs that failed for good, the newest first."""
    page = await caller.storage.jobs.list_jobs(
        status="failed", queue=queue, handler=handler, **part.of(caller)
    )
    return Json(page.to_dict())


@router.post("/dead-letters/redrive", response_model=CountOut)
async def redrive_dead_letters(
    caller: Writer,
    request: Request,
    body: Annotated[Redrive, Body(default_factory=Redrive)],
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Run jobs that failed for good again, and say how many."""

    async def effect(stores: Any) -> Reply:
        count = await stores.jobs.redrive_dead(
            queue=body.queue, handler=body.handler, limit=body.limit, tenant_id=caller.tenant_id
        )
        return Reply({"count": count})

    return await once(request, caller, effect, body.model_dump())


@router.get("/jobs/{job_id:segment}", response_model=JobOut, responses=errors(304, 404))
async def get_job(
    caller: Reader, request: Request, job_id: _JobId, if_none_match: IfNoneMatch = None
) -> Response:
    """Get a job."""
    found = await caller.storage.jobs.get(job_id, tenant_id=caller.tenant_id)
    if found is None:
        raise JobNotFoundError(job_id)
    return unless_known(request, found)


@router.post("/jobs/{job_id:segment}/cancel", response_model=JobOut, responses=errors(404, 409, 412))
async def cancel_job(
    caller: Writer,
    request: Request,
    job_id: _JobId,
    body: Annotated[Reason, Body(default_factory=Reason)],
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Cancel a job. One that runs stays running until its worker has stopped it."""

    async def effect(stores: Any) -> Reply:
        job = await stores.jobs.cancel(
            job_id,
            reason=body.reason,
            expected_version=expected_version(if_match),
            tenant_id=caller.tenant_id,
        )
        return Reply(job.to_dict(), 200, etag(job.version))

    return await once(request, caller, effect, body.model_dump())


@router.post("/jobs/{job_id:segment}/retry", response_model=JobOut, responses=errors(404, 409))
async def retry_job(
    caller: Writer, request: Request, job_id: _JobId, idempotency_key: IdempotencyKey = None
) -> Json:
    """Run a job that has ended again, with all its attempts before it."""

    async def effect(stores: Any) -> Reply:
        job = await stores.jobs.rerun(job_id, tenant_id=caller.tenant_id)
        return Reply(job.to_dict(), 200, etag(job.version))

    return await once(request, caller, effect, None)


@router.get("/jobs/{job_id:segment}/runs", response_model=PageOf[JobRunOut], responses=errors(404))
async def job_runs(caller: Reader, job_id: _JobId, part: PartOf100) -> Json:
    """List the runs of a job, the newest first."""
    page = await caller.storage.jobs.list_runs(job_id, **part.of(caller))
    return Json(page.to_dict())


@router.get("/jobs/{job_id:segment}/logs", response_model=PageOf[JobLogOut], responses=errors(404))
async def job_logs(
    caller: Reader,
    part: PartOf100,
    job_id: _JobId,
    run: Annotated[Optional[int], Query(ge=1, lt=2**31, description="Only of this run.")] = None,
) -> Json:
    """List the lines that the runs of a job wrote, the oldest first."""
    page = await caller.storage.jobs.list_logs(job_id, run=run, **part.of(caller))
    return Json(page.to_dict())


@router.get("/jobs/{job_id:segment}/events", response_model=PageOf[JobEventOut], responses=errors(404))
async def job_events(caller: Reader, job_id: _JobId, part: PartOf100) -> Json:
    """List what happened to a job, the oldest first."""
    page = await caller.storage.jobs.list_events(job_id, **part.of(caller))
    return Json(page.to_dict())


@router.get("/schedules", response_model=PageOf[ScheduleOut])
async def list_schedules(caller: Reader, part: PartOf100) -> Json:
    """List schedules by name."""
    page = await caller.storage.jobs.list_schedules(**part.of(caller))
    items: List[Any] = [_plain(one) for one in page]
    return Json({"items": items, "next_cursor": page.next_cursor})


@router.post("/schedules", status_code=201, response_model=ScheduleOut, responses=errors(409))
async def create_schedule(
    caller: Writer, request: Request, body: NewScheduleIn, idempotency_key: IdempotencyKey = None
) -> Json:
    """Have a job made by itself: by cron, at intervals, or once."""

    async def effect(stores: Any) -> Reply:
        made = await stores.jobs.create_schedule(
            body.name,
            Recurrence(**body.recurrence.model_dump()),
            body.job.to_job(),
            enabled=body.enabled,
            tenant_id=caller.tenant_id,
        )
        return Reply(_plain(made), 201, etag(made.version))

    return await once(request, caller, effect, body.model_dump())


@router.get("/schedules/{schedule_id:segment}", response_model=ScheduleOut, responses=errors(404))
async def get_schedule(caller: Reader, schedule_id: _ScheduleId) -> Json:
    """Get a schedule."""
    found = await caller.storage.jobs.get_schedule(schedule_id, tenant_id=caller.tenant_id)
    if found is None:
        raise ScheduleNotFoundError(schedule_id)
    return _schedule(found)


@router.patch("/schedules/{schedule_id:segment}", response_model=ScheduleOut, responses=errors(404, 409, 412))
async def change_schedule(
    caller: Writer, schedule_id: _ScheduleId, body: ScheduleChange, if_match: IfMatch = None
) -> Json:
    """Switch a schedule on or off, or rename it."""
    given = {name: value for name, value in body.model_dump().items() if value is not None}
    changed = await caller.storage.jobs.update_schedule(
        schedule_id, **given, expected_version=expected_version(if_match), tenant_id=caller.tenant_id
    )
    return _schedule(changed)


@router.delete(
    "/schedules/{schedule_id:segment}", status_code=204, response_model=None, responses=errors(404)
)
async def delete_schedule(caller: Writer, schedule_id: _ScheduleId) -> Response:
    """Remove a schedule; the jobs that it made stay."""
    if not await caller.storage.jobs.delete_schedule(schedule_id, tenant_id=caller.tenant_id):
        raise ScheduleNotFoundError(schedule_id)
    return Response(status_code=204)

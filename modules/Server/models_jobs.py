"""What answers about jobs, schedules and the outbox look like, for the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, Optional

from pydantic import BaseModel, Field

__all__ = [
    "JobCountsOut",
    "JobEventOut",
    "JobLogOut",
    "JobOut",
    "JobRunOut",
    "OutboxOut",
    "QueueOut",
    "ScheduleOut",
]


class JobOut(BaseModel):
    """A job; its ETag is its version."""

    id: str
    name: Optional[str]
    handler: str
    queue: str
    status: str = Field(examples=["scheduled"])
    priority: int
    payload: Any
    run_at: datetime
    attempts: int
    runs: int
    version: int
    retry: Dict[str, Any]
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


class JobRunOut(BaseModel):
    """One run of a job."""

    job_id: str
    number: int
    attempt: int
    status: str
    worker: Optional[str]
    started_at: datetime
    finished_at: Optional[datetime]
    error: Optional[Dict[str, Any]]
    result: Any


class JobLogOut(BaseModel):
    """A line that a run wrote."""

    id: str
    job_id: str
    run: int
    level: str
    message: str
    created_at: datetime


class JobEventOut(BaseModel):
    """Something that happened to a job."""

    job_id: str
    type: str
    data: Dict[str, Any]
    created_at: datetime


class JobCountsOut(BaseModel):
    """How many jobs of each status there are."""

    counts: Dict[str, int]


class QueueOut(BaseModel):
    """How a queue stands."""

    queue: str
    scheduled: int
    due: int
    running: int
    oldest_due_at: Optional[datetime]


class ScheduleOut(BaseModel):
    """When jobs are made by themselves; its ETag is its version."""

    tenant_id: str
    id: str
    name: str
    enabled: bool
    recurrence: Dict[str, Any]
    job: Dict[str, Any]
    next_at: Optional[datetime]
    last_at: Optional[datetime]
    version: int
    created_at: datetime
    updated_at: datetime


class OutboxOut(BaseModel):
    """What waits, by target."""

    targets: Dict[str, Dict[str, Any]]

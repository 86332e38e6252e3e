"""Tables of the job store, and the table of moves between the statuses of a job.

    draft -> scheduled                  scheduled -> draft, running
    running -> succeeded, failed        running -> scheduled (another attempt, given back, or rescued)
    draft, scheduled, running -> cancelled
    succeeded, failed, cancelled -> scheduled (rerun, re-drive)

Every table leads with `tenant_id`. Some indexes do not: a worker serves all tenants, so it looks for due jobs by queue
(`ix_atlas_jobs_claim`) and for expired leases by time (`ix_atlas_jobs_leases`); a scheduler looks for due schedules, and
upkeep counts dead jobs and forgets results. What belongs to no tenant (queues' limits,
workers) stands under the empty tenant, which no caller can be.

A run under way stands in its job's row (`fence` is its number) and gets a row of its own when it ends: three versions of
the job's row and one insert for a job that succeeds at once. Results and errors stand with the runs, so that the job's row
stays narrow.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, FrozenSet, List, Optional

from sqlalchemy import BigInteger, Double, Index, Integer, PrimaryKeyConstraint, SmallInteger, text
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import FreeText, JsonValue, UtcDateTime
from modules.storage.schema import Base, Identifier

__all__ = [
    "EVERY_TENANT",
    "FINAL_STATUSES",
    "JOB_STATUSES",
    "RUN_STATUSES",
    "TABLES",
    "TRANSITIONS",
    "JobAssignmentRow",
    "JobEventRow",
    "JobKeyRow",
    "JobLogRow",
    "JobQueueRow",
    "JobRow",
    "JobRunRow",
    "JobScheduleRow",
    "JobTaskRow",
    "JobWorkerRow",
    "may_become",
]

#: The tenant of what belongs to none; no caller's tenant is empty.
EVERY_TENANT = ""

JOB_STATUSES = ("draft", "scheduled", "running", "succeeded", "failed", "cancelled")
FINAL_STATUSES = ("succeeded", "failed", "cancelled")
#: How a run ended; one under way is "running". "released": given back unfinished; "lost": its lease ran out.
RUN_STATUSES = ("running", "succeeded", "failed", "cancelled", "released", "lost")

#: Which statuses each status may become.
TRANSITIONS: Dict[str, FrozenSet[str]] = {
    "draft": frozenset(("scheduled", "cancelled")),
    "scheduled": frozenset(("draft", "running", "cancelled")),
    "running": frozenset(("succeeded", "failed", "cancelled", "scheduled")),
    "succeeded": frozenset(("scheduled",)),
    "failed": frozenset(("scheduled",)),
    "cancelled": frozenset(("scheduled",)),
}


def may_become(status: str, wanted: str) -> bool:
    """Return whether a job of `status` may become `wanted`."""
    return wanted in TRANSITIONS[status]


_CLAIMABLE = text("status = 'scheduled' AND parked = 0")
_PARKED = text("parked = 1")
_RUNNING = text("status = 'running'")
_RUNNING_KEYED = text("status = 'running' AND concurrency_key IS NOT NULL")
# Always true, and only in statements that list by status: while a table is empty the planner finds this index as good as the
# key for finding one job, and a worker would keep that plan.
_LISTED = text("version > 0")
_DEAD = text("status = 'failed'")
_HAS_NAME = text("name IS NOT NULL")
_NAMED = text("name IS NOT NULL AND status IN ('draft', 'scheduled', 'running')")


def _partial(name: str, *columns: str, where: Any, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, postgresql_where=where, sqlite_where=where)


class JobRow(Base):
    """A job. `parked`: due, but kept out of claims until a running job of its concurrency key ends."""

    __tablename__ = "atlas_jobs"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        _partial("ix_atlas_jobs_claim", "queue", "priority", "run_at", where=_CLAIMABLE),
        _partial("ix_atlas_jobs_claim_tenant", "tenant_id", "queue", "priority", "run_at", where=_CLAIMABLE),
        _partial("ix_atlas_jobs_leases", "lease_until", where=_RUNNING),
        _partial("ix_atlas_jobs_parked", "tenant_id", "concurrency_key", "priority", "run_at", where=_PARKED),
        _partial("ix_atlas_jobs_running_key", "tenant_id", "concurrency_key", where=_RUNNING_KEYED),
        _partial("ix_atlas_jobs_dead", "finished_at", where=_DEAD),
        _partial("ix_atlas_jobs_names", "tenant_id", "name", "id", where=_HAS_NAME),
        _partial("uq_atlas_jobs_name", "tenant_id", "name", where=_NAMED, unique=True),
        _partial("ix_atlas_jobs_status", "tenant_id", "status", "id", where=_LISTED),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    name: Mapped[Optional[str]] = mapped_column(Identifier)
    handler: Mapped[str] = mapped_column(Identifier, nullable=False)
    queue: Mapped[str] = mapped_column(Identifier, nullable=False)
    status: Mapped[str] = mapped_column(Identifier, nullable=False)
    priority: Mapped[int] = mapped_column(SmallInteger, nullable=False)
    parked: Mapped[int] = mapped_column(SmallInteger, nullable=False)
    attempts: Mapped[int] = mapped_column(Integer, nullable=False)
    max_attempts: Mapped[int] = mapped_column(Integer, nullable=False)
    fence: Mapped[int] = mapped_column(Integer, nullable=False)
    version: Mapped[int] = mapped_column(Integer, nullable=False)
    cancel_requested: Mapped[int] = mapped_column(SmallInteger, nullable=False)
    concurrency_limit: Mapped[Optional[int]] = mapped_column(Integer)
    run_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    started_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    finished_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    lease_until: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    worker: Mapped[Optional[str]] = mapped_column(Identifier)
    concurrency_key: Mapped[Optional[str]] = mapped_column(Identifier)
    schedule_id: Mapped[Optional[str]] = mapped_column(Identifier)
    scheduled_for: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    reason: Mapped[Optional[str]] = mapped_column(FreeText)
    options: Mapped[Any] = mapped_column(JsonValue, nullable=True)
    progress: Mapped[Any] = mapped_column(JsonValue, nullable=True)
    payload: Mapped[Any] = mapped_column(JsonValue, nullable=False)


class JobRunRow(Base):
    """A run (attempt) that has ended; `number` is the fence of its claim."""

    __tablename__ = "atlas_job_runs"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "job_id", "number"),
        _partial("ix_atlas_job_runs_results", "result_until", where=text("result_until IS NOT NULL")),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    job_id: Mapped[str] = mapped_column(Identifier)
    number: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer, nullable=False)
    status: Mapped[str] = mapped_column(Identifier, nullable=False)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    finished_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    result_until: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    worker: Mapped[Optional[str]] = mapped_column(Identifier)
    error: Mapped[Any] = mapped_column(JsonValue, nullable=True)
    result: Mapped[Any] = mapped_column(JsonValue, nullable=True)


class JobLogRow(Base):
    """A line that a run wrote."""

    __tablename__ = "atlas_job_logs"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "job_id", "id"),)

    tenant_id: Mapped[str] = mapped_column(Identifier)
    job_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    run: Mapped[int] = mapped_column(Integer, nullable=False)
    level: Mapped[str] = mapped_column(Identifier, nullable=False)
    message: Mapped[str] = mapped_column(FreeText, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class JobEventRow(Base):
    """What was done to a job other than running it; its creation and its runs are read from their own rows."""

    __tablename__ = "atlas_job_events"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "job_id", "id"),)

    tenant_id: Mapped[str] = mapped_column(Identifier)
    job_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    #: Where it stands among the runs, should their clock not tell: SQLite's has steps of 1 ms.
    place: Mapped[str] = mapped_column(Identifier, nullable=False)
    type: Mapped[str] = mapped_column(Identifier, nullable=False)
    data: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class JobKeyRow(Base):
    """A key that allows one job: `kind` "idempotency" (one effect per key) or "unique" (while not final, or in a window)."""

    __tablename__ = "atlas_job_keys"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "kind", "key"),
        Index("ix_atlas_job_keys_job", "tenant_id", "job_id"),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    kind: Mapped[str] = mapped_column(Identifier)
    key: Mapped[str] = mapped_column(Identifier)
    job_id: Mapped[str] = mapped_column(Identifier, nullable=False)
    digest: Mapped[str] = mapped_column(Identifier, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    until: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)


class JobTaskRow(Base):
    """A link between a job and a task; neither needs the other's row."""

    __tablename__ = "atlas_job_tasks"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "job_id", "task_id"),
        Index("ix_atlas_job_tasks_task", "tenant_id", "task_id", "job_id"),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    job_id: Mapped[str] = mapped_column(Identifier)
    task_id: Mapped[str] = mapped_column(Identifier)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class JobAssignmentRow(Base):
    """Who answers for a job."""

    __tablename__ = "atlas_job_assignments"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "job_id", "assignee"),
        Index("ix_atlas_job_assignments_assignee", "tenant_id", "assignee", "status", "job_id"),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    job_id: Mapped[str] = mapped_column(Identifier)
    assignee: Mapped[str] = mapped_column(Identifier)
    status: Mapped[str] = mapped_column(Identifier, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class JobScheduleRow(Base):
    """When jobs of a kind are to be made: `next_at` is the next nominal time, None when it is over or switched off."""

    __tablename__ = "atlas_job_schedules"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        Index("uq_atlas_job_schedules_name", "tenant_id", "name", unique=True),
        _partial("ix_atlas_job_schedules_due", "next_at", where=text("next_at IS NOT NULL AND enabled = 1")),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    name: Mapped[str] = mapped_column(Identifier, nullable=False)
    enabled: Mapped[int] = mapped_column(SmallInteger, nullable=False)
    version: Mapped[int] = mapped_column(Integer, nullable=False)
    recurrence: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    job: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    next_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    last_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class JobQueueRow(Base):
    """What limits a queue, over all tenants: a pause, or a rate (a bucket of `tokens` that fills again)."""

    __tablename__ = "atlas_job_queues"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "name"),)

    tenant_id: Mapped[str] = mapped_column(Identifier)
    name: Mapped[str] = mapped_column(Identifier)
    paused: Mapped[int] = mapped_column(SmallInteger, nullable=False)
    rate: Mapped[Optional[float]] = mapped_column(Double)
    burst: Mapped[Optional[float]] = mapped_column(Double)
    tokens: Mapped[Optional[float]] = mapped_column(Double)
    filled_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class JobWorkerRow(Base):
    """A worker process, as it last told of itself."""

    __tablename__ = "atlas_job_workers"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "id"),)

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    queues: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    info: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    running: Mapped[int] = mapped_column(BigInteger, nullable=False)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


#: What the migration creates.
TABLES: List[Any] = [
    row.__table__
    for row in (
        JobRow,
        JobRunRow,
        JobLogRow,
        JobEventRow,
        JobKeyRow,
        JobTaskRow,
        JobAssignmentRow,
        JobScheduleRow,
        JobQueueRow,
        JobWorkerRow,
    )
]

"""How jobs and schedules stand in the database's JSON columns, and how rows become records."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import datetime
from typing import Any, Dict, Optional, Tuple

from modules.job_store.limits import decode_options, job_fields
from modules.job_store.records import Job, NewJob, RetryPolicy, Schedule
from modules.job_store.schedules import Recurrence
from modules.storage.statements import Row
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import JsonText, encode_json

__all__ = ["JOB_NAMES", "decode_job", "decode_schedule", "encode_recurrence", "encode_template"]

#: What is read of a job, in order.
JOB_NAMES = (
    "id", "name", "handler", "queue", "status", "priority", "payload", "run_at", "attempts", "fence", "version",
    "max_attempts", "options", "concurrency_key", "concurrency_limit", "parked", "progress", "reason", "cancel_requested",
    "worker", "lease_until", "started_at", "finished_at", "schedule_id", "scheduled_for", "created_at", "updated_at",
)  # fmt: skip


def decode_job(row: Row) -> Job:
    """Return the job of a row of `JOB_NAMES`."""
    (job_id, name, handler, queue, status, priority, payload, run_at, attempts, fence, version, max_attempts, options,
     key, limit, parked, progress, reason, cancel, worker, lease_until, started_at, finished_at, schedule_id,
     scheduled_for, created_at, updated_at) = row  # fmt: skip
    decoded = decode_options(options, max_attempts)
    return Job(
        job_id, name, handler, queue, status, priority, payload, run_at, attempts, fence, version, decoded.retry,
        decoded.timeout_s, key, limit, decoded.keep_result_s, bool(parked), progress, reason, bool(cancel), worker,
        lease_until, started_at, finished_at, schedule_id, scheduled_for, created_at, updated_at,
    )  # fmt: skip


# --- schedules ----------------------------------------------------------------------------------------------------

_TIMES = ("at", "start_at", "end_at")
_NOT_IN_A_TEMPLATE = ("name", "run_at", "delay_s", "draft", "idempotency_key")


def encode_recurrence(recurrence: Recurrence) -> JsonText:
    """Return the JSON text of a recurrence."""
    values = recurrence.to_dict()
    for name in _TIMES:
        values[name] = None if values[name] is None else values[name].isoformat()
    return encode_json(values, "recurrence")


def _decode_recurrence(values: Dict[str, Any]) -> Recurrence:
    return Recurrence.from_dict({**values, **{name: _instant(values.get(name)) for name in _TIMES}})


def _instant(text: Optional[str]) -> Optional[datetime]:
    return None if text is None else datetime.fromisoformat(text)


def encode_template(job: NewJob) -> JsonText:
    """Return the JSON text of what a schedule makes, checked.

    Raises:
        InvalidValueError: it has what each of its jobs must have anew: a name, a time or an idempotency key.
    """
    job_fields(job)
    plain = NewJob(job.handler)
    wrong = [name for name in _NOT_IN_A_TEMPLATE if getattr(job, name) != getattr(plain, name)]
    if wrong:
        raise InvalidValueError(
            f"the job of a schedule has no {', '.join(wrong)}: each of its jobs is a new one"
        )
    values = {
        item.name: getattr(job, item.name)
        for item in fields(NewJob)
        if getattr(job, item.name) != getattr(plain, item.name) or item.name == "handler"
    }
    if "retry" in values:
        values["retry"] = job.retry.to_dict()
    if "task_ids" in values:
        values["task_ids"] = list(job.task_ids)
    return encode_json(values, "job")


def _decode_template(values: Dict[str, Any]) -> NewJob:
    retry = values.get("retry")
    job = NewJob(**{**values, "retry": RetryPolicy(), "task_ids": tuple(values.get("task_ids", ()))})
    if retry is None:
        return job
    names: Tuple[str, ...] = tuple(retry["give_up_on"])
    retry_on = None if retry["retry_on"] is None else tuple(retry["retry_on"])
    return replace(job, retry=RetryPolicy(**{**retry, "retry_on": retry_on, "give_up_on": names}))


def decode_schedule(row: Row) -> Schedule:
    """Return the schedule of a row of `upkeep_statements.SCHEDULE_NAMES`."""
    (
        tenant_id,
        schedule_id,
        name,
        enabled,
        recurrence,
        job,
        next_at,
        last_at,
        version,
        created_at,
        updated_at,
    ) = row
    return Schedule(
        tenant_id, schedule_id, name, bool(enabled), _decode_recurrence(recurrence), _decode_template(job), next_at,
        last_at, version, created_at, updated_at,
    )  # fmt: skip

"""Changing jobs by hand: update, schedule, cancel, run again, delete, purge. Every move is checked against `TRANSITIONS`."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import orjson

from modules.job_store import lifecycle_statements as sql
from modules.job_store.base import CANCEL_CHANNEL, JobRoom
from modules.job_store.encoding import decode_job
from modules.job_store.errors import JobNameTakenError, JobNotFoundError, JobTransitionError
from modules.job_store.limits import (
    Options,
    check_expected,
    check_integer,
    check_priority,
    check_retry,
    check_seconds,
    encode_options,
)
from modules.job_store.models import FINAL_STATUSES, may_become
from modules.job_store.reading import list_jobs
from modules.job_store.reading_statements import LOCK
from modules.job_store.records import Job, RetryPolicy
from modules.job_store.settling import unpark
from modules.storage.operations import Transaction, after_commit, write
from modules.store_common.arguments import KEEP, check_optional_id, check_optional_text
from modules.store_common.clock import require_utc
from modules.store_common.errors import AlreadyExistsError, InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import JsonText, check_identifier, encode_json

__all__ = [
    "Lifecycle",
    "Moved",
    "When",
    "add_event",
    "change_job",
    "delete_job",
    "delete_jobs",
    "locked_job",
    "move_job",
]

_MAX_BULK = 1000


class Moved(NamedTuple):
    """A job after a change; queues in which there is something to claim."""

    job: Job
    queues: Tuple[str, ...]


class When(NamedTuple):
    """When a job is to be due: at an instant, in so many microseconds, or as before."""

    run_at: Optional[datetime]
    delay_us: Optional[int]


def _when(run_at: Optional[datetime], delay_s: Optional[float]) -> When:
    if run_at is not None and delay_s is not None:
        raise InvalidValueError("give run_at or delay_s, not both")
    delay_us = None if delay_s is None else round(check_seconds(delay_s, "delay_s") * 1e6)
    return When(require_utc(run_at, "run_at"), delay_us)


async def locked_job(tx: Transaction, tenant_id: str, job_id: str, expected: Optional[int] = None) -> Job:
    """Return a job and hold it until the transaction ends.

    Raises:
        JobNotFoundError: there is none.
        ConcurrencyError: it has not the `expected` version.
    """
    row = await tx.first(LOCK, tenant_id=tenant_id, id=job_id)
    if row is None:
        raise JobNotFoundError(job_id)
    job = decode_job(row)
    check_expected("job", job, expected)
    return job


async def add_event(tx: Transaction, tenant_id: str, job_id: str, kind: str, data: Dict[str, Any]) -> None:
    """Note what was done to a job, in the same transaction."""
    encoded = encode_json(data, "the event")
    await tx.run(sql.ADD_EVENT, tenant_id=tenant_id, id=job_id, event_id=new_id(), type=kind, data=encoded)


async def _reread(tx: Transaction, tenant_id: str, job_id: str) -> Job:
    return decode_job(await tx.one(LOCK, tenant_id=tenant_id, id=job_id))


async def _let_next_in(tx: Transaction, tenant_id: str, job: Job) -> Tuple[str, ...]:
    """A job of a key that leaves the claims may have been the one let in: let in the next."""
    if job.concurrency_key is None or job.status != "scheduled" or job.waiting_for_key:
        return ()
    return await unpark(tx, [(tenant_id, job.concurrency_key)])


# --- operations ---------------------------------------------------------------------------------------------------


@write
async def change_job(
    tx: Transaction, tenant_id: str, job_id: str, changes: Dict[str, Any], when: When, expected: Optional[int]
) -> Moved:
    """Set fields of a draft or scheduled job."""
    job = await locked_job(tx, tenant_id, job_id, expected)
    if job.status not in ("draft", "scheduled"):
        raise JobTransitionError(
            job_id, job.status, "another job (only draft and scheduled jobs are changed)"
        )
    retry = changes.get("retry", job.retry)
    options = Options(retry, changes.get("timeout_s", job.timeout_s), job.keep_result_s)
    payload: JsonText = changes["payload"] if "payload" in changes else encode_json(job.payload, "payload")
    await tx.one(
        sql.CHANGE,
        tenant_id=tenant_id,
        id=job_id,
        name=changes.get("name", job.name),
        queue=changes.get("queue", job.queue),
        priority=changes.get("priority", job.priority),
        payload=payload,
        max_attempts=retry.max_attempts,
        options=encode_options(options),
        run_at=when.run_at,
        delay_us=when.delay_us,
    )
    fields = sorted(changes) + (["run_at"] if when != (None, None) else [])
    await add_event(tx, tenant_id, job_id, "updated", {"fields": fields})
    queues = await _let_next_in(tx, tenant_id, job)
    changed = await _reread(tx, tenant_id, job_id)
    return Moved(changed, (*queues, changed.queue) if changed.status == "scheduled" else queues)


@write
async def move_job(
    tx: Transaction,
    tenant_id: str,
    job_id: str,
    wanted: str,
    when: When,
    reason: Optional[str],
    expected: Optional[int],
    only_from: Tuple[str, ...],
) -> Moved:
    """Move a job that is not running to draft, scheduled or cancelled; ask the worker of a running one to stop."""
    job = await locked_job(tx, tenant_id, job_id, expected)
    if not may_become(job.status, wanted) or (only_from and job.status not in only_from):
        raise JobTransitionError(job_id, job.status, wanted)
    if job.status == "running":
        await tx.run(sql.CANCEL_RUNNING, tenant_id=tenant_id, id=job_id, reason=reason)
        await add_event(tx, tenant_id, job_id, "cancel_requested", {"reason": reason})
        return Moved(await _reread(tx, tenant_id, job_id), ())
    again = job.status in FINAL_STATUSES
    if again and when == (None, None):
        when = When(None, 0)
    await tx.one(
        sql.MOVE,
        tenant_id=tenant_id,
        id=job_id,
        status=wanted,
        reason=reason,
        attempts=0 if again else None,
        run_at=when.run_at,
        delay_us=when.delay_us,
    )
    kind = (
        "rerun" if again else {"scheduled": "scheduled", "draft": "drafted", "cancelled": "cancelled"}[wanted]
    )
    await add_event(tx, tenant_id, job_id, kind, {"from": job.status, "reason": reason})
    queues = await _let_next_in(tx, tenant_id, job)
    return Moved(
        await _reread(tx, tenant_id, job_id), (*queues, job.queue) if wanted == "scheduled" else queues
    )


@write
async def delete_job(
    tx: Transaction, tenant_id: str, job_id: str, expected: Optional[int]
) -> Tuple[bool, Tuple[str, ...]]:
    """Remove a job that is not running, with everything of it; False when there is none."""
    row = await tx.first(LOCK, tenant_id=tenant_id, id=job_id)
    if row is None:
        return False, ()
    job = await locked_job(tx, tenant_id, job_id, expected)
    if job.status == "running":
        raise JobTransitionError(job_id, job.status, "deleted: cancel it first")
    await delete_jobs(tx, tenant_id, [job_id])
    return True, await _let_next_in(tx, tenant_id, job)


async def delete_jobs(tx: Transaction, tenant_id: str, job_ids: Sequence[str]) -> int:
    """Remove jobs with everything of theirs; return how many there were."""
    ids: Any = list(job_ids) if tx.dialect == "postgresql" else orjson.dumps(list(job_ids)).decode()
    count = 0
    for statement in sql.DELETE_ALL_OF:
        count = await tx.run(statement, tenant_id=tenant_id, ids=ids)
    return count


# --- the room -----------------------------------------------------------------------------------------------------


class Lifecycle(JobRoom):
    """Changes jobs."""

    async def update(
        self,
        job_id: str,
        *,
        name: Optional[str] = KEEP,
        queue: str = KEEP,
        priority: int = KEEP,
        payload: Any = KEEP,
        retry: RetryPolicy = KEEP,
        timeout_s: Optional[float] = KEEP,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> Job:
        """Change fields of a draft or scheduled job; what is not given stays.

        Args:
            job_id: Which job.
            name: None takes it away.
            queue: Where it waits.
            priority: -100 to 100.
            payload: JSON.
            retry: When it is tried again.
            timeout_s: Of one run; None: no limit.
            expected_version: Change it only if it has this version.
            tenant_id: Whose job.

        Raises:
            JobNotFoundError: there is none.
            JobTransitionError: it is running or final.
            ConcurrencyError: it has another version; nothing was changed.
            JobNameTakenError: another job has the name.
        """
        given = {
            "name": name,
            "queue": queue,
            "priority": priority,
            "payload": payload,
            "retry": retry,
            "timeout_s": timeout_s,
        }
        changes = {field: value for field, value in given.items() if value is not KEEP}
        if not changes:
            raise InvalidValueError("give at least one field to change")
        check_optional_id(changes.get("name"), "name")
        if "queue" in changes:
            check_identifier(queue, "queue")
        if "priority" in changes:
            check_priority(priority)
        if "payload" in changes:
            changes["payload"] = encode_json(payload, "payload")
        if "retry" in changes:
            check_retry(retry)
        if changes.get("timeout_s") is not None:
            check_seconds(timeout_s, "timeout_s", least=0.001)
        return await self._change(job_id, changes, When(None, None), expected_version, tenant_id)

    async def reschedule(
        self,
        job_id: str,
        *,
        run_at: Optional[datetime] = None,
        delay_s: Optional[float] = None,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> Job:
        """Have a draft or scheduled job due at `run_at`, or `delay_s` seconds from now.

        Raises:
            JobNotFoundError, JobTransitionError, ConcurrencyError: as `update`.
        """
        when = _when(run_at, delay_s)
        if when == (None, None):
            raise InvalidValueError("give run_at or delay_s")
        return await self._change(job_id, {}, when, expected_version, tenant_id)

    async def schedule(
        self,
        job_id: str,
        *,
        run_at: Optional[datetime] = None,
        delay_s: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> Job:
        """Let a draft run: at `run_at`, after `delay_s`, or when its own time comes.

        Raises:
            JobNotFoundError: there is none.
            JobTransitionError: it is no draft.
        """
        return await self._move(
            job_id, "scheduled", _when(run_at, delay_s), None, None, ("draft",), tenant_id
        )

    async def to_draft(self, job_id: str, *, tenant_id: Optional[str] = None) -> Job:
        """Take a scheduled job out of the queue without losing it; `schedule` puts it back."""
        return await self._move(job_id, "draft", When(None, None), None, None, ("scheduled",), tenant_id)

    async def cancel(
        self,
        job_id: str,
        *,
        reason: Optional[str] = None,
        expected_version: Optional[int] = None,
        tenant_id: Optional[str] = None,
    ) -> Job:
        """Cancel a job. One that runs stays running until its worker has stopped it: its heartbeat tells.

        Returns:
            The job: cancelled, or running with `cancel_requested`.

        Raises:
            JobNotFoundError: there is none.
            JobTransitionError: it is final.
        """
        check_optional_text(reason, "reason")
        job = await self._move(job_id, "cancelled", When(None, None), reason, expected_version, (), tenant_id)
        if job.status == "running" and self._wake is not None:
            # its worker asks at once, and not with its next heartbeat
            after_commit(self._executor, partial(self._wake, CANCEL_CHANNEL))
        return job

    async def rerun(
        self,
        job_id: str,
        *,
        run_at: Optional[datetime] = None,
        delay_s: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> Job:
        """Run a final job again, with all its attempts before it; the runs it had stay. Re-drives a dead job, too.

        Raises:
            JobNotFoundError: there is none.
            JobTransitionError: it is not final.
            JobNameTakenError: another job has its name by now.
        """
        when = _when(run_at, delay_s)
        return await self._move(job_id, "scheduled", when, None, None, FINAL_STATUSES, tenant_id)

    async def redrive_dead(
        self,
        *,
        queue: Optional[str] = None,
        handler: Optional[str] = None,
        limit: int = 1000,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Run failed jobs again, the newest first; return how many. One whose name is taken is left.

        Args:
            queue: Only those of this queue.
            handler: Only those of this handler.
            limit: At most so many, 1 to 1,000.
            tenant_id: Whose jobs.
        """
        tenant_id = self._tenant(tenant_id)
        check_integer(limit, "limit", 1, _MAX_BULK)
        filters = {
            "queue": check_optional_id(queue, "queue"),
            "handler": check_optional_id(handler, "handler"),
            "schedule_id": None,
        }
        dead: List[Job] = await self._executor.run(list_jobs, tenant_id, "failed", filters, "~", limit)
        count = 0
        for job in dead:
            try:
                await self._move(job.id, "scheduled", When(None, None), None, None, ("failed",), tenant_id)
            except (JobTransitionError, JobNotFoundError, JobNameTakenError):
                # somebody else was first
                continue
            count += 1
        return count

    async def delete(
        self, job_id: str, *, expected_version: Optional[int] = None, tenant_id: Optional[str] = None
    ) -> bool:
        """Remove a job with its runs, log lines, events, keys and links; return whether it was there.

        Raises:
            JobTransitionError: it is running; cancel it first.
            ConcurrencyError: it has another version.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        found, queues = await self._executor.run(delete_job, tenant_id, job_id, expected_version)
        self._announce(queues)
        return found

    async def _change(
        self,
        job_id: str,
        changes: Dict[str, Any],
        when: When,
        expected: Optional[int],
        tenant_id: Optional[str],
    ) -> Job:
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        _check_version(expected)
        try:
            moved = await self._executor.run(change_job, tenant_id, job_id, changes, when, expected)
        except AlreadyExistsError as exc:
            raise JobNameTakenError(changes.get("name")) from exc
        self._announce(moved.queues)
        return moved.job

    async def _move(
        self,
        job_id: str,
        wanted: str,
        when: When,
        reason: Optional[str],
        expected: Optional[int],
        only_from: Tuple[str, ...],
        tenant_id: Optional[str],
    ) -> Job:
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        _check_version(expected)
        try:
            moved = await self._executor.run(
                move_job, tenant_id, job_id, wanted, when, reason, expected, only_from
            )
        except AlreadyExistsError as exc:
            raise JobNameTakenError() from exc
        self._announce(moved.queues)
        return moved.job


def _check_version(expected: Optional[int]) -> None:
    if expected is not None:
        check_integer(expected, "expected_version", 1, 2**31 - 1)

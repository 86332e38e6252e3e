"""Reading: jobs, runs, log lines, events, counts, what is due next."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Dict, List, Optional

from modules.job_store import reading_statements as sql
from modules.job_store.base import JobRoom
from modules.job_store.encoding import decode_job
from modules.job_store.errors import JobNotFoundError
from modules.job_store.models import JOB_STATUSES
from modules.job_store.records import Job, JobEvent, JobLog, JobRun, NextDue, Page, QueueStatistics, page_of
from modules.storage.operations import Transaction, read
from modules.storage.statements import Row
from modules.store_common.arguments import check_limit, check_optional_id
from modules.store_common.clock import from_microseconds, to_microseconds
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier

__all__ = [
    "Reading",
    "count_jobs",
    "get_by_name",
    "get_job",
    "list_events",
    "list_jobs",
    "list_logs",
    "list_runs",
    "next_due",
    "queue_statistics",
]

# After every id of ours: they are hexadecimal digits and hyphens.
_LAST_ID = "~"
_MOST_RUNS = 2**31 - 1
_ABOVE_EVERY_PRIORITY = 32_767
_BEGINNING = datetime(1970, 1, 1, tzinfo=timezone.utc)


@read
async def get_job(tx: Transaction, tenant_id: str, job_id: str) -> Optional[Job]:
    """Return a job."""
    row = await tx.first(sql.GET, tenant_id=tenant_id, id=job_id)
    return None if row is None else decode_job(row)


@read
async def get_by_name(tx: Transaction, tenant_id: str, name: str) -> Optional[Job]:
    """Return the newest job of a name."""
    row = await tx.first(sql.BY_NAME, tenant_id=tenant_id, name=name)
    return None if row is None else decode_job(row)


@read
async def list_jobs(
    tx: Transaction, tenant_id: str, status: Optional[str], filters: Dict[str, Any], before: str, limit: int
) -> List[Job]:
    """Return jobs, the newest first."""
    where: Dict[str, Any] = {"tenant_id": tenant_id, "before": before, "limit": limit}
    if any(value is not None for value in filters.values()):
        where.update(filters)
        statement = sql.LIST_FILTERED if status is None else sql.LIST_STATUS_FILTERED
    else:
        statement = sql.LIST if status is None else sql.LIST_STATUS
    if status is not None:
        where["status"] = status
    rows = await tx.all(statement, **where)
    return [decode_job(row) for row in rows]


@read(snapshot=True)
async def list_runs(
    tx: Transaction, tenant_id: str, job_id: str, before: int, limit: int
) -> Optional[List[JobRun]]:
    """Return runs of a job, the newest first; None without the job."""
    if await tx.first(sql.GET, tenant_id=tenant_id, id=job_id) is None:
        return None
    rows = await tx.all(sql.RUNS, tenant_id=tenant_id, id=job_id, number=before, limit=limit)
    return [JobRun(job_id, *row) for row in rows]


@read(snapshot=True)
async def list_logs(
    tx: Transaction, tenant_id: str, job_id: str, run: Optional[int], after: str, limit: int
) -> Optional[List[JobLog]]:
    """Return log lines of a job, the oldest first; None without the job."""
    if await tx.first(sql.GET, tenant_id=tenant_id, id=job_id) is None:
        return None
    rows = await tx.all(sql.LOGS, tenant_id=tenant_id, job_id=job_id, run=run, after=after, limit=limit)
    return [JobLog(row[0], job_id, *row[1:]) for row in rows]


@read(snapshot=True)
async def list_events(
    tx: Transaction, tenant_id: str, job_id: str, at: datetime, place: str, limit: int
) -> Optional[List[Row]]:
    """Return rows of what happened to a job, the oldest first; None without the job."""
    if await tx.first(sql.GET, tenant_id=tenant_id, id=job_id) is None:
        return None
    return await tx.all(sql.EVENTS, tenant_id=tenant_id, id=job_id, at=at, place=place, limit=limit)


@read
async def count_jobs(tx: Transaction, tenant_id: str) -> Dict[str, int]:
    """Return how many jobs of each status there are."""
    found: Dict[str, int] = dict(await tx.all(sql.COUNTS, tenant_id=tenant_id))
    return {status: int(found.get(status, 0)) for status in JOB_STATUSES}


@read(snapshot=True)
async def queue_statistics(tx: Transaction, tenant_id: str) -> List[QueueStatistics]:
    """Return how each queue stands."""
    running: Dict[str, int] = dict(await tx.all(sql.RUNNING_BY_QUEUE, tenant_id=tenant_id))
    found: Dict[str, QueueStatistics] = {}
    for queue, scheduled, due, oldest in await tx.all(sql.QUEUES, tenant_id=tenant_id):
        found[queue] = QueueStatistics(queue, scheduled, int(due), running.pop(queue, 0), oldest)
    for queue, count in running.items():
        found[queue] = QueueStatistics(queue, 0, 0, count, None)
    return [found[queue] for queue in sorted(found)]


@read(snapshot=True)
async def next_due(tx: Transaction, tenant_id: str, queue: Optional[str], limit: int) -> List[NextDue]:
    """Return the jobs of a tenant that are due first, found by descending through queues and priorities."""
    found: List[NextDue] = []
    name: Optional[str] = queue
    if queue is None:
        name = (await tx.one(sql.NEXT_QUEUE_TENANT, tenant_id=tenant_id, queue=""))[0]
    while name is not None:
        level: Optional[int] = _ABOVE_EVERY_PRIORITY
        while True:
            level = (await tx.one(sql.TOP_OF_QUEUE_TENANT, tenant_id=tenant_id, queue=name, priority=level))[
                0
            ]
            if level is None:
                break
            rows = await tx.all(sql.NEXT_DUE, tenant_id=tenant_id, queue=name, priority=level, limit=limit)
            found += [NextDue(*row) for row in rows]
        if queue is not None:
            break
        name = (await tx.one(sql.NEXT_QUEUE_TENANT, tenant_id=tenant_id, queue=name))[0]
    found.sort(key=lambda job: (job.run_at, -job.priority, job.job_id))
    return found[:limit]


class Reading(JobRoom):
    """Reads jobs."""

    async def get(self, job_id: str, *, tenant_id: Optional[str] = None) -> Optional[Job]:
        """Return the job, None when there is none."""
        tenant_id = self._tenant(tenant_id)
        return await self._executor.run(get_job, tenant_id, check_identifier(job_id, "job_id"))

    async def require(self, job_id: str, *, tenant_id: Optional[str] = None) -> Job:
        """Return the job.

        Raises:
            JobNotFoundError: there is none.
        """
        found = await self.get(job_id, tenant_id=tenant_id)
        if found is None:
            raise JobNotFoundError(job_id)
        return found

    async def get_by_name(self, name: str, *, tenant_id: Optional[str] = None) -> Optional[Job]:
        """Return the newest job of that name, None when there is none. At most one of a name is not final."""
        tenant_id = self._tenant(tenant_id)
        return await self._executor.run(get_by_name, tenant_id, check_identifier(name, "name"))

    async def list_jobs(
        self,
        *,
        status: Optional[str] = None,
        queue: Optional[str] = None,
        handler: Optional[str] = None,
        schedule_id: Optional[str] = None,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Job]:
        """Return a page of jobs, the newest first.

        Args:
            status: Only those of this status; "failed" are the dead ones.
            queue: Only those of this queue.
            handler: Only those of this handler.
            schedule_id: Only those that this schedule made.
            limit: Jobs of a page, 1 to 10,000.
            cursor: `next_cursor` of the page before.
            tenant_id: Whose jobs.
        """
        tenant_id = self._tenant(tenant_id)
        check_limit(limit)
        if status is not None and status not in JOB_STATUSES:
            raise InvalidValueError(f"a status is one of {', '.join(JOB_STATUSES)}")
        filters = {
            "queue": check_optional_id(queue, "queue"),
            "handler": check_optional_id(handler, "handler"),
            "schedule_id": check_optional_id(schedule_id, "schedule_id"),
        }
        scope = {"status": status, **filters}
        position = decode_cursor(cursor, tenant_id, "jobs", 1, filters=scope)
        before = _LAST_ID if position is None else check_identifier(position[0], "the cursor")
        jobs = await self._executor.run(list_jobs, tenant_id, status, filters, before, limit + 1)
        more = len(jobs) > limit
        jobs = jobs[:limit]
        return page_of(jobs, encode_cursor(tenant_id, "jobs", [jobs[-1].id], filters=scope) if more else None)

    async def list_runs(
        self, job_id: str, *, limit: int = 100, cursor: Optional[str] = None, tenant_id: Optional[str] = None
    ) -> Page[JobRun]:
        """Return a page of the runs of a job, the newest first: one under way, and all that ended.

        Raises:
            JobNotFoundError: there is no such job.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        check_limit(limit)
        position = decode_cursor(cursor, tenant_id, "runs", 1, filters=job_id)
        before = _MOST_RUNS if position is None else int(position[0])
        runs = await self._executor.run(list_runs, tenant_id, job_id, before, limit + 1)
        if runs is None:
            raise JobNotFoundError(job_id)
        more = len(runs) > limit
        runs = runs[:limit]
        return page_of(
            runs, encode_cursor(tenant_id, "runs", [runs[-1].number], filters=job_id) if more else None
        )

    async def list_logs(
        self,
        job_id: str,
        *,
        run: Optional[int] = None,
        limit: int = 1000,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[JobLog]:
        """Return a page of the log lines of a job's runs (of one: `run`), the oldest first.

        Raises:
            JobNotFoundError: there is no such job.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        check_limit(limit)
        if run is not None and (type(run) is not int or not 1 <= run <= _MOST_RUNS):
            raise InvalidValueError("run must be the number of a run, 1 or more")
        position = decode_cursor(cursor, tenant_id, "logs", 1, filters=[job_id, run])
        after = "" if position is None else check_identifier(position[0], "the cursor")
        lines = await self._executor.run(list_logs, tenant_id, job_id, run, after, limit + 1)
        if lines is None:
            raise JobNotFoundError(job_id)
        more = len(lines) > limit
        lines = lines[:limit]
        following = encode_cursor(tenant_id, "logs", [lines[-1].id], filters=[job_id, run]) if more else None
        return page_of(lines, following)

    async def list_events(
        self, job_id: str, *, limit: int = 100, cursor: Optional[str] = None, tenant_id: Optional[str] = None
    ) -> Page[JobEvent]:
        """Return a page of what happened to a job, the oldest first.

        Raises:
            JobNotFoundError: there is no such job.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        check_limit(limit)
        position = decode_cursor(cursor, tenant_id, "events", 2, filters=job_id) or [0, ""]
        at = _BEGINNING if not position[1] else from_microseconds(int(position[0]))
        rows = await self._executor.run(list_events, tenant_id, job_id, at, str(position[1]), limit + 1)
        if rows is None:
            raise JobNotFoundError(job_id)
        following = None
        if len(rows) > limit:
            last = rows[limit - 1]
            following = encode_cursor(
                tenant_id, "events", [to_microseconds(last[0]), last[1]], filters=job_id
            )
        return page_of([_event(job_id, row) for row in rows[:limit]], following)

    async def counts(self, *, tenant_id: Optional[str] = None) -> Dict[str, int]:
        """Return how many jobs of each status there are."""
        return await self._executor.run(count_jobs, self._tenant(tenant_id))

    async def queue_statistics(self, *, tenant_id: Optional[str] = None) -> List[QueueStatistics]:
        """Return for each queue with scheduled or running jobs how it stands, by name."""
        return await self._executor.run(queue_statistics, self._tenant(tenant_id))

    async def next_due(
        self, *, queue: Optional[str] = None, limit: int = 10, tenant_id: Optional[str] = None
    ) -> List[NextDue]:
        """Return the scheduled jobs that are due first (those due now too), over all queues or of one.

        Args:
            queue: Only this queue.
            limit: 1 to 1,000.
            tenant_id: Whose jobs.
        """
        tenant_id = self._tenant(tenant_id)
        check_limit(limit, most=1000)
        return await self._executor.run(next_due, tenant_id, check_optional_id(queue, "queue"), limit)


def _event(job_id: str, row: Row) -> JobEvent:
    at, _, kind, number, status, worker, data = row
    known = {"run": number, "status": status, "worker": worker}
    given = {name: value for name, value in known.items() if value is not None}
    return JobEvent(job_id, kind, {**given, **(data or {})}, at)

"""The job store in MongoDB: reading. What is due first is found as in SQL, by descending through queues and priorities."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional, Tuple

from modules.job_store import maintenance
from modules.job_store import reading as op
from modules.job_store.maintenance import COUNTED, MOST_QUEUES, SEEN_US, JobNumbers
from modules.job_store.models import JOB_STATUSES
from modules.job_store.mongo_documents import (
    EVENTS,
    FORMS,
    HIDDEN,
    JOBS,
    LOGS,
    WORKERS,
    find_job,
    instant,
    job_of,
    micros,
)
from modules.job_store.mongo_trail import run_of, runs_before, runs_since
from modules.job_store.records import Job, JobLog, JobRun, NextDue, QueueStatistics
from modules.storage.documents import Document, Documents
from modules.storage.statements import Row
from modules.store_common.values import decode_json, decode_text

__all__ = [
    "count_jobs",
    "get_by_name",
    "get_job",
    "job_numbers",
    "list_events",
    "list_jobs",
    "list_logs",
    "list_runs",
    "next_due",
    "queue_statistics",
]

# Runs that ended at the very instant a page begins with may have been given with the page before.
_SAME_INSTANT = 10
_FILTERS = {"queue": "q", "handler": "h", "schedule_id": "sid"}
_OPEN = {"st": "scheduled", "pk": 0}


@FORMS.form_of(op.get_job)
async def get_job(db: Documents, tenant_id: str, job_id: str) -> Optional[Job]:
    """Return a job."""
    found = await find_job(db, tenant_id, job_id)
    return None if found is None else job_of(found)


@FORMS.form_of(op.get_by_name)
async def get_by_name(db: Documents, tenant_id: str, name: str) -> Optional[Job]:
    """Return the newest job of a name."""
    where = {"t": tenant_id, "name": name, "st": {"$nin": HIDDEN}}
    found = await db.find_one(JOBS, where, sort=[("id", -1)])
    return None if found is None else job_of(found)


@FORMS.form_of(op.list_jobs)
async def list_jobs(
    db: Documents, tenant_id: str, status: Optional[str], filters: Dict[str, Any], before: str, limit: int
) -> List[Job]:
    """Return jobs, the newest first."""
    where: Dict[str, Any] = {"t": tenant_id, "id": {"$lt": before}}
    where["st"] = {"$nin": HIDDEN} if status is None else status
    for name, value in filters.items():
        if value is not None:
            where[_FILTERS[name]] = value
    return [job_of(found) for found in await db.find(JOBS, where, sort=[("id", -1)], limit=limit)]


@FORMS.form_of(op.list_runs)
async def list_runs(
    db: Documents, tenant_id: str, job_id: str, before: int, limit: int
) -> Optional[List[JobRun]]:
    """Return runs of a job, the newest first; None without the job."""
    job = await find_job(db, tenant_id, job_id)
    if job is None:
        return None
    return [run_of(job_id, run) for run in await runs_before(db, job, before, limit)]


@FORMS.form_of(op.list_logs)
async def list_logs(
    db: Documents, tenant_id: str, job_id: str, run: Optional[int], after: str, limit: int
) -> Optional[List[JobLog]]:
    """Return log lines of a job, the oldest first; None without the job."""
    if await find_job(db, tenant_id, job_id, ["f"]) is None:
        return None
    where: Dict[str, Any] = {"t": tenant_id, "j": job_id, "id": {"$gt": after}}
    if run is not None:
        where["n"] = run
    return [
        JobLog(line["id"], job_id, line["n"], line["lv"], decode_text(line["m"]), instant(line["ca"]))
        for line in await db.find(LOGS, where, sort=[("id", 1)], limit=limit)
    ]


@FORMS.form_of(op.list_events)
async def list_events(
    db: Documents, tenant_id: str, job_id: str, at: datetime, place: str, limit: int
) -> Optional[List[Row]]:
    """Return rows of what happened to a job, the oldest first; None without the job."""
    job = await find_job(db, tenant_id, job_id)
    if job is None:
        return None
    since = micros(at) or 0
    rows: List[Tuple[int, str, str, Any, Any, Any, Any]] = [
        (job["ca"], "0", "created", None, None, None, None)
    ]
    for run in await runs_since(db, job, since, limit + _SAME_INSTANT):
        number = f"{run['n']:010d}"
        rows.append((run["sa"], number + "a", "run_started", run["n"], None, run["w"], None))
        if run["fa"] is not None:
            rows.append((run["fa"], number + "z", "run_finished", run["n"], run["st"], run["w"], None))
    for event in await _events_since(db, job, since, limit + _SAME_INSTANT):
        rows.append((event["ca"], event["p"], event["ty"], None, None, None, decode_json(event["d"])))
    rows.sort(key=lambda row: row[:2])
    following = [row for row in rows if row[:2] > (since, place)]
    return [(instant(row[0]), *row[1:]) for row in following[:limit]]


async def _events_since(db: Documents, job: Document, since: int, limit: int) -> List[Document]:
    where = {"t": job["t"], "j": job["id"], "ca": {"$gte": since}}
    kept = await db.find(EVENTS, where, sort=[("ca", 1), ("p", 1)], limit=limit)
    found = {event["id"]: event for event in (*kept, *job["ev"]) if event["ca"] >= since}
    return list(found.values())


@FORMS.form_of(op.count_jobs)
async def count_jobs(db: Documents, tenant_id: str) -> Dict[str, int]:
    """Return how many jobs of each status there are."""
    return {status: await db.count(JOBS, {"t": tenant_id, "st": status}) for status in JOB_STATUSES}


async def _next_queue(db: Documents, where: Dict[str, Any], after: str) -> Optional[str]:
    found = await db.find_one(JOBS, {**where, "q": {"$gt": after}}, sort=[("q", 1)], fields=("q",))
    return None if found is None else str(found["q"])


@FORMS.form_of(op.queue_statistics)
async def queue_statistics(db: Documents, tenant_id: str) -> List[QueueStatistics]:
    """Return how each queue stands."""
    now = await db.now()
    names = set()
    for status in ("scheduled", "running"):
        for parked in (0, 1):
            name = await _next_queue(db, {"t": tenant_id, "st": status, "pk": parked}, "")
            while name is not None:
                names.add(name)
                name = await _next_queue(db, {"t": tenant_id, "st": status, "pk": parked}, name)
    return [await _statistics_of(db, tenant_id, name, now) for name in sorted(names)]


async def _statistics_of(db: Documents, tenant_id: str, queue: str, now: int) -> QueueStatistics:
    where = {"t": tenant_id, "st": "scheduled", "q": queue}
    scheduled = await db.count(JOBS, where)
    due = await db.count(JOBS, {**where, "ra": {"$lte": now}}) if scheduled else 0
    oldest = await db.find_one(JOBS, where, sort=[("ra", 1)], fields=("ra",)) if due else None
    running = await db.count(JOBS, {"t": tenant_id, "st": "running", "q": queue})
    return QueueStatistics(queue, scheduled, due, running, None if oldest is None else instant(oldest["ra"]))


@FORMS.form_of(op.next_due)
async def next_due(db: Documents, tenant_id: str, queue: Optional[str], limit: int) -> List[NextDue]:
    """Return the jobs of a tenant that are due first."""
    found: List[Document] = []
    where: Dict[str, Any] = {"t": tenant_id, **_OPEN}
    name = queue if queue is not None else await _next_queue(db, where, "")
    while name is not None:
        found += await db.find(
            JOBS,
            {**where, "q": name},
            sort=[("ra", 1)],
            limit=limit,
            fields=("id", "name", "h", "q", "pr", "ra"),
        )
        name = None if queue is not None else await _next_queue(db, where, name)
    found.sort(key=lambda job: (job["ra"], -job["pr"], job["id"]))
    return [
        NextDue(job["id"], job["name"], job["h"], job["q"], job["pr"], instant(job["ra"]))
        for job in found[:limit]
    ]


@FORMS.form_of(maintenance.job_numbers)
async def job_numbers(db: Documents) -> JobNumbers:
    """Return how the job store stands."""
    backlog = await db.count(JOBS, dict(_OPEN), limit=COUNTED)
    running = await db.count(JOBS, {"lu": {"$gt": 0}}, limit=COUNTED)
    dead = await db.count(JOBS, {"st": "failed"}, limit=COUNTED)
    first: Optional[int] = None
    queue = await _next_queue(db, dict(_OPEN), "")
    for _ in range(MOST_QUEUES):
        if queue is None:
            break
        found = await db.find_one(JOBS, {**_OPEN, "q": queue}, sort=[("ra", 1)], fields=("ra",))
        if found is not None:
            first = found["ra"] if first is None else min(first, found["ra"])
        queue = await _next_queue(db, dict(_OPEN), queue)
    now = await db.now()
    seen = await db.count(WORKERS, {"seen": {"$gte": now - SEEN_US}})
    if first is None or first > now:
        return JobNumbers(backlog, running, dead, None, 0.0, seen)
    return JobNumbers(backlog, running, dead, instant(first), (now - first) / 1e6, seen)

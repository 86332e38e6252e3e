"""Jobs: queues and states, one job with its runs, dead letters, schedules."""

from __future__ import annotations

import asyncio
from typing import Any, Dict
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from modules.job_store.errors import JobNotFoundError
from modules.job_store.models import JOB_STATUSES
from modules.Server.dashboard.charts import Span
from modules.Server.dashboard.rendering import back, page
from modules.Server.dashboard.visitors import Visitor, VisitorHere
from modules.store_common.clock import utc_now
from modules.store_common.errors import StorageError

__all__ = ["act", "enqueue", "job", "jobs", "redrive", "router"]

router = APIRouter(include_in_schema=False)
_PAGE = 40
_RUNS = 30
_LINES = 200


@page(router, "/jobs", "jobs.html")
async def jobs(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load counts, queues, schedules and a page of jobs."""
    store, tenant = visitor.storage.jobs, visitor.tenant_id
    status = request.query_params.get("status", "")
    status = status if status in JOB_STATUSES else ""
    counts, queues, schedules, found = await asyncio.gather(
        store.counts(tenant_id=tenant),
        store.queue_statistics(tenant_id=tenant),
        store.list_schedules(limit=50, tenant_id=tenant),
        store.list_jobs(
            status=status or None, limit=_PAGE, cursor=request.query_params.get("cursor"), tenant_id=tenant
        ),
    )
    return {
        "counts": counts,
        "total": sum(counts.values()),
        "queues": queues,
        "schedules": schedules.items,
        "found": found,
        "status": status,
        "statuses": JOB_STATUSES,
    }


@router.post("/jobs")
async def enqueue(request: Request, visitor: VisitorHere) -> Response:
    """Enqueue a job."""
    form: Any = await request.form()
    text = str(form.get("payload", "")).strip()
    try:
        payload = orjson.loads(text) if text else None
        made = await visitor.storage.jobs.enqueue(
            str(form.get("handler", "")).strip(),
            payload,
            queue=str(form.get("queue", "")).strip() or "default",
            tenant_id=visitor.tenant_id,
        )
    except orjson.JSONDecodeError:
        return back("/jobs", "The payload is not JSON: nothing was enqueued.")
    except StorageError as exc:
        return back("/jobs", str(exc))
    return back(_path(made), "Enqueued.")


@router.post("/jobs/redrive")
async def redrive(request: Request, visitor: VisitorHere) -> Response:
    """Run all dead letters again."""
    count = await visitor.storage.jobs.redrive_dead(tenant_id=visitor.tenant_id)
    return back("/jobs", f"{count} jobs run again.")


@page(router, "/jobs/{job_id:segment}", "job.html")
async def job(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load a job, its runs, its log and its events."""
    store, tenant = visitor.storage.jobs, visitor.tenant_id
    job_id = request.path_params["job_id"]
    found = await store.get(job_id, tenant_id=tenant)
    if found is None:
        raise JobNotFoundError(job_id)
    runs, logs, events = await asyncio.gather(
        store.list_runs(job_id, limit=_RUNS, tenant_id=tenant),
        store.list_logs(job_id, limit=_LINES, tenant_id=tenant),
        store.list_events(job_id, limit=100, tenant_id=tenant),
    )
    now = utc_now()
    spans = [
        Span(run.started_at, run.finished_at or now, run.status, f"run {run.number}: {run.status}")
        for run in reversed(runs.items)
    ]
    return {"job": found, "runs": runs.items, "logs": logs.items, "events": events.items, "spans": spans}


@router.post("/jobs/{job_id:segment}/do")
async def act(request: Request, visitor: VisitorHere, job_id: str) -> Response:
    """Cancel a job, or run it again."""
    form: Any = await request.form()
    store, says = visitor.storage.jobs, ""
    try:
        if form.get("what") == "cancel":
            await store.cancel(job_id, reason="by hand, on the dashboard", tenant_id=visitor.tenant_id)
            says = "Cancelled, or told to stop."
        elif form.get("what") == "retry":
            await store.rerun(job_id, tenant_id=visitor.tenant_id)
            says = "It runs again."
    except StorageError as exc:
        says = str(exc)
    return back(_path(job_id), says)


def _path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"

"""`jobs list`, `jobs show`, `jobs enqueue`, `jobs cancel`, `jobs retry`, `jobs dead`, `jobs stats`."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Dict, List, Optional

import orjson
import typer

from modules.storage.commands.errors import CommandUsageError
from modules.storage.commands.invocation import Invocation, command, group

if TYPE_CHECKING:
    from modules.job_store.records import Job
    from modules.storage.manager import StorageManager

__all__ = ["cancel", "dead", "enqueue", "list_jobs", "register", "retry", "show", "stats"]

_JOB = typer.Argument(..., help="Id or name of the job.", metavar="JOB", show_default=False)
_QUEUE = typer.Option(None, "--queue", help="Only jobs of this queue.", metavar="NAME", show_default=False)
_HANDLER = typer.Option(
    None, "--handler", help="Only jobs of this handler.", metavar="NAME", show_default=False
)
_LIMIT = typer.Option(100, "--limit", min=1, max=10_000, help="At most so many.")
_COLUMNS = ["id", "name", "handler", "queue", "priority", "status", "attempts", "due", "updated"]


async def list_jobs(
    call: Invocation,
    status: Optional[str] = typer.Option(
        None, "--status", help="draft, scheduled, running, succeeded, failed or cancelled.", metavar="STATUS"
    ),
    queue: Optional[str] = _QUEUE,
    handler: Optional[str] = _HANDLER,
    limit: int = _LIMIT,
) -> None:
    """List jobs, the newest first."""
    async with call.storage() as storage:
        page = await storage.jobs.list_jobs(status=status, queue=queue, handler=handler, limit=limit)
    _print(call, list(page), more=page.next_cursor is not None)


async def dead(
    call: Invocation, queue: Optional[str] = _QUEUE, handler: Optional[str] = _HANDLER, limit: int = _LIMIT
) -> None:
    """List the jobs that have failed for good, with the reason; `jobs retry` runs them again."""
    async with call.storage() as storage:
        page = await storage.jobs.list_jobs(status="failed", queue=queue, handler=handler, limit=limit)
    if call.out.as_json:
        call.out.records(job.to_dict() for job in page)
    rows = [
        (job.id, job.name, job.handler, job.queue, job.attempts, job.finished_at, job.reason) for job in page
    ]
    call.out.table(["id", "name", "handler", "queue", "attempts", "failed", "reason"], rows)
    if page.next_cursor is not None:
        call.out.warn(f"there are more; give --limit {limit * 10}")


async def show(call: Invocation, job: str = _JOB) -> None:
    """Print a job with its runs, log lines and events."""
    async with call.storage() as storage:
        found = await _find(storage, job)
        runs = await storage.jobs.list_runs(found.id)
        logs = await storage.jobs.list_logs(found.id)
        events = await storage.jobs.list_events(found.id)
    call.out.document(
        {
            **found.to_dict(),
            "run_history": [run.to_dict() for run in runs],
            "logs": [line.to_dict() for line in logs],
            "events": [event.to_dict() for event in events],
        }
    )
    if call.out.as_json:
        return
    call.out.table(
        ["field", "value"], [(name, value) for name, value in found.to_dict().items() if value is not None]
    )
    rows = [
        (r.number, r.attempt, r.status, r.worker, r.started_at, r.finished_at, r.error or r.result)
        for r in runs
    ]
    call.out.table(
        ["run", "attempt", "status", "worker", "started", "finished", "error or result"], rows, "Runs"
    )
    call.out.table(
        ["at", "run", "level", "message"], [(x.created_at, x.run, x.level, x.message) for x in logs], "Log"
    )
    call.out.table(["at", "event", "data"], [(e.created_at, e.type, e.data) for e in events], "Events")


async def enqueue(
    call: Invocation,
    handler: str = typer.Argument(..., help="Name of the handler.", metavar="HANDLER", show_default=False),
    payload: str = typer.Argument(
        "null", help="JSON, else taken as text; - reads stdin.", metavar="[PAYLOAD]"
    ),
    name: Optional[str] = typer.Option(
        None, "--name", help="Unique while the job is not final.", metavar="NAME"
    ),
    queue: str = typer.Option("default", "--queue", help="Which queue.", metavar="NAME"),
    priority: int = typer.Option(0, "--priority", help="-100 to 100; higher is claimed sooner."),
    at: Optional[str] = typer.Option(
        None, "--at", help="Not before this time, ISO 8601 with zone.", metavar="TIME"
    ),
    delay: float = typer.Option(0.0, "--delay", help="Seconds from now.", metavar="SECONDS"),
    key: Optional[str] = typer.Option(None, "--key", help="Idempotency key: enqueues once.", metavar="KEY"),
) -> None:
    """Enqueue a job and print its id."""
    given = sys.stdin.read() if payload == "-" else payload
    async with call.storage() as storage:
        job_id = await storage.jobs.enqueue(
            handler, _parsed(given), name=name, queue=queue, priority=priority, run_at=_time(at), delay_s=delay,
            idempotency_key=key,
        )  # fmt: skip
    call.out.document({"id": job_id})
    call.out.raw(job_id + "\n")


async def cancel(
    call: Invocation,
    job: str = _JOB,
    reason: Optional[str] = typer.Option(None, "--reason", help="Kept with the job.", metavar="TEXT"),
) -> None:
    """Cancel a job; one that runs is stopped by its worker."""
    async with call.storage() as storage:
        found = await _find(storage, job)
        changed = await storage.jobs.cancel(found.id, reason=reason)
    call.out.document(changed.to_dict())
    if changed.status == "cancelled":
        call.out.line(f"Cancelled {changed.id}.")
    else:
        call.out.line(f"{changed.id} is running; its worker ({changed.worker}) is told to stop.")


async def retry(
    call: Invocation,
    job: Optional[str] = typer.Argument(
        None, help="Id or name of the job.", metavar="[JOB]", show_default=False
    ),
    all_dead: bool = typer.Option(False, "--all-dead", help="All that have failed for good, up to --limit."),
    queue: Optional[str] = _QUEUE,
    handler: Optional[str] = _HANDLER,
    limit: int = typer.Option(1000, "--limit", min=1, max=1000, help="At most so many."),
) -> None:
    """Run a final job again, or with --all-dead all that have failed; their old runs stay."""
    if (job is None) == (not all_dead):
        raise CommandUsageError("give a JOB or --all-dead")
    async with call.storage() as storage:
        if job is None:
            count = await storage.jobs.redrive_dead(queue=queue, handler=handler, limit=limit)
        else:
            if queue is not None or handler is not None:
                raise CommandUsageError("--queue and --handler go with --all-dead")
            await storage.jobs.rerun((await _find(storage, job)).id)
            count = 1
    call.out.document({"retried": count})
    call.out.line(f"{count:,} {'job runs' if count == 1 else 'jobs run'} again.")


async def stats(call: Invocation) -> None:
    """Print how many jobs there are of each status, how the queues stand, and which workers are there."""
    async with call.storage() as storage:
        counts = await storage.jobs.counts()
        queues = await storage.jobs.queue_statistics()
        workers = await storage.job_queue.list_workers()
        limits = {limit.queue: limit for limit in await storage.job_queue.list_queue_limits()}
    call.out.document(
        {
            "jobs": counts,
            "queues": [queue.to_dict() for queue in queues],
            "workers": [worker.to_dict() for worker in workers],
            "limits": [limit.to_dict() for limit in limits.values()],
        }
    )
    call.out.table(["status", "jobs"], list(counts.items()))
    rows = [
        (q.queue, q.scheduled, q.due, q.running, q.oldest_due_at, _limit_text(limits.get(q.queue)))
        for q in queues
    ]
    call.out.table(["queue", "scheduled", "due", "running", "oldest due", "limit"], rows)
    call.out.table(
        ["worker", "queues", "running", "since", "seen"],
        [(w.id, ", ".join(w.queues), w.running, w.started_at, w.seen_at) for w in workers],
    )


async def _find(storage: StorageManager, job: str) -> Job:
    """Return the job of an id, else the newest of a name."""
    found = await storage.jobs.get(job) or await storage.jobs.get_by_name(job)
    return found if found is not None else await storage.jobs.require(job)


def _print(call: Invocation, jobs: List[Job], *, more: bool) -> None:
    if call.out.as_json:
        call.out.records(job.to_dict() for job in jobs)
    rows = [
        (j.id, j.name, j.handler, j.queue, j.priority, j.status, j.attempts, j.run_at, j.updated_at)
        for j in jobs
    ]
    call.out.table(_COLUMNS, rows)
    if more:
        call.out.warn("there are more; give a larger --limit")


def _limit_text(limit: Any) -> str:
    if limit is None:
        return ""
    return "paused" if limit.paused else f"{limit.rate_per_s:g}/s"


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _time(text: Optional[str]) -> Optional[datetime]:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
    except ValueError as exc:
        raise CommandUsageError("--at is a time such as 2030-01-31T09:00:00+01:00") from exc
    if found.tzinfo is None:
        raise CommandUsageError("--at needs a time zone, for example 2030-01-31T09:00:00Z")
    return found


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    own = typer.Typer(help="Look at jobs and change them.", no_args_is_help=True, rich_markup_mode=None)
    group(own)
    names: Dict[str, Any] = {
        "list": list_jobs, "show": show, "enqueue": enqueue, "cancel": cancel, "retry": retry, "dead": dead, "stats": stats,
    }  # fmt: skip
    for name, function in names.items():
        command(own, name)(function)
    app.add_typer(own, name="jobs")

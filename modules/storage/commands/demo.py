"""`demo`: the storage at work, in under a minute, on the embedded database and under a tenant of its own."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Dict, Optional

import typer

from modules.storage.commands.data import bring_in
from modules.storage.commands.errors import FAILED
from modules.storage.commands.invocation import Invocation, command
from modules.storage.commands.output import size_text
from modules.storage.commands.status import print_health
from modules.store_common.ids import new_id
from modules.store_common.tenancy import tenant_context

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = [
    "demo",
    "register",
    "sample_file",
]

_TENANT = "demo"
_NAMESPACE = "demo"
_SAMPLE_QUESTION = "why did the nightly backup fail?"


class _CardDeclinedError(Exception):
    """What goes wrong in the middle of the demo's unit of work."""


def sample_file() -> Path:
    """Return the conversations that the package ships."""
    return Path(__file__).parent.parent / "data" / "sample_conversations.jsonl"


async def demo(
    call: Invocation,
    data: Optional[str] = typer.Option(
        None, "--data", envvar="DEMO_DATA", help="Import this file instead of the sample.", metavar="FILE"
    ),
    query: Optional[str] = typer.Option(None, "--query", help="What to search for.", metavar="TEXT"),
) -> Optional[int]:
    """Show the storage at work: import, search, keys, a failing unit of work, a job, health. Running it again is fine."""
    file = Path(data) if data else sample_file()
    started = perf_counter()
    found: Dict[str, Any] = {
        "url": call.settings.sql.get_safe_url(),
        "tenant": call.options.tenant or _TENANT,
    }
    with tenant_context(found["tenant"]):
        _heading(call, f"1. Open {found['url']} and bring its schema up to date")
        async with call.storage(background=True) as storage:
            call.out.line(
                f"   open after {perf_counter() - started:.2f} s; everything here belongs to tenant {found['tenant']!r}"
            )
            await _import(call, storage, file, found)
            await _search(call, storage, query or (None if data else _SAMPLE_QUESTION), found)
            await _keys(call, storage, found)
            await _failing_unit(call, storage, found)
            await _job(call, storage, found)
            await _health(call, storage, found)
    found["seconds"] = round(perf_counter() - started, 2)
    call.out.document(found)
    _next(call, found)
    return FAILED if found["import"]["bad_count"] or found["left_behind"] else None


def _heading(call: Invocation, text: str) -> None:
    call.out.line()
    call.out.line(text, style="bold")


async def _import(call: Invocation, storage: StorageManager, file: Path, found: Dict[str, Any]) -> None:
    _heading(call, f"2. Import conversations from {file}")
    started = perf_counter()
    report = await bring_in(call, storage, file)
    found["import"] = report.to_dict()
    call.out.line(f"   {report.summary}")
    if report.messages_added:
        seconds = perf_counter() - started
        # a handful says nothing about speed
        rate = (
            f", {report.messages_added / seconds:,.0f} messages a second"
            if report.messages_added > 1000
            else ""
        )
        call.out.line(f"   in {seconds:.2f} s{rate}; all of it is on the disk now")
    else:
        call.out.line("   All of it was there already: importing twice adds nothing.")


async def _search(
    call: Invocation, storage: StorageManager, query: Optional[str], found: Dict[str, Any]
) -> None:
    text = query or await _some_words(storage)
    _heading(call, f"3. Search their text for: {text}")
    started = perf_counter()
    hits = await storage.conversations.search(text, limit=3)
    found["search"] = {"query": text, "hits": [hit.to_dict() for hit in hits]}
    milliseconds = (perf_counter() - started) * 1000
    rows = [(f"{hit.score:.1f}", hit.message.name or hit.message.role, hit.snippet) for hit in hits]
    call.out.table(["score", "who", "text"], rows)
    call.out.line(f"   {len(hits)} best of the ranking, in {milliseconds:.1f} ms")


async def _some_words(storage: StorageManager) -> str:
    """Return the beginning of a question that somebody asked in the data, to search for."""
    for conversation in await storage.conversations.list_conversations(limit=10):
        page = await storage.conversations.fetch_messages(conversation.id, role="user", limit=20)
        texts = [message.content for message in page if isinstance(message.content, str)]
        if texts:
            return " ".join(max(texts, key=len).split()[:8])
    return "hello"


async def _keys(call: Invocation, storage: StorageManager, found: Dict[str, Any]) -> None:
    _heading(call, "4. Write and read keys")
    settings = {"model": "small", "temperature": 0.2, "tools": ["search", "calendar"]}
    await storage.kv.set(_NAMESPACE, "agent:settings", settings)
    read = await storage.kv.get(_NAMESPACE, "agent:settings")
    runs = await storage.kv.increment(_NAMESPACE, "demo:runs")
    await storage.kv.set(_NAMESPACE, "session:token", "short-lived", ttl_seconds=900)
    left = await storage.kv.ttl(_NAMESPACE, "session:token")
    found["keys"] = {"settings": read, "runs": runs, "token_ttl_seconds": left}
    call.out.table(
        ["key", "value", "note"],
        [
            ("agent:settings", read, "read back equal" if read == settings else "DIFFERENT"),
            ("demo:runs", runs, "counted up atomically"),
            ("session:token", "short-lived", f"expires in {left or 0:.0f} s"),
        ],
    )


async def _failing_unit(call: Invocation, storage: StorageManager, found: Dict[str, Any]) -> None:
    _heading(
        call,
        "5. A unit of work that fails: an order is noted, a balance is changed, then the card is declined",
    )
    await storage.kv.set(_NAMESPACE, "balance", 100)
    conversation = "demo-order"
    try:
        async with storage.unit_of_work() as uow:
            await uow.conversations.ensure_conversation(conversation, title="An order")
            await uow.conversations.add_message(conversation, "user", "Order the blue one, please.")
            await uow.kv.increment(_NAMESPACE, "balance", -80)
            inside = await uow.kv.get(_NAMESPACE, "balance")
            call.out.line(
                f"   inside: balance {inside}, conversation {conversation!r} written, then an exception"
            )
            raise _CardDeclinedError
    except _CardDeclinedError:
        balance = await storage.kv.get(_NAMESPACE, "balance")
        left = await storage.conversations.get_conversation(conversation)
    found["left_behind"] = balance != 100 or left is not None
    outcome = "SOMETHING WAS LEFT BEHIND" if found["left_behind"] else "nothing is left of it"
    call.out.line(f"   after:  balance {balance}, conversation {'there' if left else 'not there'}: {outcome}")


async def _job(call: Invocation, storage: StorageManager, found: Dict[str, Any]) -> None:
    from modules.job_store.records import NewJob
    from modules.job_store.schedules import Recurrence
    from modules.orchestration import HandlerRegistry, Scheduler, Worker

    _heading(call, "6. A job: a schedule makes it, a worker runs it, its result is kept")
    handlers = HandlerRegistry()

    @handlers.handler("demo.count")
    async def count(job: Any) -> Dict[str, Any]:
        page = await job.storage.kv.list(_NAMESPACE)
        return {"keys": len(page.entries), "attempt": job.attempt}

    queue = f"demo-{new_id()}"
    template = NewJob("demo.count", queue=queue)
    schedule = await storage.jobs.create_schedule(queue, Recurrence(every_s=86_400), template)
    started = perf_counter()
    tenant_id = found["tenant"]
    await Scheduler(storage, tenant_id=tenant_id).fire_due()
    await Worker(storage, handlers, queues=[queue], tenant_id=tenant_id).run_until_idle()
    milliseconds = (perf_counter() - started) * 1000
    await storage.jobs.delete_schedule(schedule.id)
    (job,) = await storage.jobs.list_jobs(queue=queue)
    (run,) = await storage.jobs.list_runs(job.id)
    found["job"] = {"status": job.status, "result": run.result, "scheduled_for": job.scheduled_for}
    call.out.table(
        ["job", "status", "result", "run by"], [("demo.count", job.status, run.result, run.worker)]
    )
    call.out.line(f"   scheduled, claimed, run and stored in {milliseconds:.0f} ms")


async def _health(call: Invocation, storage: StorageManager, found: Dict[str, Any]) -> None:
    _heading(call, "7. Health")
    health = await storage.health_check()
    found["health"] = health.to_dict()
    print_health(call.out, health)
    size = dict(health.sql.details).get("database_bytes") if health.sql is not None else None
    if size is not None:
        call.out.line(f"   The whole database is {size_text(size)}.")


def _next(call: Invocation, found: Dict[str, Any]) -> None:
    tenant = f"--tenant {found['tenant']}"
    call.out.line()
    call.out.line(f"Done in {found['seconds']:.1f} s. What to try next:", style="bold")
    for line in (
        f"atlas-storage conversations list {tenant}",
        f"atlas-storage search {tenant} {' '.join(found['search']['query'].split()[:4])}",
        f"atlas-storage kv list {_NAMESPACE} {tenant}",
        "atlas-storage import your-conversations.json",
        "atlas-storage doctor",
        f"make serve    (or: atlas-storage serve --login {tenant}): the dashboard on this data",
    ):
        call.out.line(f"   {line}")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    command(app, "demo")(demo)

"""`outbox list|show|redrive|discard|stats`, `relay`, `reconcile`."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Dict, List, Optional, Tuple

import typer

from modules.storage.commands.errors import CommandFailedError, CommandUsageError
from modules.storage.commands.invocation import Invocation, command, group
from modules.storage.manager_tasks import stop_tasks

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager
    from modules.storage.outbox_queue import OutboxKey
    from modules.storage.outbox_upkeep import OutboxRecord
    from modules.storage.semantic import SemanticIndex

__all__ = ["discard", "list_keys", "reconcile", "redrive", "register", "relay", "show", "stats"]

_TARGET = typer.Option("", "--target", help="Only of this target.", metavar="NAME", show_default=False)
_ALL = typer.Option(False, "--all", help="All parked keys (of --target).")
_KEY = typer.Argument(
    None, help="TARGET KIND KEY of the tenant, as `outbox list` shows them.", metavar="[TARGET KIND KEY]"
)
_REPAIR_TIMEOUT_S = 3600.0


def _without_relay(call: Invocation) -> None:
    """Let this process look and not deliver."""
    call.settings = call.settings.merged_with({"outbox": {"relay": False}})


async def list_keys(
    call: Invocation,
    state: str = typer.Option(
        "", "--state", help="pending, parked or done; both of the first two if not given."
    ),
    target: str = _TARGET,
    limit: int = typer.Option(100, "--limit", min=1, help="At most so many of each state."),
) -> None:
    """List the keys that wait for delivery, and those that are parked; of all tenants."""
    _without_relay(call)
    records: List[OutboxRecord] = []
    async with call.storage() as storage:
        for wanted in [state] if state else ["pending", "parked"]:
            records += [
                record async for record in _first(storage.outbox.stream(wanted, target=target), limit)
            ]
    if call.out.as_json:
        call.out.records(record.to_dict() for record in records)
    rows = [
        (r.state, r.tenant_id, r.target, r.kind, r.key, r.attempts, r.staged_at, r.error) for r in records
    ]
    call.out.table(["state", "tenant", "target", "kind", "key", "attempts", "since", "error"], rows)


async def _first(items: AsyncIterator[Any], limit: int) -> AsyncIterator[Any]:
    count = 0
    async for item in items:
        if count == limit:
            return
        count += 1
        yield item


async def show(call: Invocation, key: List[str] = _KEY) -> None:
    """Show everything about a key; exit 1 when the outbox does not know it."""
    _without_relay(call)
    async with call.storage() as storage:
        found = await storage.outbox.get(_address(storage, key))
    if found is None:
        raise CommandFailedError("the outbox does not know this key; see: atlas-storage outbox list")
    shown = found.to_dict()
    call.out.document(shown)
    call.out.table(["what", "value"], [(name.replace("_", " "), value) for name, value in shown.items()])


async def redrive(
    call: Invocation, key: Optional[List[str]] = _KEY, every: bool = _ALL, target: str = _TARGET
) -> None:
    """Have parked keys tried again, from the first attempt."""
    _without_relay(call)
    async with call.storage() as storage:
        chosen = await _chosen(storage, key, every, target)
        count = await storage.outbox.redrive(chosen)
    call.out.document({"redriven": count})
    call.out.line(f"{count:,} parked keys will be tried again.")
    if key and not count:
        raise CommandFailedError("this key is not parked")


async def discard(
    call: Invocation, key: Optional[List[str]] = _KEY, every: bool = _ALL, target: str = _TARGET
) -> None:
    """Give parked keys up: what is staged for them is not delivered (`reconcile` will find the difference)."""
    _without_relay(call)
    async with call.storage() as storage:
        chosen = await _chosen(storage, key, every, target)
        count = await storage.outbox.discard(chosen)
    call.out.document({"discarded": count})
    call.out.line(f"{count:,} keys were given up.")
    if key and not count:
        raise CommandFailedError("this key has nothing waiting")


async def stats(call: Invocation) -> None:
    """Count what waits, by target: pending, parked, and how long the oldest has waited."""
    _without_relay(call)
    async with call.storage() as storage:
        found = await storage.outbox.stats()
    call.out.document(found.to_dict())
    rows = [(name, f.pending, f.parked, f"{f.lag_s:.1f} s") for name, f in sorted(found.targets.items())]
    if rows:
        call.out.table(["target", "pending", "parked", "oldest"], rows)
    else:
        call.out.line("Nothing waits.")


async def relay(
    call: Invocation,
    once: bool = typer.Option(False, "--once", help="End when nothing is pending."),
) -> None:
    """Deliver what units of work have staged and embed messages, until it is ended (Ctrl-C or SIGTERM)."""
    _without_relay(call)
    async with call.storage() as storage:
        targets = storage.outbox.targets.names
        index = _index(storage)
        if not targets and index is None:
            raise CommandUsageError(
                "there is nothing to relay to: no store outside of the SQL database is configured"
            )
        named = [*targets, *([] if index is None else [f"{index.embedder.name} (embedding)"])]
        begun = f"Relaying to {', '.join(named)}."
        if once:
            call.out.line(begun)
            if index is not None:
                await index.embed_pending()
            left = await storage.outbox.drain(_REPAIR_TIMEOUT_S)
            call.out.document(left.to_dict())
        else:
            # said when a SIGTERM is heard, so that whoever reads it may send one
            await _until_told(storage, index, lambda: call.out.line(begun))
        applied = storage.outbox.counters.total("applied")
    call.out.line(f"{applied:,} deliveries.")


def _index(storage: StorageManager) -> Optional[SemanticIndex]:
    """Return what embeds messages, unless the vectors would be gone with this process."""
    index = storage.semantic_index
    return index if index is not None and storage.vectors.capabilities.persistent else None


async def _until_told(
    storage: StorageManager, index: Optional[SemanticIndex], say: Callable[[], None]
) -> None:
    told = asyncio.Event()
    tasks: List[asyncio.Task[Any]] = [asyncio.create_task(told.wait())]
    tasks.append(asyncio.create_task(storage.outbox.relay.run()))
    if index is not None:
        tasks.append(asyncio.create_task(index.run()))
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    try:
        say()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        await stop_tasks(tasks)
    for task in tasks:
        if not task.cancelled():
            task.result()


async def reconcile(
    call: Invocation,
    target: str = _TARGET,
    repair: bool = typer.Option(False, "--repair", help="Deliver again what is missing, stale or undead."),
    prune: bool = typer.Option(False, "--prune", help="Also delete what only the target knows."),
    restart: bool = typer.Option(False, "--restart", help="Begin anew instead of going on."),
) -> int:
    """Compare what was staged with what its targets have; exit 1 when they differ and nothing was repaired."""
    from modules.storage.reconciliation import Difference, Reconciliation, Report

    _without_relay(call)
    reports: Dict[str, Report] = {}
    async with call.storage() as storage:
        known = storage.outbox.targets
        for name in [target] if target else known.names:
            shown: List[Tuple[str, ...]] = []

            def note(found: Difference, shown: List[Tuple[str, ...]] = shown) -> None:
                if len(shown) < _SHOWN:
                    shown.append((found.kind, *found.key[:1], *found.key[2:]))

            run = Reconciliation(
                storage.executor, known.require(name), repair=repair, prune=prune, on_difference=note
            )
            with call.out.counting(f"Comparing {name}", await run.count()) as step:
                run.on_progress(_counted(step))
                reports[name] = await run.run(resume=not restart)
            if shown:
                call.out.table(["what", "tenant", "collection", "namespace", "id"], shown)
        if any(report.repaired for report in reports.values()):
            await storage.outbox.drain(_REPAIR_TIMEOUT_S)
    _tell(call, reports)
    return int(any(r.differences > r.repaired for r in reports.values()))


def _counted(step: Callable[[int], None]) -> Callable[[Any], None]:
    return lambda report: step(report.compared)


#: Differences that are shown one by one.
_SHOWN = 20


def _tell(call: Invocation, reports: Dict[str, Any]) -> None:
    call.out.document({name: dict(report.__dict__) for name, report in reports.items()})
    names = ["compared", "equal", "missing", "stale", "undead", "extra", "pending", "repaired"]
    rows = [(name, *(getattr(report, field) for field in names)) for name, report in reports.items()]
    if rows:
        call.out.table(["target", *names], rows)
    else:
        call.out.line("No store outside of the SQL database is configured.")


def _address(storage: StorageManager, key: Optional[List[str]]) -> OutboxKey:
    if key is None or len(key) != 3:
        raise CommandUsageError("name the key as TARGET KIND KEY")
    tenant_id = storage._tenancy.resolve(None)
    return tenant_id, key[0], key[1], key[2]


async def _chosen(
    storage: StorageManager, key: Optional[List[str]], every: bool, target: str
) -> List[OutboxKey]:
    if bool(key) == every:
        raise CommandUsageError("name one key as TARGET KIND KEY, or say --all")
    if key:
        return [_address(storage, key)]
    return [record.address async for record in storage.outbox.stream("parked", target=target)]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    own = typer.Typer(
        help="Look at what units of work have staged for other stores.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group(own)
    names: Dict[str, Any] = {
        "list": list_keys,
        "show": show,
        "redrive": redrive,
        "discard": discard,
        "stats": stats,
    }
    for name, function in names.items():
        command(own, name)(function)
    app.add_typer(own, name="outbox")
    command(app, "relay")(relay)
    command(app, "reconcile")(reconcile)

"""`worker` and `scheduler`: processes that run jobs, and that make them when their time comes.

Exit codes beside the usual: 0 stopped in order (a signal, or --until-idle), 1 a handler ignored being stopped and was left
behind, 143 (SIGTERM) or 130 (SIGINT) ended by a second signal.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any, Awaitable, Callable, List, Optional

import typer

from modules.storage.commands.errors import FAILED, CommandUsageError
from modules.storage.commands.invocation import Invocation, command

if TYPE_CHECKING:
    from rich.console import Console

    from modules.orchestration.worker import Worker
    from modules.storage.manager import StorageManager

__all__ = [
    "register",
    "scheduler",
    "worker",
]

_POLL = typer.Option(
    None, "--poll", help="Look at least every so many seconds (5; on SQLite 0.5).", metavar="SECONDS"
)


async def worker(
    call: Invocation,
    queues: List[str] = typer.Option(
        ["default"],
        "--queues",
        help="Queues to serve: names with commas between, or given again.",
        metavar="NAMES",
    ),
    concurrency: int = typer.Option(10, "--concurrency", help="Jobs at the same time.", metavar="N"),
    imports: List[str] = typer.Option(
        [],
        "--import",
        help="Module that registers handlers (mypkg.handlers); may be given again.",
        metavar="MODULE",
    ),
    grace: float = typer.Option(
        30.0, "--grace", help="Seconds for running jobs to end at SIGTERM.", metavar="SECONDS"
    ),
    lease: float = typer.Option(
        60.0, "--lease", help="A worker that is silent so long loses its jobs.", metavar="SECONDS"
    ),
    timeout: Optional[float] = typer.Option(
        None, "--timeout", help="For jobs that have no timeout of their own.", metavar="SECONDS"
    ),
    poll: Optional[float] = _POLL,
    name: Optional[str] = typer.Option(
        None, "--name", help="Name of this worker; unique among those running.", metavar="NAME"
    ),
    until_idle: bool = typer.Option(False, "--until-idle", help="End when no job is due."),
    with_scheduler: bool = typer.Option(False, "--scheduler", help="Be a scheduler as well."),
) -> Optional[int]:
    """Run jobs until SIGTERM or Ctrl-C; a second one ends at once. Handlers come from the modules of --import."""
    from modules.orchestration import Worker

    _load(imports)
    names = [part.strip() for text in queues for part in text.split(",")]
    if not all(names):
        raise CommandUsageError(
            "--queues has an empty name; give names with commas between, such as mail,reports"
        )
    async with call.storage(background=True) as storage:
        made = Worker(
            storage, queues=names, concurrency=concurrency, grace_s=grace, lease_s=lease, timeout_s=timeout, poll_s=poll,
            name=name, tenant_id=call.options.tenant,
        )  # fmt: skip
        await _work(call, storage, made, names, grace, until_idle=until_idle, with_scheduler=with_scheduler)
    if made.left_behind:
        _leave(call, made.left_behind)
    return None


async def _work(
    call: Invocation,
    storage: StorageManager,
    made: Worker,
    queues: List[str],
    grace: float,
    *,
    until_idle: bool,
    with_scheduler: bool,
) -> None:
    from modules.orchestration import Scheduler
    from modules.orchestration.display import WorkerDisplay, summary
    from modules.orchestration.signals import StopSignals

    record = None
    if call.out.as_json:
        record = _record(call)
        record({"event": "started", "worker": made.name, "queues": queues, "handlers": made.handlers})
    call.out.line(
        f"worker {made.name}: queues {', '.join(queues)}, handlers {', '.join(made.handlers)}; Ctrl-C stops it"
    )
    _flush()
    display = WorkerDisplay(made, line=_line(call), record=record, console=_terminal(call))
    beside: List[Awaitable[Any]] = [display.run()]
    if with_scheduler:
        beside.append(Scheduler(storage, tenant_id=call.options.tenant).run())
    with StopSignals(made.stop, grace):
        await _beside(made.run_until_idle() if until_idle else made.run(), beside)
    if record is not None:
        record({"event": "stopped", "worker": made.name, **_counted(made)})
    call.out.line(f"stopped: {summary(made)}")
    _flush()


async def scheduler(
    call: Invocation,
    poll: Optional[float] = _POLL,
    once: bool = typer.Option(False, "--once", help="Make what is due now, and end."),
) -> None:
    """Make jobs when their schedules say so, until SIGTERM or Ctrl-C. Several may run; each time is made once."""
    from modules.orchestration import Scheduler
    from modules.orchestration.signals import StopSignals

    async with call.storage(background=True) as storage:
        made = Scheduler(storage, poll_s=poll, tenant_id=call.options.tenant)
        record = _record(call) if call.out.as_json else None
        line = _line(call)

        def fired(schedule: str, count: int) -> None:
            if record is not None:
                record({"event": "fired", "schedule": schedule, "count": count})
            line(f"{schedule}: {count} job{'s' if count > 1 else ''}")

        made.on_fired = fired
        if once:
            await made.fire_due()
        else:
            call.out.line("scheduler: runs until Ctrl-C")
            _flush()
            with StopSignals(made.stop, 1.0):
                await made.run()
        if record is not None:
            record({"event": "stopped", "made": made.made})
        call.out.line(f"stopped: {made.made:,} jobs made")
        _flush()


def _load(imports: List[str]) -> None:
    from modules.orchestration.errors import HandlersNotLoadedError
    from modules.orchestration.handlers import default_handlers, load_handlers

    try:
        load_handlers(imports, os.getcwd())
    except HandlersNotLoadedError as exc:
        raise CommandUsageError(str(exc)) from exc
    if not len(default_handlers):
        where = f"{', '.join(imports)} registers none" if imports else "give --import mypkg.handlers"
        raise CommandUsageError(
            f'there are no handlers: {where}; a handler is a function under @handler("name")'
        )


async def _beside(main: Awaitable[Any], others: List[Awaitable[Any]]) -> None:
    """Await `main`; the others run as long, and end it when one of them fails."""
    first = asyncio.ensure_future(main)
    rest = [asyncio.ensure_future(other) for other in others]
    try:
        while not first.done():
            done, _ = await asyncio.wait({first, *rest}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {first}:
                task.result()
                rest.remove(task)
        await first
    finally:
        for task in [first, *rest]:
            task.cancel()
        await asyncio.gather(first, *rest, return_exceptions=True)


def _leave(call: Invocation, count: int) -> None:
    """End without waiting for handlers that ignore being stopped: neither the loop's nor the threads' clean-up would."""
    call.out.warn(
        f"{count} handler{'s' if count > 1 else ''} ignored being stopped and {'were' if count > 1 else 'was'} left behind"
    )
    _flush()
    sys.stderr.flush()
    os._exit(FAILED)


def _counted(made: Worker) -> Any:
    from dataclasses import asdict

    return asdict(made.statistics)


def _terminal(call: Invocation) -> Optional[Console]:
    return call.out.console if sys.stdout.isatty() and not call.out.as_json else None


def _line(call: Invocation) -> Callable[[str], None]:
    def line(text: str) -> None:
        call.out.line(text)
        _flush()

    return line


def _record(call: Invocation) -> Callable[[Any], None]:
    def record(value: Any) -> None:
        call.out.records([value])
        _flush()

    return record


def _flush() -> None:
    sys.stdout.flush()


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    command(app, "worker")(worker)
    command(app, "scheduler")(scheduler)

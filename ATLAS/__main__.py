"""`python -m ATLAS`: the server, a worker, the scheduler and the relay in one process, under one graceful shutdown."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Dict, List, Optional

import typer

from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from ATLAS.services import ServiceOptions

__all__ = ["main"]

_FAILED = 1
_USAGE = 2


def _run(
    config: Optional[Path] = typer.Option(
        None, "--config", help="YAML file with a `storage:` block (default: config.yaml).", metavar="FILE"
    ),
    server: bool = typer.Option(True, help="Serve the HTTP API and the dashboard."),
    worker: bool = typer.Option(True, help="Run jobs."),
    scheduler: bool = typer.Option(True, help="Turn due schedules into jobs."),
    queues: str = typer.Option("default", help="Queues of the worker, by commas.", metavar="NAMES"),
    concurrency: int = typer.Option(10, help="Jobs at the same time.", min=1, max=1000),
    grace: float = typer.Option(30.0, help="Seconds that what is under way gets to end.", min=0.0),
    handlers: Optional[List[str]] = typer.Option(
        None, "--import", help="Module with handlers of jobs; may be repeated.", metavar="MODULE"
    ),
) -> None:
    """Run the application's services together until SIGTERM or Ctrl-C; a second one ends them at once."""
    from ATLAS.services import ServiceOptions
    from modules.orchestration.handlers import load_handlers

    try:
        load_handlers(handlers or [], directory=str(Path.cwd()))
    except StorageError as exc:
        _fail(f"--import: {exc}", _USAGE)
    options = ServiceOptions(
        server=server,
        worker=worker,
        scheduler=scheduler,
        queues=tuple(part.strip() for part in queues.split(",") if part.strip()),
        concurrency=concurrency,
        grace_s=grace,
    )
    try:
        code = asyncio.run(_serve(config, options))
    except StorageError as exc:
        _fail(" ".join(str(exc).split()), _USAGE if isinstance(exc, ValueError) else _FAILED)
    raise typer.Exit(code)


async def _serve(config: Optional[Path], options: ServiceOptions) -> int:
    from ATLAS.ATLAS import ATLAS
    from ATLAS.services import run_services
    from modules.storage import StorageSettings

    settings = StorageSettings.load(config)
    if options.server and settings.sources["telemetry"] == "default":
        # as `atlas-storage serve`: whoever serves wants to see; who has said something of telemetry is heeded
        settings = settings.merged_with({"telemetry": "metrics"})
    async with ATLAS(settings=settings) as atlas:
        return await run_services(atlas, options, _announce)


def _announce(words: Dict[str, str]) -> None:
    for name, word in words.items():
        typer.echo(f"{name:<10} {word}")
    typer.echo("running; Ctrl-C stops")


def _fail(text: str, code: int) -> None:
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(_run)
    app(prog_name="python -m ATLAS")


if __name__ == "__main__":
    main()

"""`serve`: the HTTP API and the dashboard."""

from __future__ import annotations

import sys
from typing import Any, Dict, Optional

import typer

from modules.storage.commands.invocation import Invocation, command
from modules.store_common.errors import MissingDependencyError

__all__ = ["register", "serve"]


async def serve(
    call: Invocation,
    host: Optional[str] = typer.Option(None, "--host", help="Address to listen at (default: loopback)."),
    port: Optional[int] = typer.Option(
        None, "--port", help="TCP port; 0 = any that is free.", min=0, max=65535
    ),
) -> None:
    """Serve the HTTP API and the dashboard until Ctrl-C or SIGTERM."""
    try:
        from modules.Server.serving import HttpServer
    except ImportError as exc:
        raise MissingDependencyError(exc.name or "fastapi", "server") from exc
    given: Dict[str, Any] = {"host": host, "port": port}
    settings = call.settings.merged_with(
        {"server": {name: value for name, value in given.items() if value is not None}}
    )
    async with call.storage() as storage:
        server = HttpServer(storage, settings.server)
        await server.start()
        call.out.document({"url": server.url})
        call.out.line(f"Dashboard and API at {server.url}", style="bold")
        if not settings.server.is_local:
            call.out.warn(
                "warning: reachable from other machines, without TLS; put a proxy with TLS in front of it"
            )
        call.out.line("Log in with a token: atlas-storage token create NAME --scope write")
        call.out.line("Ctrl-C ends it.")
        sys.stdout.flush()
        await server.run()


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    command(app, "serve")(serve)

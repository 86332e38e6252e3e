"""`serve`: the HTTP API and the dashboard."""

from __future__ import annotations

import logging
import sys
from typing import Any, Dict, Optional

import typer

from modules.storage.commands.invocation import Invocation, command
from modules.store_common.errors import MissingDependencyError

__all__ = ["register", "serve"]

_FIELDS = (
    "operation",
    "store",
    "entity_id",
    "tenant_id",
    "attempt",
    "duration_ms",
    "error_type",
    "count",
    "detail",
)


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
    _log_to_stderr(call)
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


def _log_to_stderr(call: Invocation) -> None:
    """Let warnings and errors be seen: a server has nobody else to tell. `--debug` shows everything already."""
    if not call.options.debug:
        handler = logging.StreamHandler(sys.stderr)
        handler.setLevel(logging.WARNING)
        handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("modules").addHandler(handler)


class _Lines(logging.Formatter):
    """One line for each fact, with the fields that our events carry."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        record.msg = " ".join([str(record.msg), *(f"{name}={value}" for name, value in fields.items())])
        return super().format(record)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    command(app, "serve")(serve)

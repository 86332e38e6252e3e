"""`serve`: the HTTP API and the dashboard."""

from __future__ import annotations

import logging
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Optional

import typer

from modules.storage.commands.invocation import Invocation, command
from modules.store_common.errors import MissingDependencyError

if TYPE_CHECKING:
    from modules.Server.serving import HttpServer
    from modules.storage.manager import StorageManager
    from modules.storage.settings import ServerSettings

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
    login: bool = typer.Option(
        False,
        "--login",
        help="Make a token of the tenant that may do everything while this runs, and print it.",
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
    # whoever serves wants to see; who has said something of telemetry is heeded
    watched = {"telemetry": "metrics"} if settings.sources["telemetry"] == "default" else {}
    async with call.storage(background=True, overrides=watched) as storage:
        server = HttpServer(storage, settings.server)
        async with _token_for_now(storage, login) as token:
            await server.run(lambda: _tell(call, server, settings.server, token))


def _tell(call: Invocation, server: HttpServer, settings: ServerSettings, token: Optional[str]) -> None:
    found = {"url": server.url}
    call.out.document(found if token is None else {**found, "token": token})
    call.out.line(f"Dashboard and API at {server.url}", style="bold")
    if not settings.is_local:
        call.out.warn(
            "warning: reachable from other machines, without TLS; put a proxy with TLS in front of it"
        )
    if token is None:
        call.out.line("Log in with a token: atlas-storage token create NAME --scope write")
    else:
        call.out.line("Log in with this token, which ends with the server:")
        call.out.raw(token + "\n")
    call.out.line("Ctrl-C ends it.")
    sys.stdout.flush()


@asynccontextmanager
async def _token_for_now(storage: StorageManager, wanted: bool) -> AsyncIterator[Optional[str]]:
    if not wanted:
        yield None
        return
    made = await storage.access.create_token("serve --login", scopes=["admin"], lifetime_seconds=86400.0)
    try:
        yield made.text
    finally:
        await storage.access.revoke_token(made.token.id)


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

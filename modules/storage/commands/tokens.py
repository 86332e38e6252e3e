"""`token create`, `token list`, `token revoke`: who may use the HTTP API and the dashboard."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import typer

from modules.storage.commands.invocation import Invocation, command, group

__all__ = ["create", "list_all", "register", "revoke"]

_DAY_S = 86400.0


async def create(
    call: Invocation,
    name: str = typer.Argument(..., help="What the token is for.", metavar="NAME", show_default=False),
    scope: List[str] = typer.Option(
        ["read"],
        "--scope",
        help="read, write, monitor or admin; may be given several times.",
        metavar="SCOPE",
    ),
    days: Optional[float] = typer.Option(None, "--days", help="Days until it expires; none: never."),
    also: List[str] = typer.Option(
        [],
        "--also-tenant",
        help="Another tenant that it may name; may be given several times.",
        metavar="NAME",
    ),
) -> None:
    """Make a token for the tenant and print it, once: it is kept nowhere."""
    async with call.storage() as storage:
        made = await storage.access.create_token(
            name,
            scopes=scope,
            lifetime_seconds=None if days is None else days * _DAY_S,
            other_tenants=also,
        )
    call.out.document({**made.token.to_dict(), "token": made.text})
    call.out.warn(
        f"Token {made.token.id} of tenant {made.token.tenant_id!r} ({', '.join(made.token.scopes)}); it is not shown again:"
    )
    call.out.raw(made.text + "\n")


async def list_all(call: Invocation) -> None:
    """List the tenant's tokens, ended ones, too."""
    async with call.storage() as storage:
        tokens = await storage.access.list_tokens(limit=1000)
    if call.out.as_json:
        call.out.records(token.to_dict() for token in tokens)
    call.out.table(
        ["id", "name", "scopes", "created", "expires", "last used", "revoked"],
        [
            (t.id, t.name, " ".join(t.scopes), t.created_at, t.expires_at, t.last_used_at, t.revoked_at)
            for t in tokens
        ],
    )


async def revoke(
    call: Invocation,
    token_id: str = typer.Argument(
        ..., help="Its id, as `token list` shows it.", metavar="ID", show_default=False
    ),
) -> None:
    """End a token. Servers refuse it within two seconds."""
    async with call.storage() as storage:
        gone = await storage.access.revoke_token(token_id)
    call.out.document(gone.to_dict())
    call.out.line(f"Revoked {gone.id} ({gone.name}).")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    own = typer.Typer(
        help="Tokens for the HTTP API and the dashboard.", no_args_is_help=True, rich_markup_mode=None
    )
    group(own)
    names: Dict[str, Any] = {"create": create, "list": list_all, "revoke": revoke}
    for name, function in names.items():
        command(own, name)(function)
    app.add_typer(own, name="token")

"""`conversations list`, `conversations show`, `search`."""

from __future__ import annotations

from typing import Any, List, Optional

import orjson
import typer

from modules.storage.commands.errors import CommandFailedError
from modules.storage.commands.invocation import Invocation, command, group

__all__ = ["list_conversations", "register", "search", "show"]

_LIMIT = typer.Option(20, "--limit", min=1, max=10_000, help="At most so many.")


async def list_conversations(
    call: Invocation,
    status: str = typer.Option("active", "--status", help="active, archived or deleted."),
    user: Optional[str] = typer.Option(
        None, "--user", help="Only of this user.", metavar="ID", show_default=False
    ),
    limit: int = _LIMIT,
) -> None:
    """List conversations, the one updated last first."""
    async with call.storage() as storage:
        page = await storage.conversations.list_conversations(status=status, user_id=user, limit=limit)
    if call.out.as_json:
        call.out.records(item.to_dict() for item in page)
    rows = [(item.id, item.title, item.last_sequence, item.updated_at) for item in page]
    call.out.table(["id", "title", "messages", "updated"], rows)
    if page.next_cursor is not None:
        call.out.warn(f"there are more; give --limit {limit * 10}")


async def show(
    call: Invocation,
    conversation: str = typer.Argument(..., help="Id of the conversation.", metavar="ID", show_default=False),
    last: int = typer.Option(
        0, "--last", min=0, help="Only the last so many messages; 0 for all.", show_default=False
    ),
    deleted: bool = typer.Option(False, "--deleted", help="Soft-deleted messages, too."),
) -> None:
    """Print a conversation, oldest message first."""
    async with call.storage() as storage:
        found = await storage.conversations.get_conversation(conversation)
        if found is None:
            raise CommandFailedError(
                f"there is no conversation {conversation!r}; see: atlas-storage conversations list"
            )
        call.out.records([{"kind": "conversation", **found.to_dict()}] if call.out.as_json else [])
        call.out.line(f"{found.title or found.id}", style="bold")
        call.out.line(
            f"{found.id}, {found.status}, {found.last_sequence:,} messages, updated {found.updated_at:%Y-%m-%d}"
        )
        after = max(0, found.last_sequence - last) if last else 0
        stream = storage.conversations.stream_messages(
            conversation, after_sequence=after, include_deleted=deleted
        )
        async for message in stream:
            _print(call, message)


def _print(call: Invocation, message: Any) -> None:
    if call.out.as_json:
        call.out.records([{"kind": "message", **message.to_dict()}])
        return
    who = message.role if not message.name else f"{message.name} ({message.role})"
    marks = [] if message.status == "complete" else [message.status]
    marks += ["deleted"] if message.deleted_at is not None else []
    call.out.line()
    call.out.line(
        ", ".join([f"{message.sequence}. {who}", f"{message.created_at:%Y-%m-%d %H:%M}", *marks]),
        style="cyan",
    )
    content = message.content
    call.out.line(
        content if isinstance(content, str) else orjson.dumps(content, option=orjson.OPT_INDENT_2).decode()
    )


async def search(
    call: Invocation,
    text: List[str] = typer.Argument(
        ..., help="What to look for, in your own words.", metavar="TEXT", show_default=False
    ),
    conversation: Optional[str] = typer.Option(
        None, "--conversation", help="Only in this one.", metavar="ID", show_default=False
    ),
    role: Optional[str] = typer.Option(
        None, "--role", help="Only messages of this role.", show_default=False
    ),
    mode: str = typer.Option("text", "--mode", help="text (by words), semantic (by meaning) or hybrid."),
    limit: int = typer.Option(10, "--limit", min=1, max=1_000, help="At most so many."),
) -> None:
    """Search the messages; the best first. Says on stderr when some may be missing."""
    async with call.storage() as storage:
        hits = await storage.conversations.search(
            " ".join(text), mode=mode, conversation_id=conversation, role=role, limit=limit
        )
    if call.out.as_json:
        call.out.records(hit.to_dict() for hit in hits)
    rows = [
        (
            f"{hit.score:.2f}",
            hit.message.conversation_id,
            hit.message.sequence,
            hit.message.name or hit.message.role,
            hit.snippet,
        )
        for hit in hits
    ]
    if rows:
        call.out.table(["score", "conversation", "no", "who", "text"], rows)
    else:
        call.out.line("Nothing found.")
    if not hits.complete:
        call.out.warn(f"messages may be missing: {hits.reason}")


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    own = typer.Typer(help="Look at conversations.", no_args_is_help=True, rich_markup_mode=None)
    group(own)
    command(own, "list")(list_conversations)
    command(own, "show")(show)
    app.add_typer(own, name="conversations")
    command(app, "search")(search)

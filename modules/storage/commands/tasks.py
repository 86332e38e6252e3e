"""`tasks list`, `tasks ready`, `tasks show`, `tasks create`, `tasks move`, `tasks comment`, `tasks depend`, `tasks search`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional

import orjson
import typer

from modules.storage.commands.errors import CommandFailedError, CommandUsageError
from modules.storage.commands.invocation import Invocation, command, group

__all__ = [
    "comment",
    "create",
    "depend",
    "list_tasks",
    "move",
    "ready",
    "register",
    "search",
    "show",
]

_ID = typer.Argument(..., help="Id of the task.", metavar="ID", show_default=False)
_LIMIT = typer.Option(20, "--limit", min=1, max=10_000, help="At most so many.")
_OWNER = typer.Option(None, "--owner", help="Only of this owner.", metavar="ID", show_default=False)
_TAG = typer.Option(None, "--tag", help="Only with this tag.", show_default=False)
_BY = typer.Option(None, "--by", help="Who does it; for the event.", metavar="ID", show_default=False)


async def list_tasks(
    call: Invocation,
    status: Optional[str] = typer.Option(
        "open",
        "--status",
        help="draft, ready, in_progress, review, done, cancelled; open: all but the last two; all.",
    ),
    owner: Optional[str] = _OWNER,
    conversation: Optional[str] = typer.Option(
        None, "--conversation", help="Only of this conversation.", metavar="ID", show_default=False
    ),
    tag: Optional[str] = _TAG,
    due_before: Optional[str] = typer.Option(
        None, "--due-before", help="Only due before this time (ISO 8601).", metavar="TIME", show_default=False
    ),
    order: Optional[str] = typer.Option(
        None, "--order", help="priority, due or updated.", show_default=False
    ),
    limit: int = _LIMIT,
) -> None:
    """List tasks, highest priority first; with --due-before, the one due soonest first."""
    async with call.storage() as storage:
        page = await storage.tasks.list_tasks(
            status=None if status == "all" else status,
            owner_id=owner,
            conversation_id=conversation,
            tag=tag,
            due_before=_time(due_before, "--due-before"),
            order=order,
            limit=limit,
        )
    _print_page(call, page, limit)


async def ready(
    call: Invocation, owner: Optional[str] = _OWNER, tag: Optional[str] = _TAG, limit: int = _LIMIT
) -> None:
    """List the tasks that can be started now: ready, and all that they depend on done or cancelled."""
    async with call.storage() as storage:
        page = await storage.tasks.list_ready_tasks(owner_id=owner, tag=tag, limit=limit)
    _print_page(call, page, limit)


def _print_page(call: Invocation, page: Any, limit: int) -> None:
    if call.out.as_json:
        call.out.records(item.to_dict() for item in page)
    rows = [
        (
            item.id,
            item.status,
            item.priority,
            item.title,
            item.owner_id,
            item.due_at,
            item.open_dependencies or None,
        )
        for item in page
    ]
    call.out.table(["id", "status", "priority", "title", "owner", "due", "waits for"], rows)
    if page.next_cursor is not None:
        call.out.warn(f"there are more; give --limit {limit * 10}")


async def show(
    call: Invocation,
    task: str = _ID,
    events: int = typer.Option(20, "--events", min=1, max=10_000, help="At most so many of the newest."),
) -> None:
    """Print a task with its dependencies, assignments and newest events; exit 1 when there is none."""
    async with call.storage() as storage:
        found = await storage.tasks.get_task_details(task, events=events)
    if found is None:
        raise CommandFailedError(f"there is no task {task!r}; see: atlas-storage tasks list")
    call.out.document(found.to_dict())
    own = found.task
    call.out.line(own.title, style="bold")
    rows = [
        (name.replace("_", " "), value) for name, value in own.__dict__.items() if value not in (None, (), {})
    ]
    call.out.table(["field", "value"], [row for row in rows if row[0] not in ("title", "description")])
    if own.description is not None:
        call.out.line(own.description)
    _print_links(call, "waits for", found.dependencies)
    _print_links(call, "waited for by", found.dependents)
    if found.assignments:
        people = [(a.assignee_id, a.status, a.note, a.id) for a in found.assignments]
        call.out.table(["assigned to", "status", "note", "id"], people)
    history = [
        (e.sequence, e.created_at, e.type.replace("_", " "), e.actor_id, _short(e.data)) for e in found.events
    ]
    call.out.table(["no", "when", "what", "who", "details"], history)


def _print_links(call: Invocation, title: str, links: Any) -> None:
    if links:
        call.out.table([title, "status", "title"], [(d.task_id, d.status, d.title) for d in links])


async def create(
    call: Invocation,
    title: str = typer.Argument(..., help="What is to be done.", metavar="TITLE", show_default=False),
    task_id: Optional[str] = typer.Option(
        None, "--id", help="Its id (default: a new one).", metavar="ID", show_default=False
    ),
    description: Optional[str] = typer.Option(None, "--description", help="More words.", show_default=False),
    status: str = typer.Option("draft", "--status", help="draft or ready."),
    priority: int = typer.Option(0, "--priority", help="Higher comes first."),
    owner: Optional[str] = typer.Option(
        None, "--owner", help="Whose it is.", metavar="ID", show_default=False
    ),
    conversation: Optional[str] = typer.Option(
        None, "--conversation", help="Where it came from.", metavar="ID", show_default=False
    ),
    parent: Optional[str] = typer.Option(
        None, "--parent", help="The task that it is a part of.", metavar="ID", show_default=False
    ),
    tag: List[str] = typer.Option([], "--tag", help="May be repeated.", show_default=False),
    due: Optional[str] = typer.Option(None, "--due", help="ISO 8601.", metavar="TIME", show_default=False),
    after: List[str] = typer.Option(
        [], "--after", help="A task that it waits for; may be repeated.", metavar="ID", show_default=False
    ),
    key: Optional[str] = typer.Option(
        None, "--key", help="A repeated call with it creates nothing.", show_default=False
    ),
    by: Optional[str] = _BY,
) -> None:
    """Create a task and print its id."""
    async with call.storage() as storage:
        made = await storage.tasks.create_task(
            title,
            task_id=task_id,
            description=description,
            status=status,
            priority=priority,
            owner_id=owner,
            conversation_id=conversation,
            parent_id=parent,
            tags=tag,
            due_at=_time(due, "--due"),
            depends_on=after,
            idempotency_key=key,
            actor_id=by,
        )
    call.out.document(made.to_dict())
    call.out.raw(f"{made.id}\n")


async def move(
    call: Invocation,
    task: str = _ID,
    status: str = typer.Argument(
        ...,
        help="draft, ready, in_progress, review, done or cancelled.",
        metavar="STATUS",
        show_default=False,
    ),
    reason: Optional[str] = typer.Option(None, "--reason", help="Why; for the event.", show_default=False),
    by: Optional[str] = _BY,
) -> None:
    """Move a task to another state; exit 1 when there is no such move, or it waits for others."""
    async with call.storage() as storage:
        moved = await storage.tasks.transition_task(task, status, reason=reason, actor_id=by)
    call.out.document(moved.to_dict())
    call.out.line(f"{moved.id} is {moved.status}, version {moved.version}.")


async def comment(
    call: Invocation,
    task: str = _ID,
    text: List[str] = typer.Argument(..., help="What is to be said.", metavar="TEXT", show_default=False),
    by: Optional[str] = _BY,
) -> None:
    """Add a comment to a task."""
    async with call.storage() as storage:
        event = await storage.tasks.add_comment(task, " ".join(text), actor_id=by)
    call.out.document(event.to_dict())
    call.out.line(f"Event {event.sequence} of {event.task_id}.")


async def depend(
    call: Invocation,
    task: str = _ID,
    other: str = typer.Argument(..., help="The task that it waits for.", metavar="OTHER", show_default=False),
    remove: bool = typer.Option(False, "--remove", help="Wait for it no longer; exit 1 when it did not."),
    by: Optional[str] = _BY,
) -> None:
    """Let a task wait for another one; exit 1 when that would close a circle."""
    async with call.storage() as storage:
        if remove:
            changed = await storage.tasks.remove_dependency(task, other, actor_id=by)
        else:
            changed = await storage.tasks.add_dependency(task, other, actor_id=by)
    if remove and not changed:
        raise CommandFailedError(f"task {task!r} does not depend on {other!r}")
    call.out.document({"task_id": task, "depends_on_id": other, "depends": not remove, "changed": changed})
    call.out.line(f"{task} {'no longer waits' if remove else 'waits'} for {other}.")


async def search(
    call: Invocation,
    text: List[str] = typer.Argument(
        ..., help="What to look for, in your own words.", metavar="TEXT", show_default=False
    ),
    status: Optional[str] = typer.Option(
        None, "--status", help="Only in this state; open: in any but done and cancelled.", show_default=False
    ),
    limit: int = typer.Option(10, "--limit", min=1, max=1000, help="At most so many."),
) -> None:
    """Search titles and descriptions; the best first."""
    async with call.storage() as storage:
        hits = await storage.tasks.search(" ".join(text), status=status, limit=limit)
    if call.out.as_json:
        call.out.records(hit.to_dict() for hit in hits)
    rows = [(f"{hit.score:.2f}", hit.task.id, hit.task.status, hit.snippet) for hit in hits]
    if rows:
        call.out.table(["score", "id", "status", "text"], rows)
    else:
        call.out.line("Nothing found.")


def _time(text: Optional[str], option: str) -> Optional[datetime]:
    if text is None:
        return None
    try:
        # fromisoformat knows no "Z" before Python 3.11
        moment = datetime.fromisoformat(text[:-1] + "+00:00" if text[-1:] in ("Z", "z") else text)
    except ValueError as exc:
        raise CommandUsageError(
            f"{option} must be a time such as 2030-01-31 or 2030-01-31T12:00:00+01:00"
        ) from exc
    return moment if moment.tzinfo is not None else moment.astimezone()


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 100 else text[:99] + "…"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    own = typer.Typer(help="Look at tasks and move them on.", no_args_is_help=True, rich_markup_mode=None)
    group(own)
    names: Dict[str, Any] = {
        "list": list_tasks,
        "ready": ready,
        "show": show,
        "create": create,
        "move": move,
        "comment": comment,
        "depend": depend,
        "search": search,
    }
    for name, function in names.items():
        command(own, name)(function)
    app.add_typer(own, name="tasks")

"""`init`, `migrate`, `current`, `history`: the schema of the database."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional

import typer

from modules.storage.commands.errors import FAILED
from modules.storage.commands.invocation import Invocation, command
from modules.store_common.errors import StorageError

__all__ = [
    "current",
    "history",
    "init",
    "migrate",
    "register",
]


async def init(call: Invocation) -> None:
    """Create the database where it is missing, and bring its schema up to date. Harmless when it is there."""
    from modules.storage.migrations.administration import migrate as apply

    applied = await apply(call.settings)
    where = call.settings.sql.get_safe_url()
    call.out.document({"url": where, "applied": applied})
    call.out.line(
        f"Ready: {where}" + (f" (applied {', '.join(applied)})" if applied else " (was there already)")
    )
    _ignore_git(call)


def _ignore_git(call: Invocation) -> None:
    """Keep the embedded default's data out of version control."""
    path = Path(call.settings.sql.path)
    if call.settings.sql.dialect.value == "sqlite" and path.parent == Path(".atlas"):
        ignore = path.parent / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="utf-8")


async def migrate(
    call: Invocation,
    sql: bool = typer.Option(False, "--sql", help="Print the SQL of all revisions instead of running it."),
) -> None:
    """Apply the schema revisions that are missing."""
    from modules.storage.migrations.administration import migrate as apply

    if sql:
        from modules.storage.migrations.runner import sql as sql_of

        text = sql_of(call.settings.sql.dialect.value, search_language=call.settings.sql.search_language)
        call.out.document({"dialect": call.settings.sql.dialect.value, "sql": text})
        call.out.raw(text)
        return
    applied = await apply(call.settings)
    call.out.document({"applied": applied})
    call.out.line(f"Applied: {', '.join(applied)}" if applied else "Nothing to do: the schema is up to date.")


async def current(call: Invocation) -> Optional[int]:
    """Print the revision that the database is at; exit 1 when it is not the newest of this release."""
    from modules.storage.migrations.administration import schema_state

    state = await schema_state(call.settings)
    call.out.document(state.to_dict())
    call.out.line(state.summary)
    return None if state.is_current else FAILED


async def history(call: Invocation) -> None:
    """List the schema revisions of this release, and which of them the database has."""
    from modules.storage.migrations import runner
    from modules.storage.migrations.administration import schema_state

    revisions = runner.history()
    try:
        pending: Optional[List[str]] = (await schema_state(call.settings)).pending
    except StorageError as exc:
        pending = None
        call.out.warn(f"warning: which of them the database has is not known: {exc}")
    rows = [
        {
            "revision": item.revision,
            "summary": item.summary,
            "applied": None if pending is None else item.revision not in pending,
        }
        for item in revisions
    ]
    if call.out.as_json:
        call.out.records(rows)
    words = {None: "unknown", True: "yes", False: "no"}
    shown = [
        (item.revision, words[None if pending is None else item.revision not in pending], item.summary)
        for item in revisions
    ]
    call.out.table(["revision", "applied", "summary"], shown)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for function in (init, migrate, current, history):
        command(app, function.__name__)(function)

"""All commands together. Each room's libraries are loaded when one of its commands runs."""

from __future__ import annotations

import typer

from modules.storage.commands import (
    conversations,
    data,
    demo,
    embed,
    jobs,
    kv,
    outbox,
    schema,
    serve,
    setup,
    status,
    tasks,
    tokens,
    vectors,
    work,
)
from modules.storage.commands.invocation import group

__all__ = ["app"]

app = typer.Typer(
    name="atlas-storage",
    help="Look after an ATLAS storage: set it up, look at it, move data in and out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
group(app)
for room in (
    setup,
    schema,
    status,
    data,
    conversations,
    embed,
    kv,
    tasks,
    jobs,
    vectors,
    outbox,
    serve,
    tokens,
    work,
    demo,
):
    room.register(app)

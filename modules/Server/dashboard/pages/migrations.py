"""The schema: its revisions, which of them are applied."""

from __future__ import annotations

from typing import Any, Dict

from fastapi import APIRouter, Request

from modules.Server.dashboard.rendering import page
from modules.Server.dashboard.visitors import Visitor
from modules.Server.problems import ApiError
from modules.storage.manager_schema import schema_revision
from modules.storage.migrations import HEAD
from modules.storage.opening import run_in_thread

__all__ = ["migrations", "router"]

router = APIRouter(include_in_schema=False)


@page(router, "/migrations", "migrations.html")
async def migrations(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load the revisions, newest first."""
    if not visitor.may("monitor"):
        raise ApiError(
            403, "forbidden", "this page is about the whole installation: it needs the scope `monitor`"
        )
    current = await schema_revision(visitor.storage.sql_pool)
    revisions = await run_in_thread(_history)
    rows = [
        {
            "revision": item.revision,
            "title": item.summary,
            "is_applied": current is not None and item.revision <= current,
        }
        for item in revisions
    ]
    return {"current": current, "head": HEAD, "rows": list(reversed(rows))}


def _history() -> Any:
    # Alembic is loaded when somebody looks
    from modules.storage.migrations import runner

    return runner.history()

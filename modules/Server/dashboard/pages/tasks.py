"""The board of tasks, and one task."""

from __future__ import annotations

import asyncio
from typing import Any, Dict
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from modules.Server.dashboard.rendering import back, page
from modules.Server.dashboard.visitors import Visitor, VisitorHere
from modules.Server.replies import Json
from modules.store_common.errors import StorageError
from modules.task_store.errors import TaskNotFoundError
from modules.task_store.models import TASK_MOVES

__all__ = ["act", "board", "create", "move", "router", "task"]

router = APIRouter(include_in_schema=False)
_SHOWN = 40
_NAMES = {
    "draft": "Draft",
    "ready": "Ready",
    "in_progress": "In progress",
    "review": "Review",
    "done": "Done",
    "cancelled": "Cancelled",
}


@page(router, "/tasks", "tasks.html")
async def board(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load the tasks by status."""
    store, tenant = visitor.storage.tasks, visitor.tenant_id
    pages = [store.list_tasks(status=status, limit=_SHOWN, tenant_id=tenant) for status in TASK_MOVES]
    counts, shown = await asyncio.gather(store.count_tasks(tenant_id=tenant), asyncio.gather(*pages))
    columns = [
        {"status": status, "name": _NAMES.get(status, status), "count": counts[status], "tasks": found.items}
        for status, found in zip(TASK_MOVES, shown)
    ]
    return {"columns": columns, "total": sum(counts.values()), "moves": TASK_MOVES, "names": _NAMES}


@router.post("/tasks")
async def create(request: Request, visitor: VisitorHere) -> Response:
    """Create a task."""
    form: Any = await request.form()
    title = str(form.get("title", "")).strip()
    try:
        await visitor.storage.tasks.create_task(
            title,
            description=str(form.get("description", "")).strip() or None,
            status="ready" if form.get("ready") else "draft",
            tenant_id=visitor.tenant_id,
        )
    except StorageError as exc:
        return back("/tasks", str(exc))
    return back("/tasks", "Created.")


@router.post("/tasks/{task_id:segment}/move")
async def move(request: Request, visitor: VisitorHere, task_id: str) -> Response:
    """Move a task; to a script it is said as JSON what came of it, to a form by a page."""
    form: Any = await request.form()
    status = str(form.get("status", ""))
    version = str(form.get("version", ""))
    expected = int(version) if version.isdigit() and len(version) < 18 else None
    says = f"Moved to {_NAMES.get(status, status)}."
    moved = True
    try:
        await visitor.storage.tasks.transition_task(
            task_id, status, expected_version=expected, tenant_id=visitor.tenant_id
        )
    except StorageError as exc:
        moved, says = False, str(exc)
    visitor.services.feed.wake_pages(visitor.tenant_id)
    if "application/json" in request.headers.get("accept", ""):
        return Json({"moved": moved, "says": says}, 200 if moved else 409)
    return back(str(form.get("back") or "/tasks") if form.get("back") == _path(task_id) else "/tasks", says)


@page(router, "/tasks/{task_id:segment}", "task.html")
async def task(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load a task and what belongs to it."""
    task_id = request.path_params["task_id"]
    found = await visitor.storage.tasks.get_task_details(task_id, tenant_id=visitor.tenant_id)
    if found is None:
        raise TaskNotFoundError(task_id)
    return {"details": found, "task": found.task, "moves": TASK_MOVES[found.task.status], "names": _NAMES}


@router.post("/tasks/{task_id:segment}/do")
async def act(request: Request, visitor: VisitorHere, task_id: str) -> Response:
    """Comment, or let it wait for another task."""
    form: Any = await request.form()
    store, what, says = visitor.storage.tasks, form.get("what"), ""
    text = str(form.get("text", "")).strip()
    try:
        if what == "comment" and text:
            await store.add_comment(task_id, text, tenant_id=visitor.tenant_id)
        elif what == "depend" and text:
            await store.add_dependency(task_id, text, tenant_id=visitor.tenant_id)
        elif what == "undepend":
            await store.remove_dependency(task_id, text, tenant_id=visitor.tenant_id)
    except StorageError as exc:
        says = str(exc)
    return back(_path(task_id), says)


def _path(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='')}"

"""Tasks: board, list, create, change, move, dependencies, comments, search."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Annotated, Any, Dict, List, Literal, Optional

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response

from modules.Server.api.parameters import (
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    Limit,
    PartOf50,
    errors,
    expected_version,
    other_than,
    unless_known,
)
from modules.Server.callers import Reader, Writer
from modules.Server.models import Input, PageOf
from modules.Server.models_tasks import BoardOut, TaskDetailsOut, TaskEventOut, TaskHitsOut, TaskOut
from modules.Server.once import Reply, key_of_request, once
from modules.Server.problems import ApiError
from modules.Server.replies import Json, etag, versioned
from modules.task_store.errors import TaskNotFoundError
from modules.task_store.models import TASK_MOVES

__all__ = [
    "Comment",
    "Move",
    "NewTaskIn",
    "TaskChange",
    "add_dependency",
    "board",
    "change_task",
    "comment",
    "create_task",
    "delete_task",
    "get_task",
    "list_tasks",
    "move_task",
    "remove_dependency",
    "router",
    "search_tasks",
    "task_details",
]

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])
_TaskId = Annotated[
    str,
    Path(description="Id of the task.", examples=["t1"], json_schema_extra=other_than("board", "search")),
]
_Status = Literal["draft", "ready", "in_progress", "review", "done", "cancelled"]
_Priority = Annotated[int, Field(ge=-(2**31), lt=2**31, description="Higher comes first.")]


class NewTaskIn(Input):
    """A task to create."""

    title: str = Field(examples=["Book the hotel"])
    id: Optional[str] = None
    description: Optional[str] = None
    status: Literal["draft", "ready"] = "draft"
    priority: _Priority = 0
    owner_id: Optional[str] = None
    session_id: Optional[str] = None
    conversation_id: Optional[str] = None
    parent_id: Optional[str] = None
    tags: List[str] = Field(default_factory=list, max_length=100)
    due_at: Optional[datetime] = Field(None, description="With a time zone.")
    metadata: Dict[str, Any] = Field(default_factory=dict)
    depends_on: List[str] = Field(default_factory=list, max_length=1000)


class TaskChange(Input):
    """What to change; what is left out stays."""

    title: Optional[str] = None
    description: Optional[str] = None
    priority: Optional[_Priority] = None
    owner_id: Optional[str] = None
    tags: Optional[List[str]] = Field(None, max_length=100)
    due_at: Optional[datetime] = None
    metadata: Optional[Dict[str, Any]] = None


class Move(Input):
    """Where to."""

    status: _Status = Field(examples=["in_progress"])
    reason: Optional[str] = None


class Comment(Input):
    """What to say."""

    text: str = Field(examples=["The second one is nearer to the station."])
    actor_id: Optional[str] = None


@router.get("", response_model=PageOf[TaskOut])
async def list_tasks(
    caller: Reader,
    part: PartOf50,
    status: Annotated[Optional[_Status], Query()] = None,
    owner_id: Annotated[Optional[str], Query(description="Only of this owner.")] = None,
    conversation_id: Annotated[Optional[str], Query(description="Only of this conversation.")] = None,
    parent_id: Annotated[Optional[str], Query(description="Only children of this task.")] = None,
    tag: Annotated[Optional[str], Query(description="Only with this tag.")] = None,
) -> Json:
    """List tasks."""
    page = await caller.storage.tasks.list_tasks(
        status=status,
        owner_id=owner_id,
        conversation_id=conversation_id,
        parent_id=parent_id,
        tag=tag,
        **part.of(caller),
    )
    return Json(page.to_dict())


@router.post("", status_code=201, response_model=TaskOut, responses=errors(404, 409))
async def create_task(
    caller: Writer, request: Request, body: NewTaskIn, idempotency_key: IdempotencyKey = None
) -> Json:
    """Create a task. With a known Idempotency-Key: the task of then."""
    given = body.model_dump(exclude={"id", "title"})
    made = await caller.storage.tasks.create_task(
        body.title,
        task_id=body.id,
        idempotency_key=key_of_request(request),
        tenant_id=caller.tenant_id,
        **given,
    )
    return versioned(made, 201)


@router.get("/board", response_model=BoardOut)
async def board(
    caller: Reader,
    owner_id: Annotated[Optional[str], Query(description="Only of this owner.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Tasks of each status at most.")] = 50,
) -> Json:
    """Get the tasks by status, with the moves that each status allows."""
    store, tenant = caller.storage.tasks, caller.tenant_id
    pages = [
        store.list_tasks(status=one, limit=limit, owner_id=owner_id, tenant_id=tenant) for one in TASK_MOVES
    ]
    counting = store.count_tasks(owner_id=owner_id, tenant_id=tenant)
    counts, found = await asyncio.gather(counting, asyncio.gather(*pages))
    columns = [
        {
            "status": status,
            "count": counts[status],
            "moves": list(moves),
            "items": [task.to_dict() for task in page],
        }
        for (status, moves), page in zip(TASK_MOVES.items(), found)
    ]
    return Json({"columns": columns})


@router.get("/search", response_model=TaskHitsOut)
async def search_tasks(
    caller: Reader,
    q: Annotated[str, Query(description="What a person types.", examples=["hotel"])],
    status: Annotated[Optional[_Status], Query()] = None,
    limit: Limit = 10,
) -> Json:
    """Search titles and descriptions."""
    hits = await caller.storage.tasks.search(q, status=status, limit=limit, tenant_id=caller.tenant_id)
    return Json({"items": [hit.to_dict() for hit in hits]})


@router.get("/{task_id:segment}", response_model=TaskOut, responses=errors(304, 404))
async def get_task(
    caller: Reader, request: Request, task_id: _TaskId, if_none_match: IfNoneMatch = None
) -> Response:
    """Get a task."""
    found = await caller.storage.tasks.get_task(task_id, tenant_id=caller.tenant_id)
    if found is None:
        raise TaskNotFoundError(task_id)
    return unless_known(request, found)


@router.get("/{task_id:segment}/details", response_model=TaskDetailsOut, responses=errors(404))
async def task_details(caller: Reader, task_id: _TaskId) -> Json:
    """Get a task with its dependencies, assignments, children and newest events."""
    found = await caller.storage.tasks.get_task_details(task_id, tenant_id=caller.tenant_id)
    if found is None:
        raise TaskNotFoundError(task_id)
    return Json(found.to_dict())


@router.patch("/{task_id:segment}", response_model=TaskOut, responses=errors(404, 409, 412))
async def change_task(caller: Writer, task_id: _TaskId, body: TaskChange, if_match: IfMatch = None) -> Json:
    """Give a task other fields."""
    given = body.model_dump(include=body.model_fields_set)
    if not given:
        raise ApiError(422, "invalid_request", "a change needs a field")
    changed = await caller.storage.tasks.update_task(
        task_id, **given, expected_version=expected_version(if_match), tenant_id=caller.tenant_id
    )
    return versioned(changed)


@router.post("/{task_id:segment}/move", response_model=TaskOut, responses=errors(404, 409, 412))
async def move_task(
    caller: Writer,
    request: Request,
    task_id: _TaskId,
    body: Move,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Move a task to another status; a move that is not allowed is explained (409)."""

    async def effect(stores: Any) -> Reply:
        moved = await stores.tasks.transition_task(
            task_id,
            body.status,
            reason=body.reason,
            expected_version=expected_version(if_match),
            tenant_id=caller.tenant_id,
        )
        return Reply(moved.to_dict(), 200, etag(moved.version))

    return await once(request, caller, effect, body.model_dump())


@router.delete("/{task_id:segment}", status_code=204, response_model=None, responses=errors(404))
async def delete_task(caller: Writer, task_id: _TaskId) -> Response:
    """Delete a task for good."""
    if not await caller.storage.tasks.delete_task(task_id, tenant_id=caller.tenant_id):
        raise TaskNotFoundError(task_id)
    return Response(status_code=204)


@router.put(
    "/{task_id:segment}/dependencies/{other_id:segment}",
    status_code=204,
    response_model=None,
    responses=errors(404, 409),
)
async def add_dependency(
    caller: Writer, task_id: _TaskId, other_id: Annotated[str, Path(description="What it waits for.")]
) -> Response:
    """Let a task wait for another one; a circle is refused (409)."""
    await caller.storage.tasks.add_dependency(task_id, other_id, tenant_id=caller.tenant_id)
    return Response(status_code=204)


@router.delete(
    "/{task_id:segment}/dependencies/{other_id:segment}",
    status_code=204,
    response_model=None,
    responses=errors(404, 409),
)
async def remove_dependency(
    caller: Writer, task_id: _TaskId, other_id: Annotated[str, Path(description="What it waits for.")]
) -> Response:
    """Let a task wait for another one no longer."""
    await caller.storage.tasks.remove_dependency(task_id, other_id, tenant_id=caller.tenant_id)
    return Response(status_code=204)


@router.post(
    "/{task_id:segment}/comments", status_code=201, response_model=TaskEventOut, responses=errors(404)
)
async def comment(
    caller: Writer,
    request: Request,
    task_id: _TaskId,
    body: Comment,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Add a comment."""

    async def effect(stores: Any) -> Reply:
        said = await stores.tasks.add_comment(
            task_id, body.text, actor_id=body.actor_id, tenant_id=caller.tenant_id
        )
        return Reply(said.to_dict(), 201)

    return await once(request, caller, effect, body.model_dump())

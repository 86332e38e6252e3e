"""What answers about tasks look like, for the OpenAPI document."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional

from pydantic import BaseModel, Field

__all__ = [
    "BoardOut",
    "ColumnOut",
    "DependencyOut",
    "TaskDetailsOut",
    "TaskEventOut",
    "TaskHitOut",
    "TaskHitsOut",
    "TaskOut",
]


class TaskOut(BaseModel):
    """A task; its ETag is its version."""

    id: str
    title: str
    description: Optional[str]
    status: str = Field(examples=["ready"])
    priority: int
    owner_id: Optional[str]
    session_id: Optional[str]
    conversation_id: Optional[str]
    parent_id: Optional[str]
    tags: List[str]
    due_at: Optional[datetime]
    metadata: Dict[str, Any]
    version: int
    open_dependencies: int = Field(description="How many tasks it waits for.")
    created_at: datetime
    updated_at: datetime
    started_at: Optional[datetime]
    finished_at: Optional[datetime]


class DependencyOut(BaseModel):
    """A task that another one waits for."""

    task_id: str
    title: str
    status: str
    is_met: bool
    created_at: datetime


class TaskEventOut(BaseModel):
    """Something that happened to a task."""

    task_id: str
    sequence: int
    type: str
    version: int
    data: Dict[str, Any]
    actor_id: Optional[str]
    created_at: datetime


class TaskDetailsOut(BaseModel):
    """A task and what belongs to it."""

    task: TaskOut
    dependencies: List[DependencyOut]
    dependents: List[DependencyOut]
    assignments: List[Dict[str, Any]]
    events: List[TaskEventOut]
    children: List[str]


class ColumnOut(BaseModel):
    """The tasks of one status."""

    status: str
    count: int = Field(description="How many there are, shown or not.")
    moves: List[str] = Field(description="The statuses that a task may get from here.")
    items: List[TaskOut]


class BoardOut(BaseModel):
    """The tasks by status."""

    columns: List[ColumnOut]


class TaskHitOut(BaseModel):
    """A task that a search found."""

    task: TaskOut
    score: float
    snippet: str


class TaskHitsOut(BaseModel):
    """What a search found, best first."""

    items: List[TaskHitOut]

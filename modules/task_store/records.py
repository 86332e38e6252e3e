"""What the task store takes and gives: frozen dataclasses, no database row crosses the API."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

from modules.store_common.records import Page, Record, page_of

__all__ = [
    "Assignment",
    "Dependency",
    "NewTask",
    "Page",
    "Record",
    "Task",
    "TaskDetails",
    "TaskEvent",
    "TaskHit",
    "page_of",
]


@dataclass(frozen=True)
class NewTask:
    """A task to create; see `TaskStore.create_task` for what each field means."""

    title: str
    id: Optional[str] = None
    description: Optional[str] = None
    status: str = "draft"
    priority: int = 0
    owner_id: Optional[str] = None
    session_id: Optional[str] = None
    conversation_id: Optional[str] = None
    parent_id: Optional[str] = None
    tags: Sequence[str] = ()
    due_at: Optional[datetime] = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    depends_on: Sequence[str] = ()
    idempotency_key: Optional[str] = None


@dataclass(frozen=True)
class Task(Record):
    """A task.

    Attributes:
        status: One of `models.TASK_STATUSES`.
        priority: Higher comes first.
        version: Starts at 1 and grows with each change of a field, the status or the dependencies; comments and
            assignments leave it.
        open_dependencies: How many tasks it waits for: neither done nor cancelled.
        updated_at: The last change, comment or assignment.
        started_at: When it first was in progress.
        finished_at: When it was done or cancelled.
    """

    id: str
    title: str
    description: Optional[str]
    status: str
    priority: int
    owner_id: Optional[str]
    session_id: Optional[str]
    conversation_id: Optional[str]
    parent_id: Optional[str]
    tags: Tuple[str, ...]
    due_at: Optional[datetime]
    metadata: Dict[str, Any]
    version: int
    open_dependencies: int
    created_at: datetime
    updated_at: datetime
    started_at: Optional[datetime]
    finished_at: Optional[datetime]


@dataclass(frozen=True)
class Dependency(Record):
    """A task that another one waits for (or that waits for it): which, and how far it is."""

    task_id: str
    title: str
    status: str
    is_met: bool
    created_at: datetime


@dataclass(frozen=True)
class Assignment(Record):
    """Somebody was asked to do a task.

    Attributes:
        status: "pending", "accepted", "declined" or "completed".
    """

    task_id: str
    id: str
    assignee_id: str
    status: str
    note: Optional[str]
    assigned_by_id: Optional[str]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class TaskEvent(Record):
    """Something that happened to a task.

    Attributes:
        sequence: Grows with each event of the task.
        type: "created", "updated", "status_changed", "comment", "assignment" or "deleted".
        version: The task's version after it.
        data: What happened, by type; docs/tasks.md has the table.
        actor_id: Who did it, where the caller said so.
    """

    task_id: str
    sequence: int
    type: str
    version: int
    data: Dict[str, Any]
    actor_id: Optional[str]
    created_at: datetime


@dataclass(frozen=True)
class TaskDetails(Record):
    """A task and what belongs to it, as of one moment.

    Attributes:
        dependencies: What it waits for.
        dependents: What waits for it.
        events: The newest ones, oldest first.
        children: The ids of the tasks whose parent it is.
    """

    task: Task
    dependencies: Tuple[Dependency, ...]
    dependents: Tuple[Dependency, ...]
    assignments: Tuple[Assignment, ...]
    events: Tuple[TaskEvent, ...]
    children: Tuple[str, ...]


@dataclass(frozen=True)
class TaskHit(Record):
    """A task that a search found.

    Attributes:
        score: BM25; higher is better, comparable within one result only.
        snippet: Part of the title or description around the words found, each found word between "[" and "]".
    """

    task: Task
    score: float
    snippet: str

"""From statement rows to results: column lists, and the functions that read a row in that order."""

from __future__ import annotations

from typing import Any, List

from modules.storage.statements import Row
from modules.task_store.models import TaskAssignmentRow, TaskEventRow, TaskRow
from modules.task_store.records import Assignment, Task, TaskEvent

__all__ = [
    "ASSIGNMENT_COLUMNS",
    "EVENT_COLUMNS",
    "TASK_COLUMNS",
    "to_assignment",
    "to_event",
    "to_task",
]

_T, _E, _A = TaskRow, TaskEventRow, TaskAssignmentRow

TASK_COLUMNS: List[Any] = [
    _T.id, _T.title, _T.description, _T.status, _T.rank, _T.owner_id, _T.session_id, _T.conversation_id, _T.parent_id,
    _T.tags, _T.due_at, _T.metadata_, _T.version, _T.open_dependencies, _T.created_at, _T.updated_at, _T.started_at,
    _T.finished_at,
]  # fmt: skip
EVENT_COLUMNS: List[Any] = [
    _E.task_id, _E.sequence, _E.type, _E.version, _E.data, _E.actor_id, _E.created_at,
]  # fmt: skip
ASSIGNMENT_COLUMNS: List[Any] = [
    _A.task_id, _A.id, _A.assignee_id, _A.status, _A.note, _A.assigned_by_id, _A.created_at, _A.updated_at,
]  # fmt: skip
_RANK = TASK_COLUMNS.index(_T.rank)
_TAGS = TASK_COLUMNS.index(_T.tags)
_WIDTH = len(TASK_COLUMNS)


def to_task(row: Row) -> Task:
    """Read a row that begins with `TASK_COLUMNS`."""
    values = list(row[:_WIDTH])
    values[_RANK] = -values[_RANK]
    values[_TAGS] = tuple(values[_TAGS])
    return Task(*values)


def to_event(row: Row) -> TaskEvent:
    """Read a row of `EVENT_COLUMNS`."""
    return TaskEvent(*row)


def to_assignment(row: Row) -> Assignment:
    """Read a row of `ASSIGNMENT_COLUMNS`."""
    return Assignment(*row)

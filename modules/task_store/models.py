"""Tables and state machines of the task store, and the SQL around them that SQLAlchemy does not model.

Every table leads with `tenant_id`. Owner, session and conversation of a task are labels: they need no row anywhere, and
a task keeps them when what they name is deleted, so that it can be found by them as before. A parent and a dependency
are tasks of the same tenant.

    task:        draft -> ready -> in_progress -> review -> done, one step back at a time from ready, in_progress and
                 review, and from each of them but done to cancelled. done and cancelled are final.
    assignment:  pending -> accepted | declined; accepted -> completed | declined. declined and completed are final.

`open_dependencies` counts the dependencies that are neither done nor cancelled. It is kept with the change that alters
it, under the lock of both rows, so that "ready to start" is a look into an index and a move need not look at others.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, PrimaryKeyConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import FreeText, JsonValue, UtcDateTime
from modules.storage.schema import Base, Identifier
from modules.task_store.search_ddl import dialect_ddl

__all__ = [
    "ASSIGNMENT_MOVES",
    "ASSIGNMENT_STATUSES",
    "DIALECT_DDL",
    "EVENT_TYPES",
    "FINAL",
    "FREE_MOVES",
    "OPEN_ASSIGNMENTS",
    "STARTS",
    "TASK_MOVES",
    "TASK_STATUSES",
    "TaskAssignmentRow",
    "TaskDependencyRow",
    "TaskEventRow",
    "TaskRow",
    "TaskTagRow",
]

#: From each state of a task, the states that it can get.
TASK_MOVES: Dict[str, Tuple[str, ...]] = {
    "draft": ("ready", "cancelled"),
    "ready": ("in_progress", "draft", "cancelled"),
    "in_progress": ("review", "ready", "cancelled"),
    "review": ("done", "in_progress", "cancelled"),
    "done": (),
    "cancelled": (),
}
TASK_STATUSES: Tuple[str, ...] = tuple(TASK_MOVES)
#: States that nothing leaves. A dependency in one of them is met.
FINAL: FrozenSet[str] = frozenset(status for status, onward in TASK_MOVES.items() if not onward)
#: States that a task may get although it waits for others; every other one needs all dependencies met.
FREE_MOVES: FrozenSet[str] = frozenset({"draft", "cancelled"})
#: States that a task may be created in.
STARTS: Tuple[str, ...] = ("draft", "ready")

#: From each state of an assignment, the states that it can get.
ASSIGNMENT_MOVES: Dict[str, Tuple[str, ...]] = {
    "pending": ("accepted", "declined"),
    "accepted": ("completed", "declined"),
    "declined": (),
    "completed": (),
}
ASSIGNMENT_STATUSES: Tuple[str, ...] = tuple(ASSIGNMENT_MOVES)
OPEN_ASSIGNMENTS: Tuple[str, ...] = tuple(status for status, onward in ASSIGNMENT_MOVES.items() if onward)

EVENT_TYPES: Tuple[str, ...] = ("created", "updated", "status_changed", "comment", "assignment", "deleted")

#: SQL to run after `create_all`, for the default search language; see `search_ddl.dialect_ddl` for others.
DIALECT_DDL: Dict[str, List[str]] = {name: dialect_ddl(name) for name in ("sqlite", "postgresql")}


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class TaskRow(Base):
    """A task.

    `rank` is minus its priority, so that what comes first is smallest. `closed` is 1 when the status is final. `last_event`
    numbers its events.
    """

    __tablename__ = "atlas_tasks"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        Index("ix_atlas_tasks_rank", "tenant_id", "rank", "id"),
        Index("ix_atlas_tasks_status", "tenant_id", "status", "rank", "id"),
        Index("ix_atlas_tasks_updated", "tenant_id", "updated_at", "id"),
        # Partial: tasks without such a label, and finished ones, do not pay for them. What an index is restricted to is among
        # its columns, too: SQLite without statistics takes the index that has the most of a query's conditions.
        _partial("ix_atlas_tasks_owner", "tenant_id", "owner_id", "rank", "id", where="owner_id IS NOT NULL"),
        _partial(
            "ix_atlas_tasks_session", "tenant_id", "session_id", "rank", "id", where="session_id IS NOT NULL"
        ),
        _partial(
            "ix_atlas_tasks_conversation",
            "tenant_id",
            "conversation_id",
            "rank",
            "id",
            where="conversation_id IS NOT NULL",
        ),
        _partial(
            "ix_atlas_tasks_parent", "tenant_id", "parent_id", "rank", "id", where="parent_id IS NOT NULL"
        ),
        _partial("ix_atlas_tasks_open", "tenant_id", "closed", "rank", "id", where="closed = 0"),
        _partial(
            "ix_atlas_tasks_due",
            "tenant_id",
            "closed",
            "due_at",
            "id",
            where="due_at IS NOT NULL AND closed = 0",
        ),
        _partial(
            "ix_atlas_tasks_startable",
            "tenant_id",
            "status",
            "open_dependencies",
            "rank",
            "id",
            where="open_dependencies = 0 AND closed = 0",
        ),
        _partial("ix_atlas_tasks_finished", "tenant_id", "finished_at", where="finished_at IS NOT NULL"),
        _partial(
            "uq_atlas_tasks_idempotency_key",
            "tenant_id",
            "idempotency_key",
            where="idempotency_key IS NOT NULL",
            unique=True,
        ),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    title: Mapped[str] = mapped_column(FreeText, nullable=False)
    description: Mapped[Optional[str]] = mapped_column(FreeText)
    status: Mapped[str] = mapped_column(Identifier)
    closed: Mapped[int] = mapped_column(BigInteger)
    rank: Mapped[int] = mapped_column(BigInteger)
    owner_id: Mapped[Optional[str]] = mapped_column(Identifier)
    session_id: Mapped[Optional[str]] = mapped_column(Identifier)
    conversation_id: Mapped[Optional[str]] = mapped_column(Identifier)
    parent_id: Mapped[Optional[str]] = mapped_column(Identifier)
    tags: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    due_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    metadata_: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    version: Mapped[int] = mapped_column(BigInteger)
    open_dependencies: Mapped[int] = mapped_column(BigInteger)
    last_event: Mapped[int] = mapped_column(BigInteger)
    idempotency_key: Mapped[Optional[str]] = mapped_column(Identifier)
    body_digest: Mapped[Optional[str]] = mapped_column(Identifier)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    finished_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)


def _of_task(column: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", column], ["atlas_tasks.tenant_id", "atlas_tasks.id"], ondelete="CASCADE"
    )


class TaskTagRow(Base):
    """A tag of a task, in the order in which tasks of a tag are listed; the task's own row has its tags, too."""

    __tablename__ = "atlas_task_tags"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "tag", "rank", "task_id"),
        Index("ix_atlas_task_tags_task", "tenant_id", "task_id"),
        _of_task("task_id"),
        {"sqlite_with_rowid": False},
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    tag: Mapped[str] = mapped_column(Identifier)
    rank: Mapped[int] = mapped_column(BigInteger)
    task_id: Mapped[str] = mapped_column(Identifier)


class TaskDependencyRow(Base):
    """`task_id` waits for `depends_on_id`."""

    __tablename__ = "atlas_task_dependencies"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "task_id", "depends_on_id"),
        Index("ix_atlas_task_dependencies_waiting", "tenant_id", "depends_on_id", "task_id"),
        _of_task("task_id"),
        _of_task("depends_on_id"),
        {"sqlite_with_rowid": False},
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    task_id: Mapped[str] = mapped_column(Identifier)
    depends_on_id: Mapped[str] = mapped_column(Identifier)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TaskAssignmentRow(Base):
    """Somebody was asked to do the task."""

    __tablename__ = "atlas_task_assignments"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "task_id", "id"),
        Index("ix_atlas_task_assignments_assignee", "tenant_id", "assignee_id", "id", "task_id"),
        _partial(
            "uq_atlas_task_assignments_open",
            "tenant_id",
            "task_id",
            "assignee_id",
            where="status IN ('pending', 'accepted')",
            unique=True,
        ),
        _of_task("task_id"),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    task_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    assignee_id: Mapped[str] = mapped_column(Identifier)
    status: Mapped[str] = mapped_column(Identifier)
    note: Mapped[Optional[str]] = mapped_column(FreeText)
    assigned_by_id: Mapped[Optional[str]] = mapped_column(Identifier)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TaskEventRow(Base):
    """What happened to a task. No foreign key: "deleted" outlives the task, so that subscribers are told."""

    __tablename__ = "atlas_task_events"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "task_id", "sequence"),
        _partial("ix_atlas_task_events_deleted", "tenant_id", "created_at", where="type = 'deleted'"),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    task_id: Mapped[str] = mapped_column(Identifier)
    sequence: Mapped[int] = mapped_column(BigInteger)
    type: Mapped[str] = mapped_column(Identifier)
    version: Mapped[int] = mapped_column(BigInteger)
    data: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    actor_id: Mapped[Optional[str]] = mapped_column(Identifier)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)

"""Room: who was asked to do a task, and what they said."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Dict, FrozenSet, List, Optional

from sqlalchemy import BigInteger, String, bindparam, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from modules.storage.columns import FreeText, utc_now
from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.arguments import check_limit, check_optional_id, check_optional_text
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier
from modules.task_store.encoding import check_assignment_status
from modules.task_store.errors import (
    AssignmentExistsError,
    AssignmentNotFoundError,
    AssignmentTransitionError,
    TaskFinishedError,
)
from modules.task_store.models import ASSIGNMENT_MOVES, FINAL, TaskAssignmentRow
from modules.task_store.noting import Key, change, key_of, lock_task
from modules.task_store.records import Assignment, Page, page_of
from modules.task_store.room import TaskRoom
from modules.task_store.rows import ASSIGNMENT_COLUMNS, to_assignment
from modules.task_store.statements import TOUCH

__all__ = ["Assignments", "assign", "list_assignment_rows", "list_assignment_statement", "move"]

_A = TaskAssignmentRow
_TENANT = bindparam("tenant_id", type_=String())
_TASK = bindparam("task_id", type_=String())
_MAX_NOTE_BYTES = 65_536
_THIS = (_A.tenant_id == _TENANT, _A.task_id == _TASK, _A.id == bindparam("id", type_=String()))
_NEW = {
    _A.tenant_id: _TENANT,
    _A.task_id: _TASK,
    _A.id: bindparam("id"),
    _A.assignee_id: bindparam("assignee_id"),
    _A.status: "pending",
    _A.note: bindparam("note", type_=FreeText()),
    _A.assigned_by_id: bindparam("assigned_by_id"),
    _A.created_at: utc_now(),
    _A.updated_at: utc_now(),
}
_ADD = Statement(
    sqlite=sqlite.insert(_A).values(_NEW).on_conflict_do_nothing().returning(*ASSIGNMENT_COLUMNS),
    postgresql=postgresql.insert(_A).values(_NEW).on_conflict_do_nothing().returning(*ASSIGNMENT_COLUMNS),
)
_GET = Statement(select(*ASSIGNMENT_COLUMNS).where(*_THIS))
_MOVE = Statement(
    update(_A)
    .where(*_THIS)
    .values(status=bindparam("status"), updated_at=utc_now())
    .returning(*ASSIGNMENT_COLUMNS)
)


@lru_cache(maxsize=16)
def list_assignment_statement(given: FrozenSet[str]) -> Statement:
    """Return the statement of a list; `given` names the filters: task_id, assignee_id, status."""
    query = select(*ASSIGNMENT_COLUMNS).where(_A.tenant_id == _TENANT)
    for name in ("task_id", "assignee_id", "status"):
        if name in given:
            query = query.where(getattr(_A, name) == bindparam(name, type_=String()))
    after = tuple_(bindparam("id", type_=String()), bindparam("after_task_id", type_=String()))
    return Statement(
        query.where(tuple_(_A.id, _A.task_id) > after)
        .order_by(_A.id, _A.task_id)
        .limit(bindparam("limit", type_=BigInteger))
    )


@write
async def assign(
    tx: Transaction,
    key: Key,
    assignment_id: str,
    assignee_id: str,
    note: Optional[str],
    actor_id: Optional[str],
) -> Assignment:
    """Ask somebody to do a task."""
    task = await lock_task(tx, key)
    if task.status in FINAL:
        raise TaskFinishedError(task.id, task.status, "be assigned")
    row = await tx.first(
        _ADD, **key, id=assignment_id, assignee_id=assignee_id, note=note, assigned_by_id=actor_id
    )
    if row is None:
        raise AssignmentExistsError(task.id, assignee_id)
    await _note(tx, key, to_assignment(row), None, actor_id)
    return to_assignment(row)


@write
async def move(
    tx: Transaction, key: Key, assignment_id: str, status: str, actor_id: Optional[str]
) -> Assignment:
    """Move an assignment to another state. The task's lock orders the moves."""
    task = await lock_task(tx, key)
    row = await tx.first(_GET, **key, id=assignment_id)
    if row is None:
        raise AssignmentNotFoundError(task.id, assignment_id)
    before = to_assignment(row).status
    if status not in ASSIGNMENT_MOVES[before]:
        raise AssignmentTransitionError(assignment_id, before, status, ASSIGNMENT_MOVES[before])
    moved = to_assignment(await tx.one(_MOVE, **key, id=assignment_id, status=status))
    await _note(tx, key, moved, before, actor_id)
    return moved


async def _note(
    tx: Transaction, key: Key, assignment: Assignment, before: Optional[str], actor_id: Optional[str]
) -> None:
    data = {
        "assignment_id": assignment.id,
        "assignee_id": assignment.assignee_id,
        "from": before,
        "to": assignment.status,
    }
    await change(tx, TOUCH, key, "assignment", data, actor_id)


@read
async def list_assignment_rows(tx: Transaction, statement: Statement, params: Dict[str, Any]) -> List[Row]:
    """Run a prepared list."""
    return await tx.all(statement, **params)


class Assignments(TaskRoom):
    """Assignments of tasks."""

    async def assign_task(
        self,
        task_id: str,
        assignee_id: str,
        *,
        assignment_id: Optional[str] = None,
        note: Optional[str] = None,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Assignment:
        """Ask somebody to do the task; the assignment is pending until they accept or decline it.

        Several people may be asked. The task's owner is a label of its own and stays as it is.

        Args:
            task_id: Which.
            assignee_id: Whom.
            assignment_id: Its id; None gives it a UUIDv7.
            note: At most 64 KiB.
            actor_id: Who asks; kept as `assigned_by_id`.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            TaskNotFoundError: this tenant has no such task.
            TaskFinishedError: it is done or cancelled.
            AssignmentExistsError: they have a pending or accepted assignment of it, or the id is taken.
        """
        own = new_id() if assignment_id is None else check_identifier(assignment_id, "assignment_id")
        return await self._change_task(
            assign,
            key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id")),
            own,
            check_identifier(assignee_id, "assignee_id"),
            check_optional_text(note, "note", _MAX_NOTE_BYTES),
            check_optional_id(actor_id, "actor_id"),
        )

    async def transition_assignment(
        self,
        task_id: str,
        assignment_id: str,
        status: str,
        *,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Assignment:
        """Move an assignment: pending to accepted or declined, accepted to completed or declined.

        Raises:
            TaskNotFoundError, AssignmentNotFoundError: this tenant has no such task, or it no such assignment.
            AssignmentTransitionError: there is no such move; names both states.
        """
        key = key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id"))
        own = check_identifier(assignment_id, "assignment_id")
        actor = check_optional_id(actor_id, "actor_id")
        return await self._change_task(move, key, own, check_assignment_status(status), actor)

    async def list_assignments(
        self,
        *,
        task_id: Optional[str] = None,
        assignee_id: Optional[str] = None,
        status: Optional[str] = None,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Assignment]:
        """Return the assignments of a task, or of a person, by id: the oldest first.

        Args:
            task_id: Of this task; one of this and `assignee_id` is needed.
            assignee_id: Of this person.
            status: Only in this state.
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before, with the same filters.
            tenant_id: Whose; see `TenantPolicy`.
        """
        if task_id is None and assignee_id is None:
            raise InvalidValueError("list_assignments needs a task_id or an assignee_id")
        given = {
            "task_id": check_optional_id(task_id, "task_id"),
            "assignee_id": check_optional_id(assignee_id, "assignee_id"),
            "status": None if status is None else check_assignment_status(status),
        }
        tenant, filters = self._tenant(tenant_id), list(given.values())
        position = decode_cursor(cursor, tenant, "task_assignments", 2, filters=filters) or ["", ""]
        params: Dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        statement = list_assignment_statement(frozenset(params))
        params.update(
            tenant_id=tenant, id=position[0], after_task_id=position[1], limit=check_limit(limit) + 1
        )
        rows = await self._executor.run(list_assignment_rows, statement, params)
        found = [to_assignment(row) for row in rows]
        if len(found) <= limit:
            return page_of(found, None)
        place = [found[limit - 1].id, found[limit - 1].task_id]
        return page_of(found[:limit], encode_cursor(tenant, "task_assignments", place, filters=filters))

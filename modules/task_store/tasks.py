"""Room: one task: reading it, changing it, moving it on, deleting it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, Mapping, Optional, Sequence

from sqlalchemy import String, bindparam, delete, insert

from modules.storage.columns import JsonValue, utc_now
from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.arguments import (
    KEEP,
    check_optional_id,
    check_optional_integer,
    check_optional_text,
)
from modules.store_common.errors import ConcurrencyError
from modules.store_common.values import check_identifier, encode_json
from modules.task_store.encoding import check_status, encode_changes
from modules.task_store.errors import TaskDependencyError, TaskTransitionError
from modules.task_store.links import (
    CHILDREN,
    DEPENDENTS,
    REMOVE_LINKS_TO,
    UNBLOCK,
    UNMET,
    hold,
    lock_graph,
    refuse_own_ancestor,
)
from modules.task_store.models import (
    FINAL,
    FREE_MOVES,
    TASK_MOVES,
    TaskAssignmentRow,
    TaskDependencyRow,
    TaskEventRow,
    TaskRow,
    TaskTagRow,
)
from modules.task_store.noting import Key, change, key_of, lock_task, tell
from modules.task_store.records import Task
from modules.task_store.room import TaskRoom
from modules.task_store.rows import to_task
from modules.task_store.statements import (
    ADD_TAG,
    CLEAR_PARENT,
    GET_TASK,
    LOCK_TASK,
    REMOVE_TAGS,
    SET_FIELDS,
    SET_OPEN,
    SET_STATUS,
)

__all__ = ["Tasks", "delete_one", "get", "remove", "transition", "update"]

_TENANT = bindparam("tenant_id", type_=String())
_TASK = bindparam("task_id", type_=String())
_MAX_REASON_BYTES = 65_536


def _delete_of(table: Any) -> Statement:
    return Statement(delete(table).where(table.tenant_id == _TENANT, table.task_id == _TASK))


_PARTS = [_delete_of(table) for table in (TaskTagRow, TaskDependencyRow, TaskAssignmentRow, TaskEventRow)]
_DELETE = Statement(delete(TaskRow).where(TaskRow.tenant_id == _TENANT, TaskRow.id == _TASK))
_ADD_DELETED = Statement(
    insert(TaskEventRow).values(
        tenant_id=_TENANT,
        task_id=_TASK,
        sequence=bindparam("sequence"),
        type="deleted",
        version=bindparam("version"),
        data=bindparam("data", type_=JsonValue()),
        actor_id=bindparam("actor_id"),
        created_at=utc_now(),
    )
)


@read
async def get(tx: Transaction, key: Key) -> Optional[Task]:
    """Return a task."""
    row = await tx.first(GET_TASK, **key)
    return None if row is None else to_task(row)


def _expect(task: Task, expected: Optional[int]) -> None:
    if expected is not None and task.version != expected:
        raise ConcurrencyError(
            f"task {task.id!r}: expected version {expected}, found {task.version}; read it again and decide",
            expected,
            task.version,
        )


@write
async def transition(
    tx: Transaction,
    key: Key,
    to: str,
    expected: Optional[int],
    reason: Optional[str],
    actor_id: Optional[str],
) -> Task:
    """Move a task to another state."""
    if to in FINAL and await tx.first(DEPENDENTS, **key) is not None:
        # the rows of those that wait will be locked as well: nobody must do so in another order
        await lock_graph(tx, key["tenant_id"])
    task = await lock_task(tx, key)
    _expect(task, expected)
    if to not in TASK_MOVES[task.status]:
        raise TaskTransitionError(task.id, task.status, to, TASK_MOVES[task.status])
    if to not in FREE_MOVES and task.open_dependencies:
        raise TaskDependencyError(task.id, to, [row[0] for row in await tx.all(UNMET, **key)])
    data: Dict[str, Any] = {"from": task.status, "to": to}
    if reason is not None:
        data["reason"] = reason
    moved, _ = await change(
        tx,
        SET_STATUS,
        key,
        "status_changed",
        data,
        actor_id,
        status=to,
        started=int(to == "in_progress"),
        finished=int(to in FINAL),
    )
    if to in FINAL:
        await tx.run(UNBLOCK, **key)
    return moved


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return list(value) if isinstance(value, tuple) else value


@write
async def update(
    tx: Transaction, key: Key, fields: Mapping[str, Any], expected: Optional[int], actor_id: Optional[str]
) -> Task:
    """Give a task other fields; what is equal already is no change."""
    parent_id = fields.get("parent_id")
    if parent_id is not None:
        await lock_graph(tx, key["tenant_id"])
        await hold(tx, key["tenant_id"], {parent_id, key["task_id"]}, to_change=True)
        await refuse_own_ancestor(tx, key["tenant_id"], key["task_id"], parent_id)
    task = await lock_task(tx, key)
    _expect(task, expected)
    changed = {name: value for name, value in fields.items() if not _same(getattr(task, name), value)}
    if not changed:
        return task
    data = {
        "changes": {
            name: {"from": _plain(getattr(task, name)), "to": _plain(value)}
            for name, value in changed.items()
        }
    }
    new = {**task.__dict__, **changed}
    values = {name: new[name] for name in _PLAIN}
    values["rank"] = -new["priority"]
    values["tags"] = encode_json(list(new["tags"]), "tags")
    values["metadata"] = encode_json(new["metadata"], "metadata")
    found, _ = await change(tx, SET_FIELDS, key, "updated", data, actor_id, **values)
    if "tags" in changed or "priority" in changed:
        await tx.run(REMOVE_TAGS, **key)
        await tx.run_many(ADD_TAG, [{**key, "tag": tag, "rank": values["rank"]} for tag in found.tags])
    return found


_PLAIN = ("title", "description", "owner_id", "session_id", "conversation_id", "parent_id", "due_at")


def _same(old: Any, new: Any) -> bool:
    # JSON: 1, 1.0 and True differ, and so does the order of keys
    return encode_json(_plain(old), "old") == encode_json(_plain(new), "new")


async def remove(tx: Transaction, key: Key, actor_id: Optional[str]) -> bool:
    """Delete a task; whoever waits for it does so no longer, and its children have no parent. The graph is locked."""
    row = await tx.first(LOCK_TASK, **key)
    if row is None:
        return False
    task, sequence = to_task(row), row[-1] + 1
    waiting = [item[0] for item in await tx.all(DEPENDENTS, **key)]
    children = [item[0] for item in await tx.all(CHILDREN, **key)]
    await tx.run(REMOVE_LINKS_TO, **key)
    for other in sorted({*waiting, *children}):
        own = key_of(key["tenant_id"], other)
        await lock_task(tx, own)
        if other in waiting:
            step = 0 if task.status in FINAL else -1
            await change(
                tx, SET_OPEN, own, "updated", {"dependencies": {"removed": [task.id]}}, actor_id, step=step
            )
        if other in children:
            gone = {"changes": {"parent_id": {"from": task.id, "to": None}}}
            await change(tx, CLEAR_PARENT, own, "updated", gone, actor_id)
    for statement in (*_PARTS, _DELETE):
        await tx.run(statement, **key)
    data = encode_json({"status": task.status}, "data")
    await tx.run(_ADD_DELETED, **key, sequence=sequence, version=task.version, data=data, actor_id=actor_id)
    await tell(tx, key, sequence)
    return True


@write
async def delete_one(tx: Transaction, key: Key, actor_id: Optional[str]) -> bool:
    """Delete a task."""
    await lock_graph(tx, key["tenant_id"])
    return await remove(tx, key, actor_id)


class Tasks(TaskRoom):
    """Single tasks."""

    async def get_task(self, task_id: str, *, tenant_id: Optional[str] = None) -> Optional[Task]:
        """Return the task, None when this tenant has no such one."""
        return await self._executor.run(get, self._task_key(tenant_id, task_id))

    async def update_task(
        self,
        task_id: str,
        *,
        title: str = KEEP,
        description: Optional[str] = KEEP,
        priority: int = KEEP,
        owner_id: Optional[str] = KEEP,
        session_id: Optional[str] = KEEP,
        conversation_id: Optional[str] = KEEP,
        parent_id: Optional[str] = KEEP,
        tags: Sequence[str] = KEEP,
        due_at: Optional[datetime] = KEEP,
        metadata: Mapping[str, Any] = KEEP,
        expected_version: Optional[int] = None,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Task:
        """Give the task other fields; those left out stay. Its status has a method of its own: `transition_task`.

        What is equal already is no change: no new version, no event.

        Args:
            task_id: Which.
            title: As in `create_task`, and so are the other fields; None clears one that may be None.
            description: See `title`.
            priority: See `title`.
            owner_id: See `title`.
            session_id: See `title`.
            conversation_id: See `title`.
            parent_id: See `title`.
            tags: Replace those there are.
            due_at: See `title`.
            metadata: Replaces what is there.
            expected_version: Change it only if its version is this one.
            actor_id: Who does it; for the event.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            TaskNotFoundError: this tenant has no such task, or no such parent.
            ConcurrencyError: its version is another one; `actual` says which.
            TaskCycleError: the parent is the task itself or one of its descendants.
        """
        given = {
            "title": title,
            "description": description,
            "priority": priority,
            "owner_id": owner_id,
            "session_id": session_id,
            "conversation_id": conversation_id,
            "parent_id": parent_id,
            "tags": tags,
            "due_at": due_at,
            "metadata": metadata,
        }
        fields = encode_changes({name: value for name, value in given.items() if value is not KEEP})
        key = self._task_key(tenant_id, task_id)
        expected = check_optional_integer(expected_version, "expected_version")
        return await self._change_task(update, key, fields, expected, check_optional_id(actor_id, "actor_id"))

    async def transition_task(
        self,
        task_id: str,
        status: str,
        *,
        expected_version: Optional[int] = None,
        reason: Optional[str] = None,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Task:
        """Move the task to another state, as `models.TASK_MOVES` allows.

        Args:
            task_id: Which.
            status: The state it is to get.
            expected_version: Move it only if its version is this one.
            reason: Why, up to 64 KiB; for the event.
            actor_id: Who does it; for the event.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            TaskNotFoundError: this tenant has no such task.
            ConcurrencyError: its version is another one; `actual` says which.
            TaskTransitionError: there is no such move from where it is; names both states.
            TaskDependencyError: it waits for others, and the move is neither to draft nor to cancelled; names them.
        """
        return await self._change_task(
            transition,
            self._task_key(tenant_id, task_id),
            check_status(status),
            check_optional_integer(expected_version, "expected_version"),
            check_optional_text(reason, "reason", _MAX_REASON_BYTES),
            check_optional_id(actor_id, "actor_id"),
        )

    async def delete_task(
        self, task_id: str, *, actor_id: Optional[str] = None, tenant_id: Optional[str] = None
    ) -> bool:
        """Delete the task for good, with its events, links and assignments, whatever its status.

        Tasks that depended on it depend on it no longer, its children have no parent any more; each of them gets an
        event. Its id and idempotency key are free again.

        Returns:
            Whether it was there.
        """
        key = self._task_key(tenant_id, task_id)
        return await self._change_task(delete_one, key, check_optional_id(actor_id, "actor_id"))

    def _task_key(self, tenant_id: Optional[str], task_id: str) -> Key:
        return key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id"))

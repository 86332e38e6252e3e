"""Room: creating tasks, one or many."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from modules.storage.operations import Transaction, write
from modules.storage.statements import Row
from modules.store_common.arguments import check_optional_id
from modules.store_common.errors import IdempotencyConflictError
from modules.store_common.values import encode_json, encode_text
from modules.task_store.encoding import EncodedTask, encode_task, encode_tasks
from modules.task_store.errors import TaskDependencyError, TaskExistsError
from modules.task_store.links import ADD_LINK, check_circles, hold
from modules.task_store.models import FINAL, FREE_MOVES
from modules.task_store.noting import key_of, tell
from modules.task_store.records import NewTask, Task
from modules.task_store.room import TaskRoom
from modules.task_store.rows import to_task
from modules.task_store.statements import (
    ADD_EVENT,
    ADD_TAG,
    CREATE,
    CREATE_MANY,
    CREATED,
    FIND_KEY,
    START_WAITING,
)

__all__ = ["Creating", "create"]

_FREE_TEXT = ("title", "description")


def _created(status: str) -> Dict[str, Any]:
    return {"status": status}


async def _insert(
    tx: Transaction, tenant_id: str, tasks: Sequence[EncodedTask], actor_id: Optional[str]
) -> Dict[str, Row]:
    """Add those whose id and key are free, with tags and events; returns (id, last event, created_at) by id."""
    if tx.dialect == "sqlite":
        return await _insert_each(tx, tenant_id, tasks, actor_id)
    columns: Dict[str, List[Any]] = {name: [task.fields[name] for task in tasks] for name in CREATED}
    for name in _FREE_TEXT:
        columns[name] = [encode_text(value) for value in columns[name]]
    tags = [(tag, task.fields["rank"], task.id) for task in tasks for tag in task.tags]
    rows = await tx.all(
        CREATE_MANY,
        **columns,
        tenant_id=tenant_id,
        actor_id=actor_id,
        data=[encode_json(_created(task.fields["status"]), "data") for task in tasks],
        tag_names=[tag[0] for tag in tags],
        tag_ranks=[tag[1] for tag in tags],
        tag_tasks=[tag[2] for tag in tags],
    )
    return {row[0]: row for row in rows}


async def _insert_each(
    tx: Transaction, tenant_id: str, tasks: Sequence[EncodedTask], actor_id: Optional[str]
) -> Dict[str, Row]:
    added: Dict[str, Row] = {}
    tags: List[Dict[str, Any]] = []
    events: List[Dict[str, Any]] = []
    for task in tasks:
        row = await tx.first(CREATE, tenant_id=tenant_id, **task.fields)
        if row is None:
            continue
        added[task.id] = row
        key = key_of(tenant_id, task.id)
        tags += [{**key, "tag": tag, "rank": task.fields["rank"]} for tag in task.tags]
        data = encode_json(_created(task.fields["status"]), "data")
        noted = {"event_type": "created", "data": data, "actor_id": actor_id}
        events.append({**key, **noted, "sequence": row[1], "version": 1, "at": row[2]})
    await tx.run_many(ADD_TAG, tags)
    await tx.run_many(ADD_EVENT, events)
    return added


def _task(task: EncodedTask, created_at: datetime, waits: int) -> Task:
    given = task.fields
    return Task(
        task.id,
        given["title"],
        given["description"],
        given["status"],
        -given["rank"],
        given["owner_id"],
        given["session_id"],
        given["conversation_id"],
        given["parent_id"],
        task.tags,
        given["due_at"],
        task.metadata,
        1,
        waits,
        created_at,
        created_at,
        None,
        None,
    )


async def _known(tx: Transaction, tenant_id: str, task: EncodedTask) -> Task:
    """Return the task that has this one's idempotency key.

    Raises:
        IdempotencyConflictError: it was created with another body.
        TaskExistsError: it is the id that is taken.
    """
    key = task.fields["idempotency_key"]
    row = None if key is None else await tx.first(FIND_KEY, tenant_id=tenant_id, idempotency_key=key)
    if row is None:
        raise TaskExistsError(task.id)
    if row[-1] != task.fields["body_digest"]:
        raise IdempotencyConflictError(
            "this idempotency_key was used for a task with another body; use a new one for a new task"
        )
    return to_task(row)


@write
async def create(
    tx: Transaction, tenant_id: str, tasks: Sequence[EncodedTask], actor_id: Optional[str]
) -> List[Task]:
    """Add tasks, all or none; those whose idempotency key is known are left as they are."""
    first: Dict[str, EncodedTask] = {}
    for task in tasks:
        first.setdefault(task.id, task)
    added = await _insert(tx, tenant_id, list(first.values()), actor_id)
    found: List[Task] = []
    for task in tasks:
        row = added.get(task.id)
        if row is None or first[task.id] is not task:
            found.append(await _known(tx, tenant_id, task))
            continue
        waits = await _link(tx, tenant_id, task)
        found.append(_task(task, row[2], waits))
    for task_id, row in added.items():
        await tell(tx, key_of(tenant_id, task_id), row[1])
    return found


async def _link(tx: Transaction, tenant_id: str, task: EncodedTask) -> int:
    """Check the parent of a new task and add its dependencies; returns how many of them are open."""
    parent_id = task.fields["parent_id"]
    if not task.depends_on and parent_id is None:
        return 0
    held = await hold(tx, tenant_id, [*task.depends_on, *([] if parent_id is None else [parent_id])])
    unmet = [other for other in task.depends_on if held[other] not in FINAL]
    if unmet and task.fields["status"] not in FREE_MOVES:
        raise TaskDependencyError(task.id, task.fields["status"], sorted(unmet))
    key = key_of(tenant_id, task.id)
    await tx.run_many(ADD_LINK, [{**key, "depends_on_id": other} for other in task.depends_on])
    if unmet:
        await tx.run(START_WAITING, **key, count=len(unmet))
    return len(unmet)


def _check_graph(tasks: Sequence[EncodedTask]) -> None:
    check_circles({task.id: task.depends_on for task in tasks}, "depend on")
    parents = {task.id: [task.fields["parent_id"]] for task in tasks if task.fields["parent_id"] is not None}
    check_circles(parents, "have as its parent")


class Creating(TaskRoom):
    """Creating tasks."""

    async def create_task(
        self,
        title: str,
        *,
        task_id: Optional[str] = None,
        description: Optional[str] = None,
        status: str = "draft",
        priority: int = 0,
        owner_id: Optional[str] = None,
        session_id: Optional[str] = None,
        conversation_id: Optional[str] = None,
        parent_id: Optional[str] = None,
        tags: Sequence[str] = (),
        due_at: Optional[datetime] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        depends_on: Sequence[str] = (),
        idempotency_key: Optional[str] = None,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Task:
        """Create a task.

        Args:
            title: Not blank, at most 4,096 bytes of UTF-8.
            task_id: Its id; None gives it a UUIDv7.
            description: At most 1 MiB.
            status: "draft" or, if all of `depends_on` are done or cancelled, "ready".
            priority: Higher comes first; -1,000,000,000 to 1,000,000,000.
            owner_id: Label to list by.
            session_id: Label to list by.
            conversation_id: Label to list by; the conversation need not be there, and the task stays when it goes.
            parent_id: Another task of the tenant.
            tags: At most 100 words to list by, each at most 64 bytes; doubles are dropped.
            due_at: Aware.
            metadata: JSON object.
            depends_on: Tasks that must be done or cancelled before this one is more than a draft.
            idempotency_key: A second call with the same key and the same arguments creates nothing and returns the task
                as it is now. Known until the task is deleted.
            actor_id: Who does it; for the event.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            TaskExistsError: the id is taken.
            IdempotencyConflictError: the key was used with other arguments.
            TaskNotFoundError: this tenant has no such parent or dependency.
            TaskDependencyError: `status` is "ready" and a dependency is not met; names the unmet ones.
        """
        given = NewTask(
            title,
            task_id,
            description,
            status,
            priority,
            owner_id,
            session_id,
            conversation_id,
            parent_id,
            tags,
            due_at,
            {} if metadata is None else metadata,
            depends_on,
            idempotency_key,
        )
        tenant, encoded = self._tenant(tenant_id), encode_task(given)
        actor = check_optional_id(actor_id, "actor_id")
        return (await self._create(tenant, [encoded], actor))[0]

    async def create_tasks(
        self,
        tasks: Sequence[Union[NewTask, Mapping[str, Any]]],
        *,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> List[Task]:
        """Create tasks in one transaction, all or none; returns them in order.

        They may depend on each other and be each other's parents, in any order.

        Args:
            tasks: At most 10,000; fields and errors as `create_task`.
            actor_id: Who does it; for the events.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            TaskCycleError: their dependencies or parents close a circle.
        """
        tenant, encoded = self._tenant(tenant_id), encode_tasks(tasks)
        actor = check_optional_id(actor_id, "actor_id")
        _check_graph(encoded)
        return await self._create(tenant, encoded, actor) if encoded else []

    async def _create(self, tenant: str, encoded: List[EncodedTask], actor: Optional[str]) -> List[Task]:
        made = await self._executor.run(create, tenant, encoded, actor)
        self._wake_subscribers(tenant)
        return made

"""Every change of a task and its event: written in one transaction, and told to subscribers after it commits."""

from __future__ import annotations

import hashlib
from typing import Any, Dict, Optional, Tuple

from sqlalchemy import bindparam, select

from modules.storage.operations import Transaction
from modules.storage.outbox_models import SubscriberRow
from modules.storage.outbox_queue import announce
from modules.storage.statements import Statement
from modules.store_common.values import encode_json
from modules.task_store.errors import TaskNotFoundError
from modules.task_store.models import TaskRow
from modules.task_store.records import Task, TaskEvent
from modules.task_store.rows import TASK_COLUMNS, to_task
from modules.task_store.statements import ADD_EVENT, LOCK_TASK

__all__ = ["ALL_TENANTS", "Key", "change", "key_of", "lock_task", "tell", "topic_of"]

#: Tenant and task: the parameters that name a row.
Key = Dict[str, Any]
_VERSION = TASK_COLUMNS.index(TaskRow.version)
#: Topic of every tenant's events, for upkeep of our own and for workers of the whole installation.
ALL_TENANTS = "tasks"
# Which of the two anybody listens to: nothing is written while nobody does.
_TOPICS = Statement(
    select(SubscriberRow.topic)
    .where(SubscriberRow.topic.in_([bindparam("everybody"), bindparam("own")]))
    .distinct()
)
_UPDATED = TASK_COLUMNS.index(TaskRow.updated_at)


def key_of(tenant_id: str, task_id: str) -> Key:
    """Return the parameters that name a task."""
    return {"tenant_id": tenant_id, "task_id": task_id}


def topic_of(tenant_id: str) -> str:
    """Return the topic of one tenant's events; a digest, as ids are longer than names of topics may be."""
    return f"tasks.{hashlib.blake2b(tenant_id.encode(), digest_size=16).hexdigest()}"


async def lock_task(tx: Transaction, key: Key) -> Task:
    """Return the task as it is, and will be until this transaction changes it or ends.

    Raises:
        TaskNotFoundError: there is none.
    """
    row = await tx.first(LOCK_TASK, **key)
    if row is None:
        raise TaskNotFoundError(key["task_id"])
    return to_task(row)


async def change(
    tx: Transaction,
    statement: Statement,
    key: Key,
    event: str,
    data: Dict[str, Any],
    actor_id: Optional[str],
    **values: Any,
) -> Tuple[Task, TaskEvent]:
    """Run one of the changes of `statements` on a locked task, and note its event.

    Args:
        tx: The transaction.
        statement: The change.
        key: Of the task.
        event: The event's type.
        data: The event's data.
        actor_id: Who did it.
        values: The change's own parameters.
    """
    noted = {"event_type": event, "data": encode_json(data, "the data of an event"), "actor_id": actor_id}
    if tx.dialect == "sqlite":
        row = await tx.one(statement, **key, **values)
        await tx.run(ADD_EVENT, **key, **noted, sequence=row[-1], version=row[_VERSION], at=row[_UPDATED])
    else:
        row = await tx.one(statement, **key, **values, **noted)
    await tell(tx, key, row[-1])
    task = to_task(row)
    return task, TaskEvent(task.id, row[-1], event, task.version, data, actor_id, task.updated_at)


async def tell(tx: Transaction, key: Key, sequence: int) -> None:
    """Hand the event of that number to the subscribers, who get it once the transaction has committed."""
    tenant_id = key["tenant_id"]
    for row in await tx.all(_TOPICS, everybody=ALL_TENANTS, own=topic_of(tenant_id)):
        await announce(tx, row[0], tenant_id, key["task_id"], version=sequence)

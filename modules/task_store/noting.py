"""Every change of a task and its event: written in one transaction, and told to subscribers after it commits."""

from __future__ import annotations

from typing import Any, Dict, Optional

from modules.storage.operations import Transaction
from modules.storage.statements import Statement
from modules.store_common.values import encode_json
from modules.task_store.rows import TASK_COLUMNS
from modules.task_store.statements import ADD_EVENT, LOCK_TASK

__all__ = ["Key", "change", "key_of", "lock_task", "tell"]

from modules.task_store.errors import TaskNotFoundError
from modules.task_store.records import Task
from modules.task_store.rows import to_task

#: Tenant and task: the parameters that name a row.
Key = Dict[str, Any]
_VERSION = TASK_COLUMNS.index(next(c for c in TASK_COLUMNS if c.key == "version"))
_UPDATED = TASK_COLUMNS.index(next(c for c in TASK_COLUMNS if c.key == "updated_at"))


def key_of(tenant_id: str, task_id: str) -> Key:
    """Return the parameters that name a task."""
    return {"tenant_id": tenant_id, "task_id": task_id}


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
    data: Any,
    actor_id: Optional[str],
    **values: Any,
) -> Task:
    """Run one of the changes of `statements` on a locked task, with its event.

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
    return to_task(row)


async def tell(tx: Transaction, key: Key, sequence: int) -> None:
    """Hand the event of that number to the subscribers, who get it once the transaction has committed."""

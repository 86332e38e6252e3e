"""Room: what a task waits for."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from sqlalchemy import BigInteger, String, bindparam, select

from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.arguments import check_limit, check_optional_id
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.values import check_identifier
from modules.task_store.errors import TaskFinishedError, TaskNotFoundError
from modules.task_store.links import ADD_LINK, REMOVE_LINK, hold, lock_graph, refuse_cycle
from modules.task_store.models import FINAL, TaskDependencyRow, TaskRow
from modules.task_store.noting import Key, change, key_of, lock_task
from modules.task_store.records import Dependency, Page, page_of
from modules.task_store.room import TaskRoom
from modules.task_store.statements import SET_OPEN

__all__ = ["LIST_DEPENDENCIES", "LIST_DEPENDENTS", "Dependencies", "add", "links", "remove", "to_dependency"]

_T, _D = TaskRow, TaskDependencyRow
_TENANT = bindparam("tenant_id", type_=String())
_TASK = bindparam("task_id", type_=String())


def _list(here: Any, there: Any) -> Statement:
    return Statement(
        select(there, _T.title, _T.status, _D.created_at)
        .join(_T, (_T.tenant_id == _D.tenant_id) & (_T.id == there))
        .where(_D.tenant_id == _TENANT, here == _TASK, there > bindparam("after", type_=String()))
        .order_by(there)
        .limit(bindparam("limit", type_=BigInteger))
    )


#: What a task waits for, and who waits for it, by id.
LIST_DEPENDENCIES = _list(_D.task_id, _D.depends_on_id)
LIST_DEPENDENTS = _list(_D.depends_on_id, _D.task_id)


def to_dependency(row: Row) -> Dependency:
    """Read a row of the lists."""
    return Dependency(row[0], row[1], row[2], row[2] in FINAL, row[3])


@read
async def links(tx: Transaction, statement: Statement, key: Key, after: str, limit: int) -> List[Dependency]:
    """Return part of a list."""
    return [to_dependency(row) for row in await tx.all(statement, **key, after=after, limit=limit)]


@write
async def add(tx: Transaction, key: Key, depends_on_id: str, actor_id: Optional[str]) -> bool:
    """Let a task wait for another one."""
    tenant_id, task_id = key["tenant_id"], key["task_id"]
    await lock_graph(tx, tenant_id)
    held = await hold(tx, tenant_id, (task_id, depends_on_id), to_change=True)
    await refuse_cycle(tx, tenant_id, task_id, depends_on_id)
    if held[task_id] in FINAL:
        raise TaskFinishedError(task_id, held[task_id], "get another dependency")
    if not await tx.run(ADD_LINK, **key, depends_on_id=depends_on_id):
        return False
    step = 0 if held[depends_on_id] in FINAL else 1
    data = {"dependencies": {"added": [depends_on_id]}}
    await change(tx, SET_OPEN, key, "updated", data, actor_id, step=step)
    return True


@write
async def remove(tx: Transaction, key: Key, depends_on_id: str, actor_id: Optional[str]) -> bool:
    """Let a task wait for another one no longer."""
    tenant_id, task_id = key["tenant_id"], key["task_id"]
    await lock_graph(tx, tenant_id)
    await lock_task(tx, key)
    # what is not there is no dependency either
    try:
        held = await hold(tx, tenant_id, (task_id, depends_on_id), to_change=True)
    except TaskNotFoundError:
        return False
    if not await tx.run(REMOVE_LINK, **key, depends_on_id=depends_on_id):
        return False
    step = 0 if held[depends_on_id] in FINAL else -1
    data = {"dependencies": {"removed": [depends_on_id]}}
    await change(tx, SET_OPEN, key, "updated", data, actor_id, step=step)
    return True


class Dependencies(TaskRoom):
    """Dependencies between tasks."""

    async def add_dependency(
        self,
        task_id: str,
        depends_on_id: str,
        *,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> bool:
        """Let a task wait for another one: it moves on only when that one is done or cancelled.

        A task that is ready, in progress or in review stays where it is, and cannot move on (but back to draft or to
        cancelled) until the new dependency is met.

        Returns:
            False when it waits for that one already.

        Raises:
            TaskNotFoundError: this tenant has no such task; names which.
            TaskCycleError: the other one waits for this one, however many tasks lie between them.
            TaskFinishedError: the task is done or cancelled.
        """
        key, other = self._link(task_id, depends_on_id, tenant_id)
        return await self._change_task(add, key, other, check_optional_id(actor_id, "actor_id"))

    async def remove_dependency(
        self,
        task_id: str,
        depends_on_id: str,
        *,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> bool:
        """Let a task wait for another one no longer.

        Returns:
            Whether it did.

        Raises:
            TaskNotFoundError: this tenant has no such task.
        """
        key, other = self._link(task_id, depends_on_id, tenant_id)
        return await self._change_task(remove, key, other, check_optional_id(actor_id, "actor_id"))

    async def list_dependencies(
        self,
        task_id: str,
        *,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Dependency]:
        """Return what the task waits for or waited for, by id, and how far each of them is.

        Args:
            task_id: Which.
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before.
            tenant_id: Whose; see `TenantPolicy`.
        """
        return await self._list(LIST_DEPENDENCIES, "task_dependencies", task_id, limit, cursor, tenant_id)

    async def list_dependents(
        self,
        task_id: str,
        *,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Dependency]:
        """Return the tasks that wait for this one, by id; arguments as `list_dependencies`."""
        return await self._list(LIST_DEPENDENTS, "task_dependents", task_id, limit, cursor, tenant_id)

    def _link(self, task_id: str, depends_on_id: str, tenant_id: Optional[str]) -> Tuple[Key, str]:
        key = key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id"))
        return key, check_identifier(depends_on_id, "depends_on_id")

    async def _list(
        self,
        statement: Statement,
        kind: str,
        task_id: str,
        limit: int,
        cursor: Optional[str],
        tenant_id: Optional[str],
    ) -> Page[Dependency]:
        key: Dict[str, Any] = key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id"))
        position = decode_cursor(cursor, key["tenant_id"], kind, 1, filters=task_id)
        after = "" if position is None else str(position[0])
        found = await self._executor.run(links, statement, key, after, check_limit(limit) + 1)
        if len(found) <= limit:
            return page_of(found, None)
        place = [found[limit - 1].task_id]
        return page_of(found[:limit], encode_cursor(key["tenant_id"], kind, place, filters=task_id))

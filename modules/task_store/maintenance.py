"""Upkeep of the task store across all tenants, and figures for its health: for the manager, not for callers' requests.

It reads no content out. A caller's code uses `TaskStore`, which never works without a tenant.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, AsyncIterator, Dict, List, Optional

from sqlalchemy import BigInteger, String, bindparam, case, delete, func, literal_column, select

from modules.storage.columns import UtcDateTime, utc_now
from modules.storage.operations import Executor, Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.clock import from_microseconds, to_microseconds
from modules.store_common.errors import InvalidValueError
from modules.task_store.links import lock_graph
from modules.task_store.models import TASK_STATUSES, TaskEventRow, TaskRow
from modules.task_store.noting import ALL_TENANTS, key_of
from modules.task_store.subscriptions import EventHandler, TaskSubscriber
from modules.task_store.tasks import remove

__all__ = ["FINISHED_BEFORE", "MOST_LOOKED_AT", "TaskMaintenance", "figures", "prune", "purge_graves"]

_T, _E = TaskRow, TaskEventRow
_TENANT = bindparam("tenant_id", type_=String())
_LIMIT = bindparam("limit", type_=BigInteger)
_BEFORE = bindparam("before", type_=UtcDateTime())
# Tasks deleted in one transaction; each is about ten statements.
_TOGETHER = 50
# Days for which it is kept that a task was deleted, for subscribers that are behind.
_GRAVE_DAYS = 30
_DAY_US = 86_400_000_000
#: How many rows a health check looks at; what is beyond is told as "at least".
MOST_LOOKED_AT = 50_000

_TENANTS = Statement(
    select(_T.tenant_id).where(_T.tenant_id > bindparam("after")).order_by(_T.tenant_id).limit(_LIMIT)
)
_GRAVE_TENANTS = Statement(
    select(_E.tenant_id)
    .where(_E.type == literal_column("'deleted'"), _E.tenant_id > bindparam("after"))
    .order_by(_E.tenant_id)
    .limit(_LIMIT)
)
_NOW = Statement(select(utc_now()))
#: Finished tasks of a tenant, the longest finished first.
FINISHED_BEFORE = Statement(
    select(_T.id)
    .where(_T.tenant_id == _TENANT, _T.finished_at.isnot(None), _T.finished_at < _BEFORE)
    .order_by(_T.finished_at)
    .limit(_LIMIT)
)
_PURGE_GRAVES = Statement(
    delete(_E).where(_E.tenant_id == _TENANT, _E.type == literal_column("'deleted'"), _E.created_at < _BEFORE)
)
_LOOKED_AT = select(_T.status).limit(_LIMIT).subquery()
_COUNTS = Statement(select(_LOOKED_AT.c.status, func.count()).group_by(_LOOKED_AT.c.status))
_OPEN = _T.closed == literal_column("0", BigInteger)
_DUE = select(_T.due_at).where(_T.due_at.isnot(None), _OPEN).limit(_LIMIT).subquery()
_OVERDUE = Statement(
    select(
        func.count(), func.coalesce(func.sum(case((_DUE.c.due_at < utc_now(), 1), else_=0)), 0)
    ).select_from(_DUE)
)


@read(urgent=True)
async def figures(tx: Transaction) -> Dict[str, Any]:
    """Return the tasks of all tenants by state, and how many of the open ones are overdue."""
    counted = {row[0]: row[1] for row in await tx.all(_COUNTS, limit=MOST_LOOKED_AT)}
    due, overdue = await tx.one(_OVERDUE, limit=MOST_LOOKED_AT)
    return {
        "by_status": {status: counted.get(status, 0) for status in TASK_STATUSES},
        "overdue": int(overdue),
        "complete": sum(counted.values()) < MOST_LOOKED_AT and due < MOST_LOOKED_AT,
    }


@read
async def _next_tenant(tx: Transaction, after: str) -> Optional[str]:
    row = await tx.first(_TENANTS, after=after, limit=1)
    other = await tx.first(_GRAVE_TENANTS, after=after, limit=1)
    found: List[str] = [item[0] for item in (row, other) if item is not None]
    return min(found, key=lambda name: name.encode()) if found else None


@write
async def prune(tx: Transaction, tenant_id: str, days: float, limit: int) -> int:
    """Delete up to `limit` tasks of a tenant that were finished more than `days` days ago; return how many."""
    now = (await tx.one(_NOW))[0]
    before = _earlier(now, days)
    await lock_graph(tx, tenant_id)
    found = await tx.all(FINISHED_BEFORE, tenant_id=tenant_id, before=before, limit=limit)
    for row in found:
        await remove(tx, key_of(tenant_id, row[0]), None)
    return len(found)


@write
async def purge_graves(tx: Transaction, tenant_id: str, days: float) -> int:
    """Forget which tasks of a tenant were deleted more than `days` days ago; return how many."""
    now = (await tx.one(_NOW))[0]
    return await tx.run(_PURGE_GRAVES, tenant_id=tenant_id, before=_earlier(now, days))


def _earlier(now: datetime, days: float) -> datetime:
    return from_microseconds(max(0, to_microseconds(now) - int(days * _DAY_US)))


class TaskMaintenance:
    """Upkeep across all tenants. Any number of processes may do it at the same time.

    Args:
        executor: A pool's executor.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def list_tenants(self) -> AsyncIterator[str]:
        """Iterate over the tenants that have tasks, in order of their ids."""
        after = ""
        while True:
            tenant_id = await self._executor.run(_next_tenant, after)
            if tenant_id is None:
                return
            after = tenant_id
            yield tenant_id

    async def run_retention(self, days: float, *, tenant_id: Optional[str] = None) -> int:
        """Delete the tasks that were done or cancelled more than `days` days ago; return how many there were.

        Args:
            days: 0 keeps them all.
            tenant_id: Only of this tenant; None: of every one.
        """
        if days < 0:
            raise InvalidValueError("the days of retention must not be negative")
        if tenant_id is not None:
            return await self._retain(tenant_id, days)
        total = 0
        async for tenant in self.list_tenants():
            total += await self._retain(tenant, days)
        return total

    async def figures(self) -> Dict[str, Any]:
        """Return what health shows: tasks by state, and how many are overdue."""
        return await self._executor.run(figures)

    async def handle_events(
        self,
        name: str,
        handler: EventHandler,
        *,
        follow: bool = True,
        poll_seconds: Optional[float] = None,
        lease_seconds: float = 60.0,
    ) -> int:
        """Call `handler` with the events of every tenant, as `TaskStore.handle_events` does with those of one.

        Nobody wakes it: it looks every `poll_seconds`, by default every second.
        """
        subscriber = TaskSubscriber(self._executor, ALL_TENANTS, name, lease_seconds, poll_seconds)
        return await subscriber.handle(handler, follow)

    async def _retain(self, tenant_id: str, days: float) -> int:
        await self._executor.run(purge_graves, tenant_id, max(days, _GRAVE_DAYS))
        total = 0
        while days > 0:
            count = await self._executor.run(prune, tenant_id, days, _TOGETHER)
            total += count
            if count < _TOGETHER:
                break
        return total

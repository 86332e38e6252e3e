"""Room: lists of tasks, what is ready to start, and counts. Each is a walk along one index, however many tasks there are."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

from sqlalchemy import BigInteger, String, bindparam, func, literal_column, select, tuple_

from modules.storage.columns import UtcDateTime
from modules.storage.operations import Store, Transaction, read
from modules.storage.statements import Row, Statement
from modules.store_common.arguments import MAX_LABEL_BYTES, check_limit, check_optional_id
from modules.store_common.clock import from_microseconds, require_utc, to_microseconds
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier
from modules.task_store.encoding import check_status
from modules.task_store.models import FINAL, TASK_STATUSES, TaskRow, TaskTagRow
from modules.task_store.records import Page, Task, page_of
from modules.task_store.rows import TASK_COLUMNS, to_task

__all__ = ["ORDERS", "Reading", "count_rows", "count_statement", "list_rows", "list_statement"]

_T, _G = TaskRow, TaskTagRow
_ZERO = literal_column("0", BigInteger)
ORDERS = ("priority", "due", "updated")
_LABELS = ("owner_id", "session_id", "conversation_id", "parent_id")
_OPEN = "open"


def _columns(order: str, tagged: bool) -> Tuple[Any, Any]:
    """Return what a list is sorted by."""
    if order == "priority":
        return (_G.rank, _G.task_id) if tagged else (_T.rank, _T.id)
    return (_T.due_at if order == "due" else _T.updated_at), _T.id


@lru_cache(maxsize=256)
def list_statement(
    given: FrozenSet[str], status: str, order: str, startable: bool = False, paged: bool = False
) -> Statement:
    """Return the statement of a list.

    Args:
        given: Names of the filters: labels, "tag", "due_before", "due_after".
        status: "" for any, "open", "one" for an open one, "final" for a final one.
        order: One of `ORDERS`.
        startable: Only tasks that wait for nothing.
        paged: From the position `at`, `id` on.
    """
    tagged = "tag" in given
    query = select(*TASK_COLUMNS).where(_T.tenant_id == bindparam("tenant_id", type_=String()))
    if tagged:
        query = query.join(_G, (_G.tenant_id == _T.tenant_id) & (_G.task_id == _T.id)).where(
            _G.tenant_id == bindparam("tenant_id", type_=String()), _G.tag == bindparam("tag", type_=String())
        )
    for name in _LABELS:
        if name in given:
            query = query.where(getattr(_T, name) == bindparam(name, type_=String()))
    if status == "open" or (status == "one" and (startable or order == "due")):
        # says again what the status says already, so that the partial indexes can serve
        query = query.where(_T.closed == _ZERO)
    if status in ("one", "final"):
        query = query.where(_T.status == bindparam("status", type_=String()))
    if startable:
        query = query.where(_T.open_dependencies == _ZERO)
    if order == "due":
        query = query.where(_T.due_at.isnot(None))
    if "due_before" in given:
        query = query.where(_T.due_at < bindparam("due_before", type_=UtcDateTime()))
    if "due_after" in given:
        query = query.where(_T.due_at >= bindparam("due_after", type_=UtcDateTime()))
    first, second = _columns(order, tagged)
    if paged:
        at = bindparam("at", type_=BigInteger() if order == "priority" else UtcDateTime())
        position = tuple_(at, bindparam("id", type_=String()))
        place = tuple_(first, second)
        query = query.where(place < position if order == "updated" else place > position)
    ordered = (first.desc(), second.desc()) if order == "updated" else (first, second)
    return Statement(query.order_by(*ordered).limit(bindparam("limit", type_=BigInteger)))


@lru_cache(maxsize=32)
def count_statement(given: FrozenSet[str]) -> Statement:
    """Return the statement that counts tasks by status; `given` names the labels to filter by."""
    # not the bare column: SQLite would walk all tasks in the order of their states rather than look a label up
    status: Any = func.coalesce(_T.status, "") if given else _T.status
    query = select(status, func.count()).where(_T.tenant_id == bindparam("tenant_id", type_=String()))
    for name in sorted(given):
        query = query.where(getattr(_T, name) == bindparam(name, type_=String()))
    return Statement(query.group_by(status))


@read
async def list_rows(tx: Transaction, statement: Statement, params: Dict[str, Any]) -> List[Row]:
    """Run a prepared list."""
    return await tx.all(statement, **params)


@read
async def count_rows(tx: Transaction, statement: Statement, params: Dict[str, Any]) -> Dict[str, int]:
    """Return how many tasks are in each state."""
    found = {row[0]: row[1] for row in await tx.all(statement, **params)}
    return {status: found.get(status, 0) for status in TASK_STATUSES}


class Reading(Store):
    """Lists and counts."""

    async def list_tasks(
        self,
        *,
        status: Optional[str] = None,
        owner_id: Optional[str] = None,
        session_id: Optional[str] = None,
        conversation_id: Optional[str] = None,
        parent_id: Optional[str] = None,
        tag: Optional[str] = None,
        due_before: Optional[datetime] = None,
        due_after: Optional[datetime] = None,
        order: Optional[str] = None,
        limit: int = 50,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Task]:
        """Return tasks that fit every filter.

        Args:
            status: Only in this state; "open": in any that is not final; None: in any, but with a filter or order by due
                time only open ones, since what is finished is not due.
            owner_id: Only with this label.
            session_id: Only with this label.
            conversation_id: Only with this label; it may be of a conversation that is gone.
            parent_id: Only children of this task.
            tag: Only with this tag.
            due_before: Only due before this time; aware.
            due_after: Only due at this time or later; aware.
            order: "priority" (highest first, then by id: oldest first), "due" (soonest first; only those with a due time)
                or "updated" (last changed first); None: "due" with a filter by due time, else "priority".
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before, with the same filters and order.
            tenant_id: Whose; see `TenantPolicy`.
        """
        params: Dict[str, Any] = {
            "owner_id": check_optional_id(owner_id, "owner_id"),
            "session_id": check_optional_id(session_id, "session_id"),
            "conversation_id": check_optional_id(conversation_id, "conversation_id"),
            "parent_id": check_optional_id(parent_id, "parent_id"),
            "tag": _tag(tag),
            "due_before": require_utc(due_before, "due_before"),
            "due_after": require_utc(due_after, "due_after"),
        }
        by_due = due_before is not None or due_after is not None
        chosen = ("due" if by_due else "priority") if order is None else order
        if chosen not in ORDERS:
            raise InvalidValueError(f"order must be one of {', '.join(ORDERS)}")
        if status is None and (by_due or chosen == "due"):
            status = _OPEN
        return await self._page(params, status, chosen, False, limit, cursor, self._tenant(tenant_id))

    async def list_ready_tasks(
        self,
        *,
        status: str = "ready",
        owner_id: Optional[str] = None,
        tag: Optional[str] = None,
        limit: int = 50,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[Task]:
        """Return the tasks that can be started now: ready, and all of their dependencies done or cancelled.

        Highest priority first, then by id.

        Args:
            status: "ready", or "draft" for the drafts that can be made ready.
            owner_id: Only with this label.
            tag: Only with this tag.
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before, with the same filters.
            tenant_id: Whose; see `TenantPolicy`.
        """
        if status not in ("ready", "draft"):
            raise InvalidValueError("status must be ready or draft")
        params = {"owner_id": check_optional_id(owner_id, "owner_id"), "tag": _tag(tag)}
        return await self._page(params, status, "priority", True, limit, cursor, self._tenant(tenant_id))

    async def count_tasks(
        self,
        *,
        owner_id: Optional[str] = None,
        session_id: Optional[str] = None,
        conversation_id: Optional[str] = None,
        parent_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Dict[str, int]:
        """Return how many tasks are in each state, all states named; filters as in `list_tasks`."""
        params = {
            "owner_id": check_optional_id(owner_id, "owner_id"),
            "session_id": check_optional_id(session_id, "session_id"),
            "conversation_id": check_optional_id(conversation_id, "conversation_id"),
            "parent_id": check_optional_id(parent_id, "parent_id"),
        }
        given = {name: value for name, value in params.items() if value is not None}
        tenant = {"tenant_id": self._tenant(tenant_id)}
        return await self._executor.run(count_rows, count_statement(frozenset(given)), {**given, **tenant})

    async def _page(
        self,
        params: Dict[str, Any],
        status: Optional[str],
        order: str,
        startable: bool,
        limit: int,
        cursor: Optional[str],
        tenant: str,
    ) -> Page[Task]:
        given = {name: value for name, value in params.items() if value is not None}
        kind = _kind(status)
        kept = {name: str(value) for name, value in given.items()}
        filters = [kept, status, order, startable]
        position = decode_cursor(cursor, tenant, "tasks", 2, filters=filters)
        statement = list_statement(frozenset(given), kind, order, startable, position is not None)
        if position is not None:
            at = position[0] if order == "priority" else from_microseconds(position[0])
            given.update(at=at, id=position[1])
        if kind in ("one", "final"):
            given["status"] = status
        given.update(tenant_id=tenant, limit=check_limit(limit) + 1)
        found = [to_task(row) for row in await self._executor.run(list_rows, statement, given)]
        items = found[:limit]
        if len(found) <= limit:
            return page_of(items, None)
        place = [_place(items[-1], order), items[-1].id]
        return page_of(items, encode_cursor(tenant, "tasks", place, filters=filters))


def _tag(tag: Optional[str]) -> Optional[str]:
    return None if tag is None else check_identifier(tag, "tag", max_bytes=MAX_LABEL_BYTES)


def _kind(status: Optional[str]) -> str:
    if status is None:
        return ""
    if status == _OPEN:
        return _OPEN
    return "final" if check_status(status) in FINAL else "one"


def _place(task: Task, order: str) -> int:
    if order == "priority":
        return -task.priority
    at = task.due_at if order == "due" else task.updated_at
    return 0 if at is None else to_microseconds(at)

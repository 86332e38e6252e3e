"""Room: what happened to a task, comments among it, and a task with all that belongs to it."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from sqlalchemy import BigInteger, String, bindparam, select

from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.arguments import check_limit, check_optional_id
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier, check_text
from modules.task_store.assignments import list_assignment_statement
from modules.task_store.dependencies import LIST_DEPENDENCIES, LIST_DEPENDENTS, to_dependency
from modules.task_store.links import CHILDREN
from modules.task_store.models import EVENT_TYPES, TaskEventRow
from modules.task_store.noting import Key, change, key_of, lock_task
from modules.task_store.records import Page, TaskDetails, TaskEvent, page_of
from modules.task_store.room import TaskRoom
from modules.task_store.rows import EVENT_COLUMNS, to_assignment, to_event, to_task
from modules.task_store.statements import GET_TASK, TOUCH

__all__ = ["EVENTS_AFTER", "EVENTS_BEFORE", "Events", "comment", "details", "list_event_rows"]

_E = TaskEventRow
_MOST_PARTS = 1000
_ANY = bindparam("type", type_=String())


def _events(*conditions: Any) -> Any:
    return select(*EVENT_COLUMNS).where(
        _E.tenant_id == bindparam("tenant_id", type_=String()),
        _E.task_id == bindparam("task_id", type_=String()),
        _ANY.is_(None) | (_E.type == _ANY),
        *conditions,
    )


_PLACE = bindparam("sequence", type_=BigInteger)
_LIMIT = bindparam("limit", type_=BigInteger)
#: Part of a task's events, oldest first and newest first.
EVENTS_AFTER = Statement(_events(_E.sequence > _PLACE).order_by(_E.sequence).limit(_LIMIT))
EVENTS_BEFORE = Statement(_events(_E.sequence < _PLACE).order_by(_E.sequence.desc()).limit(_LIMIT))
_END = 2**62


@read
async def list_event_rows(tx: Transaction, statement: Statement, params: Dict[str, Any]) -> List[Row]:
    """Run a prepared list."""
    return await tx.all(statement, **params)


@write
async def comment(tx: Transaction, key: Key, text: str, actor_id: Optional[str]) -> TaskEvent:
    """Add a comment."""
    await lock_task(tx, key)
    _, event = await change(tx, TOUCH, key, "comment", {"text": text}, actor_id)
    return event


@read(snapshot=True)
async def details(tx: Transaction, key: Key, events: int) -> Optional[TaskDetails]:
    """Return a task and what belongs to it."""
    row = await tx.first(GET_TASK, **key)
    if row is None:
        return None
    part = {**key, "after": "", "limit": _MOST_PARTS}
    newest = await tx.all(EVENTS_BEFORE, **key, type=None, sequence=_END, limit=events)
    assigned = await tx.all(
        list_assignment_statement(frozenset({"task_id"})), **key, id="", after_task_id="", limit=_MOST_PARTS
    )
    return TaskDetails(
        to_task(row),
        tuple(to_dependency(item) for item in await tx.all(LIST_DEPENDENCIES, **part)),
        tuple(to_dependency(item) for item in await tx.all(LIST_DEPENDENTS, **part)),
        tuple(to_assignment(item) for item in assigned),
        tuple(to_event(item) for item in reversed(newest)),
        tuple(item[0] for item in (await tx.all(CHILDREN, **key))[:_MOST_PARTS]),
    )


class Events(TaskRoom):
    """Events and comments."""

    async def add_comment(
        self,
        task_id: str,
        text: str,
        *,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> TaskEvent:
        """Add a comment to the task, whatever its status; returns its event.

        Args:
            task_id: Which.
            text: Not blank, at most 1 MiB.
            actor_id: Who says it.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            TaskNotFoundError: this tenant has no such task.
        """
        if not check_text(text, "text").strip():
            raise InvalidValueError("text must not be blank")
        key = key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id"))
        return await self._change_task(comment, key, text, check_optional_id(actor_id, "actor_id"))

    async def list_events(
        self,
        task_id: str,
        *,
        type: Optional[str] = None,
        newest_first: bool = False,
        limit: int = 100,
        cursor: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Page[TaskEvent]:
        """Return what happened to the task, in order. Of a task that was deleted only that it was.

        Args:
            task_id: Which.
            type: Only events of this type; see `models.EVENT_TYPES`.
            newest_first: The other way round.
            limit: 1 to 10,000.
            cursor: `next_cursor` of the page before, with the same filters and order.
            tenant_id: Whose; see `TenantPolicy`.
        """
        if type is not None and type not in EVENT_TYPES:
            raise InvalidValueError(f"type must be one of {', '.join(EVENT_TYPES)}")
        key = key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id"))
        filters = [task_id, type, bool(newest_first)]
        position = decode_cursor(cursor, key["tenant_id"], "task_events", 1, filters=filters)
        place = position[0] if position is not None else _END if newest_first else 0
        params = {**key, "type": type, "sequence": place, "limit": check_limit(limit) + 1}
        rows = await self._executor.run(
            list_event_rows, EVENTS_BEFORE if newest_first else EVENTS_AFTER, params
        )
        found = [to_event(row) for row in rows]
        if len(found) <= limit:
            return page_of(found, None)
        last = [found[limit - 1].sequence]
        return page_of(found[:limit], encode_cursor(key["tenant_id"], "task_events", last, filters=filters))

    async def get_task_details(
        self, task_id: str, *, events: int = 100, tenant_id: Optional[str] = None
    ) -> Optional[TaskDetails]:
        """Return the task with what belongs to it, as of one moment; None when this tenant has no such one.

        Args:
            task_id: Which.
            events: How many of its newest events, 1 to 10,000. Of the rest come at most 1,000 each; they have lists of
                their own.
            tenant_id: Whose; see `TenantPolicy`.
        """
        key = key_of(self._tenant(tenant_id), check_identifier(task_id, "task_id"))
        return await self._executor.run(details, key, check_limit(events, "events"))

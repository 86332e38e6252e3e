"""The SQL of writing tasks, compiled once per dialect.

SQLite: one statement for each row, in the writer's transaction. PostgreSQL: a task, its tags and its event go in by one
data-modifying CTE, many tasks as well as one, and a change carries its event with it.

A change takes the lock of the task's row first (`LOCK_TASK`), so what was checked still holds when it is written, and
the events of a task are numbered in the order of the commits.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

from sqlalchemy import (
    BigInteger,
    String,
    Text,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects import sqlite as sqlite_dialect
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from modules.storage.columns import JsonValue, UtcDateTime, utc_now
from modules.storage.statements import Statement
from modules.task_store.models import TaskEventRow, TaskRow, TaskTagRow
from modules.task_store.rows import TASK_COLUMNS

__all__ = [
    "ADD_EVENT",
    "ADD_TAG",
    "CLEAR_PARENT",
    "CREATE",
    "CREATED",
    "CREATE_MANY",
    "FIND_KEY",
    "GET_TASK",
    "LOCK_TASK",
    "REMOVE_TAGS",
    "SET_FIELDS",
    "SET_OPEN",
    "SET_STATUS",
    "START_WAITING",
    "TOUCH",
]

_T, _E, _G = TaskRow, TaskEventRow, TaskTagRow
_TENANT = bindparam("tenant_id", type_=String())
_HERE = (_T.tenant_id == _TENANT, _T.id == bindparam("task_id", type_=String()))
_ONE = literal_column("1", BigInteger)

GET_TASK = Statement(select(*TASK_COLUMNS).where(*_HERE))
_LOCK = select(*TASK_COLUMNS, _T.last_event).where(*_HERE)
#: The task as it is, and until the transaction ends.
LOCK_TASK = Statement(_LOCK, postgresql=_LOCK.with_for_update(key_share=True))
FIND_KEY = Statement(
    select(*TASK_COLUMNS, _T.body_digest).where(
        _T.tenant_id == _TENANT, _T.idempotency_key == bindparam("idempotency_key", type_=String())
    )
)

#: The columns that a new task brings.
CREATED = (
    "id", "title", "description", "status", "rank", "owner_id", "session_id", "conversation_id", "parent_id", "tags",
    "due_at", "metadata", "idempotency_key", "body_digest",
)  # fmt: skip
_ATTRIBUTES = {name: "metadata_" if name == "metadata" else name for name in CREATED}
_EARLIER = (
    select(func.max(_E.sequence))
    .where(_E.tenant_id == _TENANT, _E.task_id == bindparam("id"))
    .scalar_subquery()
)
_NEW: Dict[Any, Any] = {
    _T.tenant_id: _TENANT,
    **{getattr(_T, attribute): bindparam(name) for name, attribute in _ATTRIBUTES.items()},
    _T.closed: 0,
    _T.version: 1,
    _T.open_dependencies: 0,
    # a task whose id was deleted before goes on numbering where that one ended
    _T.last_event: func.coalesce(_EARLIER, 0) + _ONE,
    _T.created_at: utc_now(),
    _T.updated_at: utc_now(),
}
#: SQLite: add a task unless its id or key is taken.
CREATE = Statement(
    sqlite=sqlite_dialect.insert(_T)
    .values(_NEW)
    .on_conflict_do_nothing()
    .returning(_T.id, _T.last_event, _T.created_at)
)
ADD_TAG = Statement(
    insert(_G).values(
        tenant_id=_TENANT, tag=bindparam("tag"), rank=bindparam("rank"), task_id=bindparam("task_id")
    )
)
REMOVE_TAGS = Statement(
    delete(_G).where(_G.tenant_id == _TENANT, _G.task_id == bindparam("task_id", type_=String()))
)

_LIST = ", ".join(CREATED)
_CREATE_MANY = f"""
WITH given AS (
    SELECT * FROM unnest(:id, :title, :description, :status, :rank, :owner_id, :session_id, :conversation_id, :parent_id,
        :tags, :due_at, :metadata, :idempotency_key, :body_digest, :data) WITH ORDINALITY AS g ({_LIST}, data, n)
), added AS (
    INSERT INTO atlas_tasks (tenant_id, {_LIST}, closed, version, open_dependencies, last_event, created_at,
        updated_at)
    SELECT :tenant_id, g.id, g.title, g.description, g.status, g.rank, g.owner_id, g.session_id, g.conversation_id,
        g.parent_id, g.tags::json, g.due_at, g.metadata::json, g.idempotency_key, g.body_digest, 0, 1, 0,
        1 + coalesce((SELECT max(e.sequence) FROM atlas_task_events e
            WHERE e.tenant_id = :tenant_id AND e.task_id = g.id), 0),
        statement_timestamp(), statement_timestamp()
    FROM given g ORDER BY g.n
    ON CONFLICT DO NOTHING
    RETURNING id, last_event, created_at
), noted AS (
    INSERT INTO atlas_task_events (tenant_id, task_id, sequence, type, version, data, actor_id, created_at)
    SELECT :tenant_id, a.id, a.last_event, 'created', 1, g.data::json, :actor_id, a.created_at
    FROM added a JOIN given g ON g.id = a.id
), tagged AS (
    INSERT INTO atlas_task_tags (tenant_id, tag, rank, task_id)
    SELECT :tenant_id, t.tag, t.rank, t.task_id
    FROM unnest(:tag_names, :tag_ranks, :tag_tasks) AS t (tag, rank, task_id) JOIN added a ON a.id = t.task_id
)
SELECT id, last_event, created_at FROM added
"""
_TEXTS = tuple(name for name in CREATED if name not in ("rank", "due_at"))
#: PostgreSQL: add the tasks whose ids and keys are not taken. Every parameter but tenant and actor is an array.
CREATE_MANY = Statement(
    postgresql=text(_CREATE_MANY)
    .bindparams(
        _TENANT,
        bindparam("actor_id", type_=String()),
        *[bindparam(name, type_=ARRAY(Text())) for name in (*_TEXTS, "data", "tag_names", "tag_tasks")],
        bindparam("rank", type_=ARRAY(BigInteger())),
        bindparam("tag_ranks", type_=ARRAY(BigInteger())),
        bindparam("due_at", type_=ARRAY(TIMESTAMP(timezone=True))),
    )
    .columns(id=String, last_event=BigInteger, created_at=UtcDateTime)
)

_NOTED = ["tenant_id", "task_id", "sequence", "type", "version", "data", "actor_id", "created_at"]
_EVENT = {
    "type": bindparam("event_type", type_=String()),
    "data": bindparam("data", type_=JsonValue()),
    "actor_id": bindparam("actor_id", type_=String()),
}
ADD_EVENT = Statement(
    insert(_E).values(
        tenant_id=_TENANT,
        task_id=bindparam("task_id"),
        sequence=bindparam("sequence"),
        version=bindparam("version"),
        created_at=bindparam("at", type_=UtcDateTime()),
        **_EVENT,
    )
)


def _change(values: Mapping[Any, Any]) -> Statement:
    """Return the update of one task that gives its row and last event; on PostgreSQL it adds the event as well."""
    changed = (
        update(_T)
        .where(*_HERE)
        .values({**values, _T.last_event: _T.last_event + _ONE, _T.updated_at: utc_now()})
        .returning(*TASK_COLUMNS, _T.last_event)
    )
    rows = changed.cte("changed")
    event = (
        insert(_E)
        .from_select(
            _NOTED,
            select(
                _TENANT, rows.c.id, rows.c.last_event, _EVENT["type"], rows.c.version, _EVENT["data"],
                _EVENT["actor_id"], rows.c.updated_at,
            ),
            include_defaults=False,
        )
        .cte("noted")
    )  # fmt: skip
    columns: List[Any] = list(rows.c)
    return Statement(sqlite=changed, postgresql=select(*columns).add_cte(event))


_NEXT = {_T.version: _T.version + _ONE}
_STATUS = bindparam("status", type_=String())
#: Move a task: `started` and `finished` (1 or 0) say which of its times are now.
SET_STATUS = _change(
    {
        **_NEXT,
        _T.status: _STATUS,
        _T.closed: bindparam("finished", type_=BigInteger),
        _T.started_at: case(
            (bindparam("started", type_=BigInteger) == 1, func.coalesce(_T.started_at, utc_now())),
            else_=_T.started_at,
        ),
        _T.finished_at: case((bindparam("finished", type_=BigInteger) == 1, utc_now()), else_=_T.finished_at),
    }
)
_EDITABLE = (
    "title", "description", "rank", "owner_id", "session_id", "conversation_id", "parent_id", "tags", "due_at", "metadata"
)  # fmt: skip
#: Give a task other fields; all of them are parameters.
SET_FIELDS = _change({**_NEXT, **{getattr(_T, _ATTRIBUTES[name]): bindparam(name) for name in _EDITABLE}})
#: Note an event that leaves the task's version: a comment, an assignment.
TOUCH = _change({})
#: Note a change of the dependencies: `step` is added to the count of those that are open.
SET_OPEN = _change(
    {**_NEXT, _T.open_dependencies: _T.open_dependencies + bindparam("step", type_=BigInteger)}
)
CLEAR_PARENT = _change({**_NEXT, _T.parent_id: null()})
#: A new task waits for so many; part of its creation, so without an event.
START_WAITING = Statement(
    update(_T).where(*_HERE).values({_T.open_dependencies: bindparam("count", type_=BigInteger)})
)

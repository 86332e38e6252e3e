"""The graph of tasks: who waits for whom, and who is whose parent. No circles, whoever adds links at the same time.

PostgreSQL: what looks at the graph as a whole takes the tenant's graph lock first (an advisory lock of the transaction,
so it works behind PgBouncer), in a statement of its own: the next one sees what the holder before has committed. Two
additions that close a circle together come one after the other, and the second one finds it. SQLite has one writer.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Sequence

from sqlalchemy import BigInteger, String, Text, any_, bindparam, delete, literal_column, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY

from modules.storage.columns import utc_now
from modules.storage.operations import Transaction
from modules.storage.statements import Statement
from modules.store_common.values import encode_json
from modules.task_store.errors import TaskCycleError, TaskNotFoundError
from modules.task_store.models import TaskDependencyRow, TaskRow

__all__ = [
    "ADD_LINK",
    "CHILDREN",
    "DEPENDENTS",
    "REMOVE_LINK",
    "REMOVE_LINKS_TO",
    "UNBLOCK",
    "UNMET",
    "check_circles",
    "hold",
    "lock_graph",
    "refuse_cycle",
    "refuse_own_ancestor",
]

_T, _D = TaskRow, TaskDependencyRow
_TENANT = bindparam("tenant_id", type_=String())
_TASK = bindparam("task_id", type_=String())
_OTHER = bindparam("depends_on_id", type_=String())
_TEXT_BINDS = (_TENANT, bindparam("start", type_=String()), bindparam("goal", type_=String()))
# Keeps this lock apart from the advisory locks of others.
_LOCK_NUMBER = 20_005

_LOCK_GRAPH = Statement(
    postgresql=text(
        f"SELECT 1 AS one FROM (SELECT pg_advisory_xact_lock(hashtextextended(:tenant_id, {_LOCK_NUMBER}))) AS l"
    )
    .bindparams(_TENANT)
    .columns(one=BigInteger)
)

_SOME = select(_T.id, _T.status).where(_T.tenant_id == _TENANT)
_OF_IDS = _SOME.where(_T.id == any_(bindparam("ids", type_=ARRAY(Text()))))
_OF_JSON = _SOME.where(
    _T.id.in_(select(text("value")).select_from(text("json_each(:ids)")).scalar_subquery())
)
#: Tasks that must stay where they are until this transaction ends, in the order of their ids.
_HOLD = Statement(sqlite=_OF_JSON, postgresql=_OF_IDS.order_by(_T.id).with_for_update(read=True))
_HOLD_TO_CHANGE = Statement(
    sqlite=_OF_JSON, postgresql=_OF_IDS.order_by(_T.id).with_for_update(key_share=True)
)

# "C" is the collation of ids: both halves of a recursive query must agree on it
_REACHES = """
WITH RECURSIVE reached (id) AS (
    SELECT {start} UNION
    SELECT d.depends_on_id FROM reached r
    JOIN atlas_task_dependencies d ON d.tenant_id = :tenant_id AND d.task_id = r.id
) SELECT 1 AS one FROM reached WHERE id = :goal LIMIT 1
"""
_DESCENDS = """
WITH RECURSIVE reached (id) AS (
    SELECT {start} UNION
    SELECT t.parent_id FROM reached r
    JOIN atlas_tasks t ON t.tenant_id = :tenant_id AND t.id = r.id WHERE t.parent_id IS NOT NULL
) SELECT 1 AS one FROM reached WHERE id = :goal LIMIT 1
"""
_START = {"sqlite": ":start", "postgresql": 'CAST(:start AS varchar) COLLATE "C"'}
_REACHED = Statement(
    sqlite=text(_REACHES.format(start=_START["sqlite"])).bindparams(*_TEXT_BINDS).columns(one=BigInteger),
    postgresql=text(_REACHES.format(start=_START["postgresql"]))
    .bindparams(*_TEXT_BINDS)
    .columns(one=BigInteger),
)
_DESCENDED = Statement(
    sqlite=text(_DESCENDS.format(start=_START["sqlite"])).bindparams(*_TEXT_BINDS).columns(one=BigInteger),
    postgresql=text(_DESCENDS.format(start=_START["postgresql"]))
    .bindparams(*_TEXT_BINDS)
    .columns(one=BigInteger),
)

_LINK = {_D.tenant_id: _TENANT, _D.task_id: _TASK, _D.depends_on_id: _OTHER, _D.created_at: utc_now()}
ADD_LINK = Statement(
    sqlite=sqlite.insert(_D).values(_LINK).on_conflict_do_nothing(),
    postgresql=postgresql.insert(_D).values(_LINK).on_conflict_do_nothing(),
)
REMOVE_LINK = Statement(
    delete(_D).where(_D.tenant_id == _TENANT, _D.task_id == _TASK, _D.depends_on_id == _OTHER)
)
REMOVE_LINKS_TO = Statement(delete(_D).where(_D.tenant_id == _TENANT, _D.depends_on_id == _TASK))
#: The tasks that wait for one.
DEPENDENTS = Statement(
    select(_D.task_id).where(_D.tenant_id == _TENANT, _D.depends_on_id == _TASK).order_by(_D.task_id)
)
CHILDREN = Statement(
    select(_T.id).where(_T.tenant_id == _TENANT, _T.parent_id == _TASK).order_by(_T.rank, _T.id)
)
#: What a task waits for still.
UNMET = Statement(
    select(_D.depends_on_id)
    .join(_T, (_T.tenant_id == _D.tenant_id) & (_T.id == _D.depends_on_id))
    .where(_D.tenant_id == _TENANT, _D.task_id == _TASK, _T.closed == literal_column("0", BigInteger))
    .order_by(_D.depends_on_id)
)
_WAITING = select(_D.task_id).where(_D.tenant_id == _TENANT, _D.depends_on_id == _TASK)
_LOCKED = (
    select(_T.id)
    .where(_T.tenant_id == _TENANT, _T.id.in_(_WAITING))
    .order_by(_T.id)
    .with_for_update(key_share=True)
    .cte("waiting")
)
_FREED = {_T.open_dependencies: _T.open_dependencies - 1}
#: A task was finished: whoever waits for it waits for one less.
UNBLOCK = Statement(
    sqlite=update(_T).where(_T.tenant_id == _TENANT, _T.id.in_(_WAITING)).values(_FREED),
    postgresql=update(_T).where(_T.tenant_id == _TENANT, _T.id == _LOCKED.c.id).values(_FREED),
)


async def lock_graph(tx: Transaction, tenant_id: str) -> None:
    """Let nobody else change the tenant's graph until this transaction ends."""
    if tx.dialect == "postgresql":
        await tx.one(_LOCK_GRAPH, tenant_id=tenant_id)


async def hold(
    tx: Transaction, tenant_id: str, ids: Iterable[str], *, to_change: bool = False
) -> Dict[str, str]:
    """Return the status of those tasks, which they keep until this transaction ends.

    Args:
        tx: The transaction.
        tenant_id: Whose.
        ids: Which.
        to_change: This transaction will change some of them.

    Raises:
        TaskNotFoundError: one is not there.
    """
    wanted = sorted(set(ids))
    given = wanted if tx.dialect == "postgresql" else encode_json(wanted, "ids")
    statement = _HOLD_TO_CHANGE if to_change else _HOLD
    found = {row[0]: row[1] for row in await tx.all(statement, tenant_id=tenant_id, ids=given)}
    for task_id in wanted:
        if task_id not in found:
            raise TaskNotFoundError(task_id)
    return found


async def refuse_cycle(tx: Transaction, tenant_id: str, task_id: str, depends_on_id: str) -> None:
    """Raise `TaskCycleError` if the dependency would close a circle. The graph must be locked."""
    if task_id == depends_on_id or await tx.first(
        _REACHED, tenant_id=tenant_id, start=depends_on_id, goal=task_id
    ):
        raise TaskCycleError(task_id, depends_on_id)


async def refuse_own_ancestor(tx: Transaction, tenant_id: str, task_id: str, parent_id: str) -> None:
    """Raise `TaskCycleError` if the parent would make the task its own ancestor. The graph must be locked."""
    if task_id == parent_id or await tx.first(_DESCENDED, tenant_id=tenant_id, start=parent_id, goal=task_id):
        raise TaskCycleError(task_id, parent_id, "have as its parent")


def check_circles(edges: Mapping[str, Sequence[str]], link: str) -> None:
    """Raise `TaskCycleError` if the edges between new tasks close a circle; edges to other tasks cannot.

    Args:
        edges: New task -> the tasks that it points to.
        link: How the error calls an edge.
    """
    done: Dict[str, bool] = {}
    for start in edges:
        path: List[Any] = [(start, iter(edges[start]))]
        if start in done:
            continue
        done[start] = False
        while path:
            current, rest = path[-1]
            following = next((item for item in rest if item in edges and not done.get(item)), None)
            if following is None:
                done[current] = True
                path.pop()
            elif following in done:
                raise TaskCycleError(current, following, link)
            else:
                done[following] = False
                path.append((following, iter(edges[following])))

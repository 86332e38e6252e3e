"""Lists, what is ready, what is due, counts and upkeep walk along their index: read from EXPLAIN on both dialects."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List

import pytest

from modules.storage.statements import Statement
from modules.task_store import maintenance
from modules.task_store.events import EVENTS_AFTER
from modules.task_store.links import DEPENDENTS, UNMET
from modules.task_store.reading import count_statement, list_statement
from modules.task_store.statements import FIND_KEY

_NOW = datetime(2030, 1, 1, tzinfo=timezone.utc)
_T = {"tenant_id": "t1", "limit": 10}
_ONE = {"tenant_id": "t1", "task_id": "5"}


def _list(*given: str, status: str = "", order: str = "priority", **more: Any) -> Statement:
    return list_statement(frozenset(given), status, order, **more)


#: Statement, parameters, and the index that it must use (either, where two serve as well).
STATEMENTS: Dict[str, Any] = {
    "all": (_list(), _T, ["rank"]),
    "all, next page": (_list(paged=True), {**_T, "at": 0, "id": "5"}, ["rank"]),
    "by status": (_list(status="one"), {**_T, "status": "ready"}, ["status"]),
    "done": (_list(status="final"), {**_T, "status": "done"}, ["status"]),
    "open": (_list(status="open"), _T, ["open"]),
    "by owner": (_list("owner_id"), {**_T, "owner_id": "o5"}, ["owner"]),
    "by conversation": (_list("conversation_id"), {**_T, "conversation_id": "c5"}, ["conversation"]),
    "by session": (_list("session_id"), {**_T, "session_id": "s5"}, ["session"]),
    "by parent": (_list("parent_id"), {**_T, "parent_id": "1"}, ["parent"]),
    "due": (_list("due_before", status="open", order="due"), {**_T, "due_before": _NOW}, ["due"]),
    "due, next page": (
        _list("due_before", status="open", order="due", paged=True),
        {**_T, "due_before": _NOW, "at": _NOW, "id": "5"},
        ["due"],
    ),
    "updated": (_list(order="updated"), _T, ["updated"]),
    "ready": (_list(status="one", startable=True), {**_T, "status": "ready"}, ["startable"]),
    "ready, next page": (
        _list(status="one", startable=True, paged=True),
        {**_T, "status": "ready", "at": 0, "id": "5"},
        ["startable"],
    ),
    "counts": (count_statement(frozenset()), {"tenant_id": "t1"}, ["status"]),
    "counts of a conversation": (
        count_statement(frozenset({"conversation_id"})),
        {"tenant_id": "t1", "conversation_id": "c5"},
        ["conversation"],
    ),
    "finished before": (maintenance.FINISHED_BEFORE, {**_T, "before": _NOW}, ["finished"]),
    "by key": (FIND_KEY, {"tenant_id": "t1", "idempotency_key": "5"}, ["uq_atlas_tasks_idempotency_key"]),
}


def _explain(engine: Any, statement: Statement, parameters: Dict[str, Any]) -> str:
    compiled = statement.compiled(engine.dialect.name)
    values = compiled.bind(parameters)
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        if engine.dialect.name == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {compiled.sql}", values)
            return "\n".join(row[3] for row in cursor.fetchall())
        # the plan that is kept for any parameters, which is what a prepared statement ends up with
        cursor.execute("DEALLOCATE ALL")
        cursor.execute("SET plan_cache_mode = force_generic_plan")
        cursor.execute("SET enable_seqscan = off")  # right for tables as small as these
        cursor.execute(f"PREPARE asked AS {compiled.sql}")
        literals = ", ".join(
            str(v) if isinstance(v, int) else "NULL" if v is None else f"'{v}'" for v in values
        )
        cursor.execute(f"EXPLAIN EXECUTE asked ({literals})")
        return "\n".join(row[0] for row in cursor.fetchall())


@pytest.fixture
async def filled(storage: Any) -> Any:
    """Four tenants with 400 tasks each; most are finished, some wait, each label is of a few."""
    for tenant in range(4):
        given: List[Dict[str, Any]] = [
            {
                "title": "t",
                "id": str(n),
                "priority": n % 5,
                "owner_id": f"o{n % 50}",
                "conversation_id": f"c{n % 50}",
                "session_id": f"s{n % 50}",
                "parent_id": str(n % 20) if n >= 20 else None,
                "due_at": _NOW + timedelta(minutes=n) if n % 3 else None,
                "tags": [f"tag{n % 40}"],
                "idempotency_key": str(n),
                "depends_on": ["0"] if n % 10 == 1 else [],
            }
            for n in range(400)
        ]
        await storage.tasks.create_tasks(given, tenant_id=f"t{tenant}")
    engine = storage.get_sql_engine()
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE atlas_tasks SET status = CASE WHEN id < '5' THEN 'done' WHEN id < '6' THEN 'ready' ELSE 'draft' END,"
            " finished_at = CASE WHEN id < '5' THEN updated_at END, closed = CASE WHEN id < '5' THEN 1 ELSE 0 END"
            " WHERE open_dependencies = 0"
        )
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    return engine


@pytest.mark.parametrize("statistics", [True, False])
async def test_each_uses_its_index(filled: Any, statistics: bool) -> None:
    if filled.dialect.name == "sqlite" and statistics:
        with filled.begin() as connection:
            connection.exec_driver_sql("ANALYZE")
            assert connection.exec_driver_sql("SELECT count(*) FROM sqlite_stat1").scalar()
    wrong = []
    for name, (statement, parameters, indexes) in STATEMENTS.items():
        plan = _explain(filled, statement, parameters)
        wanted = [index if index[:3] == "uq_" else f"ix_atlas_tasks_{index}" for index in indexes]
        sorts = "TEMP B-TREE" in plan or ("Sort" in plan and "Incremental Sort" not in plan)
        walks = "SCAN atlas_tasks" in plan.replace("SCAN atlas_tasks USING", "") or "Seq Scan" in plan
        if not any(index in plan for index in wanted) or walks or (sorts and "counts" not in name):
            wrong.append(f"{name}:\n{plan}")
    assert not wrong, "\n\n".join(wrong)


async def test_links_tags_and_events_are_looked_up(filled: Any) -> None:
    cases: Dict[str, Any] = {
        "by tag": (_list("tag"), {**_T, "tag": "tag5"}, "atlas_task_tags"),
        "dependents": (DEPENDENTS, _ONE, "ix_atlas_task_dependencies_waiting"),
        "unmet": (UNMET, _ONE, "atlas_task_dependencies"),
        "events": (EVENTS_AFTER, {**_ONE, "type": None, "sequence": 0, "limit": 10}, "atlas_task_events"),
    }
    for name, (statement, parameters, table) in cases.items():
        plan = _explain(filled, statement, parameters)
        assert table in plan, (name, plan)
        assert "Seq Scan" not in plan, (name, plan)
        assert f"SCAN {table}" not in plan, (name, plan)

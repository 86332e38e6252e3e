"""Claims, lists and due queries use their index however many jobs there are: read from EXPLAIN on both dialects."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest

from modules.job_store import (
    claim_statements,
    lifecycle_statements,
    reading_statements,
    settle_statements,
    upkeep_statements,
)
from modules.job_store.records import NewJob, Outcome
from modules.storage.statements import Statement

_ONE = {"tenant_id": "t1", "id": "x"}
_LIST = {"tenant_id": "t1", "before": "~", "limit": 10}
_CLAIM = {"queues": ["q1", "q2"], "limit": 10, "lease_us": 1000, "worker": "w"}
_CLAIMED = {"tenant_ids": ["t1"], "ids": ["x"], "fences": [1]}
_SETTLED = {
    **_CLAIMED, "statuses": ["failed"], "delays": [0], "deltas": [0], "reasons": ["r"], "run_statuses": ["failed"],
    "errors": ["{}"], "results": ["{}"], "keeps": [0],
}  # fmt: skip
_CLAIMS = "ix_atlas_jobs_claim"
#: What is asked, with which parameters, which index answers, on which dialect.
STATEMENTS: Dict[str, Any] = {
    "claim": (claim_statements.CLAIM, _CLAIM, _CLAIMS, "postgresql"),
    "claim of a tenant": (
        claim_statements.CLAIM_TENANT, {**_CLAIM, "tenant_id": "t1"}, "ix_atlas_jobs_claim_tenant", "postgresql",
    ),
    "claim: priorities": (claim_statements.TOP, {"queue": "q1", "priority": 9}, _CLAIMS, "sqlite"),
    "claim: heads": (claim_statements.HEADS, {"queue": "q1", "priority": 0, "limit": 9}, _CLAIMS, "sqlite"),
    "claim: heads of a tenant": (
        claim_statements.HEADS_TENANT, {"queue": "q1", "priority": 0, "limit": 9, "tenant_id": "t1"},
        "ix_atlas_jobs_claim_tenant", "sqlite",
    ),
    "settle": (settle_statements.SETTLE, _SETTLED, "pk_atlas_jobs", "postgresql"),
    "heartbeat": (settle_statements.BEAT, {**_CLAIMED, "lease_us": 9}, "pk_atlas_jobs", "postgresql"),
    "claim of rows": (
        claim_statements.CLAIM_ROWS, {"tenants": ["t1"], "ids": ["x"], "lease_us": 9, "worker": "w"},
        "pk_atlas_jobs", "postgresql",
    ),
    "unpark": (
        settle_statements.UNPARK, {"tenant_id": "t1", "concurrency_key": "k"}, "ix_atlas_jobs_parked", None,
    ),
    "rescue": (settle_statements.EXPIRED, {"limit": 10}, "ix_atlas_jobs_leases", None),
    "running of a key": (
        claim_statements.RUNNING_OF_KEY, {"tenant_id": "t1", "concurrency_key": "k"}, "ix_atlas_jobs_running_key", None,
    ),
    "list": (reading_statements.LIST, _LIST, "pk_atlas_jobs", None),
    "list of a status": (
        reading_statements.LIST_STATUS, {**_LIST, "status": "scheduled"}, "ix_atlas_jobs_status", None,
    ),
    "get": (reading_statements.GET, _ONE, "pk_atlas_jobs", None),
    "by name": (reading_statements.BY_NAME, {"tenant_id": "t1", "name": "n"}, "ix_atlas_jobs_names", None),
    "due next": (
        reading_statements.NEXT_DUE, {"tenant_id": "t1", "queue": "q1", "priority": 0, "limit": 5},
        "ix_atlas_jobs_claim_tenant", None,
    ),
    "first due": (reading_statements.FIRST_DUE, {"queue": "q1", "priority": 0}, _CLAIMS, None),
    "dead": (reading_statements.DEAD, {"limit": 100}, "ix_atlas_jobs_dead", None),
    "backlog": (reading_statements.BACKLOG, {"limit": 100}, _CLAIMS, None),
    "running": (reading_statements.RUNNING, {"limit": 100}, "ix_atlas_jobs_leases", None),
    "purge": (
        lifecycle_statements.OLD, {"tenant_id": "t1", "status": "failed", "before": "1", "delay_us": 1, "limit": 9},
        "ix_atlas_jobs_status", None,
    ),
    "due schedules": (upkeep_statements.DUE, {"limit": 10}, "ix_atlas_job_schedules_due", "sqlite"),
}  # fmt: skip


def _types(values: Any) -> str:
    kinds = {str: "text", int: "bigint", type(None): "text"}
    return ", ".join(
        kinds[type(value[0])] + "[]" if isinstance(value, list) else kinds[type(value)] for value in values
    )


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"ARRAY[{', '.join(_literal(item) for item in value)}]"
    if value is None:
        return "NULL"
    return str(value) if isinstance(value, int) else f"'{value}'"


def _explain(engine: Any, statement: Statement, parameters: Dict[str, Any]) -> List[str]:
    compiled = statement.compiled(engine.dialect.name)
    values = compiled.bind(parameters)
    with engine.connect() as connection:
        cursor = connection.connection.cursor()
        if engine.dialect.name == "sqlite":
            cursor.execute(f"EXPLAIN QUERY PLAN {compiled.sql}", values)
            return [row[3] for row in cursor.fetchall()]
        # the plan that is kept for any parameters, which is what a prepared statement ends up with
        cursor.execute("SET plan_cache_mode = force_generic_plan")
        cursor.execute("DEALLOCATE ALL")
        cursor.execute(f"PREPARE asked ({_types(values)}) AS {compiled.sql}")
        cursor.execute(f"EXPLAIN EXECUTE asked ({', '.join(_literal(value) for value in values)})")
        return [row[0] for row in cursor.fetchall()]


async def _fill(storage: Any) -> None:
    for tenant in ("t1", "t2", "t3"):
        await storage.jobs.enqueue_many(
            [
                NewJob(
                    "h",
                    n,
                    queue=f"q{n % 3}",
                    name=f"n{n}" if n % 10 == 0 else None,
                    concurrency_key="k" if n % 7 == 0 else None,
                )
                for n in range(1500)
            ],
            tenant_id=tenant,
        )
    for kind in ("succeeded", "cancelled", "failed"):
        claims = await storage.job_queue.claim("w", ["q0", "q1", "q2"], limit=500)
        await storage.job_queue.settle([Outcome(c, kind, retry=False) for c in claims])
    with storage.sql_pool.engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE")


async def test_every_statement_uses_its_index(storage: Any) -> None:
    await _fill(storage)
    engine = storage.sql_pool.engine
    dialect = engine.dialect.name
    for name, (statement, parameters, index, only) in STATEMENTS.items():
        if only not in (None, dialect):
            continue
        plan = _explain(engine, statement, parameters)
        text = "\n".join(plan)
        if dialect == "postgresql":
            assert index in text, f"{name}: {text}"
            assert "Seq Scan on atlas_jobs" not in text, f"{name}: {text}"
        else:
            wanted = "sqlite_autoindex_atlas_jobs_1" if index == "pk_atlas_jobs" else index
            assert wanted in text, f"{name}: {text}"
            assert not [line for line in plan if line in ("SCAN atlas_jobs", "SCAN j")], f"{name}: {text}"


@pytest.mark.postgresql
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
async def test_the_plan_of_an_empty_table_serves_a_full_one(storage: Any) -> None:
    """A worker prepares its statements when there are no jobs and keeps the plans when there are many."""
    for name in ("claim", "claim of a tenant", "claim of rows", "settle", "heartbeat", "rescue", "due next"):
        statement, parameters, index, _ = STATEMENTS[name]
        plan = "\n".join(_explain(storage.sql_pool.engine, statement, parameters))
        assert index in plan, f"{name}: {plan}"
        assert "Seq Scan on atlas_jobs" not in plan, f"{name}: {plan}"

"""Helpers of the task store's tests."""

from __future__ import annotations

from typing import Any, Dict, List

from sqlalchemy import BigInteger, String, text

from modules.storage.operations import Transaction, read
from modules.storage.statements import Row, Statement

__all__ = ["WAYS", "bring", "invariants", "query"]

#: A way from draft to every state.
WAYS: Dict[str, List[str]] = {
    "draft": [],
    "ready": ["ready"],
    "in_progress": ["ready", "in_progress"],
    "review": ["ready", "in_progress", "review"],
    "done": ["ready", "in_progress", "review", "done"],
    "cancelled": ["cancelled"],
}


async def bring(tasks: Any, task_id: str, status: str, **tenant: Any) -> Any:
    """Move a draft to `status`; returns the task."""
    for step in WAYS[status]:
        await tasks.transition_task(task_id, step, **tenant)
    return await tasks.get_task(task_id, **tenant)


@read
async def _query(tx: Transaction, statement: Statement) -> List[Row]:
    return await tx.all(statement)


async def query(tasks: Any, sql: str, **columns: Any) -> List[Row]:
    """Return the rows of `sql`; `columns` are its columns and their types, in order."""
    rows: List[Row] = await tasks._executor.run(_query, Statement(text(sql).columns(**columns)))
    return rows


async def invariants(tasks: Any) -> None:
    """Fail unless the counts and copies that the store keeps are right, for every tenant."""
    waiting = await query(
        tasks,
        "SELECT t.id, t.open_dependencies, (SELECT count(*) FROM atlas_task_dependencies d JOIN atlas_tasks o"
        " ON o.tenant_id = d.tenant_id AND o.id = d.depends_on_id WHERE d.tenant_id = t.tenant_id AND d.task_id = t.id"
        " AND o.status NOT IN ('done', 'cancelled')) FROM atlas_tasks t",
        id=String,
        kept=BigInteger,
        counted=BigInteger,
    )
    assert [row for row in waiting if row[1] != row[2]] == []
    moved_on = await query(
        tasks,
        "SELECT id FROM atlas_tasks WHERE (finished_at IS NULL) = (status IN ('done', 'cancelled'))"
        " OR (closed = 1) <> (status IN ('done', 'cancelled'))"
        " OR (status = 'done' AND open_dependencies > 0)",
        id=String,
    )
    assert moved_on == []
    orphans = await query(
        tasks,
        "SELECT c.id FROM atlas_tasks c WHERE c.parent_id IS NOT NULL AND NOT EXISTS"
        " (SELECT 1 FROM atlas_tasks p WHERE p.tenant_id = c.tenant_id AND p.id = c.parent_id)",
        id=String,
    )
    assert orphans == []
    numbers = await query(
        tasks,
        "SELECT t.id FROM atlas_tasks t WHERE t.last_event <> (SELECT max(e.sequence) FROM atlas_task_events e"
        " WHERE e.tenant_id = t.tenant_id AND e.task_id = t.id)",
        id=String,
    )
    assert numbers == []

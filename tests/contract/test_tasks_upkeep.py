"""Retention and health of the task store."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import text

from modules.storage.manager import StorageManager
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from modules.task_store import maintenance
from modules.task_store.maintenance import TaskMaintenance
from tests.support.tasks import bring, invariants

_DAY_US = 86_400_000_000
_AGE = Statement(
    sqlite=text(
        f"UPDATE atlas_tasks SET finished_at = finished_at - 10 * {_DAY_US} WHERE finished_at IS NOT NULL"
    ),
    postgresql=text(
        "UPDATE atlas_tasks SET finished_at = finished_at - interval '10 days' WHERE finished_at IS NOT NULL"
    ),
)
_AGE_EVENTS = Statement(
    sqlite=text(f"UPDATE atlas_task_events SET created_at = created_at - 40 * {_DAY_US}"),
    postgresql=text("UPDATE atlas_task_events SET created_at = created_at - interval '40 days'"),
)


@write
async def _run(tx: Transaction, statement: Statement) -> int:
    return await tx.run(statement)


async def _old(storage: Any, statement: Statement = _AGE) -> None:
    """Let what is finished have been so for ten days."""
    await storage.executor.run(_run, statement)


@pytest.fixture
async def storage_with_retention(migrated_settings: Any, leaks: Any) -> Any:
    settings = migrated_settings.merged_with({"retention": {"task_days": 7}})
    async with StorageManager(settings, background=False) as storage:
        yield storage


async def test_retention_deletes_what_was_finished_long_ago(storage_with_retention: Any) -> None:
    storage = storage_with_retention
    tasks = storage.tasks
    for tenant in ("a", "b"):
        await tasks.create_tasks(
            [
                {"title": "done", "id": "done", "tags": ["x"]},
                {"title": "cancelled", "id": "cancelled"},
                {"title": "waits", "id": "waits", "depends_on": ["done"], "parent_id": "done"},
            ],
            tenant_id=tenant,
        )
        await bring(tasks, "done", "done", tenant_id=tenant)
        await bring(tasks, "cancelled", "cancelled", tenant_id=tenant)
    await _old(storage)
    await tasks.create_task("just now", task_id="now", tenant_id="a")
    await tasks.transition_task("now", "cancelled", tenant_id="a")

    assert (await storage.maintenance.retain("a"))["tasks_deleted"] == 2
    assert [task.id for task in await tasks.list_tasks(tenant_id="a")] == ["now", "waits"]
    assert len(await tasks.list_tasks(tenant_id="b")) == 3
    assert (await storage.maintenance.retain())["tasks_deleted"] == 2
    left = await tasks.get_task("waits", tenant_id="b")
    assert (left.parent_id, left.open_dependencies) == (None, 0)
    assert [event.type for event in await tasks.list_events("done", tenant_id="b")] == ["deleted"]
    await invariants(tasks)

    await _old(storage, _AGE_EVENTS)
    await storage.maintenance.retain()
    assert len(await tasks.list_events("done", tenant_id="b")) == 0
    assert len(await tasks.list_events("waits", tenant_id="b")) > 0


async def test_many_batches(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "_TOGETHER", 3)
    await storage.tasks.create_tasks([{"title": "t", "id": str(n)} for n in range(8)])
    for n in range(8):
        await storage.tasks.transition_task(str(n), "cancelled")
    await _old(storage)
    upkeep = TaskMaintenance(storage.executor)
    assert await upkeep.run_retention(0) == 0
    assert await upkeep.run_retention(11) == 0
    assert await upkeep.run_retention(9) == 8


async def test_without_retention_everything_is_kept(storage: Any) -> None:
    await storage.tasks.create_task("t", task_id="t")
    await storage.tasks.transition_task("t", "cancelled")
    await _old(storage)
    assert (await storage.maintenance.retain())["tasks_deleted"] == 0
    assert await storage.tasks.get_task("t") is not None


async def test_health_counts(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    past = datetime.now(timezone.utc) - timedelta(hours=1)
    tasks = storage.tasks
    await tasks.create_tasks([{"title": "late", "id": f"l{n}", "due_at": past} for n in range(3)])
    await tasks.create_task("in time", due_at=past + timedelta(days=2), status="ready", tenant_id="other")
    await tasks.transition_task("l0", "cancelled")

    health = await storage.health_check()

    details = health.task_store.details
    assert details["by_status"] == {
        "draft": 2, "ready": 1, "in_progress": 0, "review": 0, "done": 0, "cancelled": 1,
    }  # fmt: skip
    assert (details["overdue"], details["complete"]) == (2, True)
    monkeypatch.setattr(maintenance, "MOST_LOOKED_AT", 3)
    assert (await storage.health_check()).task_store.details["complete"] is False

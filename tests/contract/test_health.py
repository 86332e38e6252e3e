"""Health: the arithmetic, the deadlines, the monitor, and what each back end says of itself."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any, Dict, List, Optional, Tuple

import pytest

from modules.storage.health import (
    HealthMonitor,
    HealthStatus,
    StorageHealthStatus,
    StoreHealth,
    check_all,
    compute_overall_status,
)
from modules.store_common.errors import UnavailableError
from tests.support.leaks import wait_until

from .scratch import admin

HEALTHY, DEGRADED = HealthStatus.HEALTHY, HealthStatus.DEGRADED
UNHEALTHY, UNKNOWN = HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN


def _components(*statuses: HealthStatus) -> Dict[str, StoreHealth]:
    return {str(n): StoreHealth(str(n), status) for n, status in enumerate(statuses)}


@pytest.mark.parametrize(
    ("statuses", "overall"),
    [
        ((), UNKNOWN),
        ((HEALTHY,), HEALTHY),
        ((HEALTHY, UNKNOWN), UNKNOWN),
        ((HEALTHY, DEGRADED), DEGRADED),
        ((UNKNOWN, DEGRADED), DEGRADED),
        ((HEALTHY, DEGRADED, UNKNOWN, UNHEALTHY), UNHEALTHY),
    ],
)
def test_the_worst_component_decides(statuses: Tuple[HealthStatus, ...], overall: HealthStatus) -> None:
    for order in itertools.permutations(statuses):
        assert compute_overall_status(_components(*order)) is overall


def test_status_values() -> None:
    assert [status.value for status in HealthStatus] == ["healthy", "degraded", "unhealthy", "unknown"]


def _check(status: HealthStatus = HEALTHY) -> Any:
    async def check() -> Tuple[HealthStatus, str, Dict[str, Any]]:
        return status, "", {"n": 1}

    return check


async def test_checks_run_side_by_side_each_with_its_own_deadline() -> None:
    both = asyncio.Barrier(2) if hasattr(asyncio, "Barrier") else None

    async def meets() -> Tuple[HealthStatus, str, Dict[str, Any]]:
        if both is not None:
            await both.wait()
        return HEALTHY, "", {}

    async def hangs() -> Tuple[HealthStatus, str, Dict[str, Any]]:
        await asyncio.Event().wait()
        raise AssertionError

    result = await asyncio.wait_for(
        check_all({"sql": meets, "kv_store": meets, "mongo": hangs, "job_store": hangs}, 0.5), 60
    )
    assert result.sql is not None
    assert result.sql.status is HEALTHY
    assert result.mongo is not None
    assert result.mongo.status is UNHEALTHY
    assert "0.5 s" in result.mongo.message
    assert result.mongo.latency_ms is not None
    assert result.mongo.latency_ms > 450
    assert result.overall is UNHEALTHY
    assert result.unhealthy_components == ["mongo", "job_store"]
    assert set(result.components) == {"sql", "kv_store", "mongo", "job_store"}
    assert result.vector_store is None


async def test_errors_become_unhealthy_components(caplog: Any) -> None:
    async def away() -> Any:
        raise UnavailableError("the server is away")

    async def defect() -> Any:
        raise KeyError("hunter2")

    result = await check_all({"sql": away, "kv_store": defect, "job_store": _check()}, 1.0)
    assert result.sql is not None
    assert result.sql.message == "the server is away"
    assert result.kv_store is not None
    assert "KeyError" in result.kv_store.message
    assert "hunter2" not in result.kv_store.message
    assert "storage.health.check_failed" in caplog.messages
    assert result.job_store is not None
    assert result.job_store.details == {"n": 1}


def test_the_result_as_json() -> None:
    component = StoreHealth("sql", DEGRADED, 1.5, "slow", {"size": 1})
    result = StorageHealthStatus(overall=DEGRADED, sql=component)
    assert json.loads(json.dumps(result.to_dict())) == {
        "overall": "degraded",
        "checked_at": None,
        "components": {
            "sql": {
                "name": "sql",
                "status": "degraded",
                "latency_ms": 1.5,
                "message": "slow",
                "details": {"size": 1},
                "checked_at": None,
            }
        },
        "unhealthy_components": [],
    }


def _result(status: HealthStatus) -> StorageHealthStatus:
    return StorageHealthStatus(overall=status, sql=StoreHealth("sql", status))


async def test_the_monitor_tells_of_changes_only(caplog: Any) -> None:
    answers = [_result(s) for s in (HEALTHY, HEALTHY, UNHEALTHY, UNHEALTHY, HEALTHY)]
    heard: List[Tuple[Optional[HealthStatus], HealthStatus]] = []
    done = asyncio.Event()

    async def check() -> StorageHealthStatus:
        if not answers:
            done.set()
            await asyncio.Event().wait()
        return answers.pop(0)

    def broken(before: Any, now: Any) -> None:
        raise RuntimeError("a listener's own fault")

    monitor = HealthMonitor(check, 0.001)
    assert monitor.last is None
    monitor.add_listener(broken)
    monitor.add_listener(lambda before, now: heard.append((before and before.overall, now.overall)))
    task = asyncio.create_task(monitor.run())
    await asyncio.wait_for(done.wait(), 60)
    task.cancel()
    await asyncio.wait({task})
    assert heard == [(None, HEALTHY), (HEALTHY, UNHEALTHY), (UNHEALTHY, HEALTHY)]
    assert monitor.last is not None
    assert monitor.last.overall is HEALTHY
    assert caplog.messages.count("storage.health.changed") == 2
    assert caplog.messages.count("storage.health.listener_failed") == 3


# --- a manager's own ----------------------------------------------------------------------------------------------


async def test_a_fresh_database_is_healthy(storage: Any, backend: str) -> None:
    health = await storage.health_check()
    assert health.overall is HEALTHY, health.to_dict()
    assert set(health.components) == {
        "sql",
        "conversation_store",
        "job_store",
        "kv_store",
        "outbox",
        "task_store",
        "vector_store",
    }
    for component in health.components.values():
        assert component.latency_ms is not None
        assert component.latency_ms >= 0
        assert component.checked_at is not None
    details = health.sql.details
    assert details["dialect"] == ("postgresql" if backend == "postgresql" else "sqlite")
    assert details["schema_revision"] == details["schema_head"]
    assert details["schema_behind"] is False
    assert details["database_bytes"] > 0
    if backend == "postgresql":
        assert {"size", "in_use", "idle", "waiting", "limit"} <= set(details)
        assert details["limit"] == 15
    else:
        assert {"writer_waiting", "reader_waiting"} <= set(details)
    if backend == "sqlite":
        assert details["disk_free_bytes"] > 0
        assert details["wal_bytes"] >= 0
    json.dumps(health.to_dict())


async def test_a_missing_table_and_a_schema_behind(storage: Any) -> None:
    await admin(storage.sql_pool).execute_sql("DROP TABLE atlas_kv_entries")
    await admin(storage.sql_pool).execute_sql("UPDATE atlas_alembic_version SET version_num = 'older'")
    health = await storage.health_check()
    assert health.overall is UNHEALTHY
    assert health.unhealthy_components == ["kv_store"]
    assert "atlas_kv_entries" in health.kv_store.message
    assert health.sql.status is DEGRADED
    assert health.sql.details["schema_behind"] is True
    assert "migrate" in health.sql.message


async def test_a_unit_of_work_under_way_is_no_illness(storage: Any, backend: str) -> None:
    if backend == "sqlite-memory":
        pytest.skip("a database in memory has one connection, so its health waits for the unit")
    storage.get_settings()
    async with storage.unit_of_work() as uow:
        await uow.kv.set("n", "k", 1)
        health = await asyncio.wait_for(storage.health_check(), 60)
        assert health.overall is HEALTHY, health.to_dict()


@pytest.mark.background
async def test_the_monitor_runs_with_the_manager(storage: Any) -> None:
    found = await wait_until(lambda: storage.health_monitor.last, 30)
    assert found.overall is HEALTHY

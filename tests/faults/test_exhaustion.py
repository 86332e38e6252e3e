"""P14: an exhausted pool fails fast and clear, and a task that would wait for itself is told so."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from modules.storage.manager import StorageManager
from modules.storage.pool_errors import PoolError, PoolTimeoutError
from modules.store_common.deadlines import deadline
from modules.store_common.errors import DeadlineExceededError, OverloadedError, StorageError
from tests.support.probe import add_pair, create_probe
from tests.support.timing import assert_in_time


def _manager(url: str, **sql: Any) -> StorageManager:
    """Return a manager without work of its own, which would have connections when the test counts them."""
    pool = {"size": 1, "max_overflow": 1, "timeout": 0.3}
    return StorageManager({"sql": {"url": url, "pool": pool, "auto_migrate": False, **sql}}, background=False)


@pytest.mark.postgresql
async def test_one_holder_too_many(databases: Any, leaks: Any) -> None:
    async with _manager(databases.url("postgresql", migrated=True)) as manager:
        holding, release = asyncio.Semaphore(0), asyncio.Event()

        async def hold(name: str) -> None:
            async with manager.unit_of_work() as uow:
                await uow.kv.set("ns", name, 1)
                holding.release()
                await release.wait()

        holders = [asyncio.create_task(hold(f"h{n}")) for n in range(2)]
        for _ in holders:
            await holding.acquire()
        started = time.monotonic()
        with pytest.raises(PoolTimeoutError, match=r"within \d+\.\d s: all 2 are in use") as caught:
            await manager.kv.set("ns", "other", 1)
        assert time.monotonic() - started >= 0.25
        assert_in_time(started, 0.8)
        assert caught.value.size == 2
        assert 0.25 <= caught.value.waited_s <= time.monotonic() - started
        assert caught.value.retryable
        with pytest.raises((PoolTimeoutError, DeadlineExceededError)), deadline(0.1):
            await manager.kv.get("ns", "other")
        release.set()
        await asyncio.gather(*holders)
        assert sorted(await manager.kv.get_many("ns", ["h0", "h1", "other"])) == ["h0", "h1"]


@pytest.mark.postgresql
async def test_waiters_are_bounded(databases: Any, leaks: Any) -> None:
    from modules.storage.pool import SQLPool

    # so that nobody who waits is sent away for the time that it takes
    patient = {"size": 1, "max_overflow": 1, "timeout": 60}
    manager = _manager(databases.url("postgresql"), max_waiters=5, pool=patient)
    pool = SQLPool(manager.get_settings().sql)
    await pool.initialize()
    try:
        await pool.executor.run(create_probe)
        outcomes = await asyncio.gather(
            *(pool.executor.run(add_pair, f"n{n}") for n in range(50)), return_exceptions=True
        )
        refused = [o for o in outcomes if isinstance(o, PoolTimeoutError)]
        assert len(refused) >= 30
        assert "wait for one of 2" in str(refused[0])
        assert all(isinstance(o, (str, PoolTimeoutError)) for o in outcomes), outcomes
        assert pool.statistics()["waiting"] == 0
        await pool.executor.run(add_pair, "after")
    finally:
        await pool.shutdown()


@pytest.mark.postgresql
async def test_a_task_that_would_wait_for_itself_is_told_at_once(databases: Any, leaks: Any) -> None:
    async with _manager(
        databases.url("postgresql", migrated=True), pool={"size": 1, "max_overflow": 0}
    ) as manager:
        async with manager.unit_of_work() as uow:
            await uow.kv.set("ns", "inside", 1)
            started = time.monotonic()
            with pytest.raises(PoolError, match="wait for itself"):
                await manager.kv.set("ns", "outside", 1)
            assert_in_time(started, 0.2)
        assert await manager.kv.get("ns", "inside") == 1


async def test_sqlite_refuses_a_call_that_would_wait_for_itself(databases: Any, leaks: Any) -> None:
    async with _manager(databases.url("sqlite", migrated=True)) as manager:
        async with manager.unit_of_work() as uow:
            await uow.kv.set("ns", "inside", 1)
            started = time.monotonic()
            with pytest.raises(StorageError, match="wait for itself"):
                await manager.kv.set("ns", "outside", 1)
            assert_in_time(started, 0.2)
            assert await manager.kv.get("ns", "inside") is None  # a reader sees what is committed
        assert await manager.kv.get("ns", "inside") == 1


async def test_a_full_sqlite_queue_refuses_more(databases: Any, leaks: Any) -> None:
    from modules.storage.pool import SQLPool

    pool = SQLPool(_manager(databases.url("sqlite"), sqlite_queue_size=10).get_settings().sql)
    await pool.initialize()
    try:
        await pool.executor.run(create_probe)
        outcomes = await asyncio.gather(
            *(pool.executor.run(add_pair, f"n{n}") for n in range(2000)), return_exceptions=True
        )
        refused = [o for o in outcomes if isinstance(o, OverloadedError)]
        assert refused, "the queue never filled"
        assert all(isinstance(o, (str, OverloadedError)) for o in outcomes)
        await pool.executor.run(add_pair, "after")
    finally:
        await pool.shutdown()

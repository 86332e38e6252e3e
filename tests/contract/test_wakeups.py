"""Wake-ups: within a process, across processes on PostgreSQL, and what becomes of them when things break."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from modules.storage.manager import StorageManager
from modules.store_common.errors import InvalidValueError, NotInitializedError

PATIENCE_S = 60.0


async def _listening(storage: Any) -> None:
    """Wait until this loop's listening connection is up (PostgreSQL); nothing to wait for elsewhere."""
    if storage.sql_pool.dialect == "postgresql":
        for _ in range(int(PATIENCE_S / 0.02)):
            if storage.wakeups.poll_s > 1.0:
                return
            await asyncio.sleep(0.02)
        pytest.fail("the listening connection did not come up")


async def test_a_waiting_subscriber_is_woken(storage: Any) -> None:
    async with storage.wakeups.subscribe("a", "b") as subscription:
        await _listening(storage)
        await subscription.wait(0.0)
        waiting = asyncio.ensure_future(subscription.wait(PATIENCE_S))
        await asyncio.sleep(0)
        storage.wakeups.notify("b")

        assert await waiting == {"b"}


async def test_a_wake_up_that_came_before_the_wait_counts_once(storage: Any) -> None:
    async with storage.wakeups.subscribe("a") as subscription:
        await _listening(storage)
        await subscription.wait(0.0)
        storage.wakeups.notify("a")
        storage.wakeups.notify("other")
        storage.wakeups.notify("a")

        assert await subscription.wait(PATIENCE_S) == {"a"}
        assert await subscription.wait(0.0) == frozenset()


async def test_a_wait_ends_when_its_time_is_over(storage: Any) -> None:
    async with storage.wakeups.subscribe("a") as subscription:
        await _listening(storage)
        await subscription.wait(0.0)

        assert await subscription.wait(0.05) == frozenset()


async def test_another_thread_and_loop_is_woken(storage: Any) -> None:
    ready = threading.Event()
    woken: list[Any] = []

    async def wait() -> None:
        async with storage.wakeups.subscribe("a") as subscription:
            ready.set()
            while not woken:
                found = await subscription.wait(PATIENCE_S)
                if found == {"a"}:
                    woken.append(found)

    thread = threading.Thread(target=lambda: asyncio.run(wait()))
    thread.start()
    await asyncio.get_running_loop().run_in_executor(None, ready.wait)
    for _ in range(int(PATIENCE_S / 0.02)):
        storage.wakeups.notify("a")
        if woken:
            break
        await asyncio.sleep(0.02)
    await asyncio.get_running_loop().run_in_executor(None, thread.join, PATIENCE_S)

    assert woken


async def test_shutdown_ends_waits(migrated_settings: Any, leaks: Any) -> None:
    manager = StorageManager(migrated_settings)
    await manager.initialize()
    async with manager.wakeups.subscribe("a") as subscription:
        await _listening(manager)
        await subscription.wait(0.0)
        waiting = asyncio.ensure_future(subscription.wait(PATIENCE_S))
        await asyncio.sleep(0)
        await manager.shutdown()
        with pytest.raises(NotInitializedError):
            await waiting
    with pytest.raises(NotInitializedError):
        manager.wakeups  # noqa: B018


async def test_wrong_channels_are_refused(storage: Any) -> None:
    for wrong in ((), ("",), ("a\nb",), tuple(str(n) for n in range(1025))):
        with pytest.raises(InvalidValueError):
            storage.wakeups.subscribe(*wrong)
    with pytest.raises(NotInitializedError):
        await storage.wakeups.subscribe("a").wait(0.0)


async def test_a_unit_of_work_wakes_when_it_commits_and_only_then(storage: Any) -> None:
    async with storage.wakeups.subscribe("jobs:default") as subscription:
        await _listening(storage)
        await subscription.wait(0.0)
        async with storage.unit_of_work() as uow:
            await uow.jobs.enqueue("h")
            assert await subscription.wait(0.0) == frozenset()

        assert await subscription.wait(PATIENCE_S) == {"jobs:default"}

        with pytest.raises(KeyError):
            async with storage.unit_of_work() as uow:
                await uow.jobs.enqueue("h")
                raise KeyError
        assert await subscription.wait(0.0) == frozenset()


@pytest.mark.postgresql
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
class TestAcrossProcesses:
    """Another manager stands for another process: it has connections and subscriptions of its own."""

    async def test_another_manager_is_woken(self, storage: Any, migrated_settings: Any) -> None:
        async with (
            StorageManager(migrated_settings) as other,
            storage.wakeups.subscribe("jobs:default") as subscription,
        ):
            await _listening(storage)
            await subscription.wait(0.0)
            await other.jobs.enqueue("h")

            assert await subscription.wait(PATIENCE_S) == {"jobs:default"}

    async def test_a_broken_listening_connection_comes_back_and_wakes(
        self, storage: Any, postgres: Any
    ) -> None:
        async with storage.wakeups.subscribe("a") as subscription:
            await _listening(storage)
            await subscription.wait(0.0)
            await storage.sql_backend.execute_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE 'LISTEN%'"
            )

            assert await subscription.wait(PATIENCE_S) == {"a"}, "woken when it listens again"
            await _listening(storage)

    async def test_without_room_for_a_connection_it_looks_more_often(
        self, migrated_settings: Any, leaks: Any
    ) -> None:
        small = StorageManager(migrated_settings)
        small.configure(sql={"pool": {"size": 1, "max_overflow": 0}})
        async with small, small.wakeups.subscribe("a") as subscription:
            small.wakeups.notify("a")

            assert await subscription.wait(PATIENCE_S) == {"a"}
            assert small.wakeups.poll_s == 1.0
            assert await small.kv.get("n", "k") is None

    async def test_many_commits_are_told_together(self, storage: Any, migrated_settings: Any) -> None:
        sent: list[Any] = []
        original = storage.sql_pool.executor.run

        async def counting(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if operation.name == "send_wakeups":
                sent.append(args[0])
            return await original(operation, *args, **kwargs)

        storage.sql_pool.executor.run = counting
        for _ in range(200):
            storage.wakeups.notify("a")
        await asyncio.sleep(0)
        for _ in range(int(PATIENCE_S / 0.02)):
            if sent:
                break
            await asyncio.sleep(0.02)

        assert len(sent) == 1
        assert len(sent[0]) == 1

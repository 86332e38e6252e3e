"""Events for subscribers: at least once, in order for each task, after the commit, across restarts."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, List, Tuple

import pytest
from sqlalchemy import BigInteger, String, text

from modules.storage.manager import StorageManager
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from modules.store_common.errors import InvalidValueError
from modules.task_store.maintenance import TaskMaintenance
from modules.task_store.records import TaskEvent
from tests.support.tasks import query

_TEXT, _NUMBER = String, BigInteger
_NOW = Statement(text("UPDATE atlas_outbox SET available_at = staged_at"))


@write
async def _set_available(tx: Transaction) -> None:
    await tx.run(_NOW)


async def _make_available(tasks: Any) -> None:
    """End the pause after a failure."""
    await tasks._executor.run(_set_available)


@asynccontextmanager
async def closing(stream: Any) -> AsyncIterator[Any]:
    """`contextlib.aclosing`, which Python 3.9 does not have."""
    try:
        yield stream
    finally:
        await stream.aclose()


@pytest.fixture
def tasks(storage: Any) -> Any:
    return storage.tasks


async def _read(tasks: Any, name: str = "s", **given: Any) -> List[Tuple[str, int, str]]:
    stream = tasks.subscribe(name, follow=False, **given)
    return [(event.task_id, event.sequence, event.type) async for event in stream]


async def test_every_change_once(tasks: Any) -> None:
    await tasks.create_task("before", task_id="before")
    assert await _read(tasks) == []

    await tasks.create_task("t", task_id="t")
    await tasks.transition_task("t", "ready")
    await tasks.add_comment("before", "x")
    assert sorted(await _read(tasks)) == [
        ("before", 2, "comment"),
        ("t", 1, "created"),
        ("t", 2, "status_changed"),
    ]
    assert await _read(tasks) == []
    await tasks.update_task("t", title="u")
    assert await _read(tasks) == [("t", 3, "updated")]


async def test_each_subscriber_has_its_own_place(tasks: Any) -> None:
    assert await _read(tasks, "one") == await _read(tasks, "two") == []
    await tasks.create_task("t", task_id="t")
    assert await _read(tasks, "one") == [("t", 1, "created")]
    await tasks.add_comment("t", "x")
    assert await _read(tasks, "two") == [("t", 1, "created"), ("t", 2, "comment")]
    assert await tasks.unsubscribe("one")
    assert not await tasks.unsubscribe("one")
    assert await _read(tasks, "one") == []


async def test_where_a_loop_is_left_it_goes_on(tasks: Any) -> None:
    assert await _read(tasks) == []
    await tasks.create_task("t", task_id="t")
    for n in range(3):
        await tasks.add_comment("t", str(n))
    await tasks.create_task("u", task_id="u")
    seen: List[Tuple[str, int]] = []
    async with closing(tasks.subscribe("s")) as events:
        async for event in events:
            seen.append((event.task_id, event.sequence))
            if event.sequence == 3:
                break
    # the one at which it was left comes again
    assert [item for item in await _read(tasks) if item[0] == "t"] == [
        ("t", 3, "comment"),
        ("t", 4, "comment"),
    ]
    assert ("t", 1) in seen


async def test_it_waits_for_more(tasks: Any) -> None:
    assert await _read(tasks) == []
    seen: List[TaskEvent] = []
    arrived = asyncio.Event()

    async def listen() -> None:
        async with closing(tasks.subscribe("s", poll_seconds=0.01)) as events:
            async for event in events:
                seen.append(event)
                arrived.set()

    listener = asyncio.ensure_future(listen())
    await tasks.create_task("t", task_id="t", actor_id="ann")
    await asyncio.wait_for(arrived.wait(), 60)
    listener.cancel()
    await asyncio.wait({listener})
    assert seen == list(await tasks.list_events("t"))


async def test_only_what_was_committed(storage: Any) -> None:
    assert await _read(storage.tasks) == []
    with pytest.raises(ZeroDivisionError):
        async with storage.unit_of_work() as uow:
            await uow.tasks.create_task("t", task_id="t")
            raise ZeroDivisionError
    assert await _read(storage.tasks) == []
    async with storage.unit_of_work() as uow:
        await uow.tasks.create_task("t", task_id="t")
    assert await _read(storage.tasks) == [("t", 1, "created")]


async def test_a_deletion_is_told(tasks: Any) -> None:
    assert await _read(tasks) == []
    await tasks.create_task("t", task_id="t")
    await tasks.delete_task("t")
    assert await _read(tasks) == [("t", 2, "deleted")]
    await tasks.create_task("again", task_id="t")
    assert await _read(tasks) == [("t", 3, "created")]


async def test_a_restart(migrated_settings: Any, backend: str, leaks: Any) -> None:
    if backend == "sqlite-memory":
        pytest.skip("a database in memory has no past")
    async with StorageManager(migrated_settings) as storage:
        assert await _read(storage.tasks) == []
        await storage.tasks.create_task("t", task_id="t")
    async with StorageManager(migrated_settings) as storage:
        await storage.tasks.add_comment("t", "x")
        assert await _read(storage.tasks) == [("t", 1, "created"), ("t", 2, "comment")]
    async with StorageManager(migrated_settings) as storage:
        assert await _read(storage.tasks) == []


async def test_a_handler_that_fails_gets_it_again_and_others_go_on(tasks: Any, storage: Any) -> None:
    failures = 0
    seen: List[str] = []

    async def handle(event: TaskEvent) -> None:
        nonlocal failures
        if event.task_id == "bad" and failures < 2:
            failures += 1
            raise RuntimeError("no")
        seen.append(event.task_id)

    assert await tasks.handle_events("s", handle, follow=False) == 0
    await tasks.create_tasks([{"title": "t", "id": name} for name in ("bad", "good")])
    assert await tasks.handle_events("s", handle, follow=False) == 1
    assert seen == ["good"]
    worker = asyncio.ensure_future(tasks.handle_events("s", handle, poll_seconds=0.02))
    while "bad" not in seen:
        await asyncio.wait({worker}, timeout=0.02)
    worker.cancel()
    await asyncio.wait({worker})
    assert (seen, failures) == (["good", "bad"], 2)


async def test_a_handler_that_always_fails_parks_the_task(tasks: Any, caplog: Any) -> None:
    def refuse(event: TaskEvent) -> None:
        raise ValueError("secret content")

    assert await tasks.handle_events("s", refuse, follow=False) == 0
    await tasks.create_task("t", task_id="t")

    async def state() -> Any:
        rows = await query(
            tasks,
            "SELECT state, attempts, error FROM atlas_outbox",
            state=_TEXT,
            attempts=_NUMBER,
            error=_TEXT,
        )
        return rows[0]

    for _ in range(8):
        await _make_available(tasks)
        await tasks.handle_events("s", refuse, follow=False)
    assert tuple(await state()) == ("parked", 8, "ValueError")
    await tasks.add_comment("t", "waits behind it")
    assert await _read(tasks) == []


async def test_two_processes_share_a_name(tasks: Any) -> None:
    """Every event reaches one of them, and those of one task in order."""
    assert await _read(tasks) == []
    await tasks.create_tasks([{"title": "t", "id": f"t{n}"} for n in range(30)])
    for n in range(30):
        await tasks.add_comment(f"t{n}", "x")
    seen: List[Tuple[str, int]] = []

    async def work() -> None:
        await tasks.handle_events(
            "s", lambda event: seen.append((event.task_id, event.sequence)), follow=False
        )

    await asyncio.gather(work(), work(), work())
    assert sorted(seen) == sorted((f"t{n}", step) for n in range(30) for step in (1, 2))
    for n in range(30):
        assert [step for task_id, step in seen if task_id == f"t{n}"] == [1, 2]


async def test_tenants_have_streams_of_their_own(storage: Any) -> None:
    tasks, everywhere = storage.tasks, TaskMaintenance(storage.executor)
    seen: List[str] = []
    for tenant in ("a", "b"):
        assert await _read(tasks, tenant_id=tenant) == []
    await everywhere.handle_events("s", lambda event: seen.append(event.task_id), follow=False)
    for tenant in ("a", "b"):
        await tasks.create_task("t", task_id=f"of-{tenant}", tenant_id=tenant)
    assert await _read(tasks, tenant_id="a") == [("of-a", 1, "created")]
    assert await _read(tasks, tenant_id="b") == [("of-b", 1, "created")]
    assert await everywhere.handle_events("s", lambda event: seen.append(event.task_id), follow=False) == 2
    assert sorted(seen) == ["of-a", "of-b"]


async def test_nothing_is_written_while_nobody_listens(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    assert (await query(tasks, "SELECT count(*) FROM atlas_outbox", count=_NUMBER))[0][0] == 0


@pytest.mark.parametrize(
    "wrong", [{"poll_seconds": 0}, {"lease_seconds": -1.0}, {"lease_seconds": float("nan")}]
)
async def test_wrong_times_are_refused(tasks: Any, wrong: Any) -> None:
    with pytest.raises(InvalidValueError):
        await _read(tasks, **wrong)
    with pytest.raises(InvalidValueError):
        await _read(tasks, name="")

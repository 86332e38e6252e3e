"""Subscribers are woken when tasks change; looking is what remains where nobody can tell them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List

import pytest

from modules.storage.manager import StorageManager
from modules.task_store.records import TaskEvent
from modules.task_store.repository import TaskStore
from tests.support.leaks import wait_until

#: Nobody looks by itself within the time of a test: what arrives was told.
NEVER_S = 86_400.0
PATIENT_S = 60.0


class Reader:
    """A subscriber in the background, and what it was given."""

    def __init__(self) -> None:
        self.seen: List[str] = []

    async def until(self, *types: str) -> None:
        await wait_until(lambda: self.seen == list(types), PATIENT_S, f"{types} and not {self.seen}")

    def take(self, event: TaskEvent) -> None:
        self.seen.append(event.type)


@asynccontextmanager
async def _listening(tasks: Any, name: str = "s", **given: Any) -> AsyncIterator[Reader]:
    reader = Reader()
    async for _ in tasks.subscribe(name, follow=False):
        raise AssertionError("there is nothing yet")
    work = asyncio.ensure_future(tasks.handle_events(name, reader.take, **{"poll_seconds": NEVER_S, **given}))
    try:
        yield reader
    finally:
        work.cancel()
        await asyncio.wait({work})


CHANGES: Dict[str, Callable[[Any], Awaitable[Any]]] = {
    "created": lambda tasks: tasks.create_task("v", task_id="v"),
    "updated": lambda tasks: tasks.update_task("t", title="u"),
    "status_changed": lambda tasks: tasks.transition_task("t", "ready"),
    "comment": lambda tasks: tasks.add_comment("t", "x"),
    "assignment": lambda tasks: tasks.assign_task("t", "ann"),
    "deleted": lambda tasks: tasks.delete_task("t"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_wakes(storage: Any, change: str) -> None:
    async with _listening(storage.tasks) as reader:
        await storage.tasks.create_task("t", task_id="t")
        await reader.until("created")
        await CHANGES[change](storage.tasks)
        await reader.until("created", change)


async def test_the_iterator_is_woken_too(storage: Any) -> None:
    tasks, seen = storage.tasks, []

    async def read() -> None:
        events = tasks.subscribe("s", poll_seconds=NEVER_S)
        try:
            async for event in events:
                seen.append(event.type)
                if len(seen) == 2:
                    return
        finally:
            await events.aclose()

    async with _listening(tasks, "beside") as beside:
        async for _ in tasks.subscribe("s", follow=False):
            raise AssertionError("there is nothing yet")
        reading = asyncio.ensure_future(read())
        await tasks.create_task("t", task_id="t")
        await beside.until("created")
        await tasks.add_comment("t", "x")
        await asyncio.wait_for(reading, PATIENT_S)
    assert seen == ["created", "comment"]


async def test_a_unit_of_work_wakes_when_it_commits(storage: Any) -> None:
    async with _listening(storage.tasks) as reader:
        async with storage.unit_of_work() as uow:
            await uow.tasks.create_task("t", task_id="t")
            await uow.tasks.add_comment("t", "x")
            assert reader.seen == []
        await reader.until("created", "comment")


async def test_other_tenants_wake_nobody(storage: Any) -> None:
    async with storage.wakeups.subscribe("nothing") as marker, _listening(storage.tasks) as reader:
        await storage.tasks.create_task("t", task_id="t", tenant_id="other")
        storage.wakeups.notify("nothing")
        assert await marker.wait(PATIENT_S) == {"nothing"}
        assert reader.seen == []


async def test_without_wake_ups_it_looks(storage: Any) -> None:
    deaf = TaskStore(storage.executor, storage.tasks._tenancy)
    async with _listening(deaf, poll_seconds=0.02) as reader:
        await deaf.create_task("t", task_id="t")
        await reader.until("created")


@pytest.mark.parametrize("backend", ["sqlite"], indirect=True)
async def test_another_process_is_found_by_looking_on_sqlite(storage: Any, migrated_settings: Any) -> None:
    async with (
        StorageManager(migrated_settings) as other,
        _listening(storage.tasks, poll_seconds=0.02) as reader,
    ):
        await other.tasks.create_task("t", task_id="t")
        await reader.until("created")


@pytest.mark.postgresql
@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
async def test_another_process_wakes_on_postgresql(storage: Any, migrated_settings: Any) -> None:
    async with StorageManager(migrated_settings) as other, _listening(storage.tasks) as reader:
        await other.tasks.create_task("t", task_id="t")
        await reader.until("created")
        await other.tasks.add_comment("t", "x")
        await reader.until("created", "comment")

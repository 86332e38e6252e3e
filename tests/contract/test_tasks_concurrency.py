"""Tasks under many callers at once, and in units of work."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from modules.storage.adapters import bridge, create_task_repository
from modules.store_common.errors import ConcurrencyError, IdempotencyConflictError
from modules.task_store.errors import TaskTransitionError
from tests.support.tasks import bring, invariants

FULL = os.environ.get("ATLAS_TEST_FULL") == "1"


@pytest.fixture
def tasks(storage: Any) -> Any:
    return storage.tasks


async def test_of_fifty_updates_that_expect_one_version_one_wins(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    for version in range(1, 6 if not FULL else 51):
        outcomes = await asyncio.gather(
            *(tasks.update_task("t", title=f"{version}-{n}", expected_version=version) for n in range(50)),
            return_exceptions=True,
        )
        won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, ConcurrencyError)]
        assert (len(won), len(lost)) == (1, 49)
        assert {error.actual for error in lost} == {version + 1}
        assert (await tasks.get_task("t")).title == won[0].title
    events = await tasks.list_events("t", type="updated")
    assert [event.version for event in events] == list(range(2, (6 if not FULL else 51) + 1))


async def test_of_many_moves_one_wins(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t", status="ready")
    outcomes = await asyncio.gather(
        *(tasks.transition_task("t", "in_progress", actor_id=f"w{n}") for n in range(30)),
        return_exceptions=True,
    )
    won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(won) == 1
    assert sum(isinstance(outcome, TaskTransitionError) for outcome in outcomes) == 29
    assert len(await tasks.list_events("t", type="status_changed")) == 1


async def test_updates_without_a_version_all_count(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    await asyncio.gather(*(tasks.update_task("t", priority=n) for n in range(1, 31)))
    await asyncio.gather(*(tasks.add_comment("t", str(n)) for n in range(30)))
    found = await tasks.get_task("t")
    events = list(await tasks.list_events("t"))
    assert [event.sequence for event in events] == list(range(1, 62))
    assert found.version == 31
    assert events[30].data["changes"]["priority"]["to"] == found.priority
    await invariants(tasks)


async def test_one_key_has_one_effect(tasks: Any) -> None:
    """P6: 50 callers, 10 keys (100 with ATLAS_TEST_FULL=1)."""
    for n in range(100 if FULL else 10):
        made = await asyncio.gather(*(tasks.create_task("once", idempotency_key=f"k{n}") for _ in range(50)))
        assert len({task.id for task in made}) == 1
        with pytest.raises(IdempotencyConflictError):
            await tasks.create_task("twice", idempotency_key=f"k{n}")
    assert (await tasks.count_tasks())["draft"] == (100 if FULL else 10)


async def test_a_graph_that_many_change(tasks: Any) -> None:
    """Links, moves, deletions and parents at random and at once: no deadlock is told, and the counts are right."""
    names = [f"t{n}" for n in range(12)]
    await tasks.create_tasks([{"title": name, "id": name} for name in names])
    for name in names[:4]:
        await bring(tasks, name, "review")

    async def work(seed: int) -> None:
        for step in range(12):
            a, b = names[(seed * 5 + step * 7) % 12], names[(seed * 3 + step) % 12]
            calls = (
                tasks.add_dependency(a, b),
                tasks.remove_dependency(a, b),
                tasks.transition_task(a, ("done", "cancelled", "ready")[step % 3]),
                tasks.update_task(a, parent_id=b),
                tasks.update_task(a, priority=step),
            )
            for call in calls:
                try:
                    await call
                except Exception as exc:
                    if not type(exc).__module__.startswith("modules.task_store"):
                        raise

    await asyncio.gather(*(work(seed) for seed in range(8)))
    await asyncio.gather(*(tasks.delete_task(name) for name in names[::2]))
    await invariants(tasks)


async def test_a_unit_of_work_with_a_message(storage: Any) -> None:
    await storage.conversations.create_conversation("c")
    async with storage.unit_of_work() as uow:
        message = await uow.conversations.add_message("c", "user", "please do it")
        task = await uow.tasks.create_task("do it", conversation_id="c", metadata={"message": message.id})
        await uow.tasks.transition_task(task.id, "ready")
    found = await storage.tasks.get_task(task.id)
    assert (found.status, found.metadata) == ("ready", {"message": message.id})

    with pytest.raises(ZeroDivisionError):
        async with storage.unit_of_work() as uow:
            await uow.conversations.add_message("c", "user", "forget it")
            await uow.tasks.transition_task(task.id, "cancelled")
            await uow.tasks.create_task("another", task_id="another", depends_on=[task.id])
            raise ZeroDivisionError
    assert await storage.tasks.get_task(task.id) == found
    assert await storage.tasks.get_task("another") is None
    assert len(await storage.conversations.fetch_messages("c")) == 1
    await invariants(storage.tasks)


async def test_a_unit_of_work_with_a_graph(storage: Any) -> None:
    async with storage.unit_of_work() as uow:
        await uow.tasks.create_tasks(
            [{"title": "a", "id": "a"}, {"title": "b", "id": "b", "depends_on": ["a"]}]
        )
        for status in ("ready", "in_progress", "review", "done"):
            await uow.tasks.transition_task("a", status)
        await uow.tasks.transition_task("b", "ready")
        assert [task.id for task in await uow.tasks.list_ready_tasks()] == ["b"]
    assert (await storage.tasks.count_tasks())["ready"] == 1
    await invariants(storage.tasks)


@pytest.fixture(autouse=True)
def _bridge_is_up() -> None:
    bridge().portal()  # the process's own, open until it ends: nothing that a test leaves behind


async def test_synchronous_code(storage: Any) -> None:
    def work() -> Any:
        tasks = create_task_repository(storage)
        made = tasks.create_task("t", task_id="t")
        tasks.transition_task("t", "ready")
        assert [event.task_id for event in tasks.subscribe("s", follow=False)] == []
        tasks.add_comment("t", "x")
        seen = [event.type for event in tasks.subscribe("s", follow=False)]
        return made.id, tasks.get_task("t").status, seen

    assert await asyncio.to_thread(work) == ("t", "ready", ["comment"])

"""What waits for what: moves that are refused, circles, what is ready to start, and what a deletion leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modules.store_common.errors import InvalidCursorError, InvalidValueError
from modules.task_store.errors import (
    TaskCycleError,
    TaskDependencyError,
    TaskFinishedError,
    TaskNotFoundError,
)
from modules.task_store.models import FREE_MOVES, TASK_MOVES
from tests.support.tasks import bring, invariants


@pytest.fixture
def tasks(storage: Any) -> Any:
    return storage.tasks


async def _chain(tasks: Any, *names: str) -> None:
    """Each waits for the one before."""
    for before, name in zip((None, *names), names):
        await tasks.create_task(name, task_id=name, depends_on=[] if before is None else [before])


@pytest.mark.parametrize("start", ["draft", "ready", "in_progress", "review"])
async def test_only_draft_and_cancelled_are_free(tasks: Any, start: str) -> None:
    await tasks.create_task("first", task_id="first")
    await tasks.create_task("second", task_id="second", status="ready")
    for target in TASK_MOVES[start]:
        made = await tasks.create_task("waits")
        await bring(tasks, made.id, start)
        await tasks.add_dependency(made.id, "first")
        await tasks.add_dependency(made.id, "second")
        if target in FREE_MOVES:
            assert (await tasks.transition_task(made.id, target)).status == target
            continue
        with pytest.raises(TaskDependencyError, match="'first', 'second'") as refused:
            await tasks.transition_task(made.id, target)
        assert refused.value.unmet == ("first", "second")
        assert (await tasks.get_task(made.id)).status == start


@pytest.mark.parametrize("end", ["done", "cancelled"])
async def test_a_finished_dependency_is_met(tasks: Any, end: str) -> None:
    await _chain(tasks, "a", "b")
    await tasks.add_dependency("b", (await tasks.create_task("other")).id)
    with pytest.raises(TaskDependencyError):
        await tasks.transition_task("b", "ready")
    await bring(tasks, "a", end)
    with pytest.raises(TaskDependencyError) as refused:
        await tasks.transition_task("b", "ready")
    assert "'a'" not in str(refused.value)
    await tasks.transition_task(refused.value.unmet[0], "cancelled")

    moved = await tasks.transition_task("b", "ready")

    assert (moved.status, moved.open_dependencies) == ("ready", 0)
    await invariants(tasks)


async def test_many_unmet_dependencies_are_counted(tasks: Any) -> None:
    names = [f"d{n}" for n in range(8)]
    await tasks.create_tasks([{"title": name, "id": name} for name in names])
    await tasks.create_task("t", task_id="t", depends_on=names)
    with pytest.raises(TaskDependencyError, match="'d4' and 3 more") as refused:
        await tasks.transition_task("t", "ready")
    assert refused.value.unmet == tuple(names)


async def test_a_new_task_cannot_begin_as_ready_while_it_waits(tasks: Any) -> None:
    await tasks.create_task("a", task_id="a")
    with pytest.raises(TaskDependencyError, match="'a'"):
        await tasks.create_task("b", status="ready", depends_on=["a"])
    await tasks.transition_task("a", "cancelled")
    assert (await tasks.create_task("b", status="ready", depends_on=["a"])).open_dependencies == 0


async def test_circles_are_refused(tasks: Any) -> None:
    await _chain(tasks, "a", "b", "c", "d")
    for task, other in (("a", "a"), ("a", "b"), ("a", "d"), ("b", "d")):
        with pytest.raises(TaskCycleError, match=f"'{task}' cannot depend on"):
            await tasks.add_dependency(task, other)
    assert await tasks.add_dependency("d", "a")
    # a finished task is part of the graph still: its history makes no circle either
    await bring(tasks, "a", "done")
    with pytest.raises(TaskCycleError):
        await tasks.add_dependency("a", "d")
    await invariants(tasks)


async def test_adding_and_removing(tasks: Any) -> None:
    await _chain(tasks, "a", "b")
    await tasks.create_task("c", task_id="c")
    before = await tasks.get_task("c")

    assert await tasks.add_dependency("c", "a", actor_id="ann")
    assert not await tasks.add_dependency("c", "a")
    assert await tasks.add_dependency("c", "b")
    changed = await tasks.get_task("c")
    assert (changed.version, changed.open_dependencies) == (before.version + 2, 2)
    found = await tasks.list_dependencies("c")
    assert [(d.task_id, d.title, d.status, d.is_met) for d in found] == [
        ("a", "a", "draft", False),
        ("b", "b", "draft", False),
    ]
    assert [d.task_id for d in await tasks.list_dependents("a")] == ["b", "c"]

    assert await tasks.remove_dependency("c", "a")
    assert not await tasks.remove_dependency("c", "a")
    assert not await tasks.remove_dependency("c", "nothing")
    assert (await tasks.get_task("c")).open_dependencies == 1
    with pytest.raises(TaskNotFoundError, match="'nothing'"):
        await tasks.add_dependency("c", "nothing")
    with pytest.raises(TaskNotFoundError, match="'nothing'"):
        await tasks.remove_dependency("nothing", "a")
    await invariants(tasks)


async def test_a_finished_task_gets_no_dependency(tasks: Any) -> None:
    await tasks.create_task("a", task_id="a")
    await tasks.create_task("b", task_id="b")
    await bring(tasks, "b", "done")
    with pytest.raises(TaskFinishedError, match="'b' is done"):
        await tasks.add_dependency("b", "a")


async def test_pages_of_dependencies(tasks: Any) -> None:
    names = [f"d{n}" for n in range(5)]
    await tasks.create_tasks([{"title": name, "id": name} for name in names])
    await tasks.create_task("t", task_id="t", depends_on=names)
    seen, cursor = [], None
    while True:
        page = await tasks.list_dependencies("t", limit=2, cursor=cursor)
        seen += [item.task_id for item in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == names
    first = await tasks.list_dependencies("t", limit=2)
    for call in (
        tasks.list_dependents("t", cursor=first.next_cursor),
        tasks.list_dependencies("d1", cursor=first.next_cursor),
    ):
        with pytest.raises(InvalidCursorError):
            await call


async def test_what_is_ready_to_start(tasks: Any) -> None:
    await tasks.create_task("low", task_id="low", status="ready", owner_id="ann", tags=["x"])
    await tasks.create_task("high", task_id="high", status="ready", priority=5)
    await tasks.create_task("draft", task_id="draft")
    await tasks.create_task("waits", task_id="waits", status="ready", priority=9)
    await tasks.add_dependency("waits", "draft")
    await tasks.create_task("waits too", task_id="waits-too", depends_on=["draft"])

    async def ready(**given: Any) -> Any:
        return [task.id for task in await tasks.list_ready_tasks(**given)]

    assert await ready() == ["high", "low"]
    assert await ready(owner_id="ann") == ["low"]
    assert await ready(tag="x") == ["low"]
    assert await ready(status="draft") == ["draft"]
    await tasks.transition_task("draft", "cancelled")
    assert await ready() == ["waits", "high", "low"]
    assert await ready(status="draft") == ["waits-too"]
    page = await tasks.list_ready_tasks(limit=2)
    rest = await tasks.list_ready_tasks(limit=2, cursor=page.next_cursor)
    assert [task.id for task in (*page, *rest)] == ["waits", "high", "low"]
    with pytest.raises(InvalidValueError, match="ready or draft"):
        await ready(status="done")


async def test_a_deleted_task_is_waited_for_no_longer(tasks: Any) -> None:
    await _chain(tasks, "a", "b", "c")
    await tasks.add_dependency("c", "a")
    await bring(tasks, "a", "done")

    assert await tasks.delete_task("a", actor_id="ann")
    assert [d.task_id for d in await tasks.list_dependencies("c")] == ["b"]
    assert await tasks.delete_task("b")
    assert (await tasks.get_task("c")).open_dependencies == 0
    await tasks.transition_task("c", "ready")
    events = await tasks.list_events("c", type="updated")
    assert [event.data for event in events] == [
        {"dependencies": {"added": ["a"]}},
        {"dependencies": {"removed": ["a"]}},
        {"dependencies": {"removed": ["b"]}},
    ]
    await invariants(tasks)


async def test_many_wait_for_one(tasks: Any) -> None:
    await tasks.create_task("one", task_id="one")
    await tasks.create_tasks([{"title": "t", "depends_on": ["one"]} for _ in range(200)])
    await tasks.transition_task("one", "cancelled")
    assert len(await tasks.list_ready_tasks(status="draft", limit=1000)) == 200
    await invariants(tasks)


async def test_two_that_close_a_circle_together(tasks: Any) -> None:
    """Each addition alone is right; of two at the same moment one is refused, on PostgreSQL, too."""
    refused = 0
    for n in range(10):
        a, b, c = f"a{n}", f"b{n}", f"c{n}"
        await tasks.create_tasks([{"title": name, "id": name} for name in (a, b, c)])
        outcomes = await asyncio.gather(
            tasks.add_dependency(a, b),
            tasks.add_dependency(b, c),
            tasks.add_dependency(c, a),
            return_exceptions=True,
        )
        refused += sum(isinstance(outcome, TaskCycleError) for outcome in outcomes)
        assert outcomes.count(True) == 2, outcomes
    assert refused == 10
    await invariants(tasks)


async def test_finishing_and_linking_at_the_same_time(tasks: Any) -> None:
    """Whichever comes first, the count of open dependencies is right."""
    await tasks.create_tasks([{"title": "t", "id": f"t{n}"} for n in range(20)])
    for n in range(10):
        await bring(tasks, f"t{n}", "review")
    calls = [tasks.transition_task(f"t{n}", "done") for n in range(10)]
    calls += [tasks.add_dependency(f"t{10 + n}", f"t{n}") for n in range(10)]
    calls += [tasks.add_dependency(f"t{10 + (n + 1) % 10}", f"t{n}") for n in range(10)]
    await asyncio.gather(*calls)
    await invariants(tasks)
    assert len(await tasks.list_ready_tasks(status="draft")) == 10

"""The task store: creating, reading, changing, moving and deleting tasks, the same on every backend."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Dict

import pytest

from modules.store_common.errors import ConcurrencyError, IdempotencyConflictError, InvalidValueError
from modules.task_store.errors import (
    TaskCycleError,
    TaskDependencyError,
    TaskExistsError,
    TaskNotFoundError,
    TaskTransitionError,
)
from modules.task_store.models import TASK_MOVES, TASK_STATUSES
from modules.task_store.records import NewTask

DUE = datetime(2030, 1, 1, 12, tzinfo=timezone.utc)
#: A way from draft to every state.
WAYS: Dict[str, Any] = {
    "draft": [],
    "ready": ["ready"],
    "in_progress": ["ready", "in_progress"],
    "review": ["ready", "in_progress", "review"],
    "done": ["ready", "in_progress", "review", "done"],
    "cancelled": ["cancelled"],
}


@pytest.fixture
def tasks(storage: Any) -> Any:
    return storage.tasks


async def bring(tasks: Any, task_id: str, status: str) -> Any:
    for step in WAYS[status]:
        await tasks.transition_task(task_id, step)
    return await tasks.get_task(task_id)


async def test_a_task_comes_back_as_it_was_created(tasks: Any) -> None:
    await tasks.create_task("the whole", task_id="parent")
    made = await tasks.create_task(
        "Write \x00 the plan",
        task_id="t",
        description="with 'quotes' and \ue000",
        priority=7,
        owner_id="ann",
        session_id="s",
        conversation_id="c",
        parent_id="parent",
        tags=["b", "a", "b"],
        due_at=DUE,
        metadata={"estimate": 1.0, "nested": [1, {"a": None}]},
    )

    assert (made.status, made.version, made.open_dependencies) == ("draft", 1, 0)
    assert made.tags == ("b", "a")
    assert made.created_at == made.updated_at
    assert made.created_at.tzinfo is not None
    assert (made.started_at, made.finished_at) == (None, None)
    assert await tasks.get_task("t") == made
    assert made.to_dict()["due_at"] == "2030-01-01T12:00:00+00:00"
    assert await tasks.get_task("nothing") is None


async def test_an_id_is_made_and_a_taken_one_is_refused(tasks: Any) -> None:
    first = await tasks.create_task("one")
    second = await tasks.create_task("two")
    assert first.id < second.id

    with pytest.raises(TaskExistsError, match=first.id):
        await tasks.create_task("three", task_id=first.id)
    assert (await tasks.get_task(first.id)).title == "one"


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": " "},
        {"title": "x" * 4097},
        {"title": "\ud800"},
        {"status": "in_progress"},
        {"status": "done"},
        {"priority": 1.5},
        {"priority": 2_000_000_000},
        {"priority": True},
        {"tags": "abc"},
        {"tags": [""]},
        {"tags": ["x" * 65]},
        {"tags": [str(n) for n in range(101)]},
        {"due_at": datetime(2030, 1, 1)},  # noqa: DTZ001
        {"metadata": {"a": float("nan")}},
        {"metadata": [1]},
        {"depends_on": "t"},
        {"owner_id": ""},
        {"idempotency_key": "a\nb"},
    ],
)
async def test_what_breaks_the_contract_is_refused(tasks: Any, wrong: Dict[str, Any]) -> None:
    with pytest.raises(InvalidValueError):
        await tasks.create_task(**{"title": "t", **wrong})
    assert len(await tasks.list_tasks()) == 0


async def test_a_new_task_cannot_wait_for_itself(tasks: Any) -> None:
    for wrong in ({"depends_on": ["t"]}, {"parent_id": "t"}):
        with pytest.raises(TaskCycleError, match="itself"):
            await tasks.create_task("t", task_id="t", **wrong)
    assert await tasks.get_task("t") is None


async def test_one_key_one_task(tasks: Any) -> None:
    first = await tasks.create_task("once", idempotency_key="k", tags=["a"])
    moved = await tasks.transition_task(first.id, "ready")

    assert await tasks.create_task("once", idempotency_key="k", tags=["a"]) == moved
    with pytest.raises(IdempotencyConflictError):
        await tasks.create_task("once", idempotency_key="k", tags=["b"])
    with pytest.raises(IdempotencyConflictError):
        await tasks.create_tasks([{"title": "new"}, {"title": "twice", "idempotency_key": "k"}])
    assert len(await tasks.list_tasks()) == 1

    await tasks.delete_task(first.id)
    again = await tasks.create_task("once", idempotency_key="k", tags=["b"])
    assert again.id != first.id


@pytest.mark.parametrize("start", TASK_STATUSES)
async def test_the_state_machine(tasks: Any, start: str) -> None:
    """Every pair of states: what the table allows moves, everything else is refused and changes nothing."""
    for target in TASK_STATUSES:
        made = await tasks.create_task(f"{start} to {target}")
        before = await bring(tasks, made.id, start)
        if target in TASK_MOVES[start]:
            after = await tasks.transition_task(made.id, target, expected_version=before.version)
            assert (after.status, after.version) == (target, before.version + 1)
            assert (after.finished_at is not None) == (target in ("done", "cancelled"))
        else:
            with pytest.raises(TaskTransitionError, match=f"'{start}' to '{target}'") as refused:
                await tasks.transition_task(made.id, target)
            assert (refused.value.current, refused.value.wanted) == (start, target)
            assert await tasks.get_task(made.id) == before


async def test_started_at_is_of_the_first_start(tasks: Any) -> None:
    made = await tasks.create_task("t")
    first = (await bring(tasks, made.id, "in_progress")).started_at
    await tasks.transition_task(made.id, "ready")
    again = await tasks.transition_task(made.id, "in_progress")
    assert first is not None
    assert again.started_at == first


async def test_a_status_cannot_be_set_by_an_update(tasks: Any) -> None:
    made = await tasks.create_task("t")
    with pytest.raises(TypeError):
        await tasks.update_task(made.id, status="done")
    with pytest.raises(InvalidValueError, match="has no field 'version'"):
        await tasks.create_tasks([{"title": "t", "version": 7}])
    with pytest.raises(InvalidValueError, match="status must be one of"):
        await tasks.transition_task(made.id, "finished")
    assert (await tasks.get_task(made.id)).status == "draft"


async def test_an_update_changes_what_it_names(tasks: Any) -> None:
    made = await tasks.create_task("t", description="d", owner_id="ann", tags=["a"], due_at=DUE, priority=1)

    changed = await tasks.update_task(
        made.id, title="u", description=None, priority=5, tags=["b", "c"], metadata={"x": 1}
    )

    assert (changed.title, changed.description, changed.priority) == ("u", None, 5)
    assert (changed.tags, changed.metadata) == (("b", "c"), {"x": 1})
    assert (changed.owner_id, changed.due_at, changed.version) == ("ann", DUE, 2)
    assert await tasks.get_task(made.id) == changed
    assert [task.id for task in await tasks.list_tasks(tag="b")] == [made.id]
    assert len(await tasks.list_tasks(tag="a")) == 0


async def test_an_update_that_changes_nothing_is_none(tasks: Any) -> None:
    made = await tasks.create_task("t", metadata={"a": 1}, tags=["x"])
    assert await tasks.update_task(made.id) == made
    assert await tasks.update_task(made.id, title="t", tags=("x",), metadata={"a": 1}) == made
    assert (await tasks.update_task(made.id, metadata={"a": 1.0})).version == 2


async def test_an_expected_version(tasks: Any) -> None:
    made = await tasks.create_task("t")
    await tasks.update_task(made.id, title="u", expected_version=1)
    for call in (
        tasks.update_task(made.id, title="v", expected_version=1),
        tasks.update_task(made.id, expected_version=1),
        tasks.transition_task(made.id, "ready", expected_version=1),
    ):
        with pytest.raises(ConcurrencyError, match="expected version 1, found 2") as refused:
            await call
        assert (refused.value.expected, refused.value.actual) == (1, 2)
    assert (await tasks.get_task(made.id)).title == "u"


async def test_finished_tasks_can_still_be_annotated(tasks: Any) -> None:
    made = await tasks.create_task("t")
    await bring(tasks, made.id, "done")
    changed = await tasks.update_task(made.id, metadata={"result": "fine"})
    assert (changed.status, changed.metadata) == ("done", {"result": "fine"})


async def test_parents(tasks: Any) -> None:
    await tasks.create_task("a", task_id="a")
    await tasks.create_task("b", task_id="b", parent_id="a")
    await tasks.create_task("c", task_id="c", parent_id="b")

    with pytest.raises(TaskCycleError, match="'a' cannot have as its parent 'c'"):
        await tasks.update_task("a", parent_id="c")
    with pytest.raises(TaskCycleError, match="itself"):
        await tasks.update_task("a", parent_id="a")
    with pytest.raises(TaskNotFoundError, match="'nothing'"):
        await tasks.update_task("a", parent_id="nothing")
    with pytest.raises(TaskNotFoundError, match="'nothing'"):
        await tasks.create_task("d", parent_id="nothing")
    assert [task.id for task in await tasks.list_tasks(parent_id="a")] == ["b"]

    assert await tasks.delete_task("b")
    assert (await tasks.get_task("c")).parent_id is None
    await tasks.update_task("a", parent_id="c")


async def test_many_at_once(tasks: Any) -> None:
    made = await tasks.create_tasks(
        [
            NewTask("last", id="z", depends_on=["y"], tags=["bulk"]),
            {"title": "first", "id": "x", "status": "ready", "tags": ["bulk"], "priority": 3},
            NewTask("middle", id="y", depends_on=["x"], parent_id="z"),
        ]
    )
    assert [task.id for task in made] == ["z", "x", "y"]
    assert [task.open_dependencies for task in made] == [1, 0, 1]
    assert [await tasks.get_task(task.id) for task in made] == made
    assert [task.id for task in await tasks.list_tasks(tag="bulk")] == ["x", "z"]
    assert await tasks.create_tasks([]) == []


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ([{"title": "a", "id": "taken"}], TaskExistsError),
        ([{"title": "a", "id": "n"}, {"title": "b", "id": "n"}], TaskExistsError),
        ([{"title": "a", "id": "n", "depends_on": ["m"]}, {"title": "b", "id": "m", "depends_on": ["n"]}], TaskCycleError),
        ([{"title": "a", "id": "n", "parent_id": "m"}, {"title": "b", "id": "m", "parent_id": "n"}], TaskCycleError),
        ([{"title": "a", "depends_on": ["nothing"]}], TaskNotFoundError),
        ([{"title": "a", "status": "ready", "depends_on": ["taken"]}], TaskDependencyError),
        ([{"title": "a", "unknown": 1}], InvalidValueError),
        ([{"id": "a"}], InvalidValueError),
        ([3], InvalidValueError),
    ],
)  # fmt: skip
async def test_many_at_once_all_or_none(tasks: Any, wrong: Any, error: Any) -> None:
    await tasks.create_task("taken", task_id="taken")
    with pytest.raises(error):
        await tasks.create_tasks([{"title": "fine", "id": "fine"}, *wrong])
    assert [task.id for task in await tasks.list_tasks()] == ["taken"]


async def test_many_keys_at_once(tasks: Any) -> None:
    given = [{"title": f"t{n % 3}", "idempotency_key": f"k{n % 3}"} for n in range(6)]
    made = await tasks.create_tasks(given)
    assert len({task.id for task in made}) == 3
    assert made[:3] == made[3:]
    assert await tasks.create_tasks(given) == made
    assert len(await tasks.list_tasks()) == 3


async def test_a_deleted_task_is_gone(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t", tags=["x"], status="ready")
    assert await tasks.delete_task("t", actor_id="ann")
    assert not await tasks.delete_task("t")
    assert await tasks.get_task("t") is None
    assert len(await tasks.list_tasks(tag="x")) == 0
    assert sum((await tasks.count_tasks()).values()) == 0
    for call in (
        tasks.update_task("t", title="u"),
        tasks.transition_task("t", "ready"),
    ):
        with pytest.raises(TaskNotFoundError, match="'t'"):
            await call
    again = await tasks.create_task("again", task_id="t")
    assert (again.version, again.tags) == (1, ())


async def test_a_task_stays_when_its_conversation_goes(storage: Any) -> None:
    """The conversation is a label: the task is found by it as before."""
    await storage.conversations.create_conversation("c")
    made = await storage.tasks.create_task("t", conversation_id="c")
    await storage.conversations.delete_conversation("c")
    await storage.conversations.hard_delete_conversation("c")

    assert await storage.tasks.get_task(made.id) == made
    assert list(await storage.tasks.list_tasks(conversation_id="c")) == [made]
    assert (await storage.tasks.count_tasks(conversation_id="c"))["draft"] == 1
    assert list(await storage.tasks.list_tasks(due_before=DUE)) == []
    late = await storage.tasks.update_task(made.id, due_at=DUE - timedelta(days=1))
    assert list(await storage.tasks.list_tasks(due_before=DUE)) == [late]

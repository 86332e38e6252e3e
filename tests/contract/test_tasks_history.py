"""Assignments, events and comments of tasks."""

from __future__ import annotations

from typing import Any

import pytest

from modules.store_common.errors import InvalidCursorError, InvalidValueError, StorageError
from modules.task_store.errors import (
    AssignmentExistsError,
    AssignmentNotFoundError,
    AssignmentTransitionError,
    TaskFinishedError,
    TaskNotFoundError,
)
from modules.task_store.models import ASSIGNMENT_MOVES, ASSIGNMENT_STATUSES
from tests.support.tasks import bring, invariants

_STEPS = {"pending": [], "accepted": ["accepted"], "declined": ["declined"], "completed": ["accepted", "completed"]}  # fmt: skip


@pytest.fixture
def tasks(storage: Any) -> Any:
    return storage.tasks


@pytest.mark.parametrize("start", ASSIGNMENT_STATUSES)
async def test_the_state_machine_of_assignments(tasks: Any, start: str) -> None:
    await tasks.create_task("t", task_id="t")
    for target in ASSIGNMENT_STATUSES:
        made = await tasks.assign_task("t", f"{start}-{target}")
        for step in _STEPS[start]:
            made = await tasks.transition_assignment("t", made.id, step)
        if target in ASSIGNMENT_MOVES[start]:
            moved = await tasks.transition_assignment("t", made.id, target)
            assert moved.status == target
        else:
            with pytest.raises(AssignmentTransitionError, match=f"'{start}' to '{target}'"):
                await tasks.transition_assignment("t", made.id, target)
    assert (await tasks.get_task("t")).version == 1


async def test_assignments(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    await tasks.create_task("u", task_id="u")
    made = await tasks.assign_task("t", "ann", note="please \x00", actor_id="bob", assignment_id="a1")
    assert (made.task_id, made.id, made.assignee_id, made.status) == ("t", "a1", "ann", "pending")
    assert (made.note, made.assigned_by_id) == ("please \x00", "bob")
    with pytest.raises(AssignmentExistsError, match="'ann'"):
        await tasks.assign_task("t", "ann")
    with pytest.raises(AssignmentExistsError):
        await tasks.assign_task("t", "cid", assignment_id="a1")
    await tasks.transition_assignment("t", "a1", "declined")
    again = await tasks.assign_task("t", "ann")
    other = await tasks.assign_task("u", "ann")

    assert [item.id for item in await tasks.list_assignments(task_id="t")] == [again.id, "a1"]
    assert [item.id for item in await tasks.list_assignments(assignee_id="ann", status="pending")] == [
        again.id,
        other.id,
    ]
    page = await tasks.list_assignments(assignee_id="ann", limit=2)
    rest = await tasks.list_assignments(assignee_id="ann", limit=2, cursor=page.next_cursor)
    assert [item.id for item in (*page, *rest)] == [again.id, other.id, "a1"]
    with pytest.raises(InvalidCursorError):
        await tasks.list_assignments(assignee_id="bob", cursor=page.next_cursor)
    for call in (
        tasks.list_assignments(),
        tasks.list_assignments(task_id="t", status="ready"),
        tasks.transition_assignment("t", "a1", "done"),
    ):
        with pytest.raises(InvalidValueError):
            await call
    with pytest.raises(AssignmentNotFoundError, match="'a1'"):
        await tasks.transition_assignment("u", "a1", "accepted")
    with pytest.raises(TaskNotFoundError):
        await tasks.assign_task("nothing", "ann")


async def test_a_finished_task_is_not_assigned(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    made = await tasks.assign_task("t", "ann")
    await tasks.transition_assignment("t", made.id, "accepted")
    await bring(tasks, "t", "done")
    with pytest.raises(TaskFinishedError, match="'t' is done"):
        await tasks.assign_task("t", "bob")
    assert (await tasks.transition_assignment("t", made.id, "completed")).status == "completed"


async def test_every_change_has_its_event(tasks: Any) -> None:
    await tasks.create_task("other", task_id="other")
    await tasks.create_task("t", task_id="t", actor_id="ann")
    await tasks.update_task("t", title="u", priority=2, tags=["x"], actor_id="ann")
    await tasks.add_dependency("t", "other")
    await tasks.transition_task("t", "cancelled", reason="not needed", actor_id="bob")
    await tasks.add_comment("t", "so be it \x00", actor_id="ann")
    comment = await tasks.add_comment("t", "again")

    events = list(await tasks.list_events("t"))

    assert [(event.sequence, event.type, event.version, event.actor_id) for event in events] == [
        (1, "created", 1, "ann"),
        (2, "updated", 2, "ann"),
        (3, "updated", 3, None),
        (4, "status_changed", 4, "bob"),
        (5, "comment", 4, "ann"),
        (6, "comment", 4, None),
    ]
    assert [event.data for event in events] == [
        {"status": "draft"},
        {
            "changes": {
                "title": {"from": "t", "to": "u"},
                "priority": {"from": 0, "to": 2},
                "tags": {"from": [], "to": ["x"]},
            }
        },
        {"dependencies": {"added": ["other"]}},
        {"from": "draft", "to": "cancelled", "reason": "not needed"},
        {"text": "so be it \x00"},
        {"text": "again"},
    ]
    assert comment == events[-1]
    assert (await tasks.get_task("t")).updated_at == comment.created_at


async def test_what_was_refused_has_none(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    for refused in (
        tasks.transition_task("t", "done"),
        tasks.update_task("t", title="u", expected_version=9),
        tasks.add_dependency("t", "t"),
    ):
        with pytest.raises(StorageError):
            await refused
    await tasks.update_task("t", title="t")
    assert [event.type for event in await tasks.list_events("t")] == ["created"]


async def test_pages_of_events(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    for n in range(4):
        await tasks.add_comment("t", str(n))
    for newest_first in (False, True):
        seen, cursor = [], None
        while True:
            page = await tasks.list_events("t", limit=2, cursor=cursor, newest_first=newest_first)
            seen += [event.sequence for event in page]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == sorted(range(1, 6), reverse=newest_first)
    comments = await tasks.list_events("t", type="comment", limit=3)
    assert [event.data["text"] for event in comments] == ["0", "1", "2"]
    with pytest.raises(InvalidCursorError):
        await tasks.list_events("t", cursor=comments.next_cursor)
    with pytest.raises(InvalidValueError):
        await tasks.list_events("t", type="renamed")
    with pytest.raises(InvalidValueError):
        await tasks.add_comment("t", " ")
    with pytest.raises(TaskNotFoundError):
        await tasks.add_comment("nothing", "x")


async def test_a_task_with_all_that_belongs_to_it(tasks: Any) -> None:
    await tasks.create_tasks([{"title": name, "id": name} for name in ("a", "t")])
    await tasks.create_task("b", task_id="b", depends_on=["t"], parent_id="t")
    await tasks.add_dependency("t", "a")
    made = await tasks.assign_task("t", "ann")

    found = await tasks.get_task_details("t", events=2)

    assert found.task == await tasks.get_task("t")
    assert [item.task_id for item in found.dependencies] == ["a"]
    assert [item.task_id for item in found.dependents] == ["b"]
    assert found.assignments == (made,)
    assert [event.type for event in found.events] == ["updated", "assignment"]
    assert found.children == ("b",)
    assert found.to_dict()["events"][1]["data"]["to"] == "pending"
    assert await tasks.get_task_details("nothing") is None


async def test_a_deletion_is_the_last_event(tasks: Any) -> None:
    await tasks.create_task("t", task_id="t")
    await tasks.add_comment("t", "a secret")
    await tasks.assign_task("t", "ann")
    await tasks.delete_task("t", actor_id="bob")

    left = list(await tasks.list_events("t"))
    assert [(event.sequence, event.type, event.actor_id) for event in left] == [(4, "deleted", "bob")]
    assert len(await tasks.list_assignments(task_id="t")) == 0

    await tasks.create_task("again", task_id="t")
    assert [event.sequence for event in await tasks.list_events("t")] == [4, 5]
    await invariants(tasks)

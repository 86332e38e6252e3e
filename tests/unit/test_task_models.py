"""The state machines of tasks and assignments: tables, without a database."""

from __future__ import annotations

import pickle

import pytest

from modules.task_store import errors
from modules.task_store.links import check_circles
from modules.task_store.models import (
    ASSIGNMENT_MOVES,
    ASSIGNMENT_STATUSES,
    EVENT_TYPES,
    FINAL,
    FREE_MOVES,
    OPEN_ASSIGNMENTS,
    STARTS,
    TASK_MOVES,
    TASK_STATUSES,
)


def test_the_way_forward_and_out() -> None:
    way = ["draft", "ready", "in_progress", "review", "done"]
    for current, following in zip(way, way[1:]):
        assert following in TASK_MOVES[current]
    for status in TASK_STATUSES:
        assert ("cancelled" in TASK_MOVES[status]) == (status not in FINAL)
    assert {"done", "cancelled"} == FINAL
    assert not TASK_MOVES["done"]
    assert not TASK_MOVES["cancelled"]


def test_nothing_is_skipped_and_back_goes_one_step() -> None:
    way = ["draft", "ready", "in_progress", "review", "done"]
    for current in way[:-1]:
        place = way.index(current)
        near = {way[place + 1], *([way[place - 1]] if place else [])}
        assert set(TASK_MOVES[current]) == near | {"cancelled"}
    assert set(STARTS) <= set(TASK_STATUSES)
    assert {"draft", "cancelled"} == FREE_MOVES


def test_every_state_of_a_table_is_in_it() -> None:
    for table, statuses in ((TASK_MOVES, TASK_STATUSES), (ASSIGNMENT_MOVES, ASSIGNMENT_STATUSES)):
        assert {target for onward in table.values() for target in onward} <= set(statuses)
    assert set(OPEN_ASSIGNMENTS) == {"pending", "accepted"}
    assert {"created", "updated", "status_changed", "comment", "assignment"} <= set(EVENT_TYPES)


@pytest.mark.parametrize(
    "error",
    [
        errors.TaskNotFoundError("t"),
        errors.AssignmentNotFoundError("t", "a"),
        errors.TaskExistsError("t"),
        errors.AssignmentExistsError("t", "ann"),
        errors.TaskTransitionError("t", "draft", "done", ("ready", "cancelled")),
        errors.AssignmentTransitionError("a", "pending", "completed", ("accepted",)),
        errors.TaskFinishedError("t", "done", "be assigned"),
        errors.TaskDependencyError("t", "ready", [f"d{n}" for n in range(7)]),
        errors.TaskCycleError("t", "u"),
    ],
)
def test_errors_say_what_and_travel(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert again.__dict__ == error.__dict__
    assert "'t'" in str(error) or "'a'" in str(error)


def test_circles_among_new_tasks() -> None:
    check_circles({"a": ["b", "c", "old"], "b": ["c"], "c": ["old"], "d": ["a"]}, "depend on")
    check_circles({str(n): [str(n + 1)] for n in range(20_000)}, "depend on")
    for edges in ({"a": ["b"], "b": ["a"]}, {"a": ["b"], "b": ["c"], "c": ["b"]}, {"a": ["a"]}):
        with pytest.raises(errors.TaskCycleError):
            check_circles(edges, "depend on")

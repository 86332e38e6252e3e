"""The task store against a plain model: the same calls on both, the same answers (P28), on every backend.

ATLAS_TEST_FULL=1: 200 runs of 50 steps.
"""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional, Set

from hypothesis import given, settings
from hypothesis import strategies as st

from modules.store_common.errors import AlreadyExistsError, ConcurrencyError, NotFoundError
from modules.task_store.errors import (
    AssignmentTransitionError,
    TaskCycleError,
    TaskDependencyError,
    TaskFinishedError,
    TaskTransitionError,
)
from tests.support.tasks import invariants

FULL = os.environ.get("ATLAS_TEST_FULL") == "1"
RUNS, FEWEST, MOST = (200, 50, 50) if FULL else (20, 10, 30)

# Written out again, so that the store's own tables are tested as well.
MOVES = {
    "draft": {"ready", "cancelled"},
    "ready": {"in_progress", "draft", "cancelled"},
    "in_progress": {"review", "ready", "cancelled"},
    "review": {"done", "in_progress", "cancelled"},
    "done": set(),
    "cancelled": set(),
}
ANSWERS = {
    "pending": {"accepted", "declined"},
    "accepted": {"completed", "declined"},
    "declined": set(),
    "completed": set(),
}
OPEN = {"draft", "ready", "in_progress", "review"}

_IDS = st.sampled_from(["a", "b", "c", "d", "e"])
_WHO = st.sampled_from(["ann", "bob"])
_EXPECT = st.sampled_from([None, None, None, 1, 2, 3])
_STATUSES = st.sampled_from(["ready", "ready", "in_progress", "review", "done", "draft", "cancelled"])
_STEPS = st.one_of(
    st.tuples(st.just("create"), _IDS, st.lists(_IDS, max_size=2, unique=True)),
    st.tuples(st.just("move"), _IDS, _STATUSES, _EXPECT),
    st.tuples(st.just("move"), _IDS, _STATUSES, st.none()),
    st.tuples(st.just("forward"), _IDS),
    st.tuples(st.just("edit"), _IDS, st.integers(0, 3), _EXPECT),
    st.tuples(st.just("adopt"), _IDS, st.none() | _IDS),
    st.tuples(st.just("link"), _IDS, _IDS),
    st.tuples(st.just("unlink"), _IDS, _IDS),
    st.tuples(st.just("assign"), _IDS, _WHO),
    st.tuples(st.just("answer"), _IDS, _WHO, st.sampled_from(["accepted", "declined", "completed"])),
    st.tuples(st.just("say"), _IDS),
    st.tuples(st.just("delete"), _IDS),
)


class _RefusedError(Exception):
    """What the model says instead of an answer: the type of error that the store must raise."""


class _Task:
    def __init__(self, events: int) -> None:
        self.status = "draft"
        self.priority = 0
        self.parent: Optional[str] = None
        self.depends: Set[str] = set()
        self.version = 1
        self.events = events
        self.assigned: List[List[str]] = []

    def changed(self) -> int:
        self.version += 1
        self.events += 1
        return self.version


class _Model:
    """The store in plain Python."""

    def __init__(self) -> None:
        self.tasks: Dict[str, _Task] = {}
        self.graves: Dict[str, int] = {}

    def _get(self, name: str) -> _Task:
        if name not in self.tasks:
            raise _RefusedError(NotFoundError)
        return self.tasks[name]

    def _unmet(self, task: _Task) -> Set[str]:
        return {other for other in task.depends if self.tasks[other].status in OPEN}

    def create(self, name: str, depends: List[str]) -> None:
        if name in depends:
            raise _RefusedError(TaskCycleError)
        if name in self.tasks:
            raise _RefusedError(AlreadyExistsError)
        for other in depends:
            self._get(other)
        self.tasks[name] = _Task(self.graves.get(name, 0) + 1)
        self.tasks[name].depends = set(depends)

    def move(self, name: str, to: str, expected: Optional[int]) -> int:
        task = self._get(name)
        if expected is not None and expected != task.version:
            raise _RefusedError(ConcurrencyError)
        if to not in MOVES[task.status]:
            raise _RefusedError(TaskTransitionError)
        if to not in ("draft", "cancelled") and self._unmet(task):
            raise _RefusedError(TaskDependencyError)
        task.status = to
        return task.changed()

    def forward(self, name: str) -> int:
        onward = {"draft": "ready", "ready": "in_progress", "in_progress": "review", "review": "done"}
        return self.move(name, onward.get(self._get(name).status, "ready"), None)

    def edit(self, name: str, priority: int, expected: Optional[int]) -> int:
        task = self._get(name)
        if expected is not None and expected != task.version:
            raise _RefusedError(ConcurrencyError)
        if task.priority == priority:
            return task.version
        task.priority = priority
        return task.changed()

    def adopt(self, name: str, parent: Optional[str]) -> int:
        task = self._get(name)
        above = parent
        if parent is not None:
            self._get(parent)
        while above is not None:
            if above == name:
                raise _RefusedError(TaskCycleError)
            above = self.tasks[above].parent
        if task.parent == parent:
            return task.version
        task.parent = parent
        return task.changed()

    def _leads(self, start: str, goal: str) -> bool:
        return start == goal or any(self._leads(other, goal) for other in self.tasks[start].depends)

    def link(self, name: str, other: str) -> bool:
        task = self._get(name)
        self._get(other)
        if self._leads(other, name):
            raise _RefusedError(TaskCycleError)
        if task.status not in OPEN:
            raise _RefusedError(TaskFinishedError)
        if other in task.depends:
            return False
        task.depends.add(other)
        task.changed()
        return True

    def unlink(self, name: str, other: str) -> bool:
        task = self._get(name)
        if other not in task.depends:
            return False
        task.depends.discard(other)
        task.changed()
        return True

    def assign(self, name: str, who: str) -> str:
        task = self._get(name)
        if task.status not in OPEN:
            raise _RefusedError(TaskFinishedError)
        if any(person == who and ANSWERS[status] for person, status in task.assigned):
            raise _RefusedError(AlreadyExistsError)
        task.assigned.append([who, "pending"])
        task.events += 1
        return "pending"

    def answer(self, name: str, who: str, status: str) -> str:
        task = self._get(name)
        found = [item for item in task.assigned if item[0] == who]
        if not found:
            raise _RefusedError(NotFoundError)
        if status not in ANSWERS[found[-1][1]]:
            raise _RefusedError(AssignmentTransitionError)
        found[-1][1] = status
        task.events += 1
        return status

    def say(self, name: str) -> int:
        task = self._get(name)
        task.events += 1
        return task.events

    def delete(self, name: str) -> bool:
        if name not in self.tasks:
            return False
        self.graves[name] = self.tasks.pop(name).events + 1
        for task in self.tasks.values():
            if name in task.depends:
                task.depends.discard(name)
                task.changed()
            if task.parent == name:
                task.parent = None
                task.changed()
        return True

    def state(self) -> Any:
        return {
            name: (task.status, task.priority, task.parent, task.version, task.events, sorted(task.depends),
                   len(self._unmet(task)), sorted(map(tuple, task.assigned)))
            for name, task in self.tasks.items()
        }  # fmt: skip

    def ready(self) -> List[str]:
        found = [n for n, task in self.tasks.items() if task.status == "ready" and not self._unmet(task)]
        return sorted(found, key=lambda name: (-self.tasks[name].priority, name))

    def listed(self) -> List[str]:
        return sorted(self.tasks, key=lambda name: (-self.tasks[name].priority, name))


class _Real:
    """The same calls on the store, for one tenant of its own."""

    def __init__(self, store: Any, tenant_id: str) -> None:
        self._store = store
        self._tenant = {"tenant_id": tenant_id}

    async def create(self, name: str, depends: List[str]) -> None:
        await self._store.create_task(name, task_id=name, depends_on=depends, **self._tenant)

    async def move(self, name: str, to: str, expected: Any) -> int:
        moved = await self._store.transition_task(name, to, expected_version=expected, **self._tenant)
        return int(moved.version)

    async def forward(self, name: str) -> int:
        task = await self._store.get_task(name, **self._tenant)
        onward = {"draft": "ready", "ready": "in_progress", "in_progress": "review", "review": "done"}
        return await self.move(name, "ready" if task is None else onward.get(task.status, "ready"), None)

    async def edit(self, name: str, priority: int, expected: Any) -> int:
        done = await self._store.update_task(
            name, priority=priority, expected_version=expected, **self._tenant
        )
        return int(done.version)

    async def adopt(self, name: str, parent: Optional[str]) -> int:
        return int((await self._store.update_task(name, parent_id=parent, **self._tenant)).version)

    async def link(self, name: str, other: str) -> bool:
        return bool(await self._store.add_dependency(name, other, **self._tenant))

    async def unlink(self, name: str, other: str) -> bool:
        return bool(await self._store.remove_dependency(name, other, **self._tenant))

    async def assign(self, name: str, who: str) -> str:
        return str((await self._store.assign_task(name, who, **self._tenant)).status)

    async def answer(self, name: str, who: str, status: str) -> str:
        found = list(await self._store.list_assignments(task_id=name, assignee_id=who, **self._tenant))
        own = found[-1].id if found else "none"
        return str((await self._store.transition_assignment(name, own, status, **self._tenant)).status)

    async def say(self, name: str) -> int:
        return int((await self._store.add_comment(name, "x", **self._tenant)).sequence)

    async def delete(self, name: str) -> bool:
        return bool(await self._store.delete_task(name, **self._tenant))

    async def state(self) -> Any:
        found = {}
        for task in await self._store.list_tasks(**self._tenant):
            whole = await self._store.get_task_details(task.id, **self._tenant)
            assert whole.task == task
            assert [d.is_met for d in whole.dependencies].count(False) == task.open_dependencies
            found[task.id] = (
                task.status, task.priority, task.parent_id, task.version, whole.events[-1].sequence,
                [d.task_id for d in whole.dependencies], task.open_dependencies,
                sorted((a.assignee_id, a.status) for a in whole.assignments),
            )  # fmt: skip
        return found

    async def ready(self) -> List[str]:
        return [task.id for task in await self._store.list_ready_tasks(**self._tenant)]

    async def listed(self) -> List[str]:
        return [task.id for task in await self._store.list_tasks(**self._tenant)]


def _says(call: Any) -> Any:
    try:
        return call()
    except _RefusedError as refused:
        return refused.args[0]


async def _answers(call: Any, expected: Any, step: Any) -> None:
    if isinstance(expected, type):
        try:
            got = await call
        except expected:
            return
        raise AssertionError(
            f"{step}: the model refuses with {expected.__name__}, the store answered {got!r}"
        )
    assert await call == expected, step


_number = iter(range(10**9))


@settings(max_examples=RUNS)
@given(steps=st.lists(_STEPS, min_size=FEWEST, max_size=MOST))
async def test_the_store_behaves_as_the_model(storage: Any, steps: List[Any]) -> None:
    model, real = _Model(), _Real(storage.tasks, f"t{next(_number)}")
    # most steps need tasks, and chance would make them late
    begin = [
        ("create", "a", []),
        ("create", "b", ["a"]),
        ("create", "c", []),
        ("forward", "a"),
        ("forward", "c"),
    ]
    for step in [*begin, *steps]:
        name, *arguments = step
        expected = _says(lambda name=name, arguments=arguments: getattr(model, name)(*arguments))
        await _answers(getattr(real, name)(*arguments), expected, step)
    assert await real.state() == model.state()
    assert await real.ready() == model.ready()
    assert await real.listed() == model.listed()
    await invariants(storage.tasks)

"""The errors of the task store, all under `StorageError` of `modules.store_common.errors`.

    NotFoundError
      TaskNotFoundError              no such task for this tenant
      AssignmentNotFoundError        the task has no such assignment
    AlreadyExistsError
      TaskExistsError                `create_task` with an id that is taken
      AssignmentExistsError          the id is taken, or the task is assigned to that person already
    StorageError
      TaskTransitionError            the state machine has no such move: names both states
        TaskFinishedError            the task is done or cancelled, and what was asked needs one that is not
        AssignmentTransitionError    the same for an assignment
      TaskDependencyError            a dependency is neither done nor cancelled: names the unmet ones
      TaskCycleError                 the dependency or parent would close a circle

`ConcurrencyError`, `IdempotencyConflictError` and `InvalidValueError` are raised as they are.
"""

from __future__ import annotations

from typing import Sequence, Tuple

from modules.store_common.errors import AlreadyExistsError, NotFoundError, StorageError

__all__ = [
    "AssignmentExistsError",
    "AssignmentNotFoundError",
    "AssignmentTransitionError",
    "TaskCycleError",
    "TaskDependencyError",
    "TaskExistsError",
    "TaskFinishedError",
    "TaskNotFoundError",
    "TaskTransitionError",
]

# So many unmet dependencies are named in a message; the attribute has all of them.
_NAMED = 5


class TaskNotFoundError(NotFoundError):
    """This tenant has no such task."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"this tenant has no task {self.task_id!r}; create it with create_task()"


class AssignmentNotFoundError(NotFoundError):
    """The task has no such assignment."""

    def __init__(self, task_id: str, assignment_id: str) -> None:
        super().__init__(task_id, assignment_id)
        self.task_id = task_id
        self.assignment_id = assignment_id

    def __str__(self) -> str:
        return f"task {self.task_id!r} of this tenant has no assignment {self.assignment_id!r}"


class TaskExistsError(AlreadyExistsError):
    """The task's id is taken."""

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return (
            f"task {self.task_id!r} exists already; give another id, none, or an idempotency_key for calls that may be "
            "repeated"
        )


class AssignmentExistsError(AlreadyExistsError):
    """The assignment's id is taken in this task, or the person has an open assignment of it."""

    def __init__(self, task_id: str, assignee_id: str) -> None:
        super().__init__(task_id, assignee_id)
        self.task_id = task_id
        self.assignee_id = assignee_id

    def __str__(self) -> str:
        return (
            f"task {self.task_id!r} is assigned to {self.assignee_id!r} already (pending or accepted), or has an "
            "assignment with the id given"
        )


class TaskTransitionError(StorageError):
    """The state machine has no such move; nothing was changed.

    Attributes:
        entity_id: The task (or assignment).
        current: The state it is in.
        wanted: The state it was to get.
        allowed: The states that it could get.
    """

    kind = "task"

    def __init__(self, entity_id: str, current: str, wanted: str, allowed: Sequence[str] = ()) -> None:
        super().__init__(entity_id, current, wanted, tuple(allowed))
        self.entity_id = entity_id
        self.current = current
        self.wanted = wanted
        self.allowed: Tuple[str, ...] = tuple(allowed)

    def __str__(self) -> str:
        onward = (
            f"; from there it goes to {' or '.join(self.allowed)}" if self.allowed else ", which is final"
        )
        return (
            f"{self.kind} {self.entity_id!r} cannot move from {self.current!r} to {self.wanted!r}: "
            f"it is {self.current}{onward}"
        )


class AssignmentTransitionError(TaskTransitionError):
    """The assignment cannot move so; nothing was changed."""

    kind = "assignment"


class TaskFinishedError(TaskTransitionError):
    """The task is done or cancelled; `wanted` says what was tried."""

    def __str__(self) -> str:
        return f"task {self.entity_id!r} is {self.current}, which is final; it cannot {self.wanted}"


class TaskDependencyError(StorageError):
    """The task waits for others, so it cannot move; nothing was changed.

    Attributes:
        task_id: The task.
        wanted: The state it was to get.
        unmet: The ids of the tasks that it depends on and that are neither done nor cancelled, sorted.
    """

    def __init__(self, task_id: str, wanted: str, unmet: Sequence[str]) -> None:
        super().__init__(task_id, wanted, tuple(unmet))
        self.task_id = task_id
        self.wanted = wanted
        self.unmet: Tuple[str, ...] = tuple(unmet)

    def __str__(self) -> str:
        names = ", ".join(repr(name) for name in self.unmet[:_NAMED])
        more = f" and {len(self.unmet) - _NAMED} more" if len(self.unmet) > _NAMED else ""
        return (
            f"task {self.task_id!r} cannot become {self.wanted!r} yet: it depends on {names}{more}, "
            "which must be done or cancelled first"
        )


class TaskCycleError(StorageError):
    """The link would make a task wait for itself, or be its own ancestor; nothing was changed."""

    def __init__(self, task_id: str, other_id: str, link: str = "depend on") -> None:
        super().__init__(task_id, other_id, link)
        self.task_id = task_id
        self.other_id = other_id
        self.link = link

    def __str__(self) -> str:
        if self.task_id == self.other_id:
            return f"task {self.task_id!r} cannot {self.link} itself"
        return (
            f"task {self.task_id!r} cannot {self.link} {self.other_id!r}: that would close a circle, "
            f"as {self.other_id!r} leads back to {self.task_id!r} already"
        )

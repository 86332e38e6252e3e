"""Which calls of a thread's batch become one statement: those of an operation that has a `batch` form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Hashable, List, Sequence, Set

if TYPE_CHECKING:
    from modules.storage.backends.sqlite_calls import Call
    from modules.storage.operations import Operation

__all__ = ["grouped"]


class _Group:
    """Calls that go together, and the conflict keys they have used up."""

    __slots__ = ("calls", "keys")

    def __init__(self, call: Call) -> None:
        self.calls = [call]
        self.keys: Set[Hashable] = set()


def grouped(calls: Sequence[Call]) -> List[List[Call]]:
    """Split a batch: calls of one operation with a `batch` form stand together, every other call by itself.

    Groups are in the order of their first calls, calls in a group in the order in which they came. Two calls with the same
    conflict key are in two groups.
    """
    groups: List[List[Call]] = []
    open_groups: Dict[Operation[Any, Any], _Group] = {}
    last: Any = None
    group: Any = None
    for call in calls:
        operation = call.work
        if operation.batch is None or call.kwargs:
            groups.append([call])
            continue
        if operation is not last:
            last, group = operation, open_groups.get(operation)
        conflict_key = operation.conflict_key
        key = None if conflict_key is None else conflict_key(*call.args)
        if group is None or (key is not None and key in group.keys):
            group = open_groups[operation] = _Group(call)
            groups.append(group.calls)
        else:
            group.calls.append(call)
        if key is not None:
            group.keys.add(key)
    return groups

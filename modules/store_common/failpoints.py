"""Failpoints: named places at which a test can have the process killed, hung, or handed an error. No-ops in production.

At each step that a crash could split, the code says

    if failpoints.armed:
        await failpoints.meet("unit.committed")

so that an unarmed process pays for one look at a module attribute. They can be armed only where the environment variable
`ATLAS_TEST_FAILPOINTS` is set:

    ATLAS_TEST_FAILPOINTS="relay.claimed=kill@2;unit.committed=raise"      armed from the start, for child processes
    ATLAS_TEST_FAILPOINTS="on"                                             nothing yet; `arm` may be called

Each entry is `name=action` or `name=action@N`: the N-th time that the place is met (1 when left out), and only then.

    kill     SIGKILL to this process
    raise    `InjectedError`
    lost     `UnavailableError`, as a connection that breaks there gives
    hang     waits for ever (until it is cancelled)

`arm` takes functions too: `arm("relay.applied", function)`; an awaitable that it returns is awaited. Each meeting of an
armed process is counted in `hits`, and appended to the file `ATLAS_TEST_FAILPOINTS_LOG`, a name a line, before the action.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections import Counter
from typing import Any, Awaitable, Callable, Dict, Tuple, Union

from modules.store_common.errors import StorageError, UnavailableError

__all__ = ["Action", "InjectedError", "arm", "armed", "disarm", "hits", "meet", "names"]

#: What happens at a failpoint: one of the words above, or a function without arguments.
Action = Union[str, Callable[[], Any]]

_VARIABLE = "ATLAS_TEST_FAILPOINTS"
_ACTIONS = ("kill", "raise", "lost", "hang")

#: Whether any failpoint is armed; what the code asks first.
armed = False
#: How often each place was met while anything was armed.
hits: Counter[str] = Counter()
_plan: Dict[str, Tuple[Action, int]] = {}

#: Every failpoint there is, in the order in which a unit meets them; the grid of the fault tests goes through them.
names = (
    "unit.before_begin",
    "unit.rows_written",
    "unit.outbox_written",
    "unit.before_commit",
    "unit.committed",
    "unit.compensating",
    "relay.starting",
    "relay.before_claim",
    "relay.claimed",
    "relay.before_apply",
    "relay.applied",
    "relay.acknowledged",
    "relay.purging",
)


class InjectedError(StorageError):
    """What a failpoint raises that a test told to."""


def arm(name: str, action: Action, at: int = 1) -> None:
    """Have `action` happen the `at`-th time that `name` is met from now on, once.

    Raises:
        RuntimeError: the environment does not allow it: this is no test.
    """
    if _VARIABLE not in os.environ:
        raise RuntimeError(f"failpoints are for tests: {_VARIABLE} is not set")
    if name not in names:
        raise LookupError(f"there is no failpoint {name!r}")
    if isinstance(action, str) and action not in _ACTIONS:
        raise LookupError(f"a failpoint cannot {action!r}; it can {', '.join(_ACTIONS)}")
    global armed
    _plan[name] = (action, hits[name] + at)
    armed = True


def disarm() -> None:
    """Take every action away and forget the counts."""
    global armed
    armed = False
    _plan.clear()
    hits.clear()


async def meet(name: str) -> None:
    """Count that `name` was met, and do what is planned for this time."""
    hits[name] += 1
    _note(name)
    planned = _plan.get(name)
    if planned is None or hits[name] != planned[1]:
        return
    action = planned[0]
    if not isinstance(action, str):
        outcome = action()
        if inspect.isawaitable(outcome):
            await outcome
        return
    await _act(name, action)


def _note(name: str) -> None:
    log = os.environ.get(f"{_VARIABLE}_LOG")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(name + "\n")


async def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "raise":
        raise InjectedError(f"injected at {name}")
    if action == "lost":
        raise UnavailableError(f"the connection broke at {name} (injected)")
    waiting: Awaitable[None] = asyncio.get_running_loop().create_future()
    await waiting


def _arm_from_environment() -> None:
    for entry in os.environ.get(_VARIABLE, "").split(";"):
        name, _, what = entry.strip().partition("=")
        action, _, at = what.partition("@")
        if name not in ("", "on"):
            arm(name, action, int(at or 1))


_arm_from_environment()

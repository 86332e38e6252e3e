"""What every room of the job store stands on: its executor, and how it tells workers that there is something to do."""

from __future__ import annotations

from functools import partial
from typing import Callable, Iterable, Optional

from modules.storage.operations import Executor, Store, after_commit
from modules.store_common.tenancy import TenantPolicy

__all__ = ["CANCEL_CHANNEL", "JobRoom", "Wake", "announce", "job_channel"]

#: On it the workers hear that a running job is to be cancelled; those of queues begin with "jobs:".
CANCEL_CHANNEL = "jobs-cancel"

#: Wakes everybody who waits on a channel; returns at once, and may be lost: workers also look by themselves.
Wake = Callable[[str], None]


def job_channel(queue: str) -> str:
    """Return the channel on which the workers of `queue` wait (`storage.wakeups`)."""
    return f"jobs:{queue}"


def announce(executor: Executor, wake: Optional[Wake], queues: Iterable[str]) -> None:
    """Wake the workers of these queues, once what `executor` did is committed."""
    if wake is None:
        return
    for queue in dict.fromkeys(queues):
        after_commit(executor, partial(wake, job_channel(queue)))


class JobRoom(Store):
    """Parent of the job store's rooms.

    Args:
        executor: A pool's executor, or that of a unit of work.
        tenancy: How the tenant of a call is found.
        wake: Wakes the workers that wait on a channel; None: they find out by looking.
    """

    def __init__(self, executor: Executor, tenancy: TenantPolicy, *, wake: Optional[Wake] = None) -> None:
        super().__init__(executor, tenancy)
        self._wake = wake

    def _announce(self, queues: Iterable[str]) -> None:
        announce(self._executor, self._wake, queues)

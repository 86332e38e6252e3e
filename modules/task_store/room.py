"""What the rooms of the task store stand on that change tasks or wait for changes: how subscribers hear of them."""

from __future__ import annotations

from functools import partial
from typing import Any, AsyncContextManager, FrozenSet, Optional, Protocol, TypeVar

from modules.storage.operations import Executor, Operation, Store, after_commit
from modules.store_common.tenancy import TenantPolicy
from modules.task_store.noting import Key, topic_of

__all__ = ["TaskRoom", "Waiting", "WakeUps"]

R = TypeVar("R")


class Waiting(Protocol):
    """Somebody who waits for wake-ups."""

    async def wait(self, timeout_s: Optional[float] = None) -> FrozenSet[str]:
        """Return the channels that were woken since the last call, after `timeout_s` seconds none."""
        ...


class WakeUps(Protocol):
    """Wake-ups, as `storage.wakeups` gives them; they may be lost, so whoever waits also looks by itself."""

    @property
    def poll_s(self) -> float:
        """How many seconds to wait at most before looking."""
        ...

    def subscribe(self, *channels: str) -> AsyncContextManager[Waiting]:
        """Wait for what comes on these channels."""
        ...

    def notify(self, channel: str) -> None:
        """Wake whoever waits on `channel`; returns at once."""
        ...


class TaskRoom(Store):
    """Parent of the rooms that change tasks.

    Args:
        executor: A pool's executor, or that of a unit of work.
        tenancy: How the tenant of a call is found.
        wakeups: Tells subscribers of changes; None: they find out by looking.
    """

    def __init__(
        self, executor: Executor, tenancy: TenantPolicy, *, wakeups: Optional[WakeUps] = None
    ) -> None:
        super().__init__(executor, tenancy)
        self._wakeups = wakeups

    async def _change_task(self, operation: Operation[..., R], key: Key, *args: Any) -> R:
        """Run what changes a task, and wake the subscribers of its tenant once that is committed."""
        result = await self._executor.run(operation, key, *args)
        self._wake_subscribers(key["tenant_id"])
        return result

    def _wake_subscribers(self, tenant_id: str) -> None:
        if self._wakeups is not None:
            after_commit(self._executor, partial(self._wakeups.notify, topic_of(tenant_id)))

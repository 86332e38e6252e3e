"""Who may use the one connection of a unit of work: its tasks, one after the other, in the order in which they asked."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Deque, Optional

from modules.store_common.errors import DeadlineExceededError

__all__ = ["UnitTurns"]


class UnitTurns:
    """A lock that its holder's task may take again, and that nobody waits for beyond the unit's deadline.

    A session block holds it from its first to its last statement: what the session undoes is its own work and that of
    the stores called inside the block, never that of another task.

    Args:
        deadline: Monotonic time in seconds.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._busy = False
        self._holder: Any = None
        self._waiters: Deque[asyncio.Future[None]] = deque()

    @property
    def busy(self) -> bool:
        """Whether some task is using the connection."""
        return self._busy

    @asynccontextmanager
    async def mine(self) -> AsyncIterator[None]:
        """Hold the turn for the time of the block.

        Raises:
            DeadlineExceededError: another task holds it until the deadline.
        """
        task = asyncio.current_task()
        if self._busy and self._holder is task:
            yield
            return
        if self._busy:
            await self._wait()
        self._busy = True
        self._holder = task
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(max(0.0, self._deadline - time.monotonic()), _expire, waiter)
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on()
            raise
        finally:
            timer.cancel()

    def _pass_on(self) -> None:
        self._holder = None
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                # stays busy: nobody may slip in before the one who waited
                waiter.set_result(None)
                return
        self._busy = False


def _expire(waiter: asyncio.Future[Optional[Any]]) -> None:
    if not waiter.done():
        waiter.set_exception(
            DeadlineExceededError(
                "another task used this unit of work until its deadline, so this call was not started"
            )
        )

"""Wake-ups: a word to whoever waits that there is something to do, so that idle workers need not ask all the time.

    async with storage.wakeups.subscribe("jobs:default") as subscription:
        while True:
            work_off_what_is_there()
            await subscription.wait(timeout_s=storage.wakeups.poll_s)

A wake-up carries nothing and may be lost: what matters is in the database, and whoever waits also looks by itself every
`poll_s` seconds. It never comes too early: `notify` is called after the commit.

This class wakes within its process, from any thread and event loop. PostgreSQL adds the other processes
(`postgresql_wakeups`); on SQLite they find out by looking.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Dict, FrozenSet, List, Optional, Set, Type

from modules.store_common.deadlines import within
from modules.store_common.errors import InvalidValueError, NotInitializedError
from modules.store_common.values import check_identifier

__all__ = ["Subscription", "Wakeups"]

# How often to look when nobody tells of other processes' work, in seconds.
_POLL_ALONE_S = 0.5
# More than the 1,000 queues that a worker may have: it is told of other things, too.
_MOST_CHANNELS = 1024


class Subscription:
    """Waits for wake-ups on some channels, on the event loop where it was entered.

    Args:
        wakeups: Where they come from.
        channels: Which channels.
    """

    def __init__(self, wakeups: Wakeups, channels: FrozenSet[str]) -> None:
        self._wakeups = wakeups
        self.channels = channels
        self._woken: Set[str] = set()
        self._event: Optional[asyncio.Event] = None
        #: Where it waits; None before it is entered.
        self.loop: Optional[asyncio.AbstractEventLoop] = None

    async def __aenter__(self) -> Subscription:
        self.loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._wakeups._add(self)
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self._wakeups._remove(self)

    async def wait(self, timeout_s: Optional[float] = None) -> FrozenSet[str]:
        """Wait for a wake-up; one that came since the last call counts.

        Args:
            timeout_s: The longest wait, in seconds; None: as long as the database suggests (`poll_s`).

        Returns:
            The channels that were woken; empty when the time was over.

        Raises:
            NotInitializedError: the manager was shut down, or the subscription was not entered.
        """
        if self._event is None:
            raise NotInitializedError("the subscription", "use it inside `async with`")
        if not self._event.is_set():
            self._wakeups._require_open()
            limit = self._wakeups.poll_s if timeout_s is None else max(0.0, timeout_s)
            try:
                await within(self._event.wait(), limit)
            except asyncio.TimeoutError:
                return frozenset()
        self._event.clear()
        woken, self._woken = frozenset(self._woken), set()
        self._wakeups._require_open()
        return woken

    def wake(self, channels: FrozenSet[str]) -> None:
        """Wake it, from any thread."""
        loop = self.loop
        if loop is None:
            return
        try:
            here: Optional[asyncio.AbstractEventLoop] = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is loop:
            self._set(channels)
            return
        try:
            loop.call_soon_threadsafe(self._set, channels)
        except RuntimeError:
            # its loop is gone; nobody waits there any more
            return

    def _set(self, channels: FrozenSet[str]) -> None:
        self._woken |= channels & self.channels
        if self._event is not None:
            self._event.set()


class Wakeups:
    """Wakes those who wait on a channel, within this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: Dict[str, List[Subscription]] = {}
        self._closed = False

    @property
    def poll_s(self) -> float:
        """How many seconds to wait at most before looking again: short where other processes cannot be heard."""
        return _POLL_ALONE_S

    def subscribe(self, *channels: str) -> Subscription:
        """Return a subscription to 1 to 1,024 channels; enter it with `async with`."""
        if not 1 <= len(channels) <= _MOST_CHANNELS:
            raise InvalidValueError(f"a subscription has 1 to {_MOST_CHANNELS:,} channels")
        for channel in channels:
            check_identifier(channel, "a channel", max_bytes=1024)
        return Subscription(self, frozenset(channels))

    def notify(self, channel: str) -> None:
        """Wake everybody who waits on `channel`. Returns at once, never raises, may be called from any thread."""
        self._wake(channel)

    async def close(self) -> None:
        """Wake everybody for the last time; later calls of `wait` are refused."""
        self._closed = True
        for subscription in self._all():
            subscription.wake(subscription.channels)

    def _require_open(self) -> None:
        if self._closed:
            raise NotInitializedError(
                "the StorageManager", "it was shut down while this waited for a wake-up"
            )

    def _wake(self, channel: str) -> None:
        with self._lock:
            waiting = list(self._subscriptions.get(channel, ()))
        woken = frozenset((channel,))
        for subscription in waiting:
            subscription.wake(woken)

    def _all(self) -> List[Subscription]:
        with self._lock:
            found = {id(s): s for subscriptions in self._subscriptions.values() for s in subscriptions}
        return list(found.values())

    def _add(self, subscription: Subscription) -> None:
        self._require_open()
        with self._lock:
            for channel in subscription.channels:
                self._subscriptions.setdefault(channel, []).append(subscription)

    async def _remove(self, subscription: Subscription) -> None:
        with self._lock:
            for channel in subscription.channels:
                others = [s for s in self._subscriptions.get(channel, ()) if s is not subscription]
                if others:
                    self._subscriptions[channel] = others
                else:
                    self._subscriptions.pop(channel, None)

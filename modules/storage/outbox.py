"""The durable half of the unit of work: what was staged, the relay that brings it to its targets, and looking after both.

`storage.outbox` of a manager. What waits is in the database: it survives this process, and a relay of any process that has
the target goes on with it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Iterable, Optional, Sequence

from modules.storage.operations import Executor
from modules.storage.outbox_options import Counters, RelayOptions
from modules.storage.outbox_queue import OutboxKey
from modules.storage.outbox_relay import Relay, channel_of
from modules.storage.outbox_targets import Apply, Target, TargetRegistry
from modules.storage.outbox_upkeep import (
    OutboxRecord,
    OutboxStats,
    discard,
    list_records,
    redrive,
    show,
    stats,
)
from modules.store_common.errors import DeadlineExceededError, InvalidValueError

if TYPE_CHECKING:
    from modules.storage.backends.wakeups import Wakeups

__all__ = ["Outbox"]

_STATES = ("pending", "parked", "done")
_PAGE = 500


class Outbox:
    """Targets, relay and upkeep.

    Args:
        executor: Of the SQL database.
        options: How the relay works.
        wakeups: Tells relays of other processes; None: they find out by looking.
    """

    def __init__(
        self,
        executor: Executor,
        options: Optional[RelayOptions] = None,
        wakeups: Optional[Wakeups] = None,
    ) -> None:
        self._executor = executor
        self._wakeups = wakeups
        self.targets = TargetRegistry()
        #: What units and relays of this process have done, for metrics.
        self.counters = Counters()
        self.relay = Relay(executor, self.targets, options, self.counters, wakeups)

    def register(self, name: str, apply: Apply) -> None:
        """Add a target that `apply(entry)` brings up to date."""
        self.targets.register(Target(name, apply))

    # --- of units of work ---------------------------------------------------------------------------------------

    def committed(self, targets: Iterable[str]) -> None:
        """Told by a unit of work after COMMIT which targets have something new."""
        names = list(targets)
        for name in names:
            self.counters.add("staged", name)
            if self._wakeups is not None:
                self._wakeups.notify(channel_of(name))
        self.relay.wake(names)

    async def wait_for_progress(self, timeout_s: float) -> None:
        """Return when a relay of this process has applied something, or after `timeout_s` seconds."""
        await self.relay.wait_for_progress(timeout_s)

    # --- looking after it ---------------------------------------------------------------------------------------

    async def stats(self) -> OutboxStats:
        """Return what waits, by target: pending, parked, and the age of the oldest."""
        return await self._executor.run(stats)

    async def get(self, address: OutboxKey) -> Optional[OutboxRecord]:
        """Return a key (tenant, target, kind, key), None when the outbox does not know it."""
        return await self._executor.run(show, address)

    async def stream(
        self, state: str = "pending", *, target: str = "", after: Optional[OutboxKey] = None
    ) -> AsyncIterator[OutboxRecord]:
        """Yield the keys in a state, by tenant, target, kind and key.

        Args:
            state: pending, parked or done.
            target: Only those; "": of all targets.
            after: Only keys behind this one (tenant, target, kind, key).
        """
        if state not in _STATES:
            raise InvalidValueError(f"the state of a key is one of {', '.join(_STATES)}")
        last: OutboxKey = ("", "", "", "") if after is None else after
        while True:
            page = await self._executor.run(list_records, state, target, last, _PAGE)
            for record in page:
                yield record
            if len(page) < _PAGE:
                return
            last = page[-1].address

    async def redrive(self, addresses: Sequence[OutboxKey]) -> int:
        """Have parked keys tried again from the first attempt; returns how many were parked."""
        count = await self._executor.run(redrive, addresses)
        self.relay.wake(sorted({address[1] for address in addresses}))
        return count

    async def discard(self, addresses: Sequence[OutboxKey]) -> int:
        """Give keys up: what is staged for them will not be applied. Returns how many were dirty."""
        return await self._executor.run(discard, addresses)

    async def drain(self, timeout_s: float = 60.0) -> OutboxStats:
        """Return when nothing is pending for the targets of this process; runs a relay of its own meanwhile.

        Returns:
            What is left: parked keys, and those of other processes' targets.

        Raises:
            DeadlineExceededError: not within `timeout_s` seconds.
        """
        relay = Relay(self._executor, self.targets, self.relay.options, self.counters)
        running = asyncio.create_task(relay.run())
        end = asyncio.get_running_loop().time() + timeout_s
        try:
            while True:
                now = await self.stats()
                mine = self._pending_of(now.targets)
                if not mine:
                    return now
                if asyncio.get_running_loop().time() >= end:
                    raise DeadlineExceededError(
                        f"{mine} keys are still pending after {timeout_s:g} s; they stay in the outbox"
                    )
                if running.done():
                    running.result()
                await relay.wait_for_progress(0.05)
        finally:
            running.cancel()
            await asyncio.wait({running})

    def _pending_of(self, found: Dict[str, Any]) -> int:
        return sum(found[name].pending for name in self.targets.names if name in found)

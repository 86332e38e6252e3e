"""The relay: claims dirty keys, applies them to their targets and acknowledges. Any number may run, in any processes.

One lane for each target, so that a target that is away holds up no other. In a lane many keys are under way at once, each
with a deadline of its own; one that takes long gives its place to the next, so that a hanging key holds up no other either.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Dict, Optional, Sequence

from modules.storage.operations import Executor
from modules.storage.outbox_lane import Lane
from modules.storage.outbox_options import Counters, RelayOptions
from modules.storage.outbox_targets import TargetRegistry
from modules.storage.outbox_upkeep import purge_done
from modules.storage.unit_keys import purge_keys
from modules.store_common import failpoints
from modules.store_common.deadlines import within
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.storage.backends.wakeups import Wakeups

__all__ = ["Relay", "channel_of"]

logger = logging.getLogger(__name__)

_PURGE_BATCH = 1000
_PURGE_EVERY_S = 30.0
# Longest wait for a wake-up, and pause before listening again after an error, in seconds; lanes look by themselves too.
_LISTEN_S = 60.0
_LISTEN_AGAIN_S = 5.0
_BEGIN_AGAIN_S = 0.5


def channel_of(target: str) -> str:
    """Return the channel of wake-ups on which a target's relays are told that something was staged."""
    return f"outbox:{target}"


class Relay:
    """Brings targets up to date.

    Args:
        executor: Of the SQL database.
        targets: Those that this process can reach; entries of others are left to other processes.
        options: How.
        counters: What it did.
        wakeups: Tells of what other processes have staged; None: found out by looking.
    """

    def __init__(
        self,
        executor: Executor,
        targets: TargetRegistry,
        options: Optional[RelayOptions] = None,
        counters: Optional[Counters] = None,
        wakeups: Optional[Wakeups] = None,
    ) -> None:
        self.executor = executor
        self.options = RelayOptions() if options is None else options
        self.counters = Counters() if counters is None else counters
        self._targets = targets
        self._wakeups = wakeups
        self._lanes: Dict[str, Lane] = {}
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._changed: Optional[asyncio.Event] = None
        self._progress: Optional[asyncio.Event] = None
        targets.add_listener(self._target_added)

    async def run(self) -> None:
        """Relay for ever; ended by cancelling its task. What was claimed and not begun is given back."""
        self._loop = asyncio.get_running_loop()
        self._changed, self._progress = asyncio.Event(), asyncio.Event()
        tasks: Dict[str, asyncio.Task[None]] = {"": asyncio.create_task(self._purge_for_ever())}
        try:
            while True:
                self._changed.clear()
                for name in self._targets.names:
                    if name not in tasks:
                        lane = self._lanes[name] = self._lane(name)
                        tasks[name] = asyncio.create_task(
                            self._keep_running(name, lane), name=f"atlas-storage-relay-{name}"
                        )
                        tasks[f" {name}"] = asyncio.create_task(self._listen(name, lane))
                await self._changed.wait()
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
            self._lanes.clear()
            self._loop = None

    def _lane(self, name: str) -> Lane:
        target = self._targets.require(name)
        return Lane(target, self.executor, self.options, self.counters, self.note_progress)

    def wake(self, targets: Sequence[str]) -> None:
        """Look at once whether there is something for `targets`; from any thread or loop."""
        if self._loop is None or self._loop.is_closed():
            return
        for name in targets:
            lane = self._lanes.get(name)
            if lane is not None:
                self._loop.call_soon_threadsafe(lane.tell)

    async def wait_for_progress(self, timeout_s: float) -> None:
        """Return when something was applied, or after `timeout_s` seconds."""
        progress = self._progress
        if progress is None or self._loop is not asyncio.get_running_loop():
            await asyncio.sleep(timeout_s)
            return
        try:
            await within(progress.wait(), timeout_s)
        except asyncio.TimeoutError:
            return

    def note_progress(self) -> None:
        """Let those go on who wait for progress."""
        if self._progress is not None:
            self._progress.set()
            self._progress = asyncio.Event()

    async def _keep_running(self, name: str, lane: Lane) -> None:
        """Run a lane; a defect of ours ends neither it nor the others, but is told and begun again after a pause."""
        while True:
            try:
                if failpoints.armed:
                    await failpoints.meet("relay.starting")
                await lane.run()
            except Exception as exc:
                logger.exception(
                    "storage.outbox.lane_failed", extra={"store": name, "error_type": type(exc).__name__}
                )
            await asyncio.sleep(_BEGIN_AGAIN_S)

    async def _listen(self, name: str, lane: Lane) -> None:
        """Wake a lane when another process says that something was staged for it."""
        while self._wakeups is not None:
            try:
                async with self._wakeups.subscribe(channel_of(name)) as subscription:
                    while True:
                        if await subscription.wait(_LISTEN_S):
                            lane.tell()
            except StorageError as exc:
                logger.warning("storage.outbox.not_listening", extra={"error_type": type(exc).__name__})
            await asyncio.sleep(_LISTEN_AGAIN_S)

    def _target_added(self) -> None:
        if self._loop is not None and self._changed is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def _purge_for_ever(self) -> None:
        while True:
            try:
                await self.purge()
            except StorageError as exc:
                logger.warning("storage.outbox.purge_failed", extra={"error_type": type(exc).__name__})
            await asyncio.sleep(_PURGE_EVERY_S)

    async def purge(self) -> int:
        """Remove what has been done for long enough, in bounded batches; returns how many rows."""
        removed = 0
        if failpoints.armed:
            await failpoints.meet("relay.purging")
        while True:
            count = await self.executor.run(purge_done, self.options.keep_done_s, _PURGE_BATCH)
            removed += count
            if count < _PURGE_BATCH:
                break
        while self.options.keep_keys_s:
            count = await self.executor.run(purge_keys, self.options.keep_keys_s, _PURGE_BATCH)
            removed += count
            if count < _PURGE_BATCH:
                break
        return removed

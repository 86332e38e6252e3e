"""One target's part of a relay: claims its dirty keys, applies them side by side, acknowledges.

Each apply has a deadline of its own; one that takes long gives its place to the next, so that a hanging key holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, List, Optional, Sequence, Set, Tuple

from modules.storage.operations import Executor
from modules.storage.outbox_options import Counters, RelayOptions
from modules.storage.outbox_queue import (
    NEVER,
    OutboxEntry,
    OutboxKey,
    again,
    claim,
    fail,
    finish,
    release,
)
from modules.storage.outbox_targets import Target
from modules.storage.outbox_upkeep import due_in, renew
from modules.storage.unit_tasks import to_the_end
from modules.store_common import failpoints
from modules.store_common.backoff import full_jitter
from modules.store_common.deadlines import within
from modules.store_common.errors import StorageError, UnavailableError
from modules.store_common.ids import new_id

__all__ = ["Lane"]

logger = logging.getLogger(__name__)

# A claim is renewed this often (as a share of the lease) while its entries are being applied.
_RENEW_SHARE = 0.33
# Entries of one claim at most.
_CLAIM_LIMIT = 256


class Lane:
    """Lives on one event loop.

    Args:
        target: Where to.
        executor: Of the SQL database.
        options: How.
        counters: What it did.
        note_progress: Called when something was applied.
    """

    def __init__(
        self,
        target: Target,
        executor: Executor,
        options: RelayOptions,
        counters: Counters,
        note_progress: Callable[[], None],
    ) -> None:
        self._target = target
        self._executor = executor
        self._options = options
        self._counters = counters
        self._note_progress = note_progress
        self._token = new_id()
        self._news: Optional[asyncio.Event] = None
        self._active = 0
        self._flying: Dict[Tuple[int, OutboxKey], Tuple[OutboxEntry, float]] = {}
        self._ready: Deque[List[OutboxEntry]] = deque()
        self._tasks: Set[asyncio.Task[None]] = set()
        self._done: List[OutboxEntry] = []
        self._failed: List[Tuple[OutboxEntry, str, int]] = []
        self._troubles = 0
        # the last claim took as many as it could: there may be more, and nobody need ask first
        self._more = False

    def tell(self) -> None:
        """Something was staged: claim at once, without asking first."""
        self._more = True
        self.wake()

    def wake(self) -> None:
        """Look again."""
        if self._news is not None:
            self._news.set()

    async def run(self) -> None:
        """Claim, apply, acknowledge; for ever."""
        news = self._news = asyncio.Event()
        renewing = asyncio.create_task(self._renew_for_ever())
        try:
            while True:
                news.clear()
                try:
                    pause_s = await self._round()
                    self._troubles = 0
                except StorageError as exc:
                    pause_s = self._trouble(exc)
                if pause_s > 0:
                    await _wait(news, pause_s)
        finally:
            renewing.cancel()
            await self._end()

    async def _round(self) -> float:
        """Acknowledge what is finished and start what is due; returns how long to wait for news, in seconds."""
        await self._acknowledge()
        options = self._options
        self._launch()
        free = min(options.max_in_flight - len(self._flying), _CLAIM_LIMIT)
        if free <= 0 or len(self._ready) >= options.concurrency:
            return options.poll_s
        if not self._more:
            due_s = await self._executor.run(due_in, self._target.name)
            if due_s is None or due_s > 0:
                return options.poll_s if due_s is None else min(due_s, options.poll_s)
        if failpoints.armed:
            await failpoints.meet("relay.before_claim")
        entries = await to_the_end(self._claim(free))
        self._line_up(entries)
        self._more = len(entries) == free
        # none: another relay was faster, or a unit that is not yet committed holds the row
        return 0.0 if entries else min(0.05, options.poll_s)

    async def _claim(self, free: int) -> Sequence[OutboxEntry]:
        """Claim, and know of it even if the lane is ended meanwhile: `_end` gives back what is known to be held."""
        now = time.monotonic()
        entries = await self._executor.run(claim, self._target.name, self._token, free, self._options.lease_s)
        if failpoints.armed and entries:
            await failpoints.meet("relay.claimed")
        for entry in entries:
            self._flying[entry.fence, entry.address] = (entry, now)
        return entries

    def _trouble(self, exc: StorageError) -> float:
        self._troubles += 1
        logger.warning(
            "storage.outbox.relay_failed",
            extra={"store": self._target.name, "error_type": type(exc).__name__, "attempt": self._troubles},
        )
        return full_jitter(self._troubles, base_s=0.1, cap_s=5.0) + 0.01

    def _line_up(self, entries: Sequence[OutboxEntry]) -> None:
        together: List[OutboxEntry] = []
        for entry in entries:
            # what has failed before goes alone, so that it takes nobody along
            if self._target.apply_many is None or entry.attempts:
                self._ready.append([entry])
            else:
                together.append(entry)
        for first in range(0, len(together), self._target.batch):
            self._ready.append(together[first : first + self._target.batch])
        self._launch()

    def _launch(self) -> None:
        """Begin what is claimed, as far as there are places."""
        while self._ready and self._active < self._options.concurrency:
            self._spawn(self._ready.popleft())

    def _spawn(self, entries: List[OutboxEntry]) -> None:
        # the place is taken now, not when the task begins
        task = asyncio.create_task(self._work(entries, _Place(self, len(entries))))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, entries: List[OutboxEntry], place: _Place) -> None:
        try:
            if len(entries) > 1:
                left = await self._together(entries)
                if left:
                    place.give_up()
                    await asyncio.gather(*(self._alone(entry) for entry in left))
            else:
                await self._alone(entries[0])
        finally:
            place.give_up()
            self._launch()
            self.wake()

    async def _together(self, entries: List[OutboxEntry]) -> List[OutboxEntry]:
        """Apply several at once; returns those that have to go alone."""
        apply_many = self._target.apply_many
        if apply_many is None:
            return entries
        try:
            outcomes = await within(self._applied(apply_many(entries)), self._options.apply_timeout_s / 2)
        except Exception as exc:  # noqa: BLE001 - whatever it is, each of them gets its own attempt
            logger.info(
                "storage.outbox.batch_failed",
                extra={
                    "store": self._target.name,
                    "count": len(entries),
                    "error_type": type(exc).__name__,
                },
            )
            return entries
        left = []
        for entry, outcome in zip(entries, outcomes):
            if outcome is None:
                self._done.append(entry)
            else:
                left.append(entry)
        return left

    async def _alone(self, entry: OutboxEntry) -> None:
        # not `within`: a task of its own for each entry would cost as much as the rest of its delivery
        deadline = _Deadline(self._options.apply_timeout_s)
        try:
            await self._applied(self._target.apply(entry))
        except asyncio.CancelledError:
            if not deadline.passed:
                raise
            reason = f"no answer within {self._options.apply_timeout_s:g} s"
            self._failed.append((entry, reason, self._options.max_attempts))
        except Exception as exc:  # noqa: BLE001 - a failed attempt, whatever it is
            # a target that is away parks nothing
            most = NEVER if isinstance(exc, UnavailableError) else self._options.max_attempts
            self._failed.append((entry, _reason(exc), most))
        else:
            self._done.append(entry)
        finally:
            deadline.end()

    async def _applied(self, applying: Any) -> Any:
        if failpoints.armed:
            try:
                await failpoints.meet("relay.before_apply")
            except BaseException:
                applying.close()
                raise
        outcome = await applying
        if failpoints.armed:
            await failpoints.meet("relay.applied")
        return outcome

    async def _acknowledge(self) -> None:
        done, failed = self._done, self._failed
        self._done, self._failed = [], []
        try:
            if done:
                await to_the_end(self._finish(done))
                if failpoints.armed:
                    await failpoints.meet("relay.acknowledged")
            if failed:
                for limit in sorted({most for _, _, most in failed}):
                    these = [(entry, reason) for entry, reason, most in failed if most == limit]
                    await self._executor.run(fail, these, limit)
                self._forget([entry for entry, _, _ in failed])
                self._count_failures(failed)
                failed = []
        finally:
            # what could not be written is tried again in the next round
            self._done += done
            self._failed += failed

    async def _finish(self, done: List[OutboxEntry]) -> None:
        lost = await self._executor.run(finish, done)
        if lost:
            await self._executor.run(again, lost)
        self._counters.add("applied", self._target.name, len(done) - len(lost))
        self._counters.add("lost", self._target.name, len(lost))
        self._forget(done)
        done.clear()
        self._note_progress()

    def _count_failures(self, failed: Sequence[Tuple[OutboxEntry, str, int]]) -> None:
        self._counters.add("failed", self._target.name, len(failed))
        for entry, _, most in failed:
            if entry.attempts + 1 >= most:
                self._counters.add("parked", self._target.name)
                logger.error(
                    "storage.outbox.parked",
                    extra={
                        "store": self._target.name,
                        "tenant_id": entry.tenant_id,
                        "attempt": entry.attempts + 1,
                    },
                )

    def _forget(self, entries: Sequence[OutboxEntry]) -> None:
        for entry in entries:
            self._flying.pop((entry.fence, entry.address), None)

    async def _renew_for_ever(self) -> None:
        """Keep the claims of what is being applied, for as long as an apply may take."""
        options = self._options
        while True:
            await asyncio.sleep(options.lease_s * _RENEW_SHARE)
            youngest = time.monotonic() - 2 * options.apply_timeout_s
            held = [entry for entry, since in self._flying.values() if since > youngest]
            if not held:
                continue
            try:
                await self._executor.run(renew, held, options.lease_s)
            except StorageError as exc:
                self._trouble(exc)

    async def _end(self) -> None:
        """Cancel what is under way; acknowledge what was applied and give the rest back, if the database lets us."""
        self._ready.clear()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        self._failed.clear()
        done = {(entry.fence, entry.address) for entry in self._done}
        rest = [entry for entry, _ in self._flying.values() if (entry.fence, entry.address) not in done]
        try:
            await self._acknowledge()
            if rest:
                await self._executor.run(release, rest)
        except StorageError as exc:
            self._trouble(exc)


class _Deadline:
    """Cancels the task that made it after `seconds`, unless it was ended before."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._pass)

    def _pass(self) -> None:
        self.passed = True
        if self._task is not None:
            self._task.cancel()

    def end(self) -> None:
        """It is no longer needed."""
        self._timer.cancel()


class _Place:
    """A place among the applies that are under way; given up when the apply is over, or when it takes long."""

    def __init__(self, lane: Lane, count: int) -> None:
        self._lane = lane
        self._count = count
        lane._active += count
        self._timer = asyncio.get_running_loop().call_later(lane._options.slow_after_s, self.give_up)

    def give_up(self) -> None:
        """Let others have it; harmless twice."""
        if self._count:
            self._timer.cancel()
            self._lane._active -= self._count
            self._count = 0
            self._lane.wake()


async def _wait(news: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await within(news.wait(), seconds)


def _reason(exc: Exception) -> str:
    # messages of ours hold no secret and no stored value; those of others might
    return f"{type(exc).__name__}: {exc}" if isinstance(exc, StorageError) else type(exc).__name__

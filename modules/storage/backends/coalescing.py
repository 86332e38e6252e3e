"""Calls of one operation that wait at the same time become one statement (ACCESS_PATH item 14).

A lone call goes at once, by itself. While calls are under way, later ones of the same operation gather; when a place is
free they leave together through the operation's `batch` form, at the end of the loop's turn: the callers of the batch
that has just ended come back in that turn and go along. (Without that the first of them went alone and the others waited
for it: kv set at 64 tasks 22,600/s instead of 34,200/s, p99 7.3 instead of 2.7 ms.) Each caller gets its own result or
error. A batch that fails as a whole (one of them broke a rule) is run again one by one, so that only the culprit gets the
error.

Those who leave together are spread over the free places: as one batch, the loop and the server would work by turns. At 64
tasks on an idle machine kv get 22,700/s instead of 16,100/s, kv set 12,800/s instead of 9,900/s, append 5,400/s instead of
4,400/s.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from math import ceil
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Deque, Dict, Hashable, List, Sequence, Set, Tuple

from modules.store_common.errors import DeadlineExceededError, OverloadedError, StorageError, UnavailableError

if TYPE_CHECKING:
    from modules.storage.operations import Operation

__all__ = ["Coalescer", "RunBatch", "RunOne"]

_MAX_BATCH = 256
# Fewer are not spread: a statement costs something, too.
_MIN_SPREAD = 8
_Waiting = Tuple[Tuple[Any, ...], "asyncio.Future[Any]", float]
#: Runs one call: (operation, args, deadline).
RunOne = Callable[["Operation[Any, Any]", Tuple[Any, ...], float], Awaitable[Any]]
#: Runs many calls as one: (operation, list of args, deadline) -> outcomes.
RunBatch = Callable[["Operation[Any, Any]", Sequence[Tuple[Any, ...]], float], Awaitable[Sequence[Any]]]


class _Lane:
    """The calls of one operation.

    Attributes:
        under_way: Statements that run.
        waiting: Calls that wait.
        crowded: The last to leave were several: the next will not be alone either.
        departing: The end of this turn of the loop sends away those who wait.
    """

    __slots__ = ("crowded", "departing", "under_way", "waiting")

    def __init__(self) -> None:
        self.under_way = 0
        self.crowded = False
        self.departing = False
        self.waiting: Deque[_Waiting] = deque()


class Coalescer:
    """Gathers calls on one event loop.

    Args:
        run_one: Runs a call by itself.
        run_batch: Runs calls together.
        places: How many statements of one operation may be under way at once.
        max_waiting: Calls of one operation that may wait; further ones fail at once.
    """

    def __init__(self, run_one: RunOne, run_batch: RunBatch, *, places: int, max_waiting: int) -> None:
        self._run_one = run_one
        self._run_batch = run_batch
        self._places = places
        self._max_waiting = max_waiting
        self._lanes: Dict[Operation[Any, Any], _Lane] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks: Set[asyncio.Task[None]] = set()

    async def call(self, operation: Operation[Any, Any], args: Tuple[Any, ...], deadline: float) -> Any:
        """Run a call, alone or in company.

        Args:
            operation: Has a `batch` form.
            args: Of this call, without the transaction.
            deadline: Monotonic time in seconds.
        """
        lane = self._lanes.get(operation)
        if lane is None:
            lane = self._lanes[operation] = _Lane()
        if lane.under_way < self._places and not lane.waiting:
            if not lane.crowded:
                lane.under_way += 1
                try:
                    return await self._run_one(operation, args, deadline)
                finally:
                    self._leave(operation, lane)
            self._depart_soon(operation, lane)
        if len(lane.waiting) >= self._max_waiting:
            raise OverloadedError(
                f"{len(lane.waiting)} calls of {operation.name} wait already; slow down and try again"
            )
        future: asyncio.Future[Any] = self._loop.create_future()
        timer = self._loop.call_later(max(0.0, deadline - time.monotonic()), _expire, future)
        lane.waiting.append((args, future, deadline))
        try:
            return await future
        finally:
            timer.cancel()

    async def drain(self) -> None:
        """Wait for the batches under way."""
        while self._tasks or any(lane.departing for lane in self._lanes.values()):
            if self._tasks:
                await asyncio.wait(set(self._tasks))
            else:
                await asyncio.sleep(0)

    def _leave(self, operation: Operation[Any, Any], lane: _Lane) -> None:
        """Free a place for those who wait."""
        lane.under_way -= 1
        if lane.waiting:
            self._depart_soon(operation, lane)

    def _depart_soon(self, operation: Operation[Any, Any], lane: _Lane) -> None:
        if not lane.departing:
            lane.departing = True
            self._loop.call_soon(self._depart, operation, lane)

    def _depart(self, operation: Operation[Any, Any], lane: _Lane) -> None:
        """Fill the free places with those who wait."""
        lane.departing = False
        lane.crowded = len(lane.waiting) > 1
        share = ceil(len(lane.waiting) / max(1, self._places - lane.under_way))
        limit = min(max(share, _MIN_SPREAD), _MAX_BATCH)
        while lane.waiting and lane.under_way < self._places:
            batch = self._next_batch(operation, lane, limit)
            if not batch:
                return
            lane.under_way += 1
            task = self._loop.create_task(self._go(operation, lane, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next_batch(self, operation: Operation[Any, Any], lane: _Lane, limit: int) -> List[_Waiting]:
        """Take up to `limit` waiting calls in order, up to the first that conflicts with one taken."""
        batch: List[_Waiting] = []
        keys: Set[Hashable] = set()
        conflict_key = operation.conflict_key
        while lane.waiting and len(batch) < limit:
            if lane.waiting[0][1].done():
                lane.waiting.popleft()
                continue
            if conflict_key is not None:
                key = conflict_key(*lane.waiting[0][0])
                if key in keys:
                    break
                keys.add(key)
            batch.append(lane.waiting.popleft())
        return batch

    async def _go(self, operation: Operation[Any, Any], lane: _Lane, batch: List[_Waiting]) -> None:
        try:
            if len(batch) == 1:
                await self._settle_alone(operation, batch[0])
            else:
                await self._settle_together(operation, batch)
        except BaseException as exc:
            for _, future, _ in batch:
                if not future.done():
                    future.set_exception(UnavailableError("the call's batch was cancelled; try again"))
            if not isinstance(exc, Exception):
                raise
        finally:
            self._leave(operation, lane)

    async def _settle_together(self, operation: Operation[Any, Any], batch: List[_Waiting]) -> None:
        # the longest patience counts for the statement; each caller's own timer ends its own wait
        deadline = max(item[2] for item in batch)
        try:
            outcomes = await self._run_batch(operation, [args for args, _, _ in batch], deadline)
        except (UnavailableError, DeadlineExceededError) as exc:
            for _, future, _ in batch:
                _finish(future, exc)
        except Exception:  # noqa: BLE001 - one of them is at fault: each again by itself gets its own error
            for item in batch:
                await self._settle_alone(operation, item)
        else:
            for (_, future, _), outcome in zip(batch, outcomes):
                _finish(future, outcome)

    async def _settle_alone(self, operation: Operation[Any, Any], item: _Waiting) -> None:
        args, future, deadline = item
        if future.done():
            return
        try:
            _finish(future, await self._run_one(operation, args, deadline))
        except Exception as exc:  # noqa: BLE001 - raised to the caller who waits
            _finish(future, exc)


def _finish(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, BaseException):
        future.set_exception(_own_copy(outcome))
    else:
        future.set_result(outcome)


def _own_copy(error: BaseException) -> BaseException:
    """Return an exception for one caller: the same object raised in many tasks would mix up their tracebacks."""
    if not isinstance(error, StorageError):
        return error
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    copy.constraint = error.constraint
    return copy


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(
            DeadlineExceededError(
                "the PostgreSQL call did not end within its deadline; a write may or may not have been applied"
            )
        )

"""Room: subscribers. Every event of a task, in order, to each of them, however often processes start and end.

A subscriber is a name. From the first call with it on, every change of a task marks the task as unread for it, in the
transaction of the change (`modules.storage.outbox_queue`); what is read is forgotten once it was worked off. So events
are delivered at least once, in order for each task, in several processes side by side (each task to one of them at a
time), and only after their transaction has committed.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from contextlib import asynccontextmanager, suppress
from typing import AsyncGenerator, AsyncIterator, Awaitable, Callable, List, Optional, Union

from sqlalchemy import BigInteger, String, bindparam, select

from modules.storage.operations import Executor, Transaction, read
from modules.storage.outbox_queue import OutboxEntry, SubscriberQueue
from modules.storage.statements import Statement
from modules.store_common.backoff import full_jitter
from modules.store_common.errors import InvalidValueError, StorageError
from modules.task_store.models import TaskEventRow
from modules.task_store.noting import topic_of
from modules.task_store.records import TaskEvent
from modules.task_store.room import TaskRoom, WakeUps
from modules.task_store.rows import EVENT_COLUMNS, to_event

__all__ = ["EventHandler", "Subscriptions", "TaskSubscriber", "unread"]

logger = logging.getLogger(__name__)

#: Gets each event; a plain function runs on the event loop, so it must not block.
EventHandler = Callable[[TaskEvent], Union[Awaitable[None], None]]

_E = TaskEventRow
_UNREAD = Statement(
    select(*EVENT_COLUMNS)
    .where(
        _E.tenant_id == bindparam("tenant_id", type_=String()),
        _E.task_id == bindparam("task_id", type_=String()),
        _E.sequence > bindparam("applied", type_=BigInteger),
        _E.sequence <= bindparam("version", type_=BigInteger),
    )
    .order_by(_E.sequence)
)
# Tasks taken at once: few, so that a slow subscriber does not hold what others could do.
_TASKS_AT_ONCE = 20
# How often to look when nobody tells of changes, in seconds.
_POLL_S = 1.0
# Bounds of the pause after the database was away, in seconds.
_BASE_S = 0.5
_CAP_S = 30.0


@read
async def unread(tx: Transaction, entry: OutboxEntry) -> List[TaskEvent]:
    """Return the events of a claimed task that its subscriber has not worked off, in order."""
    rows = await tx.all(
        _UNREAD, tenant_id=entry.tenant_id, task_id=entry.key, applied=entry.applied, version=entry.version
    )
    return [to_event(row) for row in rows]


class TaskSubscriber:
    """One subscriber's place in the events of a topic.

    Args:
        executor: A pool's executor.
        topic: Of one tenant, or of all.
        name: The subscriber's.
        lease_seconds: How long tasks that were taken and not worked off stay with this process.
        poll_seconds: How often to look for more; None: as often as the wake-ups suggest.
        wakeups: Tells of changes; None: they are found by looking.
    """

    def __init__(
        self,
        executor: Executor,
        topic: str,
        name: str,
        lease_seconds: float,
        poll_seconds: Optional[float] = None,
        wakeups: Optional[WakeUps] = None,
    ) -> None:
        if poll_seconds is not None and not 0 < poll_seconds <= 86_400:
            raise InvalidValueError("poll_seconds must be more than 0 and at most 86,400")
        if not 0 < lease_seconds <= 86_400:
            raise InvalidValueError("lease_seconds must be more than 0 and at most 86,400")
        self._executor = executor
        self._queue = SubscriberQueue(executor, topic, name)
        self._topic = topic
        self._lease_s = lease_seconds
        self._poll_s = poll_seconds
        self._wakeups = wakeups
        self._failing = False

    async def stream(self, follow: bool) -> AsyncGenerator[TaskEvent, None]:
        """Iterate over the events; one counts as worked off when the next is asked for."""
        await self._queue.subscribe()
        async with self._listening(follow) as pause:
            while True:
                taken = await self._take()
                if not taken:
                    if not follow:
                        return
                    await pause()
                while taken:
                    entry = taken[0]
                    done = entry.applied
                    finished = False
                    try:
                        for event in await self._executor.run(unread, entry):
                            yield event
                            done = event.sequence
                        finished = True
                    finally:
                        if not finished:
                            with suppress(StorageError):
                                # what cannot be given back now is free when its lease ends
                                await self._leave(entry, done, taken[1:])
                    await self._queue.finish([entry])
                    taken = await self._still_held(taken[1:])

    async def handle(self, handler: EventHandler, follow: bool) -> int:
        """Call `handler` with each event; returns how many it has worked off."""
        await self._queue.subscribe()
        count, failures = 0, 0
        async with self._listening(follow) as pause:
            while True:
                try:
                    taken = await self._take()
                    count += await self._work(taken, handler)
                    failures = 0
                except StorageError as exc:
                    if not follow or not exc.retryable:
                        raise
                    failures += 1
                    logger.warning(
                        "storage.tasks.subscriber_waits",
                        extra={"store": "tasks", "error_type": type(exc).__name__, "attempt": failures},
                    )
                    await asyncio.sleep(full_jitter(failures, base_s=_BASE_S, cap_s=_CAP_S))
                    continue
                if not taken:
                    if not follow:
                        return count
                    await pause()

    @asynccontextmanager
    async def _listening(self, follow: bool) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Give what waits until there may be more: for a wake-up, and at most as long as `_patience_s` says."""
        if self._wakeups is None or not follow:
            yield self._wait_alone
            return
        async with self._wakeups.subscribe(self._topic) as subscription:

            async def wait() -> None:
                await subscription.wait(self._patience_s)

            yield wait

    async def _wait_alone(self) -> None:
        await asyncio.sleep(self._patience_s)

    @property
    def _patience_s(self) -> float:
        """Seconds until the next look: nobody wakes for what is tried again after a handler failed."""
        if self._poll_s is not None:
            return self._poll_s
        if self._wakeups is None or self._failing:
            return _POLL_S
        return max(_POLL_S, self._wakeups.poll_s)

    async def unsubscribe(self) -> bool:
        """Forget the subscriber."""
        return await self._queue.unsubscribe()

    async def _take(self) -> List[OutboxEntry]:
        taken = await self._queue.claim(limit=_TASKS_AT_ONCE, lease_s=self._lease_s)
        self._half_over = time.monotonic() + self._lease_s / 2
        return taken

    async def _still_held(self, taken: List[OutboxEntry]) -> List[OutboxEntry]:
        """Give back what was taken if half of its time is over: it is taken anew, with a whole lease."""
        if taken and time.monotonic() > self._half_over:
            await self._queue.release(taken)
            return []
        return taken

    async def _leave(self, entry: OutboxEntry, done: int, others: List[OutboxEntry]) -> None:
        if done > entry.applied:
            await self._queue.finish_up_to(entry, done)
        else:
            others = [entry, *others]
        await self._queue.release(others)

    async def _work(self, taken: List[OutboxEntry], handler: EventHandler) -> int:
        count = 0
        while taken:
            entry = taken[0]
            done = entry.applied
            try:
                for event in await self._executor.run(unread, entry):
                    outcome = handler(event)
                    if inspect.isawaitable(outcome):
                        await outcome
                    done = event.sequence
                    count += 1
            except asyncio.CancelledError:
                await self._leave(entry, done, taken[1:])
                raise
            except Exception as exc:
                if isinstance(exc, StorageError) and exc.retryable:
                    with suppress(StorageError):
                        # the database may be away for this, too; then the lease gives it back
                        await self._leave(entry, done, taken[1:])
                    raise
                logger.exception(
                    "storage.tasks.subscriber_failed",
                    extra={"store": "tasks", "entity_id": entry.key, "attempt": entry.attempts + 1},
                )
                self._failing = True
                if done > entry.applied:
                    await self._queue.finish_up_to(entry, done)
                else:
                    await self._queue.fail(entry, type(exc).__name__)
            else:
                await self._queue.finish([entry])
            taken = await self._still_held(taken[1:])
        return count


class Subscriptions(TaskRoom):
    """Events for subscribers."""

    async def subscribe(
        self,
        name: str,
        *,
        follow: bool = True,
        poll_seconds: Optional[float] = None,
        lease_seconds: float = 60.0,
        tenant_id: Optional[str] = None,
    ) -> AsyncIterator[TaskEvent]:
        """Iterate over every event of the tenant's tasks since this name first subscribed, also across restarts.

        Events come at least once, those of one task in order, and only after their transaction has committed. One counts
        as worked off when the next is asked for: the one at which a loop is left comes again. Several processes may
        read under one name; each task goes to one of them at a time. Events whose transactions were under way when the
        name was new may be missing. When a task was deleted before its events were read, only "deleted" comes.

        Args:
            name: The subscriber's.
            follow: Wait for more when all are read; False ends the iteration there.
            poll_seconds: How often is looked for more, should a wake-up be missed; None: every 5 s on PostgreSQL while
                it tells of changes, else every second (on SQLite other processes cannot be heard).
            lease_seconds: After so long, tasks whose events were taken and not worked off (the process died, or was
                slower than that) go to whoever asks.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            StorageError: the database is away; iterate again, it goes on where this ended.
        """
        subscriber = self._subscriber(name, tenant_id, lease_seconds, poll_seconds)
        events = subscriber.stream(follow)
        try:
            async for event in events:
                yield event
        finally:
            await events.aclose()

    async def handle_events(
        self,
        name: str,
        handler: EventHandler,
        *,
        follow: bool = True,
        poll_seconds: Optional[float] = None,
        lease_seconds: float = 60.0,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Call `handler` with every event, as `subscribe` gives them, until the calling task is cancelled.

        When it raises, the task's events come again later, after a pause that grows, and the events of other tasks go on;
        after eight failures in a row the task is parked with the reason (see `atlas-storage outbox`). A database that is
        away is waited for.

        Args:
            name: The subscriber's.
            handler: `async def f(event)`, or a plain function that does not block.
            follow: False returns when all events are read.
            poll_seconds: As in `subscribe`.
            lease_seconds: As in `subscribe`.
            tenant_id: Whose; see `TenantPolicy`.

        Returns:
            How many events were worked off.
        """
        subscriber = self._subscriber(name, tenant_id, lease_seconds, poll_seconds)
        return await subscriber.handle(handler, follow)

    async def unsubscribe(self, name: str, *, tenant_id: Optional[str] = None) -> bool:
        """Forget a subscriber and what it has not read; whether there was one."""
        return await self._subscriber(name, tenant_id, 1.0, None).unsubscribe()

    def _subscriber(
        self, name: str, tenant_id: Optional[str], lease_seconds: float, poll_seconds: Optional[float]
    ) -> TaskSubscriber:
        topic = topic_of(self._tenant(tenant_id))
        return TaskSubscriber(self._executor, topic, name, lease_seconds, poll_seconds, self._wakeups)

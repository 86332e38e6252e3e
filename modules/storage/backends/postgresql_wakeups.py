"""Wake-ups across processes by PostgreSQL's LISTEN and NOTIFY.

Sending: after a commit, and for many commits together: at most one statement in 20 ms and event loop. Not in the
transaction itself, because the commits of transactions that notify wait for each other (PostgreSQL holds one lock for the
order of all notifications of a database).

Listening: one connection for each event loop on which somebody waits, out of the same budget as the pool's. When it breaks
it is opened again, with back-off, and everybody is woken once, as something may have been missed. Without it (no room in
the budget, a transaction pooler in front, where LISTEN has no session to live in) everybody looks more often.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Set

from sqlalchemy import BigInteger, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.storage.backends.postgresql_connection import connect
from modules.storage.backends.postgresql_errors import DRIVER_ERRORS
from modules.storage.backends.wakeups import Subscription, Wakeups
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from modules.store_common.backoff import full_jitter
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import StorageError
from modules.store_common.ids import new_id

if TYPE_CHECKING:
    import asyncpg

    from modules.storage.backends.postgresql_executor import PostgresExecutor

__all__ = ["PostgresWakeups", "send_wakeups"]

logger = logging.getLogger(__name__)

_CHANNEL = "atlas_wakeups"
# How often to look at all the same: with a listening connection, and without one; in seconds.
_POLL_LISTENING_S = 5.0
_POLL_ALONE_S = 1.0
_DEBOUNCE_S = 0.02
# A listening connection that is silent for this long is asked whether it lives, in seconds.
_PING_EVERY_S = 15.0
_PING_TIMEOUT_S = 5.0
_RECONNECT_BASE_S = 0.1
_RECONNECT_CAP_S = 15.0
_CLOSE_TIMEOUT_S = 1.0
# With fewer connections than this, all of them are for the pool.
_LEAST_BUDGET = 2

_NOTIFY = Statement(
    postgresql=text(
        "SELECT count(pg_notify('atlas_wakeups', w.payload)) AS n FROM unnest(:payloads) AS w (payload)"
    )
    .bindparams(bindparam("payloads", type_=ARRAY(Text())))
    .columns(n=BigInteger)
)


@write(atomic=False)
async def send_wakeups(tx: Transaction, payloads: List[str]) -> None:
    """Tell every process that listens."""
    await tx.all(_NOTIFY, payloads=payloads)


class PostgresWakeups(Wakeups):
    """Wakes those who wait on a channel, in every process on the same database.

    Args:
        executor: Of the database.
    """

    def __init__(self, executor: PostgresExecutor) -> None:
        super().__init__()
        self._executor = executor
        self._name = new_id()
        self._pending: Dict[asyncio.AbstractEventLoop, Set[str]] = {}
        self._senders: Dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._listeners: Dict[asyncio.AbstractEventLoop, _Listener] = {}

    @property
    def poll_s(self) -> float:
        """5 s while the listening connection of this event loop is up, 1 s without it."""
        listener = self._listeners.get(asyncio.get_running_loop())
        return _POLL_LISTENING_S if listener is not None and listener.is_up else _POLL_ALONE_S

    def notify(self, channel: str) -> None:
        """Wake everybody who waits on `channel`, here at once, in other processes within some milliseconds."""
        self._wake(channel)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            # outside of a loop nothing can be sent; other processes find out by looking
            return
        self._pending.setdefault(loop, set()).add(channel)
        sender = self._senders.get(loop)
        if (sender is None or sender.done()) and not self._closed:
            self._senders[loop] = loop.create_task(self._send(loop), name="atlas-storage-wakeups-send")

    async def close(self) -> None:
        """Stop listening and sending, on every event loop; wakes everybody here for the last time."""
        await super().close()
        here = asyncio.get_running_loop()
        listeners, self._listeners = self._listeners, {}
        senders, self._senders = self._senders, {}
        for loop, task in [(key, value.task) for key, value in listeners.items()] + list(senders.items()):
            if loop is here:
                task.cancel()
                await asyncio.wait([task], timeout=_CLOSE_TIMEOUT_S + 1.0)
            elif loop.is_running():
                loop.call_soon_threadsafe(task.cancel)

    async def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._pending.get(loop):
            channels = self._pending.pop(loop)
            try:
                await self._executor.run(send_wakeups, [f"{self._name} {channel}" for channel in channels])
            except StorageError as exc:
                # they look by themselves
                logger.debug(
                    "storage.wakeups.not_sent",
                    extra={"backend": "postgresql", "error_type": type(exc).__name__},
                )
            await asyncio.sleep(_DEBOUNCE_S)

    def _add(self, subscription: Subscription) -> None:
        super()._add(subscription)
        loop = asyncio.get_running_loop()
        for gone in [other for other in self._listeners if other.is_closed()]:
            del self._listeners[gone]
        if loop not in self._listeners and not self._executor.options.transaction_pooling:
            self._listeners[loop] = _Listener(self, self._executor)

    async def _remove(self, subscription: Subscription) -> None:
        await super()._remove(subscription)
        loop = asyncio.get_running_loop()
        if loop in self._listeners and not any(s.loop is loop for s in self._all()):
            listener = self._listeners.pop(loop)
            listener.task.cancel()
            await asyncio.wait([listener.task], timeout=_CLOSE_TIMEOUT_S + 1.0)

    def heard(self, payload: str) -> None:
        """Wake those who wait on the channel that another process named."""
        sender, _, channel = payload.partition(" ")
        if sender != self._name:
            self._wake(channel)

    def wake_all(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake everybody on `loop`: something may have been missed."""
        for subscription in self._all():
            if subscription.loop is loop:
                subscription.wake(subscription.channels)


class _Listener:
    """The listening connection of one event loop, kept up by a task until that is cancelled."""

    def __init__(self, wakeups: PostgresWakeups, executor: PostgresExecutor) -> None:
        self._wakeups = wakeups
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self.is_up = False
        self.task = self._loop.create_task(self._keep_up(), name="atlas-storage-wakeups-listen")

    async def _keep_up(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            try:
                await self._listen()
            except (StorageError, *DRIVER_ERRORS) as exc:
                logger.info(
                    "storage.wakeups.not_listening",
                    extra={
                        "backend": "postgresql",
                        "error_type": type(exc).__name__,
                        "attempt": failures + 1,
                    },
                )
            failures = 1 if time.monotonic() - began > _RECONNECT_CAP_S else failures + 1
            await asyncio.sleep(full_jitter(failures, base_s=_RECONNECT_BASE_S, cap_s=_RECONNECT_CAP_S))

    async def _listen(self) -> None:
        """Listen until the connection breaks."""
        budget = self._executor.budget
        if budget.limit < _LEAST_BUDGET or not budget.take():
            return
        connection: Optional[asyncpg.Connection[Any]] = None
        try:
            options = self._executor.options
            connection = await connect(options, deadline_after(options.connect_timeout_s))
            broken = asyncio.Event()
            connection.add_termination_listener(lambda _: broken.set())
            await connection.add_listener(_CHANNEL, self._heard)
            self.is_up = True
            self._wakeups.wake_all(self._loop)
            while not connection.is_closed():
                try:
                    await asyncio.wait_for(broken.wait(), _PING_EVERY_S)
                except asyncio.TimeoutError:
                    await connection.execute("SELECT 1", timeout=_PING_TIMEOUT_S)
        finally:
            self.is_up = False
            try:
                if connection is not None:
                    await _close(connection)
            finally:
                budget.give()

    def _heard(self, connection: Any, pid: int, channel: str, payload: object) -> None:
        self._wakeups.heard(str(payload))


async def _close(connection: asyncpg.Connection[Any]) -> None:
    try:
        await asyncio.wait_for(connection.close(timeout=_CLOSE_TIMEOUT_S), _CLOSE_TIMEOUT_S)
    except (asyncio.TimeoutError, *DRIVER_ERRORS):
        connection.terminate()
    finally:
        if not connection.is_closed():
            connection.terminate()

"""Streams of new messages and pages that stay current: each waits for a wake-up, and looks by itself for what nobody told.

What comes in by this API is told by `storage.wakeups`: at once in this process, and by NOTIFY in the other servers on the same
PostgreSQL. What a program writes into the database itself is found by looking: to tell of every message there would cost
a quarter of PostgreSQL's appends (measured), whether anybody reads streams or not.
"""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, AsyncIterator, Awaitable, Callable, Set

from modules.Server.gate import Traffic
from modules.Server.problems import ApiError
from modules.Server.replies import event

if TYPE_CHECKING:
    from modules.storage.backends.wakeups import Subscription
    from modules.storage.manager import StorageManager

__all__ = ["Feed"]

# Seconds between two looks without a wake-up: what a program wrote is seen within that time.
_LOOK_EVERY_S = 0.5
# Of all streams together: more streams look less often, so that idle ones do not fill the database with looks.
_MOST_LOOKS_PER_S = 400
# Seconds after which a silent stream says that it is alive, and sees whether its reader is.
_HEARTBEAT_S = 15.0
_PAGE = 200


class Feed:
    """The open streams.

    Args:
        storage: Where the messages are.
        traffic: Says when the server shuts down.
        most: Streams open at the same time.
    """

    def __init__(self, storage: StorageManager, traffic: Traffic, most: int) -> None:
        self._storage = storage
        self._traffic = traffic
        self._most = most
        self._open: Set[Subscription] = set()

    @property
    def open_streams(self) -> int:
        """How many are open."""
        return len(self._open)

    def wake(self, tenant_id: str, conversation_id: str) -> None:
        """Tell the streams of a conversation, and the pages of its tenant, that there is something new."""
        self._storage.wakeups.notify(_channel("messages", tenant_id, conversation_id))
        self.wake_pages(tenant_id)

    def wake_pages(self, tenant_id: str) -> None:
        """Let the open pages of a tenant look again."""
        self._storage.wakeups.notify(_channel("pages", tenant_id))

    def wake_all(self) -> None:
        """Wake every stream of this server: it shuts down."""
        for subscription in self._open:
            subscription.wake(subscription.channels)

    def admit(self) -> None:
        """Refuse a stream when there are too many.

        Raises:
            ApiError: there are.
        """
        if self.open_streams >= self._most or self._traffic.draining:
            raise ApiError(503, "overloaded", "too many event streams are open", retryable=True)

    @asynccontextmanager
    async def page(self, tenant_id: str) -> AsyncIterator[Subscription]:
        """Count a page's stream in the block; gives what tells when it should look again."""
        async with self._counted(_channel("pages", tenant_id)) as subscription:
            yield subscription

    async def messages(
        self,
        tenant_id: str,
        conversation_id: str,
        after_sequence: int,
        allowed: Callable[[], Awaitable[bool]],
    ) -> AsyncIterator[bytes]:
        """Iterate over the events of a conversation's messages after `after_sequence`, as long as it is `allowed`.

        An event's id is the sequence of its message, so that a client that comes back says where it was.
        """
        silent_s = 0.0
        async with self._counted(_channel("messages", tenant_id, conversation_id)) as subscription:
            yield b": open\n\n"
            while not self._traffic.draining and await allowed():
                page = await self._storage.conversations.fetch_messages(
                    conversation_id, after_sequence=after_sequence, limit=_PAGE, tenant_id=tenant_id
                )
                for message in page:
                    after_sequence = message.sequence
                    yield event(message.to_dict(), name="message", id=str(message.sequence))
                if page.next_cursor is not None:
                    continue
                pause_s = max(_LOOK_EVERY_S, self.open_streams / _MOST_LOOKS_PER_S)
                woken = await subscription.wait(pause_s)
                silent_s = 0.0 if len(page) or woken else silent_s + pause_s
                if silent_s >= _HEARTBEAT_S:
                    silent_s = 0.0
                    yield b": alive\n\n"

    @asynccontextmanager
    async def _counted(self, channel: str) -> AsyncIterator[Subscription]:
        async with self._storage.wakeups.subscribe(channel) as subscription:
            self._open.add(subscription)
            try:
                yield subscription
            finally:
                self._open.discard(subscription)


def _channel(kind: str, *names: str) -> str:
    """Return the channel of `kind` for these names: a digest, so that whoever may LISTEN reads no name of anybody."""
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        digest.update(name.encode())
        digest.update(b"\0")
    return f"{kind}:{digest.hexdigest()}"

"""Streams of new messages: each waits for a wake-up from this process, and looks by itself for what others write."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Iterator, Set, Tuple

from modules.Server.gate import Traffic
from modules.Server.problems import ApiError
from modules.Server.replies import event
from modules.store_common.deadlines import within

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["Feed"]

# Seconds between two looks without a wake-up: what another process wrote is seen within that time.
_LOOK_EVERY_S = 0.5
# Seconds after which a silent stream says that it is alive, and sees whether its reader is.
_HEARTBEAT_S = 15.0
_PAGE = 200
_Key = Tuple[str, str]


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
        self._waiting: Dict[_Key, Set[asyncio.Event]] = {}
        self._pages: Set[asyncio.Event] = set()
        self.open_streams = 0

    def wake(self, tenant_id: str, conversation_id: str) -> None:
        """Tell the streams of a conversation that it has something new."""
        for waiting in (*self._waiting.get((tenant_id, conversation_id), ()), *self._pages):
            waiting.set()

    def wake_pages(self) -> None:
        """Let every open page look again."""
        for waiting in self._pages:
            waiting.set()

    def wake_all(self) -> None:
        """Wake every stream: the server shuts down."""
        for events in (*self._waiting.values(), self._pages):
            for waiting in events:
                waiting.set()

    @contextmanager
    def counted(self) -> Iterator[asyncio.Event]:
        """Count a stream of a page in the block; gives what is set when the page should look again."""
        woken = asyncio.Event()
        self._pages.add(woken)
        self.open_streams += 1
        try:
            yield woken
        finally:
            self.open_streams -= 1
            self._pages.discard(woken)

    def admit(self) -> None:
        """Refuse a stream when there are too many.

        Raises:
            ApiError: there are.
        """
        if self.open_streams >= self._most or self._traffic.draining:
            raise ApiError(503, "overloaded", "too many event streams are open", retryable=True)

    async def messages(
        self, tenant_id: str, conversation_id: str, after_sequence: int
    ) -> AsyncIterator[bytes]:
        """Iterate over the events of a conversation's messages after `after_sequence`, for ever.

        An event's id is the sequence of its message, so that a client that comes back says where it was.
        """
        key = (tenant_id, conversation_id)
        waiting = asyncio.Event()
        self._waiting.setdefault(key, set()).add(waiting)
        self.open_streams += 1
        silent_s = 0.0
        try:
            yield b": open\n\n"
            while not self._traffic.draining:
                waiting.clear()
                page = await self._storage.conversations.fetch_messages(
                    conversation_id, after_sequence=after_sequence, limit=_PAGE, tenant_id=tenant_id
                )
                for message in page:
                    after_sequence = message.sequence
                    yield event(message.to_dict(), name="message", id=str(message.sequence))
                if page.next_cursor is not None:
                    continue
                silent_s = 0.0 if len(page) else silent_s + await _wait(waiting)
                if silent_s >= _HEARTBEAT_S:
                    silent_s = 0.0
                    yield b": alive\n\n"
        finally:
            self.open_streams -= 1
            others = self._waiting.get(key)
            if others is not None:
                others.discard(waiting)
                if not others:
                    del self._waiting[key]


async def _wait(waiting: Any) -> float:
    """Wait for a wake-up or until it is time to look; return the seconds that count as silence."""
    try:
        await within(waiting.wait(), _LOOK_EVERY_S)
    except asyncio.TimeoutError:
        return _LOOK_EVERY_S
    return 0.0

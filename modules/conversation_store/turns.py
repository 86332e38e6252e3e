"""Room: an agent's turn, kept safe in a crash.

    async with storage.conversations.turn(conversation_id, user_message="Hello") as turn:
        async for part in model.stream(...):
            await turn.write(part)

The user's message is durable before the block begins. What the model streams is stored every `flush_seconds` or
`flush_characters`, whichever comes first. At the end the reply is "complete", "failed" (the block raised) or "interrupted"
(it was cancelled). A turn whose process died is found by `recover_turns` once its lease has run out, and marked
"interrupted" with everything that was stored.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from types import TracebackType
from typing import Any, Coroutine, Dict, List, Mapping, Optional, Type, Union

from modules.conversation_store.append import Condition, condition_of
from modules.conversation_store.encoding import KEEP, encode_message, encode_metadata, search_text_of
from modules.conversation_store.errors import ConversationLeaseLostError
from modules.conversation_store.leases import check_seconds
from modules.conversation_store.records import ConversationLease, Message, NewMessage
from modules.conversation_store.rows import appended_message
from modules.conversation_store.turn_operations import begin_turn, end_turn, recover, store_part
from modules.storage.operations import Executor, Store
from modules.store_common.deadlines import deadline
from modules.store_common.errors import InvalidValueError, StorageError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier, check_text, encode_json

__all__ = [
    "Turn",
    "Turns",
    "recover_all",
]

logger = logging.getLogger(__name__)

# The last write of a turn whose task is being cancelled may take this long, in seconds.
_LAST_WRITE_S = 10.0
_RECOVERED_AT_ONCE = 100


class Turn:
    """One turn, as `ConversationStore.turn` gives it. Use it in one task, with `async with`, once.

    Attributes:
        user_message: The user's message as stored; None when the turn has none.
        message: The reply: as begun at first, as it ended after the block.
    """

    def __init__(
        self,
        executor: Executor,
        key: Dict[str, Any],
        messages: List[Union[NewMessage, Mapping[str, Any]]],
        condition: Condition,
        *,
        lease_seconds: float,
        flush_seconds: float,
        flush_characters: int,
    ) -> None:
        self.user_message: Optional[Message] = None
        self.message: Optional[Message] = None
        self._executor = executor
        self._key = key
        self._messages = messages
        self._encoded = [encode_message(message) for message in messages]
        self._condition = condition
        self._lease_seconds = lease_seconds
        self._flush_seconds = flush_seconds
        self._flush_characters = flush_characters
        self._fence = new_id()
        self._parts: List[str] = []
        self._unsaved = 0
        self._content: Any = KEEP
        self._metadata: Dict[str, Any] = {}
        self._ticker: Optional[asyncio.Task[None]] = None
        self._lost: Optional[StorageError] = None
        self._lock: Optional[asyncio.Lock] = None

    @property
    def text(self) -> str:
        """What was written so far."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    async def write(self, text: str) -> None:
        """Add `text` to the reply. It is durable after at most `flush_seconds` or `flush_characters`.

        Raises:
            ConversationLeaseLostError: another process has ended this turn; stop.
        """
        check_text(text, "text")
        self._require_open()
        self._parts.append(text)
        self._unsaved += len(text)
        if self._unsaved >= self._flush_characters:
            await self.flush()

    def set_content(self, content: Any) -> None:
        """Let the reply's content be `content` at the end, instead of what was written."""
        encode_json(content, "content")
        self._content = content

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Let the reply's metadata be `metadata` at the end."""
        encode_metadata(metadata)
        self._metadata = dict(metadata)

    async def flush(self) -> None:
        """Store what was written so far; durable when this returns.

        Raises:
            ConversationLeaseLostError: another process has ended this turn; stop.
        """
        self._require_open()
        await self._store()

    def _require_open(self) -> None:
        if self._lost is not None:
            raise ConversationLeaseLostError(self._key["conversation_id"]) from self._lost
        if self._ticker is None:
            raise StorageError("a turn takes text inside its `async with` block only")

    async def _store(self) -> None:
        async with self._lock or asyncio.Lock():
            unsaved, self._unsaved = self._unsaved, 0
            content = encode_json(self.text, "content") if unsaved else None
            try:
                await self._executor.run(store_part, self._key, self._fence, self._lease_seconds, content)
            except ConversationLeaseLostError as exc:
                self._lost = exc
                raise
            except BaseException:
                self._unsaved += unsaved
                raise

    async def _tick(self) -> None:
        """Store what waits and keep the lease, while the block runs."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while self._lost is None:
            await asyncio.sleep(min(self._flush_seconds, self._lease_seconds / 3))
            if not self._unsaved and loop.time() - renewed < self._lease_seconds / 3:
                continue
            try:
                await self._store()
                renewed = loop.time()
            except ConversationLeaseLostError:
                return
            except StorageError as exc:
                # the next tick tries again, and so does the end of the turn, which tells the caller
                logger.warning(
                    "conversation.turn_flush_failed",
                    extra={"entity_id": self._key["conversation_id"], "error_type": type(exc).__name__},
                )

    async def __aenter__(self) -> Turn:
        if self.message is not None:
            raise StorageError("a turn is used once; ask the store for another one")
        conversation_id = self._key["conversation_id"]
        places = await self._executor.run(
            begin_turn,
            self._key["tenant_id"],
            conversation_id,
            self._encoded,
            self._condition,
            self._fence,
            self._lease_seconds,
        )
        stored = [
            appended_message(conversation_id, fields, _of(given, "content"), _of(given, "metadata"), place)
            for given, fields, place in zip(self._messages, self._encoded, places)
        ]
        self.message = stored[-1]
        self._metadata = dict(self.message.metadata)
        self.user_message = stored[0] if len(stored) > 1 else None
        self._key = {**self._key, "sequence": self.message.sequence}
        self._lock = asyncio.Lock()
        self._ticker = _start(self._tick())
        return self

    async def __aexit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        status = "complete"
        if exc_type is not None:
            status = "failed" if issubclass(exc_type, Exception) else "interrupted"
        # a task of its own: a cancelled caller still ends its turn, within a deadline of its own
        ending = _start(self._end(status))
        cancelled: Optional[asyncio.CancelledError] = None
        while not ending.done():
            try:
                await asyncio.wait([ending])
            except asyncio.CancelledError as again:
                cancelled = again
        error = ending.exception()
        if error is not None:
            if exc is None and cancelled is None:
                raise error
            logger.warning(
                "conversation.turn_not_ended",
                extra={"entity_id": self._key["conversation_id"], "error_type": type(error).__name__},
            )
        if cancelled is not None and exc is None:
            raise cancelled

    async def _end(self, status: str) -> None:
        ticker, self._ticker = self._ticker, None
        if ticker is not None and self._lock is not None:
            try:
                # a part that is being stored is let finish: cancelling it would cost its connection
                await asyncio.wait_for(self._lock.acquire(), _LAST_WRITE_S)
            except asyncio.TimeoutError:
                logger.warning(
                    "conversation.turn_flush_hangs", extra={"entity_id": self._key["conversation_id"]}
                )
            ticker.cancel()
            await asyncio.wait([ticker])
        content = self.text if self._content is KEEP else self._content
        values = {
            "content": encode_json(content, "content"),
            "search_text": search_text_of(content),
            "metadata": encode_metadata(self._metadata),
            "status": status,
        }
        with deadline(_LAST_WRITE_S):
            await self._executor.run(end_turn, self._key, self._fence, values)
        if self.message is not None:
            ended = {"content": content, "metadata": self._metadata, "status": status}
            self.message = Message(**{**self.message.__dict__, **ended})


def _start(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Start a task that knows no deadline of its surroundings: what was written is stored even when that has passed."""
    loop = asyncio.get_running_loop()
    task: asyncio.Task[None] = contextvars.Context().run(loop.create_task, work)
    return task


def _of(message: Union[NewMessage, Mapping[str, Any]], field: str) -> Any:
    return getattr(message, field) if isinstance(message, NewMessage) else message.get(field)


class Turns(Store):
    """Turns of agents."""

    def turn(
        self,
        conversation_id: str,
        *,
        user_message: Any = None,
        user: Optional[Mapping[str, Any]] = None,
        reply: Optional[Mapping[str, Any]] = None,
        expect: Optional[int] = None,
        lease: Optional[ConversationLease] = None,
        flush_seconds: float = 0.5,
        flush_characters: int = 2000,
        lease_seconds: float = 60.0,
        tenant_id: Optional[str] = None,
    ) -> Turn:
        """Return a turn for `async with`: see this module's docstring.

        Not for units of work: a turn has to be durable at each of its steps.

        Args:
            conversation_id: Where; it must be active.
            user_message: Content of the user's message, or a `NewMessage`; None: the turn has no user's message.
            user: Other fields of the user's message, as of `NewMessage` ("role" is "user" unless given).
            reply: Fields of the reply, as of `NewMessage` ("role" is "assistant" unless given).
            expect: The conversation's last sequence before the turn, as in `add_message`.
            lease: As in `add_message`; checked when the turn begins.
            flush_seconds: At most this long is written text unstored.
            flush_characters: At most this much is written text unstored.
            lease_seconds: After this long without a sign of life the turn counts as dead. It gives one by itself.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            On entering, as `add_message`. `IdempotencyConflictError` also when the user's `client_message_id` was
            stored before: that turn was begun already.
        """
        key = {
            "tenant_id": self._tenant(tenant_id),
            "conversation_id": check_identifier(conversation_id, "conversation_id"),
        }
        messages: List[Union[NewMessage, Mapping[str, Any]]] = []
        if isinstance(user_message, NewMessage):
            messages.append(user_message)
        elif user_message is not None:
            messages.append({"role": "user", **(user or {}), "content": user_message})
        messages.append({"role": "assistant", "content": "", **(reply or {}), "status": "streaming"})
        if type(flush_characters) is not int or flush_characters < 1:
            raise InvalidValueError("flush_characters must be an int of at least 1")
        return Turn(
            self._executor,
            key,
            messages,
            condition_of(conversation_id, expect, None, lease) or Condition(),
            lease_seconds=check_seconds(lease_seconds, "lease_seconds"),
            flush_seconds=check_seconds(flush_seconds, "flush_seconds"),
            flush_characters=flush_characters,
        )

    async def recover_turns(self, *, limit: int = 10_000, tenant_id: Optional[str] = None) -> int:
        """Mark the replies of this tenant's dead turns as "interrupted"; return how many there were.

        Turns that live, here or in other processes, are left alone. `ConversationMaintenance.recover_turns` does it
        for all tenants.
        """
        return await recover_all(self._executor, self._tenant(tenant_id), limit)


async def recover_all(executor: Executor, tenant_id: Optional[str], limit: int) -> int:
    """Recover dead turns in batches; None: of all tenants."""
    total = 0
    while total < limit:
        count = await executor.run(recover, tenant_id, min(_RECOVERED_AT_ONCE, limit - total))
        total += count
        if count < _RECOVERED_AT_ONCE:
            break
    return total

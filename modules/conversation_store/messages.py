"""Room: adding, reading one, editing and deleting messages."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

from sqlalchemy import bindparam, insert, select, update

from modules.conversation_store.append import (
    Appended,
    Condition,
    append,
    append_checked,
    append_many,
    condition_of,
)
from modules.conversation_store.encoding import (
    KEEP,
    check_optional_id,
    check_optional_integer,
    check_status,
    encode_fields,
    encode_messages,
    encode_metadata,
    search_text_of,
)
from modules.conversation_store.errors import (
    ConversationNotFoundError,
    MessageExistsError,
    MessageNotFoundError,
)
from modules.conversation_store.models import ConversationRow, MessageEventRow, MessageRow
from modules.conversation_store.records import ConversationLease, Message, NewMessage
from modules.conversation_store.rows import MESSAGE_COLUMNS, appended_message, to_message
from modules.storage.columns import utc_now
from modules.storage.operations import Store, Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.errors import AlreadyExistsError, ConcurrencyError, InvalidValueError
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "ADD_EVENT",
    "DELETE",
    "EDIT",
    "EXISTS_CONVERSATION",
    "GET_BY_SEQUENCE",
    "GET_MESSAGE",
    "LOCK_MESSAGE",
    "READABLE",
    "Messages",
    "check_version",
    "delete",
    "edit",
    "encode_former",
    "get",
    "get_sequences",
]

_M = MessageRow
_C = ConversationRow


#: Messages of a conversation that is not deleted. The join is by primary key.
READABLE = (
    select(*MESSAGE_COLUMNS)
    .join(_C, (_C.tenant_id == _M.tenant_id) & (_C.id == _M.conversation_id))
    .where(
        _M.tenant_id == bindparam("tenant_id"),
        _M.conversation_id == bindparam("conversation_id"),
        _C.status != "deleted",
    )
)
_LIVE_ID = READABLE.where(_M.id == bindparam("message_id"), _M.deleted_at.is_(None))
GET_MESSAGE = Statement(_LIVE_ID)
LOCK_MESSAGE = Statement(_LIVE_ID, postgresql=_LIVE_ID.with_for_update(of=_M))
GET_BY_SEQUENCE = Statement(READABLE.where(_M.sequence == bindparam("sequence")))
EXISTS_CONVERSATION = Statement(
    select(_C.id).where(
        _C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("conversation_id"), _C.status != "deleted"
    )
)

_KEY = (
    _M.tenant_id == bindparam("tenant_id"),
    _M.conversation_id == bindparam("conversation_id"),
    _M.sequence == bindparam("sequence"),
)
EDIT = Statement(
    update(_M)
    .where(*_KEY)
    .values(
        content=bindparam("content"),
        search_text=bindparam("search_text"),
        metadata_=bindparam("metadata"),
        status=bindparam("status"),
        version=_M.version + 1,
        edited_at=utc_now(),
    )
    .returning(*MESSAGE_COLUMNS)
)
DELETE = Statement(
    update(_M).where(*_KEY).values(deleted_at=utc_now(), version=_M.version + 1).returning(*MESSAGE_COLUMNS)
)
ADD_EVENT = Statement(
    insert(MessageEventRow).values(
        tenant_id=bindparam("tenant_id"),
        conversation_id=bindparam("conversation_id"),
        sequence=bindparam("sequence"),
        version=bindparam("version"),
        message_id=bindparam("message_id"),
        type=bindparam("type"),
        former=bindparam("former"),
        actor_id=bindparam("actor_id"),
        created_at=utc_now(),
    )
)


@read
async def get(tx: Transaction, tenant_id: str, conversation_id: str, message_id: str) -> Optional[Message]:
    """Return a message that is not deleted."""
    row = await tx.first(
        GET_MESSAGE, tenant_id=tenant_id, conversation_id=conversation_id, message_id=message_id
    )
    return None if row is None else to_message(row)


@read
async def get_sequences(
    tx: Transaction, tenant_id: str, conversation_id: str, sequences: Sequence[int]
) -> Dict[int, Message]:
    """Return messages by their places, deleted ones too."""
    found = {}
    for sequence in sequences:
        row = await tx.first(
            GET_BY_SEQUENCE, tenant_id=tenant_id, conversation_id=conversation_id, sequence=sequence
        )
        if row is not None:
            found[sequence] = to_message(row)
    return found


async def _lock(tx: Transaction, key: Dict[str, Any], message_id: str, expected: Optional[int]) -> Message:
    row = await tx.first(LOCK_MESSAGE, **key, message_id=message_id)
    if row is None:
        if await tx.first(EXISTS_CONVERSATION, **key) is None:
            raise ConversationNotFoundError(key["conversation_id"])
        raise MessageNotFoundError(key["conversation_id"], message_id)
    return check_version(to_message(row), expected)


def check_version(message: Message, expected: Optional[int]) -> Message:
    """Return `message` if it has the expected version; None: any."""
    if expected is not None and message.version != expected:
        raise ConcurrencyError(
            f"message {message.id!r}: expected version {expected}, found {message.version}; read it again",
            expected,
            message.version,
        )
    return message


async def _record(
    tx: Transaction, key: Dict[str, Any], kind: str, before: Message, actor_id: Optional[str]
) -> None:
    former = {"content": before.content, "metadata": before.metadata, "status": before.status}
    await tx.run(
        ADD_EVENT,
        **key,
        sequence=before.sequence,
        version=before.version + 1,
        message_id=before.id,
        type=kind,
        # deeper by one level than what passed the contract: written without checking it again
        former=encode_former(former),
        actor_id=actor_id,
    )


def encode_former(former: Dict[str, Any]) -> str:
    """Return the JSON text of a former version, whose parts passed the contract when they were written."""
    parts = [f'"{name}":{encode_json(value, name)}' for name, value in former.items()]
    return "{" + ",".join(parts) + "}"


@write
async def edit(
    tx: Transaction,
    key: Dict[str, Any],
    message_id: str,
    given: Dict[str, Any],
    expected: Optional[int],
    actor_id: Optional[str],
) -> Message:
    """Change a message and keep its former version as an event."""
    before = await _lock(tx, key, message_id, expected)
    values = {
        "content": encode_json(before.content, "content"),
        "search_text": search_text_of(before.content),
        "metadata": encode_metadata(before.metadata),
        "status": before.status,
    }
    await _record(tx, key, "edited", before, actor_id)
    return to_message(await tx.one(EDIT, **key, sequence=before.sequence, **{**values, **given}))


@write
async def delete(
    tx: Transaction, key: Dict[str, Any], message_id: str, expected: Optional[int], actor_id: Optional[str]
) -> Message:
    """Mark a message as deleted."""
    before = await _lock(tx, key, message_id, expected)
    await _record(tx, key, "deleted", before, actor_id)
    return to_message(await tx.one(DELETE, **key, sequence=before.sequence))


class Messages(Store):
    """Messages, one by one and many at once."""

    async def add_message(
        self,
        conversation_id: str,
        role: str,
        content: Any,
        *,
        message_id: Optional[str] = None,
        name: Optional[str] = None,
        message_type: str = "message",
        status: str = "complete",
        metadata: Optional[Mapping[str, Any]] = None,
        author_id: Optional[str] = None,
        parent_id: Optional[str] = None,
        client_message_id: Optional[str] = None,
        created_at: Any = None,
        expect: Optional[int] = None,
        append: Optional[str] = None,
        lease: Optional[ConversationLease] = None,
        tenant_id: Optional[str] = None,
    ) -> Message:
        """Append a message; durable when this returns.

        Args:
            conversation_id: Where to; it must exist and be active.
            role: For example "user", "assistant", "system", "tool"; at most 64 bytes.
            content: Any JSON value: a text, OpenAI's list of parts, an object.
            message_id: Its id, unique in the conversation; None gives it a UUIDv7.
            name: Name of the speaker.
            message_type: For example "message", "tool_call", "event"; at most 64 bytes.
            status: "complete", "streaming", "failed" or "interrupted".
            metadata: JSON object.
            author_id: Who wrote it.
            parent_id: Id of the message that it answers, for conversations with branches; not checked.
            client_message_id: Idempotency key: the same key with the same body gives the first message again.
            created_at: Aware time; None: now, by the database's clock.
            expect: The conversation's last sequence as the caller knows it, 0 for none.
            append: "any" says that this message commutes with others; the default, None, expects nothing either.
            lease: What `acquire_lease` gave; checked at the write.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            ConversationNotFoundError, ConversationArchivedError: there is nothing to append to.
            ConcurrencyError: the last sequence is not `expect`; has both.
            ConversationLeaseLostError: `lease` was taken over or released.
            IdempotencyConflictError: `client_message_id` was used with another body.
            MessageExistsError: the conversation has a message with `message_id`.
        """
        key = self._tenant(tenant_id), check_identifier(conversation_id, "conversation_id")
        fields = encode_fields(
            {
                "role": role,
                "content": content,
                "id": message_id,
                "name": name,
                "type": message_type,
                "status": status,
                "metadata": metadata,
                "author_id": author_id,
                "parent_id": parent_id,
                "client_message_id": client_message_id,
                "created_at": created_at,
            }
        )
        place = await self._append(*key, fields, condition_of(conversation_id, expect, append, lease))
        if place.created_at is None:
            return (await self._known(*key, [place.sequence]))[place.sequence]
        return appended_message(conversation_id, fields, content, metadata, place)

    async def _append(
        self, tenant_id: str, conversation_id: str, fields: Dict[str, Any], condition: Optional[Condition]
    ) -> Appended:
        try:
            if condition is None:
                return await self._executor.run(append, tenant_id, conversation_id, fields)
            return await self._executor.run(append_checked, tenant_id, conversation_id, fields, condition)
        except AlreadyExistsError as exc:
            if fields["client_message_id"] is None:
                raise MessageExistsError(conversation_id) from exc
        # the key was stored by somebody else between our look and our insert: the second look finds it
        try:
            return await self._executor.run(
                append_checked, tenant_id, conversation_id, fields, condition or Condition()
            )
        except AlreadyExistsError as exc:
            raise MessageExistsError(conversation_id) from exc

    async def _known(
        self, tenant_id: str, conversation_id: str, sequences: Sequence[int]
    ) -> Dict[int, Message]:
        found = await self._executor.run(get_sequences, tenant_id, conversation_id, sequences)
        if len(found) < len(set(sequences)):
            raise ConversationNotFoundError(conversation_id)
        return found

    async def add_messages(
        self,
        conversation_id: str,
        messages: Sequence[Union[NewMessage, Mapping[str, Any]]],
        *,
        expect: Optional[int] = None,
        append: Optional[str] = None,
        lease: Optional[ConversationLease] = None,
        tenant_id: Optional[str] = None,
    ) -> List[Message]:
        """Append messages in order, in one transaction: all or none.

        Args:
            conversation_id: Where to.
            messages: `NewMessage`s, or mappings with its fields; thousands at once are fine.
            expect: As in `add_message`, before the first of them.
            append: As in `add_message`.
            lease: As in `add_message`.
            tenant_id: Whose; see `TenantPolicy`.

        Returns:
            The messages as stored; for a known idempotency key the first one.

        Raises:
            As `add_message`.
        """
        key = self._tenant(tenant_id), check_identifier(conversation_id, "conversation_id")
        condition = condition_of(conversation_id, expect, append, lease) or Condition()
        encoded = encode_messages(messages)
        try:
            places = await self._executor.run(append_many, *key, encoded, condition)
        except AlreadyExistsError as exc:
            raise MessageExistsError(conversation_id) from exc
        old = [place.sequence for place in places if place.created_at is None]
        known = await self._known(*key, old) if old else {}
        return [
            known[place.sequence]
            if place.created_at is None
            else appended_message(
                conversation_id, fields, _given(message, "content"), _given(message, "metadata"), place
            )
            for message, fields, place in zip(messages, encoded, places)
        ]

    async def get_message(
        self, conversation_id: str, message_id: str, *, tenant_id: Optional[str] = None
    ) -> Optional[Message]:
        """Return the message, None when there is no such one or it is deleted."""
        key = self._tenant(tenant_id), check_identifier(conversation_id, "conversation_id")
        return await self._executor.run(get, *key, check_identifier(message_id, "message_id"))

    async def record_edit(
        self,
        conversation_id: str,
        message_id: str,
        *,
        content: Any = KEEP,
        metadata: Any = KEEP,
        status: Optional[str] = None,
        expected_version: Optional[int] = None,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Message:
        """Change a message; what it was is kept as an event.

        Args:
            conversation_id: Its conversation.
            message_id: Its id.
            content: The new content; left out: as it is.
            metadata: The new metadata, an object; left out: as it is.
            status: The new status; None: as it is.
            expected_version: Refuse unless the message has this version.
            actor_id: Who changes it.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            ConversationNotFoundError, MessageNotFoundError: there is nothing to change.
            ConcurrencyError: the version is another one; has both.
        """
        given: Dict[str, Any] = {}
        if content is not KEEP:
            given.update(content=encode_json(content, "content"), search_text=search_text_of(content))
        if metadata is not KEEP:
            given["metadata"] = encode_metadata(metadata)
        if status is not None:
            given["status"] = check_status(status)
        if not given:
            raise InvalidValueError("an edit needs a content, a metadata or a status")
        expected = check_optional_integer(expected_version, "expected_version")
        actor = check_optional_id(actor_id, "actor_id")
        return await self._executor.run(
            edit,
            self._key(tenant_id, conversation_id),
            check_identifier(message_id, "message_id"),
            given,
            expected,
            actor,
        )

    async def soft_delete_message(
        self,
        conversation_id: str,
        message_id: str,
        *,
        expected_version: Optional[int] = None,
        actor_id: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Message:
        """Mark a message as deleted: reads and searches leave it out; retention purges it later.

        Returns:
            The message as it is now.

        Raises:
            As `record_edit`. A message that is deleted already is `MessageNotFoundError`.
        """
        expected = check_optional_integer(expected_version, "expected_version")
        actor = check_optional_id(actor_id, "actor_id")
        return await self._executor.run(
            delete,
            self._key(tenant_id, conversation_id),
            check_identifier(message_id, "message_id"),
            expected,
            actor,
        )

    def _key(self, tenant_id: Optional[str], conversation_id: str) -> Dict[str, Any]:
        return {
            "tenant_id": self._tenant(tenant_id),
            "conversation_id": check_identifier(conversation_id, "conversation_id"),
        }


def _given(message: Union[NewMessage, Mapping[str, Any]], field: str) -> Any:
    return getattr(message, field) if isinstance(message, NewMessage) else message.get(field)

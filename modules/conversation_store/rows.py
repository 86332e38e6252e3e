"""From statement rows to results: column lists, and the functions that read a row in that order."""

from __future__ import annotations

from dataclasses import fields as fields_of
from typing import Any, Dict, List

from modules.conversation_store.append import Appended
from modules.conversation_store.models import (
    AssetRow,
    ConversationRow,
    MessageEventRow,
    MessageRow,
    SessionRow,
    UserRow,
)
from modules.conversation_store.records import Asset, Conversation, Message, MessageEvent, Session, User
from modules.storage.statements import Row

__all__ = [
    "ASSET_COLUMNS",
    "CONVERSATION_COLUMNS",
    "EVENT_COLUMNS",
    "MESSAGE_COLUMNS",
    "SESSION_COLUMNS",
    "USER_COLUMNS",
    "appended_message",
    "to_asset",
    "to_conversation",
    "to_event",
    "to_message",
    "to_session",
    "to_user",
]

_C, _M, _E, _A = ConversationRow, MessageRow, MessageEventRow, AssetRow

CONVERSATION_COLUMNS: List[Any] = [
    _C.id, _C.title, _C.status, _C.user_id, _C.session_id, _C.metadata_, _C.last_sequence, _C.version,
    _C.forked_from_id, _C.forked_from_sequence, _C.created_at, _C.updated_at, _C.archived_at, _C.deleted_at,
]  # fmt: skip
MESSAGE_COLUMNS: List[Any] = [
    _M.conversation_id, _M.sequence, _M.id, _M.role, _M.content, _M.name, _M.type, _M.status, _M.metadata_,
    _M.author_id, _M.parent_id, _M.client_message_id, _M.version, _M.created_at, _M.edited_at, _M.deleted_at,
]  # fmt: skip
_MESSAGE_FIELDS = tuple(field.name for field in fields_of(Message))
EVENT_COLUMNS: List[Any] = [
    _E.conversation_id, _E.sequence, _E.version, _E.message_id, _E.type, _E.former, _E.actor_id, _E.created_at,
]  # fmt: skip
ASSET_COLUMNS: List[Any] = [
    _A.conversation_id, _A.id, _A.message_id, _A.uri, _A.name, _A.media_type, _A.size_bytes, _A.digest, _A.metadata_,
    _A.created_at,
]  # fmt: skip
USER_COLUMNS: List[Any] = [
    UserRow.id,
    UserRow.name,
    UserRow.metadata_,
    UserRow.created_at,
    UserRow.updated_at,
]
SESSION_COLUMNS: List[Any] = [
    SessionRow.id, SessionRow.user_id, SessionRow.metadata_, SessionRow.created_at, SessionRow.updated_at,
]  # fmt: skip


def to_conversation(row: Row) -> Conversation:
    """Read a row of `CONVERSATION_COLUMNS`."""
    return Conversation(*row)


def to_message(row: Row) -> Message:
    """Read a row of `MESSAGE_COLUMNS`, which are the fields of `Message` in their order."""
    # a frozen dataclass sets each of its 16 fields through object.__setattr__, 3 us in all; so it takes 0.7
    message = Message.__new__(Message)
    message.__dict__.update(zip(_MESSAGE_FIELDS, row))
    return message


def to_event(row: Row) -> MessageEvent:
    """Read a row of `EVENT_COLUMNS`."""
    return MessageEvent(*row)


def to_asset(row: Row) -> Asset:
    """Read a row of `ASSET_COLUMNS`."""
    return Asset(*row)


def to_user(row: Row) -> User:
    """Read a row of `USER_COLUMNS`."""
    return User(*row)


def to_session(row: Row) -> Session:
    """Read a row of `SESSION_COLUMNS`."""
    return Session(*row)


def appended_message(
    conversation_id: str, fields: Dict[str, Any], content: Any, metadata: Any, place: Appended
) -> Message:
    """Return the message that was just appended, without reading it back.

    Args:
        conversation_id: Where it went.
        fields: Its encoded parameters.
        content: The caller's content.
        metadata: The caller's metadata, None for none.
        place: Where it landed; its `created_at` is known.
    """
    return to_message(
        (
            conversation_id,
            place.sequence,
            fields["id"],
            fields["role"],
            content,
            fields["name"],
            fields["type"],
            fields["status"],
            dict(metadata) if metadata else {},
            fields["author_id"],
            fields["parent_id"],
            fields["client_message_id"],
            1,
            place.created_at,
            None,
            None,
        )
    )

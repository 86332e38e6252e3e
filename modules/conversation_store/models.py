"""Tables of the conversation store, and the SQL around them that SQLAlchemy does not model.

Every table leads with `tenant_id`. Message ids are unique within their conversation only: data from elsewhere repeats
them across conversations. `user_id` and `session_id` of a conversation are labels and need no row in `atlas_users` or
`atlas_sessions`; a message's conversation must exist.

State machines (tables, tested without a database):

    conversation: active <-> archived; both -> deleted -> (purged)
    message:      streaming -> complete | failed | interrupted; any -> deleted (deleted_at) -> (purged)
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, PrimaryKeyConstraint, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from modules.conversation_store.search_ddl import dialect_ddl
from modules.storage.columns import FreeText, JsonValue, UtcDateTime
from modules.storage.schema import Base, Identifier

__all__ = [
    "CONVERSATION_STATUSES",
    "DIALECT_DDL",
    "MESSAGE_STATUSES",
    "AssetRow",
    "ConversationRow",
    "MessageEventRow",
    "MessageRow",
    "SessionRow",
    "TurnRow",
    "UserRow",
]

CONVERSATION_STATUSES = ("active", "archived", "deleted")
MESSAGE_STATUSES = ("complete", "streaming", "failed", "interrupted")

#: SQL to run after `create_all`, for the default search language; see `search_ddl.dialect_ddl` for others.
DIALECT_DDL: Dict[str, List[str]] = {name: dialect_ddl(name) for name in ("sqlite", "postgresql")}


class UserRow(Base):
    """A person or agent that conversations belong to."""

    __tablename__ = "atlas_users"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "id"),)

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    name: Mapped[Optional[str]] = mapped_column(FreeText)
    metadata_: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class SessionRow(Base):
    """One sitting of a user, for example a browser session or a run of an agent."""

    __tablename__ = "atlas_sessions"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "id"),)

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    user_id: Mapped[Optional[str]] = mapped_column(Identifier)
    metadata_: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ConversationRow(Base):
    """A conversation. `last_sequence` is the counter that numbers its messages: appending locks this row."""

    __tablename__ = "atlas_conversations"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "id"),
        Index("ix_atlas_conversations_updated", "tenant_id", "updated_at", "id"),
        # Partial: conversations without a user or session do not pay for these on every append.
        Index(
            "ix_atlas_conversations_user",
            "tenant_id",
            "user_id",
            "updated_at",
            "id",
            sqlite_where=text("user_id IS NOT NULL"),
            postgresql_where=text("user_id IS NOT NULL"),
        ),
        Index(
            "ix_atlas_conversations_session",
            "tenant_id",
            "session_id",
            "updated_at",
            "id",
            sqlite_where=text("session_id IS NOT NULL"),
            postgresql_where=text("session_id IS NOT NULL"),
        ),
        Index(
            "ix_atlas_conversations_deleted",
            "tenant_id",
            "deleted_at",
            sqlite_where=text("deleted_at IS NOT NULL"),
            postgresql_where=text("deleted_at IS NOT NULL"),
        ),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    user_id: Mapped[Optional[str]] = mapped_column(Identifier)
    session_id: Mapped[Optional[str]] = mapped_column(Identifier)
    title: Mapped[Optional[str]] = mapped_column(FreeText)
    status: Mapped[str] = mapped_column(Identifier)
    last_sequence: Mapped[int] = mapped_column(BigInteger)
    trimmed_sequence: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(BigInteger)
    metadata_: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    forked_from_id: Mapped[Optional[str]] = mapped_column(Identifier)
    forked_from_sequence: Mapped[Optional[int]] = mapped_column(BigInteger)
    lease_owner: Mapped[Optional[str]] = mapped_column(Identifier)
    lease_fence: Mapped[int] = mapped_column(BigInteger)
    lease_expires_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime)
    archived_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    deleted_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)


def _of_conversation() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(
        ["tenant_id", "conversation_id"],
        ["atlas_conversations.tenant_id", "atlas_conversations.id"],
        ondelete="CASCADE",
    )


class MessageRow(Base):
    """A message. Clustered by its place in the conversation on SQLite, so that the last N lie side by side."""

    __tablename__ = "atlas_messages"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "conversation_id", "sequence"),
        UniqueConstraint("tenant_id", "id", "conversation_id", name="uq_atlas_messages_id"),
        Index(
            "uq_atlas_messages_client_message_id",
            "tenant_id",
            "conversation_id",
            "client_message_id",
            unique=True,
            sqlite_where=text("client_message_id IS NOT NULL"),
            postgresql_where=text("client_message_id IS NOT NULL"),
        ),
        Index(
            "ix_atlas_messages_deleted",
            "tenant_id",
            "deleted_at",
            sqlite_where=text("deleted_at IS NOT NULL"),
            postgresql_where=text("deleted_at IS NOT NULL"),
        ),
        _of_conversation(),
        {"sqlite_with_rowid": False},
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    conversation_id: Mapped[str] = mapped_column(Identifier)
    sequence: Mapped[int] = mapped_column(BigInteger)
    id: Mapped[str] = mapped_column(Identifier)
    role: Mapped[str] = mapped_column(Identifier)
    name: Mapped[Optional[str]] = mapped_column(FreeText)
    type: Mapped[str] = mapped_column(Identifier)
    status: Mapped[str] = mapped_column(Identifier)
    content: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    # The words to search when the content is not a plain text; a plain text is searched where it stands.
    search_text: Mapped[Optional[str]] = mapped_column(FreeText)
    metadata_: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    author_id: Mapped[Optional[str]] = mapped_column(Identifier)
    parent_id: Mapped[Optional[str]] = mapped_column(Identifier)
    client_message_id: Mapped[Optional[str]] = mapped_column(Identifier)
    body_digest: Mapped[Optional[str]] = mapped_column(Identifier)
    version: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    edited_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    deleted_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)


class MessageEventRow(Base):
    """What happened to a message after it was created; `version` is the message's version that the event made."""

    __tablename__ = "atlas_message_events"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "conversation_id", "sequence", "version"),
        _of_conversation(),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    conversation_id: Mapped[str] = mapped_column(Identifier)
    sequence: Mapped[int] = mapped_column(BigInteger)
    version: Mapped[int] = mapped_column(BigInteger)
    message_id: Mapped[str] = mapped_column(Identifier)
    type: Mapped[str] = mapped_column(Identifier)
    former: Mapped[Any] = mapped_column(JsonValue, nullable=False)
    actor_id: Mapped[Optional[str]] = mapped_column(Identifier)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AssetRow(Base):
    """A file or link that belongs to a conversation; the bytes themselves live elsewhere."""

    __tablename__ = "atlas_assets"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "conversation_id", "id"), _of_conversation())

    tenant_id: Mapped[str] = mapped_column(Identifier)
    conversation_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    message_id: Mapped[Optional[str]] = mapped_column(Identifier)
    uri: Mapped[str] = mapped_column(FreeText)
    name: Mapped[Optional[str]] = mapped_column(FreeText)
    media_type: Mapped[Optional[str]] = mapped_column(Identifier)
    size_bytes: Mapped[Optional[int]] = mapped_column(BigInteger)
    digest: Mapped[Optional[str]] = mapped_column(Identifier)
    metadata_: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TurnRow(Base):
    """A reply that is being written now. The row goes when the turn ends, so the table holds live and dead turns only."""

    __tablename__ = "atlas_turns"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "conversation_id", "sequence"),
        Index("ix_atlas_turns_expires", "expires_at"),
        _of_conversation(),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    conversation_id: Mapped[str] = mapped_column(Identifier)
    sequence: Mapped[int] = mapped_column(BigInteger)
    fence: Mapped[str] = mapped_column(Identifier)
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)

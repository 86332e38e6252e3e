"""What the conversation store takes and gives: frozen dataclasses, no database row crosses the API."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Dict, Mapping, Optional

from modules.store_common.records import Page, Record, page_of

__all__ = [
    "Asset",
    "Conversation",
    "ConversationLease",
    "ImportResult",
    "Message",
    "MessageEvent",
    "NewMessage",
    "Page",
    "Record",
    "RetentionPolicy",
    "RetentionResult",
    "SearchHit",
    "Session",
    "User",
    "page_of",
]


@dataclass(frozen=True)
class User(Record):
    """A person or agent."""

    id: str
    name: Optional[str]
    metadata: Dict[str, Any]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Session(Record):
    """One sitting of a user."""

    id: str
    user_id: Optional[str]
    metadata: Dict[str, Any]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True)
class Conversation(Record):
    """A conversation.

    Attributes:
        status: "active", "archived" or "deleted".
        last_sequence: The sequence of its newest message ever, 0 while it has none: what `expect=` is compared with.
        version: Starts at 1 and grows with each change of title, status or metadata, not with messages.
        updated_at: The last change or message.
    """

    id: str
    title: Optional[str]
    status: str
    user_id: Optional[str]
    session_id: Optional[str]
    metadata: Dict[str, Any]
    last_sequence: int
    version: int
    forked_from_id: Optional[str]
    forked_from_sequence: Optional[int]
    created_at: datetime
    updated_at: datetime
    archived_at: Optional[datetime]
    deleted_at: Optional[datetime]


@dataclass(frozen=True)
class NewMessage:
    """A message to append; see `ConversationStore.add_message` for what each field means."""

    role: str
    content: Any
    id: Optional[str] = None
    name: Optional[str] = None
    type: str = "message"
    status: str = "complete"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    author_id: Optional[str] = None
    parent_id: Optional[str] = None
    client_message_id: Optional[str] = None
    created_at: Optional[datetime] = None


@dataclass(frozen=True)
class Message(Record):
    """A message.

    Attributes:
        sequence: Its place in the conversation: 1, 2, 3 ... without gaps.
        version: 1 when created; each edit and the deletion add 1.
    """

    conversation_id: str
    sequence: int
    id: str
    role: str
    content: Any
    name: Optional[str]
    type: str
    status: str
    metadata: Dict[str, Any]
    author_id: Optional[str]
    parent_id: Optional[str]
    client_message_id: Optional[str]
    version: int
    created_at: datetime
    edited_at: Optional[datetime]
    deleted_at: Optional[datetime]


@dataclass(frozen=True)
class MessageEvent(Record):
    """Something that happened to a message.

    Attributes:
        type: "created", "edited" or "deleted".
        version: The version of the message that the event made.
        former: What the message was before: `content`, `metadata`, `status`; None for "created".
        actor_id: Who did it, where the caller said so.
    """

    conversation_id: str
    sequence: int
    version: int
    message_id: str
    type: str
    former: Optional[Dict[str, Any]]
    actor_id: Optional[str]
    created_at: datetime


@dataclass(frozen=True)
class Asset(Record):
    """A file or link that belongs to a conversation; `uri` says where its bytes are."""

    conversation_id: str
    id: str
    message_id: Optional[str]
    uri: str
    name: Optional[str]
    media_type: Optional[str]
    size_bytes: Optional[int]
    digest: Optional[str]
    metadata: Dict[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class SearchHit(Record):
    """A message that a search found.

    Attributes:
        score: Higher is better; comparable within one result only (SQLite: BM25; PostgreSQL: see docs/conversations.md).
        snippet: Part of the text around the words found, each found word between "[" and "]".
    """

    message: Message
    score: float
    snippet: str


@dataclass(frozen=True)
class ConversationLease(Record):
    """The right of one runner to write to a conversation, with the number that fences off earlier ones.

    Attributes:
        fence: Grows with each acquisition; a write with an older one is refused.
        expires_at: By the database's clock; another runner may take over then.
    """

    conversation_id: str
    owner: str
    fence: int
    expires_at: datetime


@dataclass(frozen=True)
class ImportResult(Record):
    """What an import did."""

    conversation_id: str
    created: bool
    added: int
    skipped: int


@dataclass(frozen=True)
class RetentionPolicy(Record):
    """How long conversations are kept; 0 switches a rule off.

    Attributes:
        archive_after_days: Idle days after which an active conversation is archived.
        delete_after_days: Idle days after which a conversation is soft-deleted.
        purge_after_days: Days after its soft deletion at which a conversation or message is removed for good; None keeps
            them for ever.
        history_limit: Messages kept per conversation; older ones are soft-deleted.
        max_conversations: Conversations kept per tenant; those idle longest are soft-deleted.
        tenants: Other policies for single tenants, by tenant id.
    """

    archive_after_days: float = 0
    delete_after_days: float = 0
    purge_after_days: Optional[float] = 30
    history_limit: int = 0
    max_conversations: int = 0
    tenants: Mapping[str, RetentionPolicy] = field(default_factory=dict)

    def for_tenant(self, tenant_id: str) -> RetentionPolicy:
        """Return the policy of one tenant."""
        return self.tenants.get(tenant_id, self)


@dataclass(frozen=True)
class RetentionResult(Record):
    """How many rows a run of retention changed; `complete` is False when a limit stopped it: run again."""

    archived: int = 0
    conversations_deleted: int = 0
    messages_deleted: int = 0
    conversations_purged: int = 0
    messages_purged: int = 0
    complete: bool = True

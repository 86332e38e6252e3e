"""What answers look like, for the OpenAPI document; the routes answer with the stores' own `to_dict()`."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, Generic, List, Optional, TypeVar

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "CollectionOut",
    "ConversationOut",
    "CountOut",
    "DocumentOut",
    "EntryOut",
    "HealthOut",
    "HitOut",
    "HitsOut",
    "Input",
    "MessageEventOut",
    "MessageOut",
    "NeighbourOut",
    "NeighboursOut",
    "PageOf",
    "ProbeOut",
    "ProblemOut",
    "TenantOut",
    "ValueOut",
    "VersionOut",
]

T = TypeVar("T")


class Input(BaseModel):
    """Parent of the bodies that the API takes: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class ProblemOut(BaseModel):
    """An error (RFC 9457)."""

    type: str = Field(examples=["urn:atlas-storage:problem:conversation_not_found"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    code: str = Field(examples=["conversation_not_found"], description="Stable: decide by this.")
    detail: str = Field(examples=["this tenant has no conversation 'c1'"])
    retryable: bool = Field(description="Whether the same request may succeed later.")
    request_id: Optional[str] = None
    errors: Optional[List[Dict[str, Any]]] = Field(None, description="What of the request is wrong.")
    expected: Optional[int] = None
    actual: Optional[int] = None


class ProbeOut(BaseModel):
    """An answer of a probe."""

    status: str = Field(examples=["pass"])


class HealthOut(BaseModel):
    """Health; `checks` only for tokens that may monitor."""

    status: str = Field(examples=["pass"], description="pass, warn or fail.")
    version: Optional[str] = None
    checks: Optional[Dict[str, List[Dict[str, Any]]]] = None


class PageOf(BaseModel, Generic[T]):
    """Part of a list."""

    items: List[T]
    next_cursor: Optional[str] = Field(
        description="Give it as `cursor` for the next part; null: there is no more."
    )


class ConversationOut(BaseModel):
    """A conversation; its ETag is its version."""

    id: str
    title: Optional[str]
    status: str = Field(examples=["active"])
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


class MessageOut(BaseModel):
    """A message; its ETag is its version."""

    conversation_id: str
    sequence: int
    id: str
    role: str = Field(examples=["user"])
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


class MessageEventOut(BaseModel):
    """Something that happened to a message."""

    conversation_id: str
    sequence: int
    version: int
    message_id: str
    type: str
    former: Optional[Dict[str, Any]]
    actor_id: Optional[str]
    created_at: datetime


class HitOut(BaseModel):
    """A message that a search found; found words stand between [ and ] in the snippet."""

    message: MessageOut
    score: float
    snippet: str


class HitsOut(BaseModel):
    """What a search found, best first."""

    items: List[HitOut]
    complete: bool
    reason: str


class EntryOut(BaseModel):
    """An entry of the key-value store; its ETag is its version."""

    namespace: str
    key: str
    value: Any
    encoding: str = Field(examples=["json"], description="json, or base64: `value` is the text of bytes.")
    version: int
    size_bytes: int
    created_at: datetime
    updated_at: datetime
    expires_at: Optional[datetime]


class VersionOut(BaseModel):
    """Where a value was stored."""

    namespace: str
    key: str
    version: int


class ValueOut(BaseModel):
    """The value of a counter."""

    namespace: str
    key: str
    value: int


class CountOut(BaseModel):
    """How many there were."""

    count: int


class CollectionOut(BaseModel):
    """A collection of vectors."""

    name: str
    dimension: int
    count: int
    metric: str = Field(examples=["cosine"])
    index_type: str
    metadata: Dict[str, Any]


class DocumentOut(BaseModel):
    """A document; `vector` is empty unless it was asked for."""

    id: str
    vector: List[float]
    content: Optional[str]
    metadata: Dict[str, Any]
    namespace: Optional[str]
    created_at: Optional[datetime]


class NeighbourOut(BaseModel):
    """A document that is near; a higher score is nearer."""

    document: DocumentOut
    score: float
    distance: float


class NeighboursOut(BaseModel):
    """The documents nearest to a vector, best first."""

    items: List[NeighbourOut]
    complete: bool
    reason: str


class TenantOut(BaseModel):
    """A tenant that the token may name."""

    id: str
    is_default: bool = Field(description="Whether calls without the header Atlas-Tenant are about it.")

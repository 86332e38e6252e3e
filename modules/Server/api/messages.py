"""Messages of a conversation: pages, a live stream, append, edit, delete, history."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Dict, List, Literal, Optional

from fastapi import APIRouter, Path, Query, Request
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from modules.access_store.tokens import key_of
from modules.conversation_store.errors import ConversationNotFoundError, MessageNotFoundError
from modules.Server.api.parameters import (
    ConversationId,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    PartOf100,
    errors,
    expected_version,
    unless_known,
)
from modules.Server.callers import Reader, Writer, bearer_of
from modules.Server.models import Input, MessageEventOut, MessageOut, PageOf
from modules.Server.once import key_of_request
from modules.Server.problems import ApiError
from modules.Server.replies import Json, versioned

__all__ = [
    "MessageChange",
    "NewMessageIn",
    "append_message",
    "delete_message",
    "edit_message",
    "get_message",
    "list_messages",
    "message_history",
    "router",
    "stream_messages",
]

router = APIRouter(prefix="/v1/conversations/{conversation_id:segment}", tags=["messages"])
_MessageId = Annotated[str, Path(description="Id of the message.", examples=["m1"])]
_Sequence = Annotated[Optional[int], Query(ge=0, lt=2**62)]
_Events: Dict[Any, Dict[str, Any]] = {
    200: {
        "description": "Server-sent events `message`; the id of each is the message's sequence.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


class NewMessageIn(Input):
    """A message to append."""

    role: str = Field(examples=["user"])
    content: Any = Field(examples=["Find me a quiet hotel."], description="Any JSON value.")
    id: Optional[str] = None
    name: Optional[str] = None
    type: str = "message"
    status: Literal["complete", "streaming", "failed", "interrupted"] = "complete"
    metadata: Dict[str, Any] = Field(default_factory=dict)
    author_id: Optional[str] = None
    parent_id: Optional[str] = None
    client_message_id: Optional[str] = Field(
        None, description="The same as the header Idempotency-Key, which wins."
    )
    created_at: Optional[datetime] = Field(None, description="With a time zone; unset: now.")
    expect: Optional[int] = Field(
        None, ge=0, lt=2**62, description="Append only if `last_sequence` is this; otherwise 409."
    )


class MessageChange(Input):
    """What to change; what is left out stays."""

    content: Any = Field(None, examples=["Find me a quiet hotel in Alfama."])
    metadata: Optional[Dict[str, Any]] = None
    status: Optional[Literal["complete", "streaming", "failed", "interrupted"]] = None
    actor_id: Optional[str] = None


@router.get("/messages", response_model=PageOf[MessageOut])
async def list_messages(
    caller: Reader,
    part: PartOf100,
    conversation_id: ConversationId,
    role: Annotated[Optional[List[str]], Query(description="Only of these roles.")] = None,
    type: Annotated[Optional[List[str]], Query(description="Only of these types.")] = None,
    status: Annotated[Optional[List[str]], Query(description="Only of these statuses.")] = None,
    after_sequence: _Sequence = None,
    before_sequence: _Sequence = None,
    backward: Annotated[bool, Query(description="From the newest to the oldest.")] = False,
    include_deleted: bool = False,
) -> Json:
    """List messages in order. A conversation that does not exist has none."""
    page = await caller.storage.conversations.fetch_messages(
        conversation_id,
        role=role,
        message_type=type,
        status=status,
        after_sequence=after_sequence,
        before_sequence=before_sequence,
        backward=backward,
        include_deleted=include_deleted,
        **part.of(caller),
    )
    return Json(page.to_dict())


@router.post("/messages", status_code=201, response_model=MessageOut, responses=errors(404, 409))
async def append_message(
    caller: Writer,
    request: Request,
    conversation_id: ConversationId,
    body: NewMessageIn,
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Append a message; it is durable when this is answered. With a known Idempotency-Key: the message of then."""
    message = await caller.storage.conversations.add_message(
        conversation_id,
        body.role,
        body.content,
        message_id=body.id,
        name=body.name,
        message_type=body.type,
        status=body.status,
        metadata=body.metadata,
        author_id=body.author_id,
        parent_id=body.parent_id,
        client_message_id=key_of_request(request) or body.client_message_id,
        created_at=body.created_at,
        expect=body.expect,
        tenant_id=caller.tenant_id,
    )
    caller.services.feed.wake(caller.tenant_id, conversation_id)
    return versioned(message, 201)


@router.get(
    "/messages/stream",
    response_class=StreamingResponse,
    response_model=None,
    responses={**_Events, **errors(404)},
)
async def stream_messages(
    caller: Reader, request: Request, conversation_id: ConversationId, after_sequence: _Sequence = None
) -> Response:
    """Stream messages as they are added, after `after_sequence` (or the header Last-Event-ID; default: new ones only)."""
    last = request.headers.get("last-event-id", "")
    after = int(last) if last.isdigit() and len(last) < 19 else after_sequence
    found = await caller.storage.conversations.get_conversation(conversation_id, tenant_id=caller.tenant_id)
    if found is None:
        raise ConversationNotFoundError(conversation_id)
    services, token = caller.services, key_of(bearer_of(request))
    services.feed.admit()
    events = services.feed.messages(
        caller.tenant_id,
        conversation_id,
        found.last_sequence if after is None else after,
        lambda: services.authenticator.still_holds(token),
    )
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.get("/messages/{message_id:segment}", response_model=MessageOut, responses=errors(304, 404))
async def get_message(
    caller: Reader,
    request: Request,
    conversation_id: ConversationId,
    message_id: _MessageId,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Get a message."""
    found = await caller.storage.conversations.get_message(
        conversation_id, message_id, tenant_id=caller.tenant_id
    )
    if found is None:
        raise MessageNotFoundError(conversation_id, message_id)
    return unless_known(request, found)


@router.patch("/messages/{message_id:segment}", response_model=MessageOut, responses=errors(404, 409, 412))
async def edit_message(
    caller: Writer,
    conversation_id: ConversationId,
    message_id: _MessageId,
    body: MessageChange,
    if_match: IfMatch = None,
) -> Json:
    """Change a message; what it was is kept in its history."""
    given = body.model_dump(include=body.model_fields_set - {"actor_id"})
    if not given:
        raise ApiError(422, "invalid_request", "an edit needs a content, a metadata or a status")
    changed = await caller.storage.conversations.record_edit(
        conversation_id,
        message_id,
        **given,
        expected_version=expected_version(if_match),
        actor_id=body.actor_id,
        tenant_id=caller.tenant_id,
    )
    return versioned(changed)


@router.delete("/messages/{message_id:segment}", response_model=MessageOut, responses=errors(404, 409, 412))
async def delete_message(
    caller: Writer, conversation_id: ConversationId, message_id: _MessageId, if_match: IfMatch = None
) -> Json:
    """Mark a message as deleted and return it: reads and searches leave it out."""
    gone = await caller.storage.conversations.soft_delete_message(
        conversation_id,
        message_id,
        expected_version=expected_version(if_match),
        tenant_id=caller.tenant_id,
    )
    return versioned(gone)


@router.get("/events", response_model=PageOf[MessageEventOut])
async def message_history(
    caller: Reader,
    part: PartOf100,
    conversation_id: ConversationId,
    message_id: Annotated[Optional[str], Query(description="Only of this message.")] = None,
) -> Json:
    """List what happened to the messages: created, edited, deleted."""
    page = await caller.storage.conversations.fetch_message_events(
        conversation_id, message_id=message_id, **part.of(caller)
    )
    return Json(page.to_dict())

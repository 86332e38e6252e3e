"""Conversations: list, make, change, fork, archive, delete, export, search."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, AsyncIterator, Dict, List, Literal, Optional

import orjson
from fastapi import APIRouter, Body, Query, Request
from pydantic import Field
from starlette.responses import Response, StreamingResponse

from modules.conversation_store.errors import ConversationNotFoundError
from modules.conversation_store.records import Conversation
from modules.Server.api.parameters import (
    ConversationId,
    IdempotencyKey,
    IfMatch,
    IfNoneMatch,
    Limit,
    PartOf50,
    errors,
    expected_version,
    unless_known,
)
from modules.Server.callers import Caller, Reader, Writer
from modules.Server.models import ConversationOut, HitsOut, Input, PageOf
from modules.Server.once import Reply, once
from modules.Server.replies import Json, etag, plain, versioned

__all__ = [
    "ConversationChange",
    "Fork",
    "NewConversation",
    "archive_conversation",
    "change_conversation",
    "create_conversation",
    "delete_conversation",
    "export_conversation",
    "export_conversations",
    "fork_conversation",
    "get_conversation",
    "list_conversations",
    "router",
    "search",
    "unarchive_conversation",
]

router = APIRouter(prefix="/v1", tags=["conversations"])
_LINES: Dict[Any, Dict[str, Any]] = {
    200: {
        "description": "One record a line: a conversation, then each of its messages.",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    }
}


class NewConversation(Input):
    """A conversation to make."""

    id: Optional[str] = Field(None, examples=["c1"], description="Unset: a new UUIDv7.")
    title: Optional[str] = Field(None, examples=["A trip to Lisbon"])
    user_id: Optional[str] = Field(None, examples=["ada"])
    session_id: Optional[str] = None
    metadata: Dict[str, Any] = Field(default_factory=dict, examples=[{"channel": "web"}])


class ConversationChange(Input):
    """What to change; what is left out stays."""

    title: Optional[str] = Field(None, examples=["Lisbon in May"])
    metadata: Optional[Dict[str, Any]] = None


class Fork(Input):
    """How to fork."""

    message_id: Optional[str] = Field(None, description="The last message of the copy; unset: all of them.")
    id: Optional[str] = Field(None, description="Id of the new conversation.")
    title: Optional[str] = None


@router.get("/conversations", response_model=PageOf[ConversationOut])
async def list_conversations(
    caller: Reader,
    part: PartOf50,
    status: Annotated[Literal["active", "archived", "deleted"], Query()] = "active",
    user_id: Annotated[Optional[str], Query(description="Only of this user.")] = None,
    session_id: Annotated[Optional[str], Query(description="Only of this session.")] = None,
    updated_after: Annotated[Optional[datetime], Query(description="With a time zone.")] = None,
    updated_before: Annotated[Optional[datetime], Query(description="With a time zone.")] = None,
) -> Json:
    """List conversations, the one updated last first."""
    page = await caller.storage.conversations.list_conversations(
        status=status,
        user_id=user_id,
        session_id=session_id,
        updated_after=updated_after,
        updated_before=updated_before,
        **part.of(caller),
    )
    return Json(page.to_dict())


@router.post("/conversations", status_code=201, response_model=ConversationOut, responses=errors(409))
async def create_conversation(
    caller: Writer, request: Request, body: NewConversation, idempotency_key: IdempotencyKey = None
) -> Json:
    """Make a conversation."""

    async def effect(stores: Any) -> Reply:
        made = await stores.conversations.create_conversation(
            body.id,
            title=body.title,
            user_id=body.user_id,
            session_id=body.session_id,
            metadata=body.metadata,
            tenant_id=caller.tenant_id,
        )
        return Reply(made.to_dict(), 201, etag(made.version))

    return await once(request, caller, effect, body.model_dump())


@router.get("/conversations/export", responses=_LINES, response_class=StreamingResponse, response_model=None)
async def export_conversations(caller: Reader) -> Response:
    """Write out every conversation of the tenant with its messages, as `atlas-storage import` reads it."""
    return _lines(caller.storage.conversations.export_conversations(tenant_id=caller.tenant_id))


@router.get(
    "/conversations/{conversation_id:segment}",
    response_model=ConversationOut,
    responses=errors(304, 404),
)
async def get_conversation(
    caller: Reader, request: Request, conversation_id: ConversationId, if_none_match: IfNoneMatch = None
) -> Response:
    """Get a conversation."""
    found = await _require(caller, conversation_id)
    return unless_known(request, found)


@router.patch(
    "/conversations/{conversation_id:segment}",
    response_model=ConversationOut,
    responses=errors(404, 409, 412, 501),
)
async def change_conversation(
    caller: Writer, conversation_id: ConversationId, body: ConversationChange, if_match: IfMatch = None
) -> Json:
    """Change the title, the metadata, or both (together or not at all; both at once needs conversations in SQL)."""
    expected, given = expected_version(if_match), body.model_fields_set
    if not given:
        return versioned(await _require(caller, conversation_id))
    if len(given) == 1:
        return versioned(await _change(caller.storage, caller, conversation_id, body, expected))
    async with caller.storage.unit_of_work() as uow:
        changed = await _change(uow, caller, conversation_id, body, expected)
    return versioned(changed)


@router.delete(
    "/conversations/{conversation_id:segment}", status_code=204, response_model=None, responses=errors(404)
)
async def delete_conversation(
    caller: Writer,
    conversation_id: ConversationId,
    purge: Annotated[
        bool, Query(description="For good, with everything in it; otherwise retention does that.")
    ] = False,
) -> Response:
    """Delete a conversation: it is gone for every call but the list of deleted ones."""
    store, key = caller.storage.conversations, {"tenant_id": caller.tenant_id}
    delete = store.hard_delete_conversation if purge else store.delete_conversation
    if not await delete(conversation_id, **key):
        raise ConversationNotFoundError(conversation_id)
    return Response(status_code=204)


@router.post(
    "/conversations/{conversation_id:segment}/archive", response_model=ConversationOut, responses=errors(404)
)
async def archive_conversation(caller: Writer, conversation_id: ConversationId) -> Json:
    """Archive a conversation: it takes no messages until it is unarchived. Harmless when it is archived."""
    return versioned(
        await caller.storage.conversations.archive_conversation(conversation_id, tenant_id=caller.tenant_id)
    )


@router.post(
    "/conversations/{conversation_id:segment}/unarchive",
    response_model=ConversationOut,
    responses=errors(404),
)
async def unarchive_conversation(caller: Writer, conversation_id: ConversationId) -> Json:
    """Make an archived conversation active again. Harmless when it is active."""
    return versioned(
        await caller.storage.conversations.unarchive_conversation(conversation_id, tenant_id=caller.tenant_id)
    )


@router.post(
    "/conversations/{conversation_id:segment}/fork",
    status_code=201,
    response_model=ConversationOut,
    responses=errors(404, 409),
)
async def fork_conversation(
    caller: Writer,
    request: Request,
    conversation_id: ConversationId,
    body: Annotated[Fork, Body(default_factory=Fork)],
    idempotency_key: IdempotencyKey = None,
) -> Json:
    """Make a new conversation that starts as a copy of this one, up to a message."""

    async def effect(stores: Any) -> Reply:
        made = await stores.conversations.fork_conversation(
            conversation_id,
            body.message_id,
            new_conversation_id=body.id,
            title=body.title,
            tenant_id=caller.tenant_id,
        )
        return Reply(made.to_dict(), 201, etag(made.version))

    return await once(request, caller, effect, body.model_dump())


@router.get(
    "/conversations/{conversation_id:segment}/export",
    responses={**_LINES, **errors(404)},
    response_class=StreamingResponse,
    response_model=None,
)
async def export_conversation(caller: Reader, conversation_id: ConversationId) -> Response:
    """Write out one conversation with its messages."""
    await _require(caller, conversation_id)
    return _lines(
        caller.storage.conversations.export_conversations(conversation_id, tenant_id=caller.tenant_id)
    )


@router.get("/search", response_model=HitsOut, responses=errors(501))
async def search(
    caller: Reader,
    q: Annotated[str, Query(description="What a person types.", examples=["quiet hotel"])],
    mode: Annotated[Literal["text", "semantic", "hybrid"], Query()] = "text",
    conversation_id: Annotated[Optional[str], Query(description="Only in this conversation.")] = None,
    role: Annotated[Optional[List[str]], Query(description="Only of these roles.")] = None,
    created_after: Annotated[Optional[datetime], Query(description="With a time zone.")] = None,
    created_before: Annotated[Optional[datetime], Query(description="With a time zone.")] = None,
    limit: Limit = 10,
) -> Json:
    """Search the messages, by words, by meaning or both; by meaning needs an embedder (501 without)."""
    hits = await caller.storage.conversations.search(
        q,
        mode=mode,
        conversation_id=conversation_id,
        role=role,
        created_after=created_after,
        created_before=created_before,
        limit=limit,
        tenant_id=caller.tenant_id,
    )
    return Json({"items": [hit.to_dict() for hit in hits], "complete": hits.complete, "reason": hits.reason})


async def _change(
    stores: Any, caller: Caller, conversation_id: str, body: ConversationChange, expected: Optional[int]
) -> Conversation:
    store, key = stores.conversations, {"tenant_id": caller.tenant_id}
    if "title" in body.model_fields_set:
        found: Conversation = await store.rename_conversation(
            conversation_id, body.title, expected_version=expected, **key
        )
        if "metadata" not in body.model_fields_set:
            return found
        expected = found.version
    changed: Conversation = await store.set_conversation_metadata(
        conversation_id, body.metadata or {}, expected_version=expected, **key
    )
    return changed


async def _require(caller: Caller, conversation_id: str) -> Conversation:
    found = await caller.storage.conversations.get_conversation(conversation_id, tenant_id=caller.tenant_id)
    if found is None:
        raise ConversationNotFoundError(conversation_id)
    return found


def _lines(records: AsyncIterator[Dict[str, Any]]) -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        async for record in records:
            yield orjson.dumps(record, default=plain, option=orjson.OPT_APPEND_NEWLINE)

    return StreamingResponse(lines(), media_type="application/x-ndjson")

"""One conversation: its messages, its forks, and what can be done with it."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from modules.conversation_store.errors import ConversationNotFoundError
from modules.conversation_store.records import Conversation
from modules.Server.dashboard.rendering import back, page
from modules.Server.dashboard.visitors import Visitor, VisitorHere

__all__ = ["act", "add_message", "router", "thread"]

router = APIRouter(include_in_schema=False)
_MESSAGES = 50
# How far the tree of forks is looked for: up this many steps, down among this many conversations.
_STEPS_UP = 20
_LOOKED_AT = 500
# Seconds for which the pages of a tenant share what was found.
_FORKS_KEPT_S = 5.0
_MOST_TENANTS = 1000


@page(router, "/conversations/{conversation_id:segment}", "thread.html")
async def thread(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load the newest messages, or those before a place."""
    conversation = await _require(visitor, request.path_params["conversation_id"])
    before = request.query_params.get("before", "")
    store = visitor.storage.conversations
    found = await store.fetch_messages(
        conversation.id,
        before_sequence=int(before) if before.isdigit() and len(before) < 18 else None,
        backward=True,
        limit=_MESSAGES,
        tenant_id=visitor.tenant_id,
    )
    messages = list(reversed(found.items))
    return {
        "conversation": conversation,
        "messages": messages,
        "earlier": messages[0].sequence if messages and found.next_cursor else None,
        "is_latest": not before,
        "tree": await _tree(visitor, conversation),
    }


@router.post("/conversations/{conversation_id:segment}/messages")
async def add_message(request: Request, visitor: VisitorHere, conversation_id: str) -> Response:
    """Append a message."""
    form: Any = await request.form()
    text, role = str(form.get("content", "")), str(form.get("role", "user"))
    if text.strip():
        await visitor.storage.conversations.add_message(
            conversation_id, role, text.replace("\r\n", "\n"), tenant_id=visitor.tenant_id
        )
        visitor.services.feed.wake(visitor.tenant_id, conversation_id)
    return back(_path(conversation_id) + "#end")


@router.post("/conversations/{conversation_id:segment}/do")
async def act(request: Request, visitor: VisitorHere, conversation_id: str) -> Response:
    """Rename, archive, unarchive, fork or delete."""
    answer = await _act(visitor, conversation_id, await request.form())
    visitor.services.forks.pop(visitor.tenant_id, None)
    return answer


async def _act(visitor: Visitor, conversation_id: str, form: Any) -> Response:
    what, store, key = (
        str(form.get("what", "")),
        visitor.storage.conversations,
        {"tenant_id": visitor.tenant_id},
    )
    if what == "rename":
        title = str(form.get("title", "")).strip() or None
        await store.rename_conversation(conversation_id, title, tenant_id=visitor.tenant_id)
        return back(_path(conversation_id), "Renamed.")
    if what == "archive":
        await store.archive_conversation(conversation_id, **key)
        return back(_path(conversation_id), "Archived: it takes no messages until it is unarchived.")
    if what == "unarchive":
        await store.unarchive_conversation(conversation_id, **key)
        return back(_path(conversation_id), "Active again.")
    if what == "fork":
        made = await store.fork_conversation(
            conversation_id, str(form.get("message_id") or "") or None, tenant_id=visitor.tenant_id
        )
        return back(_path(made.id), "This is the new fork.")
    if what == "delete":
        await store.delete_conversation(conversation_id, **key)
        return back("/conversations", "Deleted.")
    return back(_path(conversation_id))


def _path(conversation_id: str) -> str:
    return f"/conversations/{quote(conversation_id, safe='')}"


async def _require(visitor: Visitor, conversation_id: str) -> Conversation:
    found = await visitor.storage.conversations.get_conversation(conversation_id, tenant_id=visitor.tenant_id)
    if found is None:
        raise ConversationNotFoundError(conversation_id)
    return found


async def _forks(visitor: Visitor) -> List[Conversation]:
    """Return the forks among the conversations updated last, as they were a few seconds ago at most."""
    kept, now = visitor.services.forks, time.monotonic()
    found = kept.get(visitor.tenant_id)
    if found is None or found[0] < now:
        recent = await visitor.storage.conversations.list_conversations(
            limit=_LOOKED_AT, tenant_id=visitor.tenant_id
        )
        if len(kept) >= _MOST_TENANTS:
            kept.clear()
        forks = [one for one in recent if one.forked_from_id is not None]
        found = kept[visitor.tenant_id] = (now + _FORKS_KEPT_S, forks)
    return found[1]


async def _tree(visitor: Visitor, conversation: Conversation) -> List[Dict[str, Any]]:
    """Return the conversations that this one was forked from or into, as rows of a tree; empty without forks."""
    store = visitor.storage.conversations
    root = conversation
    known = {conversation.id: conversation}
    for _ in range(_STEPS_UP):
        if root.forked_from_id is None:
            break
        parent = await store.get_conversation(root.forked_from_id, tenant_id=visitor.tenant_id)
        if parent is None or parent.id in known:
            break
        known[parent.id] = root = parent
    children: Dict[Optional[str], List[Conversation]] = {}
    for one in {**{fork.id: fork for fork in await _forks(visitor)}, **known}.values():
        children.setdefault(one.forked_from_id, []).append(one)
    rows: List[Dict[str, Any]] = []

    def walk(one: Conversation, depth: int) -> None:
        rows.append({"conversation": one, "depth": min(depth, 8), "is_here": one.id == conversation.id})
        for child in sorted(children.get(one.id, ()), key=lambda each: each.created_at):
            if len(rows) < 100:
                walk(child, depth + 1)

    walk(root, 0)
    return rows if len(rows) > 1 else []

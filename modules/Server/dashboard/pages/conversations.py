"""The list of conversations, and search."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from modules.Server.dashboard.rendering import back, page
from modules.Server.dashboard.visitors import Visitor, VisitorHere
from modules.store_common.errors import StorageError

__all__ = ["create", "list_conversations", "router", "search"]

router = APIRouter(include_in_schema=False)
_PAGE = 30
_HITS = 30
_STATUSES = ("active", "archived", "deleted")
_MODES = ("text", "semantic", "hybrid")


@page(router, "/conversations", "conversations.html")
async def list_conversations(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load a page of conversations."""
    status = request.query_params.get("status", "active")
    status = status if status in _STATUSES else "active"
    found = await visitor.storage.conversations.list_conversations(
        status=status,
        limit=_PAGE,
        cursor=request.query_params.get("cursor"),
        tenant_id=visitor.tenant_id,
    )
    return {
        "found": found,
        "status": status,
        "statuses": _STATUSES,
        "paged": "cursor" in request.query_params,
    }


@router.post("/conversations")
async def create(request: Request, visitor: VisitorHere) -> Response:
    """Make a conversation."""
    form: Any = await request.form()
    title = str(form.get("title", "")).strip() or None
    store = visitor.storage.conversations
    try:
        made = await store.create_conversation(title=title, tenant_id=visitor.tenant_id)
    except StorageError as exc:
        return back("/conversations", str(exc))
    return back(f"/conversations/{made.id}")


def _fits(mode: str, scores: Sequence[float]) -> List[str]:
    """Say how well each hit fits: scores of words compare within one result only, so they are told by the best one."""
    if mode == "semantic":
        return [f"similarity {score:.2f}" for score in scores]
    best = max(scores, default=0.0)
    return [f"{score / best:.0%} of the best" if 0 < score < best else "" for score in scores]


@page(router, "/search", "search.html")
async def search(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load what a search finds."""
    query = request.query_params.get("q", "").strip()
    mode = request.query_params.get("mode", "text")
    mode = mode if mode in _MODES else "text"
    hits: Any = []
    problem = ""
    if query:
        try:
            hits = await visitor.storage.conversations.search(
                query, mode=mode, limit=_HITS, snippet_characters=240, tenant_id=visitor.tenant_id
            )
        except StorageError as exc:
            problem = str(exc)
    return {
        "query": query,
        "mode": mode,
        "modes": _MODES,
        "hits": hits,
        "fits": _fits(mode, [hit.score for hit in hits]),
        "problem": problem,
        "has_embedder": visitor.storage.get_settings().embedder is not None,
    }

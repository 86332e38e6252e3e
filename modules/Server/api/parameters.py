"""Parameters that several routers take, and small readers of headers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Awaitable, Callable, Dict, Optional

from fastapi import Depends, Header, Path, Query, Request
from starlette.responses import Response

from modules.Server.callers import Caller
from modules.Server.models import ProblemOut
from modules.Server.problems import MEDIA_TYPE, ApiError
from modules.Server.replies import etag, version_of, versioned

__all__ = [
    "ConversationId",
    "Cursor",
    "IdempotencyKey",
    "IfMatch",
    "IfNoneMatch",
    "Limit",
    "Part",
    "PartOf50",
    "PartOf100",
    "errors",
    "expected_version",
    "not_modified",
    "other_than",
    "unless_known",
]

Limit = Annotated[int, Query(ge=1, le=1000, description="Items wanted at most.")]
Cursor = Annotated[
    Optional[str],
    Query(max_length=4096, description="`next_cursor` of the part before, with the same filters."),
]


@dataclass(frozen=True)
class Part:
    """Which part of a list is wanted.

    Attributes:
        limit: Items at most.
        cursor: Where it begins; None: at the beginning.
    """

    limit: int
    cursor: Optional[str]

    def of(self, caller: Caller) -> Dict[str, Any]:
        """Return the arguments that every list of a store takes."""
        return {"limit": self.limit, "cursor": self.cursor, "tenant_id": caller.tenant_id}


def _part_of(most: int) -> Callable[[int, Optional[str]], Awaitable[Part]]:
    async def part(limit: Limit = most, cursor: Cursor = None) -> Part:
        return Part(limit, cursor)

    return part


PartOf50 = Annotated[Part, Depends(_part_of(50))]
PartOf100 = Annotated[Part, Depends(_part_of(100))]


def other_than(*names: str) -> Dict[str, Any]:
    """Return what OpenAPI says of an id in a path where these names are paths of their own."""
    return {"not": {"enum": list(names)}}


ConversationId = Annotated[
    str,
    Path(
        description="Id of the conversation; encode a slash as %2F.",
        examples=["c1"],
        json_schema_extra=other_than("export"),
    ),
]
IfMatch = Annotated[
    Optional[str],
    Header(description='Change it only if its ETag is this: "v3". Otherwise 412.', examples=['"v1"']),
]
IfNoneMatch = Annotated[Optional[str], Header(description="Answer 304 if its ETag is this.")]
IdempotencyKey = Annotated[
    Optional[str],
    Header(description="Any text of yours, 1 to 255 characters: the same key again has no second effect."),
]


def errors(*statuses: int) -> Dict[Any, Dict[str, Any]]:
    """Return the `responses` of a route that may refuse with these statuses besides those of every route."""
    texts: Dict[int, str] = {
        304: "Not changed.",
        404: "There is no such thing for this tenant.",
        409: "It conflicts with what is there.",
        412: "Its version is another one.",
        501: "Not part of this installation.",
        507: "A quota would be passed.",
    }
    found: Dict[Any, Dict[str, Any]] = {}
    for status in statuses:
        if status == 304:
            found[status] = {"description": texts[status]}
        else:
            found[status] = {"description": texts[status], "model": ProblemOut, "content": {MEDIA_TYPE: {}}}
    return found


def expected_version(if_match: Optional[str]) -> Optional[int]:
    """Return the version that a change expects, None for any.

    Raises:
        ApiError: the tag is not one of ours.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    version = version_of(if_match)
    if version is None or version < 1:
        raise ApiError(412, "etag_unknown", "If-Match is not an ETag of this server; read again and decide")
    return version


def not_modified(request: Request, version: int) -> bool:
    """Return whether the caller has this version already."""
    given = request.headers.get("if-none-match")
    return given is not None and any(version_of(tag) == version for tag in given.split(","))


def unless_known(request: Request, thing: Any) -> Response:
    """Return a thing with its ETag, or 304 to a caller that has this version already."""
    if not_modified(request, thing.version):
        return Response(status_code=304, headers=etag(thing.version))
    return versioned(thing)

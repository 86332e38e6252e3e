"""`Idempotency-Key`: the effect of a request and its answer are written in one transaction, so there is one of each.

Of several requests with the same key at the same time one does the work; the others wait for its transaction and get its
answer. Answers are kept for a day among the tenant's keys (namespace `_http.replies`). Refusals are not kept: a request
that was refused may be sent again with the same key.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Awaitable, Callable, Dict, Optional

import orjson
from fastapi import Request

from modules.Server.callers import Caller
from modules.Server.problems import ApiError
from modules.Server.replies import Json, plain
from modules.store_common.errors import IdempotencyConflictError

__all__ = ["NAMESPACE", "Effect", "Reply", "key_of_request", "once"]

NAMESPACE = "_http.replies"
_KEPT_S = 24 * 3600.0
_LONGEST_KEY = 255


@dataclass(frozen=True)
class Reply:
    """An answer that can be kept.

    Attributes:
        body: Anything that JSON can say.
        status: HTTP status, of success.
        headers: Headers beside those of every answer.
    """

    body: Any
    status: int = 200
    headers: Dict[str, str] = field(default_factory=dict)

    def response(self, *, replayed: bool = False) -> Json:
        """Return it as an answer."""
        headers = {**self.headers, "Idempotent-Replayed": "true"} if replayed else self.headers
        return Json(self.body, self.status, headers)


class _KnownKeyError(Exception):
    """The key has an answer already; ends the unit of work without effect."""


#: Does the work on the stores that it is given (those of the manager, or of a unit of work) and returns the answer.
Effect = Callable[[Any], Awaitable[Reply]]


def key_of_request(request: Request) -> Optional[str]:
    """Return the request's `Idempotency-Key`, None without one.

    Raises:
        ApiError: it is blank or too long.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    key = key.strip().strip('"')
    if not key or len(key) > _LONGEST_KEY or not key.isprintable():
        raise ApiError(
            422, "invalid_request", f"Idempotency-Key must have 1 to {_LONGEST_KEY} printable characters"
        )
    return key


async def once(request: Request, caller: Caller, effect: Effect, body: Any) -> Json:
    """Have `effect` applied once for the request's idempotency key; without a key, simply apply it.

    Args:
        request: The request.
        caller: Whose it is.
        effect: What to do.
        body: What the request asks for: the same key with another body is a conflict.
    """
    key = key_of_request(request)
    if key is None:
        return (await effect(caller.storage)).response()
    # not by orjson: a body may hold what the store will refuse (lone surrogates, numbers beyond 64 bits)
    asked = json.dumps([request.method, request.scope["path"], body], default=plain, sort_keys=True)
    fingerprint = hashlib.sha256(asked.encode()).hexdigest()
    name = hashlib.sha256(orjson.dumps([caller.token.id, key])).hexdigest()
    tenant = caller.tenant_id
    known = await caller.storage.kv.get(NAMESPACE, name, tenant_id=tenant)
    if known is None:
        try:
            async with caller.storage.unit_of_work() as uow:
                # reserved first: a rival waits here, and does nothing
                if not await uow.kv.set(
                    NAMESPACE, name, {}, ttl_seconds=_KEPT_S, only_if_absent=True, tenant_id=tenant
                ):
                    raise _KnownKeyError
                reply = await effect(uow)
                kept = {
                    "fingerprint": fingerprint,
                    "status": reply.status,
                    "headers": reply.headers,
                    "body": orjson.loads(orjson.dumps(reply.body, default=plain)),
                }
                await uow.kv.set(NAMESPACE, name, kept, ttl_seconds=_KEPT_S, tenant_id=tenant)
            return reply.response()
        except _KnownKeyError:
            known = await caller.storage.kv.get(NAMESPACE, name, tenant_id=tenant)
    # whoever may write the tenant's keys may have put anything there
    if not isinstance(known, dict) or known.get("fingerprint") != fingerprint:
        raise IdempotencyConflictError("this Idempotency-Key was used before for another request")
    return Reply(known["body"], known["status"], known["headers"]).response(replayed=True)

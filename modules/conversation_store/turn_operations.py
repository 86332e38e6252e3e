"""Operations of an agent's turn: begin, store what was written so far, end, and end what died.

`atlas_turns` has a row for each reply that is being written, with a fence (a random text, new for each turn) and the time
at which it counts as dead unless it is renewed. Every write of a turn goes through that row: when it is gone, another
process ended the turn, and the writer is told so.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from sqlalchemy import BigInteger, bindparam, delete, insert, select, update

from modules.conversation_store.append import Appended, Condition, append_many
from modules.conversation_store.errors import ConversationLeaseLostError
from modules.conversation_store.leases import after_seconds
from modules.conversation_store.models import MessageRow, TurnRow
from modules.storage.columns import utc_now
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from modules.store_common.errors import IdempotencyConflictError

__all__ = [
    "ADD_TURN",
    "EXTEND_TURN",
    "FIND_DEAD",
    "FIND_DEAD_OF_TENANT",
    "FINISH",
    "INTERRUPT",
    "REMOVE_TURN",
    "STORE_PART",
    "begin_turn",
    "begun_already",
    "end_turn",
    "recover",
    "store_part",
]

_T, _M = TurnRow, MessageRow
_KEY = ("tenant_id", "conversation_id", "sequence")


def _here(table: Any) -> List[Any]:
    return [getattr(table, name) == bindparam(name) for name in _KEY]


def _add(dialect: str) -> Any:
    values: Dict[str, Any] = {name: bindparam(name) for name in (*_KEY, "fence")}
    return insert(_T).values(**values, started_at=utc_now(), expires_at=after_seconds("seconds", dialect))


def _extend(dialect: str) -> Any:
    own = _T.fence == bindparam("fence")
    return (
        update(_T)
        .where(*_here(_T), own)
        .values(expires_at=after_seconds("seconds", dialect))
        .returning(_T.fence)
    )


ADD_TURN = Statement(sqlite=_add("sqlite"), postgresql=_add("postgresql"))
EXTEND_TURN = Statement(sqlite=_extend("sqlite"), postgresql=_extend("postgresql"))
REMOVE_TURN = Statement(delete(_T).where(*_here(_T), _T.fence == bindparam("fence")).returning(_T.fence))
STORE_PART = Statement(
    update(_M).where(*_here(_M), _M.status == "streaming").values(content=bindparam("content"))
)
FINISH = Statement(
    update(_M)
    .where(*_here(_M), _M.status == "streaming")
    .values(
        content=bindparam("content"),
        search_text=bindparam("search_text"),
        metadata_=bindparam("metadata"),
        status=bindparam("status"),
    )
    .returning(_M.sequence)
)
_DEAD = (
    select(_T.tenant_id, _T.conversation_id, _T.sequence, _T.fence)
    .where(_T.expires_at <= utc_now())
    .order_by(_T.expires_at)
    .limit(bindparam("limit", type_=BigInteger))
)
FIND_DEAD = Statement(_DEAD, postgresql=_DEAD.with_for_update(skip_locked=True))
_DEAD_OF_TENANT = _DEAD.where(_T.tenant_id == bindparam("tenant"))
FIND_DEAD_OF_TENANT = Statement(_DEAD_OF_TENANT, postgresql=_DEAD_OF_TENANT.with_for_update(skip_locked=True))
INTERRUPT = Statement(update(_M).where(*_here(_M), _M.status == "streaming").values(status="interrupted"))


@write
async def begin_turn(
    tx: Transaction,
    tenant_id: str,
    conversation_id: str,
    messages: List[Dict[str, Any]],
    condition: Condition,
    fence: str,
    seconds: float,
) -> List[Appended]:
    """Store the user's message and an empty reply, and mark the reply as being written."""
    places = await append_many(tx, tenant_id, conversation_id, messages, condition)
    if any(place.created_at is None for place in places):
        raise begun_already()
    await tx.run(
        ADD_TURN,
        tenant_id=tenant_id,
        conversation_id=conversation_id,
        sequence=places[-1].sequence,
        fence=fence,
        seconds=seconds,
    )
    return places


def begun_already() -> IdempotencyConflictError:
    """Return the error of a turn whose message is there."""
    return IdempotencyConflictError(
        "a message of this turn was stored before (its client_message_id is known): the turn was begun already"
    )


@write
async def store_part(
    tx: Transaction, key: Dict[str, Any], fence: str, seconds: float, content: Optional[str]
) -> None:
    """Renew the turn's lease and store what was written so far; None: nothing new."""
    if await tx.first(EXTEND_TURN, **key, fence=fence, seconds=seconds) is None:
        raise ConversationLeaseLostError(key["conversation_id"])
    if content is not None:
        await tx.run(STORE_PART, **key, content=content)


@write
async def end_turn(tx: Transaction, key: Dict[str, Any], fence: str, values: Dict[str, Any]) -> None:
    """Finish the reply."""
    if await tx.first(REMOVE_TURN, **key, fence=fence) is None:
        raise ConversationLeaseLostError(key["conversation_id"])
    await tx.first(FINISH, **key, **values)


@write
async def recover(tx: Transaction, tenant_id: Optional[str], limit: int) -> int:
    """Mark the replies of dead turns as interrupted; what they wrote is kept."""
    if tenant_id is None:
        dead: List[Tuple[Any, ...]] = await tx.all(FIND_DEAD, limit=limit)
    else:
        dead = await tx.all(FIND_DEAD_OF_TENANT, limit=limit, tenant=tenant_id)
    for *where, fence in dead:
        key = dict(zip(_KEY, where))
        await tx.run(INTERRUPT, **key)
        await tx.first(REMOVE_TURN, **key, fence=fence)
    return len(dead)

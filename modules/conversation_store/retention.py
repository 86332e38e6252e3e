"""Room: retention, in bounded batches, each its own transaction, by the database's clock.

    active      --archive_after_days idle-->   archived
    any         --delete_after_days idle-->    soft-deleted      (also: beyond max_conversations, idle longest first)
    message     --beyond history_limit-->      soft-deleted
    soft-deleted --purge_after_days-->         gone

Every batch looks for candidates and locks them in the same transaction that changes them; what another process works on
is skipped. Any number of processes may run it side by side.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Coroutine, Dict, List, Optional, Tuple

from sqlalchemy import BigInteger, bindparam, delete, select, update

from modules.conversation_store.encoding import check_limit
from modules.conversation_store.leases import after_seconds
from modules.conversation_store.lifecycle import remove_conversation
from modules.conversation_store.models import ConversationRow, MessageEventRow, MessageRow
from modules.conversation_store.records import RetentionPolicy, RetentionResult
from modules.storage.columns import utc_now
from modules.storage.operations import Executor, Operation, Store, Transaction, write
from modules.storage.statements import Statement
from modules.store_common.errors import InvalidValueError

__all__ = [
    "ARCHIVE",
    "DELETE",
    "PICK_DELETED",
    "PICK_DELETED_MESSAGES",
    "PICK_IDLE",
    "PICK_IDLE_ACTIVE",
    "PICK_LONG",
    "PICK_SURPLUS",
    "PURGE_EVENTS",
    "PURGE_MESSAGE",
    "SET_TRIMMED",
    "TRIM_MESSAGES",
    "Retention",
    "archive",
    "check_policy",
    "delete_idle",
    "delete_surplus",
    "purge_conversations",
    "purge_messages",
    "retain",
    "trim",
]

_C, _M, _E = ConversationRow, MessageRow, MessageEventRow
_DAY_S = 86_400
_MAX_DAYS = 36_500
_LIMIT = bindparam("limit", type_=BigInteger)
# Rows a transaction changes: short enough not to be felt by others.
_BATCH = 500
# Conversations are purged with everything in them, so fewer at a time.
_PURGE_BATCH = 20


def _older(column: Any) -> Callable[[str], Any]:
    return lambda dialect: column <= after_seconds("seconds", dialect, -1)


def _pick(
    columns: List[Any], order: Any, conditions: List[Any], age: Optional[Callable[[str], Any]] = None
) -> Statement:
    forms = {}
    for dialect in ("sqlite", "postgresql"):
        query = select(*columns).where(columns[0].class_.tenant_id == bindparam("tenant_id"), *conditions)
        if age is not None:
            query = query.where(age(dialect))
        forms[dialect] = query.order_by(order).limit(_LIMIT)
    return Statement(sqlite=forms["sqlite"], postgresql=forms["postgresql"].with_for_update(skip_locked=True))


_HERE = (_C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("conversation_id"))
PICK_IDLE_ACTIVE = _pick([_C.id], _C.updated_at, [_C.status == "active"], _older(_C.updated_at))
PICK_IDLE = _pick([_C.id], _C.updated_at, [_C.status != "deleted"], _older(_C.updated_at))
PICK_DELETED = _pick([_C.id], _C.deleted_at, [_C.deleted_at.is_not(None)], _older(_C.deleted_at))
PICK_LONG = _pick(
    [_C.id, _C.last_sequence, _C.trimmed_sequence],
    _C.id,
    [_C.status != "deleted", _C.last_sequence - _C.trimmed_sequence > bindparam("keep", type_=BigInteger)],
)
PICK_DELETED_MESSAGES = _pick(
    [_M.conversation_id, _M.sequence], _M.deleted_at, [_M.deleted_at.is_not(None)], _older(_M.deleted_at)
)
# an OFFSET on purpose: it counts what may stay, and runs in the background
_SURPLUS = (
    select(_C.id)
    .where(_C.tenant_id == bindparam("tenant_id"), _C.status != "deleted")
    .order_by(_C.updated_at.desc(), _C.id.desc())
    .offset(bindparam("keep", type_=BigInteger))
    .limit(_LIMIT)
)
PICK_SURPLUS = Statement(_SURPLUS, postgresql=_SURPLUS.with_for_update(skip_locked=True))

# updated_at stays: archiving is no use of the conversation, so it does not put off its deletion
ARCHIVE = Statement(
    update(_C).where(*_HERE).values(status="archived", archived_at=utc_now(), version=_C.version + 1)
)
DELETE = Statement(
    update(_C).where(*_HERE).values(status="deleted", deleted_at=utc_now(), version=_C.version + 1)
)
TRIM_MESSAGES = Statement(
    update(_M)
    .where(
        _M.tenant_id == bindparam("tenant_id"),
        _M.conversation_id == bindparam("conversation_id"),
        _M.sequence > bindparam("after"),
        _M.sequence <= bindparam("upto"),
        _M.deleted_at.is_(None),
        _M.status != "streaming",
    )
    .values(deleted_at=utc_now())
)
SET_TRIMMED = Statement(update(_C).where(*_HERE).values(trimmed_sequence=bindparam("upto", type_=BigInteger)))


def _of_message(table: Any) -> List[Any]:
    return [getattr(table, name) == bindparam(name) for name in ("tenant_id", "conversation_id", "sequence")]


PURGE_MESSAGE = Statement(delete(_M).where(*_of_message(_M)))
PURGE_EVENTS = Statement(delete(_E).where(*_of_message(_E)))


async def _change(
    tx: Transaction, pick: Statement, change: Statement, tenant_id: str, params: Dict[str, Any]
) -> int:
    found = await tx.all(pick, tenant_id=tenant_id, **params)
    await tx.run_many(change, [{"tenant_id": tenant_id, "conversation_id": row[0]} for row in found])
    return len(found)


@write
async def archive(tx: Transaction, tenant_id: str, limit: int, seconds: float) -> int:
    """Archive conversations that nobody used."""
    return await _change(tx, PICK_IDLE_ACTIVE, ARCHIVE, tenant_id, {"limit": limit, "seconds": seconds})


@write
async def delete_idle(tx: Transaction, tenant_id: str, limit: int, seconds: float) -> int:
    """Soft-delete conversations that nobody used."""
    return await _change(tx, PICK_IDLE, DELETE, tenant_id, {"limit": limit, "seconds": seconds})


@write
async def delete_surplus(tx: Transaction, tenant_id: str, limit: int, keep: int) -> int:
    """Soft-delete conversations beyond the number to keep."""
    return await _change(tx, PICK_SURPLUS, DELETE, tenant_id, {"limit": limit, "keep": keep})


@write
async def trim(tx: Transaction, tenant_id: str, limit: int, keep: int) -> int:
    """Soft-delete messages beyond the history limit, of one conversation at a time."""
    row = await tx.first(PICK_LONG, tenant_id=tenant_id, keep=keep, limit=1)
    if row is None:
        return 0
    conversation_id, last, trimmed = row
    upto = min(last - keep, trimmed + limit)
    key = {"tenant_id": tenant_id, "conversation_id": conversation_id}
    await tx.run(TRIM_MESSAGES, **key, after=trimmed, upto=upto)
    await tx.run(SET_TRIMMED, **key, upto=upto)
    return int(upto - trimmed)


@write
async def purge_conversations(tx: Transaction, tenant_id: str, limit: int, seconds: float) -> int:
    """Remove soft-deleted conversations for good."""
    found = await tx.all(PICK_DELETED, tenant_id=tenant_id, limit=limit, seconds=seconds)
    for row in found:
        await remove_conversation(tx, {"tenant_id": tenant_id, "conversation_id": row[0]})
    return len(found)


@write
async def purge_messages(tx: Transaction, tenant_id: str, limit: int, seconds: float) -> int:
    """Remove soft-deleted messages and their events for good."""
    found = await tx.all(PICK_DELETED_MESSAGES, tenant_id=tenant_id, limit=limit, seconds=seconds)
    keys = [{"tenant_id": tenant_id, "conversation_id": row[0], "sequence": row[1]} for row in found]
    await tx.run_many(PURGE_EVENTS, keys)
    await tx.run_many(PURGE_MESSAGE, keys)
    return len(found)


def check_policy(policy: RetentionPolicy) -> RetentionPolicy:
    """Return `policy` if its numbers make sense, those of its tenants included.

    Raises:
        InvalidValueError: one of them is negative, too large or no number.
    """
    for name in ("archive_after_days", "delete_after_days", "purge_after_days"):
        days = getattr(policy, name)
        if name == "purge_after_days" and days is None:
            continue
        if (
            isinstance(days, bool)
            or not isinstance(days, (int, float))
            or not math.isfinite(days)
            or not 0 <= days <= _MAX_DAYS
        ):
            raise InvalidValueError(f"retention: {name} must be a number of days from 0 to {_MAX_DAYS}")
    for name in ("history_limit", "max_conversations"):
        count = getattr(policy, name)
        if type(count) is not int or not 0 <= count < 2**62:
            raise InvalidValueError(f"retention: {name} must be an int of at least 0")
    for other in policy.tenants.values():
        if other.tenants:
            raise InvalidValueError("retention: the policy of a tenant cannot have tenants of its own")
        check_policy(other)
    return policy


_Step = Tuple[str, Operation[Any, int], Any, int]


def _steps(policy: RetentionPolicy) -> List[_Step]:
    steps: List[_Step] = []
    if policy.archive_after_days:
        steps.append(("archived", archive, policy.archive_after_days * _DAY_S, _BATCH))
    if policy.delete_after_days:
        steps.append(("conversations_deleted", delete_idle, policy.delete_after_days * _DAY_S, _BATCH))
    if policy.max_conversations:
        steps.append(("conversations_deleted", delete_surplus, policy.max_conversations, _BATCH))
    if policy.history_limit:
        steps.append(("messages_deleted", trim, policy.history_limit, _BATCH))
    if policy.purge_after_days is not None:
        seconds = policy.purge_after_days * _DAY_S
        steps.append(("conversations_purged", purge_conversations, seconds, _PURGE_BATCH))
        steps.append(("messages_purged", purge_messages, seconds, _BATCH))
    return steps


async def retain(executor: Executor, tenant_id: str, policy: RetentionPolicy, limit: int) -> RetentionResult:
    """Apply the policy of one tenant, changing at most about `limit` rows."""
    counts: Dict[str, int] = {}
    left = limit
    for name, operation, argument, batch in _steps(policy.for_tenant(tenant_id)):
        while left > 0:
            run: Callable[..., Coroutine[Any, Any, int]] = executor.run
            count = await run(operation, tenant_id, min(batch, left), argument)
            if not count:
                break
            counts[name] = counts.get(name, 0) + count
            left -= count
    return RetentionResult(**counts, complete=left > 0)


class Retention(Store):
    """What is kept, and for how long."""

    _retention: RetentionPolicy

    async def run_retention(
        self,
        policy: Optional[RetentionPolicy] = None,
        *,
        limit: int = 10_000,
        tenant_id: Optional[str] = None,
    ) -> RetentionResult:
        """Archive, soft-delete and purge what this tenant's policy says, in bounded batches.

        `ConversationMaintenance.run_retention` does it for all tenants.

        Args:
            policy: What to keep; None: the store's own.
            limit: Stop after about this many rows, 1 to 1,000,000.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            InvalidValueError: the policy makes no sense; nothing was changed.
        """
        chosen = check_policy(self._retention if policy is None else policy)
        return await retain(
            self._executor, self._tenant(tenant_id), chosen, check_limit(limit, "limit", 1_000_000)
        )

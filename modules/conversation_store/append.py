"""Operations that append messages; see `append_statements` for how."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, Hashable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union, cast

import orjson

from modules.conversation_store.append_statements import (
    APPEND,
    APPEND_BATCH,
    BATCHED,
    BUMP,
    BUMP_CHECKED,
    BUMP_MANY,
    FIND_CLIENT,
    INSERT,
    INSERT_MANY,
    STATE,
)
from modules.conversation_store.encoding import check_optional_integer
from modules.conversation_store.errors import (
    ConversationArchivedError,
    ConversationLeaseLostError,
    ConversationNotFoundError,
)
from modules.conversation_store.records import ConversationLease
from modules.conversation_store.search_pending import index_many
from modules.storage.operations import Transaction, write
from modules.storage.statements import Row
from modules.store_common.clock import from_microseconds, to_microseconds
from modules.store_common.errors import (
    ConcurrencyError,
    IdempotencyConflictError,
    InvalidValueError,
    StorageError,
)
from modules.store_common.values import encode_text

__all__ = [
    "Appended",
    "Condition",
    "append",
    "append_checked",
    "append_many",
    "check_known",
    "condition_of",
    "one_conversation",
    "refusal",
    "refusal_of",
]


class Condition(NamedTuple):
    """What an append expects of its conversation; None: nothing."""

    expect: Optional[int] = None
    owner: Optional[str] = None
    fence: Optional[int] = None


class Appended(NamedTuple):
    """Where a message landed; `created_at` is None when it was there before (its idempotency key was known)."""

    sequence: int
    created_at: Optional[datetime]


_ANY = Condition()
_Fields = Dict[str, Any]


async def refusal(
    tx: Transaction, tenant_id: str, conversation_id: str, condition: Condition
) -> StorageError:
    """Return the error that says why no counter was bumped."""
    row = await tx.first(STATE, tenant_id=tenant_id, conversation_id=conversation_id)
    return refusal_of(row, conversation_id, condition)


def refusal_of(row: Optional[Row], conversation_id: str, condition: Condition) -> StorageError:
    """Return the error for a conversation of which `row` tells status, last sequence, fence and owner."""
    if row is None or row[0] == "deleted":
        return ConversationNotFoundError(conversation_id)
    status, last_sequence, fence, owner = row
    if status == "archived":
        return ConversationArchivedError(conversation_id)
    if condition.fence is not None and (condition.fence, condition.owner) != (fence, owner):
        return ConversationLeaseLostError(conversation_id)
    if condition.expect is not None:
        return ConcurrencyError(
            f"conversation {conversation_id!r}: expected last sequence {condition.expect}, found {last_sequence}; "
            "read the newer messages and decide again",
            condition.expect,
            last_sequence,
        )
    return ConcurrencyError(
        f"conversation {conversation_id!r} changed while this call was under way; try again"
    )


def condition_of(
    conversation_id: str, expect: Optional[int], mode: Optional[str], lease: Optional[ConversationLease]
) -> Optional[Condition]:
    """Return what an append expects; None: nothing."""
    if mode is not None and mode != "any":
        raise InvalidValueError('append must be "any" or None; to expect a last sequence use expect=')
    check_optional_integer(expect, "expect")
    if mode is not None and (expect is not None or lease is not None):
        raise InvalidValueError('append="any" expects nothing: leave out expect= and lease=')
    if lease is not None and lease.conversation_id != conversation_id:
        raise InvalidValueError("the lease is of another conversation")
    if expect is None and lease is None:
        return None
    return Condition(expect, None if lease is None else lease.owner, None if lease is None else lease.fence)


def check_known(digest: Optional[str], fields: _Fields) -> None:
    """Raise unless a known idempotency key came with the same body as the first time."""
    if digest != fields["body_digest"]:
        raise IdempotencyConflictError(
            "this client_message_id was used in this conversation with another body; use a new one for a new message"
        )


def _row(
    fields: _Fields, tenant_id: str, conversation_id: str, sequence: int, created_at: datetime
) -> _Fields:
    return {
        **fields,
        "tenant_id": tenant_id,
        "conversation_id": conversation_id,
        "sequence": sequence,
        "created_at": created_at,
    }


async def _append_sqlite(
    tx: Transaction, tenant_id: str, conversation_id: str, fields: _Fields, condition: Condition
) -> Appended:
    known = await _known(tx, tenant_id, conversation_id, fields)
    if isinstance(known, Appended):
        return known
    if known is not None:
        raise known
    if condition is _ANY:
        row = await tx.first(BUMP, tenant_id=tenant_id, conversation_id=conversation_id, count=1)
    else:
        row = await tx.first(
            BUMP_CHECKED, tenant_id=tenant_id, conversation_id=conversation_id, count=1, **condition._asdict()
        )
    if row is None:
        raise await refusal(tx, tenant_id, conversation_id, condition)
    sequence, now = row
    created_at = fields["created_at"] or now
    await tx.run(INSERT, **_row(fields, tenant_id, conversation_id, sequence, created_at))
    return Appended(sequence, created_at)


async def _append_one(
    tx: Transaction, tenant_id: str, conversation_id: str, fields: _Fields, condition: Condition
) -> Appended:
    if tx.dialect == "sqlite":
        return await _append_sqlite(tx, tenant_id, conversation_id, fields, condition)
    row = await tx.first(
        APPEND, **fields, tenant_id=tenant_id, conversation_id=conversation_id, **condition._asdict()
    )
    if row is None:
        raise await refusal(tx, tenant_id, conversation_id, condition)
    if row[1] is None:
        check_known(row[2], fields)
    return Appended(row[0], row[1])


async def _append_batch_sqlite(
    tx: Transaction, calls: Sequence[Tuple[Any, ...]]
) -> Sequence[Union[Appended, BaseException]]:
    outcomes: List[Union[Appended, BaseException, None]] = [None] * len(calls)
    counts: Dict[Tuple[str, str], int] = {}
    for n, (tenant_id, conversation_id, fields) in enumerate(calls):
        if fields["client_message_id"] is not None:
            outcomes[n] = await _known(tx, tenant_id, conversation_id, fields)
        if outcomes[n] is None:
            key = tenant_id, conversation_id
            counts[key] = counts.get(key, 0) + 1
    now, places = await _bump_many(tx, counts)
    written_at = from_microseconds(now)
    rows: List[_Fields] = []
    for n, (tenant_id, conversation_id, fields) in enumerate(calls):
        if outcomes[n] is not None:
            continue
        sequence = places.get((tenant_id, conversation_id))
        if sequence is None:
            outcomes[n] = await refusal(tx, tenant_id, conversation_id, _ANY)
            continue
        places[tenant_id, conversation_id] = sequence = sequence + 1
        given = fields["created_at"]
        row = {**fields, "tenant_id": tenant_id, "conversation_id": conversation_id, "sequence": sequence}
        row["created_at"] = now if given is None else to_microseconds(given)
        rows.append(row)
        outcomes[n] = Appended(sequence, given or written_at)
    await tx.run_many(INSERT_MANY, rows)
    return cast(List[Union[Appended, BaseException]], outcomes)


async def _known(
    tx: Transaction, tenant_id: str, conversation_id: str, fields: _Fields
) -> Union[Appended, IdempotencyConflictError, None]:
    """Return the outcome of an append whose idempotency key is known already; None: it is not."""
    client_id = fields["client_message_id"]
    if client_id is None:
        return None
    row = await tx.first(
        FIND_CLIENT, tenant_id=tenant_id, conversation_id=conversation_id, client_message_id=client_id
    )
    if row is None:
        return None
    try:
        check_known(row[1], fields)
    except IdempotencyConflictError as exc:
        return exc
    return Appended(row[0], None)


async def _bump_many(
    tx: Transaction, counts: Mapping[Tuple[str, str], int]
) -> Tuple[int, Dict[Tuple[str, str], int]]:
    """Bump the counters of active conversations; return the time in microseconds, and each one's last sequence before."""
    wanted = orjson.dumps([(*key, count) for key, count in counts.items()]).decode()
    rows = await tx.all(BUMP_MANY, counts=wanted)
    before = {(row[0], row[1]): row[2] - counts[row[0], row[1]] for row in rows}
    return (rows[0][3] if rows else 0), before


async def _append_batch(
    tx: Transaction, calls: Sequence[Tuple[Any, ...]]
) -> Sequence[Union[Appended, BaseException]]:
    if tx.dialect == "sqlite":
        return await _append_batch_sqlite(tx, calls)
    columns: Dict[str, List[Any]] = {name: [fields.get(name) for _, _, fields in calls] for name in BATCHED}
    columns["tenant_id"] = [tenant_id for tenant_id, _, _ in calls]
    columns["conversation_id"] = [conversation_id for _, conversation_id, _ in calls]
    for name in ("name", "search_text"):
        columns[name] = [encode_text(value) for value in columns[name]]
    outcomes: List[Union[Appended, BaseException]] = [StorageError("a batch gave no outcome")] * len(calls)
    for n, sequence, created_at, digest in await tx.all(APPEND_BATCH, **columns):
        tenant_id, conversation_id, fields = calls[n - 1]
        if sequence is None:
            outcomes[n - 1] = await refusal(tx, tenant_id, conversation_id, _ANY)
            continue
        outcomes[n - 1] = Appended(sequence, created_at)
        if created_at is None:
            try:
                check_known(digest, fields)
            except IdempotencyConflictError as exc:
                outcomes[n - 1] = exc
    return outcomes


def _one_message(tenant_id: str, conversation_id: str, fields: _Fields) -> Hashable:
    return tenant_id, conversation_id, fields["client_message_id"] or fields["id"]


def one_conversation(tenant_id: str, conversation_id: str, *_: Any) -> Hashable:
    """Return what calls share that change one conversation; of the arguments of an operation."""
    return tenant_id, conversation_id


@write(atomic=False, batch=_append_batch, conflict_key=_one_message, order_key=one_conversation)
async def append(tx: Transaction, tenant_id: str, conversation_id: str, fields: _Fields) -> Appended:
    """Append one message, whatever the conversation's last sequence is."""
    return await _append_one(tx, tenant_id, conversation_id, fields, _ANY)


@write(atomic=False)
async def append_checked(
    tx: Transaction, tenant_id: str, conversation_id: str, fields: _Fields, condition: Condition
) -> Appended:
    """Append one message if the conversation is as `condition` says."""
    return await _append_one(tx, tenant_id, conversation_id, fields, condition)


@write
async def append_many(
    tx: Transaction, tenant_id: str, conversation_id: str, messages: Sequence[_Fields], condition: Condition
) -> List[Appended]:
    """Append messages in order, all or none. Those with a known idempotency key are left as they are."""
    # takes the conversation's lock; what is expected is checked below, after the keys that are known already
    row = await tx.first(BUMP, tenant_id=tenant_id, conversation_id=conversation_id, count=0)
    if row is None:
        raise await refusal(tx, tenant_id, conversation_id, condition)
    sequence, now = row
    outcomes: List[Appended] = []
    rows: List[_Fields] = []
    own: Dict[str, Tuple[int, Optional[str]]] = {}
    for fields in messages:
        client_id = fields["client_message_id"]
        if client_id is not None:
            known = own.get(client_id) or await tx.first(
                FIND_CLIENT, tenant_id=tenant_id, conversation_id=conversation_id, client_message_id=client_id
            )
            if known is not None:
                check_known(known[1], fields)
                outcomes.append(Appended(known[0], None))
                continue
        sequence += 1
        if client_id is not None:
            own[client_id] = (sequence, fields["body_digest"])
        created_at = fields["created_at"] or now
        rows.append(_row(fields, tenant_id, conversation_id, sequence, created_at))
        outcomes.append(Appended(sequence, created_at))
    if rows:
        bumped = await tx.first(
            BUMP_CHECKED,
            tenant_id=tenant_id,
            conversation_id=conversation_id,
            count=len(rows),
            **condition._asdict(),
        )
        if bumped is None:
            raise await refusal(tx, tenant_id, conversation_id, condition)
        await tx.run_many(INSERT, rows)
        await index_many(tx, len(rows))
    return outcomes

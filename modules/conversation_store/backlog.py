"""Room: the backlog of messages to embed, across tenants; see `backlog_models`. For whoever keeps an index of meaning.

The backlog is what stands in the outbox for the index: triggers put in what changes, `fill` what was there before. A worker
claims and acknowledges it with the outbox's own operations (`modules.storage.outbox_queue`), and reads here the messages as
they are now.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from modules.conversation_store.backlog_statements import (
    ANY_GIVEN,
    ANY_INDEX,
    ANY_MESSAGE,
    ANY_MESSAGE_OF,
    DROPS,
    FILL,
    FILL_LAST,
    FILLED,
    FORGET_INDEX,
    INDEX,
    LOCK,
    NEXT_TENANT,
    PENDING_ALL,
    PENDING_ONE,
    PROGRESS,
    REGISTER,
    TEXTS,
    TRIGGERS,
    TRIGGERS_THERE,
)
from modules.storage.operations import Transaction, read, write
from modules.storage.outbox_queue import OutboxEntry, embedding_target
from modules.storage.outbox_statements import UNSUBSCRIBE_ROWS
from modules.store_common.values import encode_json

__all__ = [
    "IndexState",
    "Key",
    "MessageText",
    "Progress",
    "fill",
    "has_messages",
    "indexes",
    "is_pending",
    "progress",
    "read_texts",
    "refill",
    "register",
    "tenants",
    "unregister",
    "was_given",
]


class Key(NamedTuple):
    """Which message."""

    tenant_id: str
    conversation_id: str
    sequence: int

    @classmethod
    def of(cls, entry: OutboxEntry) -> Key:
        """Return which message an entry of the outbox is of."""
        return cls(entry.tenant_id, entry.kind, int(entry.key))


class Progress(NamedTuple):
    """How far an index is.

    Attributes:
        pending: Rows that wait.
        failed: Those of them that failed and wait to be tried again.
        is_filled: Whether the messages that were there before the index are all in.
        oldest_s: Seconds that the oldest row has waited; None when none waits.
    """

    pending: int
    failed: int
    is_filled: bool
    oldest_s: Optional[float] = None


class IndexState(NamedTuple):
    """An index that is registered, and how far it is."""

    collection: str
    progress: Progress


@dataclass(frozen=True)
class MessageText:
    """A searchable message: where it stands, and its words.

    Attributes:
        words: The speaker's name and the text, as full-text search has them.
    """

    key: Key
    id: str
    role: str
    created_at: datetime
    words: str


def _keys(dialect: str, keys: Sequence[Key]) -> Dict[str, Any]:
    if dialect == "sqlite":
        return {"keys": encode_json([list(key) for key in keys], "keys")}
    return {
        "tenants": [key.tenant_id for key in keys],
        "conversations": [key.conversation_id for key in keys],
        "sequences": [key.sequence for key in keys],
    }


@write
async def register(tx: Transaction, collection: str) -> bool:
    """Begin to note changes for an index; True when it was not known. The messages that are there follow by `fill`."""
    if (
        await tx.first(INDEX, collection=collection) is not None
        and await tx.first(TRIGGERS_THERE) is not None
    ):
        return False
    if tx.dialect == "postgresql":
        await tx.run(LOCK)
    are_lost = await tx.first(TRIGGERS_THERE) is None
    if are_lost:
        for statement in TRIGGERS[tx.dialect]:
            await tx.run(statement)
    # without the triggers nobody knows what changed
    return await tx.run(REGISTER, collection=collection) == 1 or are_lost


@write
async def unregister(tx: Transaction, collection: str) -> bool:
    """Stop noting changes for an index and forget its backlog; whether it was known. The last one takes the triggers."""
    if tx.dialect == "postgresql":
        await tx.run(LOCK)
    known = await tx.run(FORGET_INDEX, collection=collection) == 1
    await tx.run(UNSUBSCRIBE_ROWS, target=embedding_target(collection))
    if await tx.first(ANY_INDEX) is None:
        for statement in DROPS[tx.dialect]:
            await tx.run(statement)
    return known


@write
async def refill(tx: Transaction, collection: str) -> None:
    """Let every message be looked at again: the index lost its contents, or never had them."""
    await tx.run(FILLED, collection=collection, filled=0, tenant_id="", conversation_id="", sequence=0)


@write
async def fill(tx: Transaction, collection: str, limit: int) -> bool:
    """Put the next messages that were there before the index into the backlog; False when all are in."""
    row = await tx.first(INDEX, collection=collection)
    if row is None or row[0]:
        return False
    after = {"tenant_id": row[1], "conversation_id": row[2], "sequence": row[3]}
    last = await tx.first(FILL_LAST, **after, limit=limit)
    if last is None:
        await tx.run(FILLED, collection=collection, filled=1, **after)
        return False
    upto = dict(zip(("tenant_id", "conversation_id", "sequence"), last))
    await tx.run(
        FILL, collection=collection, **after, **{f"last_{name}": value for name, value in upto.items()}
    )
    await tx.run(FILLED, collection=collection, filled=0, **upto)
    return True


@read
async def read_texts(tx: Transaction, keys: Sequence[Key]) -> List[MessageText]:
    """Return those of the messages that are searchable now, in any order."""
    rows = await tx.all(TEXTS, **_keys(tx.dialect, keys))
    return [MessageText(Key(*row[:3]), *row[3:]) for row in rows]


@read
async def progress(tx: Transaction, collection: str) -> Progress:
    """Return how far an index is."""
    found = [state for state in await _indexes(tx) if state.collection == collection]
    return found[0].progress if found else Progress(0, 0, False)


@read(urgent=True)
async def indexes(tx: Transaction) -> List[IndexState]:
    """Return every index that is registered, by name."""
    return await _indexes(tx)


async def _indexes(tx: Transaction) -> List[IndexState]:
    rows = await tx.all(PROGRESS)
    return [
        IndexState(name, Progress(pending, int(failed), bool(filled), None if age is None else max(0.0, age)))
        for name, pending, failed, filled, age in rows
    ]


@read
async def tenants(tx: Transaction, limit: int) -> List[str]:
    """Return the first tenants that have messages, at most `limit`."""
    found: List[str] = []
    after = ""
    while len(found) < limit:
        row = await tx.first(NEXT_TENANT, after=after)
        if row is None:
            break
        after = row[0]
        if await tx.first(ANY_MESSAGE, tenant_id=after) is not None:
            found.append(after)
    return found


@read
async def was_given(tx: Transaction, collection: str, tenant_id: str) -> bool:
    """Whether an index was given a message of a tenant, so that there must be something of it in the vector store."""
    row = await tx.first(INDEX, collection=collection)
    if row is None or not row[0]:
        return False  # still being filled: what is not there may not have been given yet
    return await tx.first(ANY_GIVEN, collection=collection, tenant_id=tenant_id) is not None


@read
async def has_messages(tx: Transaction, tenant_id: str, conversation_id: Optional[str]) -> bool:
    """Whether a tenant, or one of its conversations, has a message that an index would know."""
    if conversation_id is None:
        return await tx.first(ANY_MESSAGE, tenant_id=tenant_id) is not None
    return (await tx.first(ANY_MESSAGE_OF, tenant_id=tenant_id, conversation_id=conversation_id)) is not None


@read
async def is_pending(
    tx: Transaction, collection: str, tenant_id: str, conversation_id: Optional[str]
) -> bool:
    """Whether the index may not yet know the newest state of a tenant's messages, or of one conversation's."""
    if conversation_id is None:
        row = await tx.one(PENDING_ALL, collection=collection, tenant_id=tenant_id)
    else:
        row = await tx.one(
            PENDING_ONE, collection=collection, tenant_id=tenant_id, conversation_id=conversation_id
        )
    return bool(row[0])

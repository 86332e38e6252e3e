"""The outbox as a queue: keys are staged in the transaction of the change, claimed by state, and finished or put off.

Staging, inside any `@write` operation of a store:

    await stage(tx, tenant_id, "chroma", "docs", "default/d1")              the key is dirty; its state is read later
    await stage(tx, tenant_id, "audit", "invoice", "7", encode_json(...))   or the state itself goes along

Changes for subscribers. A topic is a stream of numbered changes for each key; the numbers of a key grow (a row's version or
its last event's number, taken under the lock of that row, so that they grow in the order of the commits):

    await announce(tx, "tasks", tenant_id, task_id, version=event_number)   costs one look when nobody has subscribed

    queue = SubscriberQueue(executor, "tasks", "search")                    durable: the name is the subscriber
    await queue.subscribe()                                                 gets every change from now on
    for entry in await queue.claim(limit=100, lease_s=30):                  nobody else gets these keys meanwhile
        ...  read the changes of entry.key numbered entry.applied + 1 to entry.version, and work them off in that order
        await queue.finish([entry])                                         or queue.fail(entry, "why"): tried again later

Each key is in one pair of hands at a time and in order; different keys go side by side. What is claimed and not finished
(its process died) is free again when the lease ends, and then delivered again: at least once. After `MAX_ATTEMPTS` failures
a key is parked with the reason; later changes of it wait behind it, other keys go on. `fence` tells an owner that came back
after its lease: `finish` then leaves its key dirty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from modules.storage.operations import Executor, Transaction, write
from modules.storage.outbox_statements import (
    AGAIN,
    ANNOUNCE,
    CLAIM,
    FAIL,
    FINISH,
    RELEASE,
    REMOVE,
    STAGE,
    SUBSCRIBE,
    UNSUBSCRIBE,
    UNSUBSCRIBE_ROWS,
)
from modules.store_common.backoff import full_jitter
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "EMBEDDING_PREFIX",
    "MAX_ATTEMPTS",
    "NEVER",
    "OutboxEntry",
    "OutboxKey",
    "SubscriberQueue",
    "again",
    "announce",
    "claim",
    "embedding_target",
    "fail",
    "finish",
    "finish_and_remove",
    "release",
    "stage",
    "stage_many",
    "subscriber_target",
]

#: After so many failures in a row a key is parked.
MAX_ATTEMPTS = 8
#: Instead of it, for failures that park nothing.
NEVER = 2**31
#: Begins the names of targets that are not stores but indexes of meaning: messages to embed (modules/storage/semantic.py).
EMBEDDING_PREFIX = "embedding:"
# Bounds of the back-off between two attempts, in seconds.
_BASE_S = 0.5
_CAP_S = 60.0
# What is kept of a reason.
_REASON_CHARACTERS = 500

#: Tenant, target, kind, key: what an entry is of.
OutboxKey = Tuple[str, str, str, str]


@dataclass(frozen=True)
class OutboxEntry:
    """A dirty key, claimed.

    Attributes:
        tenant_id: Whose.
        target: Where it goes.
        kind: What kind of thing, or the topic.
        key: Which one.
        version: Newest change when it was claimed; a target that keeps it can refuse an older one.
        applied: Newest change that the target has; 0 for none.
        attempts: Failures since the last success.
        fence: Grows with every claim of this key.
        staged_at: Since when the key is dirty.
        payload: JSON text that was staged with it, None where the state is read from its home.
        claim: Token of whoever claimed it.
    """

    tenant_id: str
    target: str
    kind: str
    key: str
    version: int
    applied: int
    attempts: int
    fence: int
    staged_at: datetime
    payload: Optional[str]
    claim: str = ""

    @property
    def address(self) -> OutboxKey:
        """Tenant, target, kind and key."""
        return self.tenant_id, self.target, self.kind, self.key


def _named(address: OutboxKey) -> Dict[str, Any]:
    return dict(zip(("tenant_id", "target", "kind", "key"), address))


@write(atomic=False)
async def stage(
    tx: Transaction, tenant_id: str, target: str, kind: str, key: str, payload: Optional[str] = None
) -> int:
    """Mark a key of a target dirty; returns its version. In the transaction of the change, after the change.

    Args:
        tx: Where the change is.
        tenant_id: Whose.
        target: Name of the target.
        kind: What kind of thing.
        key: Which one.
        payload: JSON text made by `encode_json`; of several changes not yet applied the last one's counts.
    """
    row = await tx.one(STAGE, tenant_id=tenant_id, target=target, kind=kind, key=key, payload=payload)
    version: int = row[0]
    return version


@write
async def stage_many(tx: Transaction, entries: Sequence[Tuple[OutboxKey, Optional[str]]]) -> List[int]:
    """Mark several keys dirty, with their payloads; returns their versions. Give them in the order of their keys."""
    return [await stage(tx, *address, payload) for address, payload in entries]


@write(atomic=False)
async def announce(tx: Transaction, topic: str, tenant_id: str, key: str, *, version: int) -> int:
    """Tell every subscriber of a topic that `key` has changed; returns how many there are.

    Args:
        tx: Where the change is.
        topic: The stream.
        tenant_id: Whose.
        key: What changed.
        version: Number of the change, greater than those before it of this key.
    """
    return await tx.run(ANNOUNCE, topic=topic, tenant_id=tenant_id, key=key, version=version)


@write(atomic=False)
async def claim(tx: Transaction, target: str, token: str, limit: int, lease_s: float) -> List[OutboxEntry]:
    """Take up to `limit` dirty keys of a target that nobody holds, for `lease_s` seconds, the longest dirty first."""
    rows = await tx.all(CLAIM, target=target, claim=token, limit=limit, seconds=lease_s)
    return sorted((OutboxEntry(*(*row, token)) for row in rows), key=lambda entry: entry.staged_at)


@write(atomic=False)
async def finish(tx: Transaction, entries: Sequence[OutboxEntry]) -> List[OutboxEntry]:
    """Note that `entries`, of one target and one claim, were applied; returns those whose lease had been lost.

    A key that changed meanwhile stays dirty. Give those that were lost to `again`.
    """
    if not entries:
        return []
    first = entries[0]
    rows = await tx.all(FINISH, target=first.target, claim=first.claim, **_keys(tx.dialect, entries))
    return _others(entries, rows)


def _others(entries: Sequence[OutboxEntry], rows: Sequence[Any]) -> List[OutboxEntry]:
    found = {tuple(row) for row in rows}
    return [entry for entry in entries if (entry.tenant_id, entry.kind, entry.key) not in found]


@write
async def finish_and_remove(tx: Transaction, entries: Sequence[OutboxEntry]) -> int:
    """As `finish`, but keys that did not change meanwhile leave the outbox at once; returns how many did.

    For a target of which is often asked whether anything waits. One whose lease had been lost is staged again here: its row
    may be gone, and what was written may have overtaken what the new owner wrote.
    """
    if not entries:
        return 0
    first = entries[0]
    rows = await tx.all(REMOVE, target=first.target, claim=first.claim, **_keys(tx.dialect, entries))
    for entry in sorted(await finish(tx, _others(entries, rows)), key=lambda item: item.address):
        await stage(tx, *entry.address)
    return len(rows)


@write
async def again(tx: Transaction, entries: Sequence[OutboxEntry]) -> None:
    """Make keys dirty once more whose lease was lost: what was written may have overwritten what the new owner wrote."""
    for entry in sorted(entries, key=lambda item: item.address):
        await tx.run(AGAIN, **_named(entry.address))


def _jittered(attempt: int) -> float:
    return full_jitter(attempt, base_s=_BASE_S, cap_s=_CAP_S)


@write
async def fail(
    tx: Transaction,
    failures: Sequence[Tuple[OutboxEntry, str]],
    max_attempts: int = MAX_ATTEMPTS,
    pause: Callable[[int], float] = _jittered,
) -> None:
    """Note failed attempts with their reasons: the key is tried again after a pause, or parked after the last.

    Args:
        tx: Of the call.
        failures: What was claimed, and why it failed.
        max_attempts: After so many failures in a row it is parked; `NEVER`.
        pause: Gives the seconds until the next attempt from the number of failures.
    """
    for entry, reason in sorted(failures, key=lambda item: item[0].address):
        await tx.run(
            FAIL,
            **_named(entry.address),
            claim=entry.claim,
            fence=entry.fence,
            error=reason[:_REASON_CHARACTERS],
            most=max_attempts,
            seconds=pause(entry.attempts + 1),
        )


@write
async def release(tx: Transaction, entries: Sequence[OutboxEntry]) -> None:
    """Give claims back with which nothing was done."""
    for entry in sorted(entries, key=lambda item: item.address):
        await tx.run(RELEASE, **_named(entry.address), claim=entry.claim, fence=entry.fence)


def _keys(dialect: str, entries: Sequence[OutboxEntry]) -> Dict[str, Any]:
    if dialect == "sqlite":
        rows = [[e.tenant_id, e.kind, e.key, e.version, e.fence] for e in entries]
        return {"keys": encode_json(rows, "keys")}
    return {
        "tenants": [entry.tenant_id for entry in entries],
        "kinds": [entry.kind for entry in entries],
        "keys": [entry.key for entry in entries],
        "versions": [entry.version for entry in entries],
        "fences": [entry.fence for entry in entries],
    }


def embedding_target(registration: str) -> str:
    """Return the target under which the messages that an index of meaning does not know yet stand in the outbox.

    Their kind is the conversation, their key the sequence in decimal digits.
    """
    return EMBEDDING_PREFIX + registration


def subscriber_target(topic: str, name: str) -> str:
    """Return the target under which a subscriber's keys stand in the outbox."""
    return f"subscriber:{topic}:{name}"


@write
async def _subscribe(tx: Transaction, topic: str, target: str) -> bool:
    return await tx.run(SUBSCRIBE, topic=topic, target=target) == 1


@write
async def _unsubscribe(tx: Transaction, topic: str, target: str) -> bool:
    known = await tx.run(UNSUBSCRIBE, topic=topic, target=target) == 1
    await tx.run(UNSUBSCRIBE_ROWS, target=target)
    return known


class SubscriberQueue:
    """The changes of a topic for one subscriber, across tenants; see the module's docstring.

    Any number of processes may read for one subscriber: each key goes to one of them at a time.

    Args:
        executor: Of the SQL database.
        topic: The stream.
        name: The subscriber's; the same name goes on where it was left.
        max_attempts: After so many failures in a row a key is parked.
    """

    def __init__(
        self, executor: Executor, topic: str, name: str, *, max_attempts: int = MAX_ATTEMPTS
    ) -> None:
        self._executor = executor
        self._topic = check_identifier(topic, "the topic")
        self._max_attempts = max_attempts
        self.target = subscriber_target(topic, check_identifier(name, "the subscriber's name"))

    async def subscribe(self) -> bool:
        """Be told of every change from now on; False when this name was subscribed already."""
        return await self._executor.run(_subscribe, self._topic, self.target)

    async def unsubscribe(self) -> bool:
        """Be told nothing more and forget what is waiting; whether the name was subscribed."""
        return await self._executor.run(_unsubscribe, self._topic, self.target)

    async def claim(self, *, limit: int = 100, lease_s: float = 30.0) -> List[OutboxEntry]:
        """Return up to `limit` changed keys, the longest waiting first; they are this caller's for `lease_s` seconds."""
        return await self._executor.run(claim, self.target, new_id(), limit, lease_s)

    async def finish(self, entries: Sequence[OutboxEntry]) -> List[OutboxEntry]:
        """Note that `entries` of one `claim` were worked off; returns those whose lease was lost: others have them now."""
        return await self._executor.run(finish, entries)

    async def finish_up_to(self, entry: OutboxEntry, version: int) -> List[OutboxEntry]:
        """Note that the changes of a key up to `version` were worked off; the later ones come again."""
        return await self._executor.run(finish, [replace(entry, version=version)])

    async def fail(self, entry: OutboxEntry, reason: str) -> None:
        """Have a key tried again later, or parked after the last attempt; `reason` is shown to whoever looks."""
        await self._executor.run(fail, [(entry, reason)], self._max_attempts)

    async def release(self, entries: Sequence[OutboxEntry]) -> None:
        """Give keys back that were claimed and not worked on."""
        await self._executor.run(release, entries)

"""The job store in MongoDB: what a claim has to know of its queues.

That is their limits, and whether jobs with a concurrency key are put into them. A queue of which neither is written down is
open: any due job of it may be taken by one command, the first by priority and time. A claim looks, unless this process
looked less than a fifth of a second ago and found its queues open. To let nobody be wrong by that, whoever gives a queue
a limit, or its first job with a key, writes it down and waits until every such look is over:

    write it down  ->  wait  ->  say that the queue is limited, or insert the job

The mark of keys stays for good, so one call in the life of a queue waits for it. What dies between leaves a mark too many,
which costs a look. A job with a key in a queue without the mark (put there by an earlier release) is never taken without its
key's place: claims that read what is due first, one a second at least, find it there and mark its queue.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set

from modules.job_store.mongo_documents import ATTEMPTS, FORMS, QUEUES
from modules.job_store.records import QueueLimit
from modules.job_store.upkeep import limits as limits_operation
from modules.job_store.upkeep import set_limit as set_limit_operation
from modules.storage.documents import Document, Documents, key_of
from modules.store_common.errors import AlreadyExistsError, ConcurrencyError

__all__ = [
    "OPEN",
    "QueueRules",
    "filled",
    "is_known_open",
    "limits",
    "limits_of",
    "look_at_queues",
    "mark_keyed",
    "new_mark",
    "note_keys",
    "set_limit",
    "tokens_of",
]

_OPEN_S = 0.2
#: Longer than a look is good for, on whatever machine: monotonic clocks differ by less than a tenth.
_WAIT_S = 0.25
# A mark that is older was waited for by everybody, whatever two clocks differ by.
_SURE_US = 5_000_000
_MOST_LIMITS = 1000


class QueueRules(NamedTuple):
    """What was found out about queues.

    Attributes:
        limited: The limits of those that have one.
        keyed: Those into which jobs with a concurrency key are put.
    """

    limited: Dict[str, Document]
    keyed: Set[str]


#: Nothing holds: the queues are open. Never changed.
OPEN = QueueRules({}, set())


def _mark_of(queue: str) -> str:
    return key_of("keyed", queue)


async def look_at_queues(db: Documents, queues: Sequence[str]) -> QueueRules:
    """Return what holds for `queues`; where that is nothing, they are known to be open for a moment."""
    looked_at = time.monotonic()
    marks = {_mark_of(queue): queue for queue in queues}
    found = {item["_id"]: item for item in await db.find(QUEUES, {"_id": {"$in": [*queues, *marks]}})}
    if not found:
        db.remember(("open", queues), looked_at)
        return OPEN
    db.remember(("open", queues), None)
    keyed = {queue for mark, queue in marks.items() if mark in found}
    return QueueRules({queue: found[queue] for queue in queues if queue in found}, keyed)


def is_known_open(db: Documents, queues: Sequence[str]) -> bool:
    """Return whether a look that is still good found all of `queues` open."""
    looked_at = db.remembered(("open", queues))
    return looked_at is not None and time.monotonic() - looked_at < _OPEN_S


# --- keys -----------------------------------------------------------------------------------------------------------


async def note_keys(db: Documents, jobs: Iterable[Mapping[str, Any]]) -> None:
    """Write down which queues will have jobs with a key, before they have them.

    Args:
        db: The collections.
        jobs: Fields of jobs that are to be inserted: `queue` and `concurrency_key`.
    """
    for queue in {job["queue"] for job in jobs if job["concurrency_key"] is not None}:
        if db.remembered(("keyed", queue)) is None:
            if not await mark_keyed(db, queue):
                await asyncio.sleep(_WAIT_S)
            db.remember(("keyed", queue), True)


async def mark_keyed(db: Documents, queue: str) -> bool:
    """Write down that a queue has jobs with a key; return whether that has long been so."""
    now = await db.now()
    found = await db.find_one(QUEUES, {"_id": _mark_of(queue)})
    if found is not None:
        return bool(now - found["at"] > _SURE_US)
    await db.upsert_each(QUEUES, [({"_id": _mark_of(queue)}, {"$setOnInsert": {"at": now}})])
    return False


# --- limits ---------------------------------------------------------------------------------------------------------


async def limits_of(db: Documents, queues: Sequence[str]) -> List[Document]:
    """Return the limits of `queues`."""
    return await db.find(QUEUES, {"_id": queues[0] if len(queues) == 1 else {"$in": list(queues)}})


def tokens_of(limit: Document, now: int, most: int = 2**31) -> int:
    """Return how many jobs of a queue may start now."""
    if limit["paused"]:
        return 0
    return most if limit["rate"] is None else int(filled(limit, now))


def filled(limit: Document, now: int) -> float:
    """Return the tokens of a queue with a rate."""
    return float(min(limit["burst"], limit["tokens"] + limit["rate"] * max(now - limit["at"], 0) / 1e6))


def new_mark() -> int:
    """Return what a limit's document holds until its next change."""
    return random.getrandbits(62)


@FORMS.form_of(set_limit_operation)
async def set_limit(db: Documents, limit: QueueLimit) -> None:
    """Limit a queue, or take its limit away."""
    if not limit.paused and limit.rate_per_s is None:
        await db.delete(QUEUES, {"_id": limit.queue})
        return
    await _set_limit(db, limit)
    # no claim that begins after this call has ended is to miss it
    await asyncio.sleep(_WAIT_S)


async def _set_limit(db: Documents, limit: QueueLimit) -> None:
    burst = limit.burst if limit.burst is not None else limit.rate_per_s
    burst = None if burst is None else max(1.0, burst)
    for _ in range(ATTEMPTS):
        now = await db.now()
        found = await db.find_one(QUEUES, {"_id": limit.queue})
        fields = {
            "paused": int(limit.paused),
            "rate": limit.rate_per_s,
            "burst": burst,
            "at": now,
            "r": new_mark(),
        }
        if found is None:
            try:
                await db.insert(QUEUES, [{"_id": limit.queue, **fields, "tokens": burst}])
                return
            except AlreadyExistsError:
                continue
        fewer = burst is not None and found["tokens"] is not None and found["tokens"] < burst
        tokens: Optional[float] = found["tokens"] if fewer else burst
        where = {"_id": limit.queue, "r": found["r"]}
        if await db.update(QUEUES, where, {"$set": {**fields, "tokens": tokens}}):
            return
    raise ConcurrencyError(f"the limit of queue {limit.queue!r} kept changing; try again")


@FORMS.form_of(limits_operation)
async def limits(db: Documents) -> List[QueueLimit]:
    """Return the limits of all queues that have one."""
    found = await db.find(QUEUES, {"paused": {"$gte": 0}}, sort=[("_id", 1)], limit=_MOST_LIMITS)
    return [QueueLimit(item["_id"], bool(item["paused"]), item["rate"], item["burst"]) for item in found]

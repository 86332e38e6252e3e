"""The job store in MongoDB: what a claim has to know of its queues.

That is their limits, and whether jobs with a concurrency key are put into them, which stand in one document per queue: a
claim reads both by one look. A queue of which neither is written down is open: the first due job of it by priority and time
may be taken by one command, without being read before.

Whoever puts the first job with a key into a queue marks the queue before, and the mark stays. So a claim that begins after
such a job went in sees the mark. What dies between leaves a mark too many, which costs a command more for each claim. Safety
does not hang on marks: no job with a key is taken without its key's place. Only the order of jobs does, and only where an
earlier release, which knows no marks, puts jobs with keys in: see `mongo_claims`.

To an earlier release a marked queue is one with a limit that limits nothing.
"""

from __future__ import annotations

import random
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Set

from modules.job_store.mongo_documents import FORMS, QUEUES
from modules.job_store.records import QueueLimit
from modules.job_store.upkeep import limits as limits_operation
from modules.job_store.upkeep import set_limit as set_limit_operation
from modules.storage.documents import Document, Documents, Tries
from modules.store_common.errors import AlreadyExistsError, ConcurrencyError

__all__ = [
    "QueueRules",
    "filled",
    "limits",
    "limits_of",
    "look_at_queues",
    "mark_keyed",
    "new_mark",
    "note_keys",
    "set_limit",
    "tokens_of",
]

_MOST_LIMITS = 1000
_NO_LIMIT: Dict[str, Any] = {"paused": 0, "rate": None, "burst": None, "tokens": None}


class QueueRules(NamedTuple):
    """What holds for queues.

    Attributes:
        limited: The limits of those that have one.
        keyed: Those into which jobs with a concurrency key are put.
    """

    limited: Dict[str, Document]
    keyed: Set[str]

    @property
    def are_open(self) -> bool:
        """Whether nothing holds for any of them."""
        return not self.limited and not self.keyed


async def look_at_queues(db: Documents, queues: Sequence[str]) -> QueueRules:
    """Return what holds for `queues`."""
    found = await _documents_of(db, queues)
    limited = {item["_id"]: item for item in found if _limits(item)}
    return QueueRules(limited, {item["_id"] for item in found if item.get("k")})


async def _documents_of(db: Documents, queues: Sequence[str]) -> List[Document]:
    return await db.find(QUEUES, {"_id": queues[0] if len(queues) == 1 else {"$in": list(queues)}})


def _limits(item: Document) -> bool:
    return bool(item["paused"]) or item["rate"] is not None


# --- keys -----------------------------------------------------------------------------------------------------------


async def note_keys(db: Documents, jobs: Iterable[Mapping[str, Any]]) -> None:
    """Mark the queues that will have jobs with a key, before they have them.

    Args:
        db: The collections.
        jobs: Fields of jobs that are to be inserted: `queue` and `concurrency_key`.
    """
    for queue in {job["queue"] for job in jobs if job["concurrency_key"] is not None}:
        if db.remembered(("keyed", queue)) is None:
            await mark_keyed(db, queue)
            db.remember(("keyed", queue), True)


async def mark_keyed(db: Documents, queue: str) -> None:
    """Write down that jobs with a key are put into a queue."""
    async for _ in Tries():
        if await db.update(QUEUES, {"_id": queue}, {"$set": {"k": 1}}):
            return
        new = {"_id": queue, **_NO_LIMIT, "at": await db.now(), "r": new_mark(), "k": 1}
        try:
            await db.insert(QUEUES, [new])
            return
        except AlreadyExistsError:
            continue
    raise _kept_changing(queue)


def _kept_changing(queue: str) -> ConcurrencyError:
    return ConcurrencyError(f"the limit of queue {queue!r} kept changing; try again")


# --- limits ---------------------------------------------------------------------------------------------------------


async def limits_of(db: Documents, queues: Sequence[str]) -> List[Document]:
    """Return the limits of `queues`."""
    return [item for item in await _documents_of(db, queues) if _limits(item)]


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
        await _take_away(db, limit.queue)
        return
    burst = limit.burst if limit.burst is not None else limit.rate_per_s
    burst = None if burst is None else max(1.0, burst)
    async for _ in Tries():
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
    raise _kept_changing(limit.queue)


async def _take_away(db: Documents, queue: str) -> None:
    """Take a limit away; the mark of a queue stays."""
    async for _ in Tries():
        if await db.update(QUEUES, {"_id": queue, "k": 1}, {"$set": {**_NO_LIMIT, "r": new_mark()}}):
            return
        if await db.delete(QUEUES, {"_id": queue, "k": {"$exists": False}}):
            return
        if await db.find_one(QUEUES, {"_id": queue}, fields=("k",)) is None:
            return
    raise _kept_changing(queue)


@FORMS.form_of(limits_operation)
async def limits(db: Documents) -> List[QueueLimit]:
    """Return the limits of all queues that have one."""
    where = {"$or": [{"paused": 1}, {"rate": {"$ne": None}}]}
    found = await db.find(QUEUES, where, sort=[("_id", 1)], limit=_MOST_LIMITS)
    return [QueueLimit(item["_id"], bool(item["paused"]), item["rate"], item["burst"]) for item in found]

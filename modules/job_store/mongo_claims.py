"""The job store in MongoDB: claiming.

A claim reads the first due jobs over all queues and takes each by a change with the condition that it is still to be
had: many by one command that marks them with the claim, and one that reads which are marked. Whoever loses looks again.
Queues with a limit give tokens first, and get back those that were not used: a process that dies between starts fewer jobs
than it may, never more.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any, Dict, Hashable, List, Optional, Sequence, Tuple

from modules.job_store.claims import Wanted, claim_in_turn
from modules.job_store.mongo_documents import ATTEMPTS, FORMS, JOBS, QUEUES, claim_row
from modules.job_store.mongo_slots import give_back, park, take_place
from modules.job_store.mongo_trail import move_trail
from modules.job_store.records import QueueLimit
from modules.job_store.upkeep import limits as limits_operation
from modules.job_store.upkeep import set_limit as set_limit_operation
from modules.job_store.waiting import next_due_in as next_due_in_operation
from modules.storage.documents import Document, Documents
from modules.storage.statements import Row
from modules.store_common.errors import AlreadyExistsError, ConcurrencyError
from modules.store_common.ids import new_id

__all__ = ["claim", "limits", "next_due_in", "set_limit"]

# Rounds of parking blocked jobs, or losing some to others, and looking again, in one claim.
_ROUNDS = 10
_MOST_LIMITS = 1000
_BEST_FIRST = [("pr", -1), ("ra", 1)]


def _same_queues(wanted: Wanted) -> Hashable:
    return wanted.queues


@FORMS.form_of(claim_in_turn, turn=_same_queues)
async def claim(db: Documents, wanted: Wanted) -> List[Row]:
    """Claim up to `wanted.limit` due jobs."""
    now = await db.now()
    limited = {found["_id"]: found for found in await _limits_of(db, wanted.queues)}
    claimed: List[Document] = []
    for _ in range(_ROUNDS):
        most = wanted.limit - len(claimed)
        heads = await _heads(db, wanted, limited, most, now)
        if not heads:
            break
        heads = await _within_limits(db, heads, limited, now)
        got = await _take_all(db, wanted, heads, now)
        await _give_tokens_back(db, heads, got, limited)
        claimed += got
        if len(claimed) >= wanted.limit:
            break
    await move_trail(db, claimed)
    return [claim_row(found) for found in claimed]


async def _limits_of(db: Documents, queues: Sequence[str]) -> List[Document]:
    where = {"_id": queues[0] if len(queues) == 1 else {"$in": list(queues)}}
    return await db.find(QUEUES, where)


def _claimable(wanted: Wanted, queues: Sequence[str], now: int) -> Dict[str, Any]:
    where: Dict[str, Any] = {} if wanted.tenant_id is None else {"t": wanted.tenant_id}
    named: Any = queues[0] if len(queues) == 1 else {"$in": list(queues)}
    return {**where, "st": "scheduled", "pk": 0, "q": named, "ra": {"$lte": now}}


async def _heads(
    db: Documents, wanted: Wanted, limited: Dict[str, Document], most: int, now: int
) -> List[Document]:
    """Return the first due jobs over all queues, by priority then time, as many as the queues' limits allow."""
    free = [queue for queue in wanted.queues if queue not in limited]
    found: List[Document] = []
    if free:
        found += await db.find(JOBS, _claimable(wanted, free, now), sort=_BEST_FIRST, limit=most)
    for queue, limit in limited.items():
        allowed = min(most, _tokens(limit, now))
        if allowed > 0:
            found += await db.find(JOBS, _claimable(wanted, [queue], now), sort=_BEST_FIRST, limit=allowed)
    found.sort(key=lambda job: (-job["pr"], job["ra"], job["id"]))
    return found[:most]


async def _take_all(db: Documents, wanted: Wanted, heads: Sequence[Document], now: int) -> List[Document]:
    """Claim those of `heads` that are still to be had; park those whose key is full."""
    plain = [job for job in heads if job["ck"] is None]
    got = await _take_plain(db, wanted, plain, now)
    for job in heads:
        if job["ck"] is not None:
            found = await _take_keyed(db, wanted, job, now)
            if found is not None:
                got.append(found)
    return got


def _taking(wanted: Wanted, now: int, **more: Any) -> Dict[str, Any]:
    fields = {
        "st": "running", "w": wanted.worker, "sa": now, "ua": now, "lu": now + wanted.lease_us, "fa": None, "pg": None,
        "cr": 0, "rs": None, **more,
    }  # fmt: skip
    return {"$set": fields, "$inc": {"f": 1, "at": 1, "v": 1}}


async def _take_plain(db: Documents, wanted: Wanted, heads: Sequence[Document], now: int) -> List[Document]:
    if not heads:
        return []
    still = _claimable(wanted, wanted.queues, now)
    if len(heads) == 1:
        found = await db.change(JOBS, {"_id": heads[0]["_id"], **still}, _taking(wanted, now))
        return [] if found is None else [found]
    mark = new_id()
    ids = {"$in": [job["_id"] for job in heads]}
    if not await db.update(JOBS, {"_id": ids, **still}, _taking(wanted, now, ct=mark), many=True):
        return []
    return await db.find(JOBS, {"_id": ids, "ct": mark, "st": "running"})


async def _take_keyed(db: Documents, wanted: Wanted, job: Document, now: int) -> Optional[Document]:
    place = await take_place(db, job, now)
    if place is None:
        await park(db, job)
        return None
    where = {"_id": job["_id"], **_claimable(wanted, wanted.queues, now), "f": job["f"], "ep": job["ep"]}
    found = await db.change(JOBS, where, _taking(wanted, now, ht=place))
    if found is None:
        await give_back(db, job["t"], job["ck"], place)
    return found


# --- limits of queues -----------------------------------------------------------------------------------------------


def _tokens(limit: Document, now: int, most: int = 2**31) -> int:
    """Return how many jobs of a queue may start now."""
    if limit["paused"]:
        return 0
    return most if limit["rate"] is None else int(_filled(limit, now))


def _filled(limit: Document, now: int) -> float:
    return float(min(limit["burst"], limit["tokens"] + limit["rate"] * max(now - limit["at"], 0) / 1e6))


async def _within_limits(
    db: Documents, heads: List[Document], limited: Dict[str, Document], now: int
) -> List[Document]:
    """Take the tokens of queues with a rate, and return those of `heads` that got one."""
    wanted = Counter(job["q"] for job in heads)
    left: Dict[str, int] = {}
    for queue, count in wanted.items():
        if queue in limited and limited[queue]["rate"] is not None:
            left[queue] = await _take_tokens(db, limited, queue, count, now)
    kept = []
    for job in heads:
        if job["q"] in left:
            left[job["q"]] -= 1
            if left[job["q"]] < 0:
                continue
        kept.append(job)
    return kept


async def _take_tokens(db: Documents, limited: Dict[str, Document], queue: str, count: int, now: int) -> int:
    for _ in range(ATTEMPTS):
        limit = limited[queue]
        most = min(count, _tokens(limit, now))
        if most < 1:
            return 0
        new = {"tokens": _filled(limit, now) - most, "at": max(now, limit["at"]), "r": _mark()}
        changed = await db.change(QUEUES, {"_id": queue, "r": limit["r"]}, {"$set": new})
        if changed is not None:
            limited[queue] = changed
            return most
        again = await db.find_one(QUEUES, {"_id": queue})
        if again is None or again["rate"] is None:
            # the limit is gone, or another: the next claim sees it
            return 0
        limited[queue] = again
    return 0


async def _give_tokens_back(
    db: Documents, heads: Sequence[Document], got: Sequence[Document], limited: Dict[str, Document]
) -> None:
    unused = Counter(job["q"] for job in heads if job["q"] in limited)
    unused.subtract(Counter(job["q"] for job in got if job["q"] in limited))
    for queue, count in unused.items():
        if count > 0 and limited[queue]["rate"] is not None:
            where = {"_id": queue, "rate": limited[queue]["rate"]}
            changed = await db.change(QUEUES, where, {"$inc": {"tokens": count}, "$set": {"r": _mark()}})
            limited[queue] = changed if changed is not None else limited[queue]


def _mark() -> int:
    return random.getrandbits(62)


@FORMS.form_of(set_limit_operation)
async def set_limit(db: Documents, limit: QueueLimit) -> None:
    """Limit a queue, or take its limit away."""
    if not limit.paused and limit.rate_per_s is None:
        await db.delete(QUEUES, {"_id": limit.queue})
        return
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
            "r": _mark(),
        }
        if found is None:
            try:
                await db.insert(QUEUES, [{"_id": limit.queue, **fields, "tokens": burst}])
                return
            except AlreadyExistsError:
                continue
        fewer = burst is not None and found["tokens"] is not None and found["tokens"] < burst
        tokens = found["tokens"] if fewer else burst
        where = {"_id": limit.queue, "r": found["r"]}
        if await db.update(QUEUES, where, {"$set": {**fields, "tokens": tokens}}):
            return
    raise ConcurrencyError(f"the limit of queue {limit.queue!r} kept changing; try again")


@FORMS.form_of(limits_operation)
async def limits(db: Documents) -> List[QueueLimit]:
    """Return the limits of all queues that have one."""
    found = await db.find(QUEUES, {}, sort=[("_id", 1)], limit=_MOST_LIMITS)
    return [QueueLimit(item["_id"], bool(item["paused"]), item["rate"], item["burst"]) for item in found]


@FORMS.form_of(next_due_in_operation)
async def next_due_in(db: Documents, queues: Tuple[str, ...], tenant_id: Optional[str]) -> Optional[float]:
    """Return seconds until a job of these queues is due or a lease runs out; None: neither."""
    paused = {found["_id"] for found in await _limits_of(db, queues) if found["paused"]}
    open_queues = [queue for queue in queues if queue not in paused]
    now = await db.now()
    times: List[int] = []
    if open_queues:
        where: Dict[str, Any] = {} if tenant_id is None else {"t": tenant_id}
        where.update(st="scheduled", pk=0, q={"$in": open_queues})
        found = await db.find_one(JOBS, where, sort=[("ra", 1)], fields=("ra",))
        times += [] if found is None else [found["ra"]]
    running = await db.find_one(JOBS, {"lu": {"$gt": 0}}, sort=[("lu", 1)], fields=("lu",))
    times += [] if running is None else [running["lu"]]
    return None if not times else (min(times) - now) / 1e6

"""The job store in MongoDB: claiming.

A claim takes the first due job by priority and time. Of queues that are open (see `mongo_queues`) one change does that, with
the condition that the job is still to be had. Else, and for several jobs, it reads the first due jobs over all queues and
takes each by a change with that condition: many by one command that marks them with the claim, and, where not all were
to be had, one that reads which are marked. Whoever loses looks again. Queues with a limit give tokens first, and get back
those that were not used: a process that dies between starts fewer jobs than it may, never more.

Calls of one process that wait for each other share the look, each taking its jobs in the order of the calls.

An earlier release puts jobs with a concurrency key into queues without marking them. So that none of them is passed over for
long, one claim a second of each process reads what is due first, and marks the queue when that has a key.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Dict, Hashable, List, NamedTuple, Optional, Sequence, Tuple

from modules.job_store.claims import Wanted, claim_in_turn
from modules.job_store.mongo_documents import FORMS, JOBS, QUEUES, claim_row
from modules.job_store.mongo_queues import (
    QueueRules,
    filled,
    limits_of,
    look_at_queues,
    mark_keyed,
    new_mark,
    tokens_of,
)
from modules.job_store.mongo_slots import give_back, park, take_place
from modules.job_store.mongo_trail import move_trail
from modules.job_store.waiting import next_due_in as next_due_in_operation
from modules.storage.documents import Document, Documents, Tries
from modules.storage.statements import Row
from modules.store_common.ids import new_id

__all__ = ["claim", "next_due_in"]

# Rounds of parking blocked jobs, or losing some to others, and looking again, in one claim.
_ROUNDS = 10
# Jobs that one look reads at most, for however many calls.
_MOST_AT_ONCE = 1000
# How long a job with a key in a queue that is not marked may be passed over, in seconds.
_HEADS_S = 1.0
_BEST_FIRST = [("pr", -1), ("ra", 1)]


class _Pick(NamedTuple):
    """A job that is to be claimed for a call.

    Attributes:
        caller: The number of the call.
        wanted: What it asks for.
        job: As it was read.
    """

    caller: int
    wanted: Wanted
    job: Document


def _same_jobs(wanted: Wanted) -> Hashable:
    return wanted.queues, wanted.tenant_id


async def _claim_together(db: Documents, calls: Sequence[Tuple[Wanted]]) -> Sequence[List[Row]]:
    return await _claim(db, [call[0] for call in calls])


@FORMS.form_of(claim_in_turn, turn=_same_jobs, batch=_claim_together)
async def claim(db: Documents, wanted: Wanted) -> List[Row]:
    """Claim up to `wanted.limit` due jobs."""
    return (await _claim(db, [wanted]))[0]


async def _claim(db: Documents, calls: Sequence[Wanted]) -> List[List[Row]]:
    """Claim for calls that ask for jobs of the same queues and tenant; what is due first is for the first of them."""
    now = await db.now()
    claimed: List[List[Document]] = [[] for _ in calls]
    rules = await look_at_queues(db, calls[0].queues)
    if rules.are_open and len(calls) == 1 and calls[0].limit == 1 and _heads_were_read(db, calls[0]):
        found = await _take_first(db, calls[0], now)
        claimed[0] += [] if found is None else [found]
    if not claimed[0]:
        await _look_and_take(db, calls, claimed, rules, now)
    await move_trail(db, [job for jobs in claimed for job in jobs])
    return [[claim_row(job) for job in jobs] for jobs in claimed]


async def _take_first(db: Documents, wanted: Wanted, now: int) -> Optional[Document]:
    """Claim the first due job of open queues; one with a key, if there is one all the same, is not had like that."""
    where = {**_claimable(wanted, wanted.queues, now), "ck": None}
    return await db.change(JOBS, where, _taking(wanted, now), sort=_BEST_FIRST)


def _heads_were_read(db: Documents, wanted: Wanted) -> bool:
    """Return whether this process read lately what is due first, and would have seen a job with a key there."""
    read_at = db.remembered(("heads", _same_jobs(wanted)))
    return read_at is not None and time.monotonic() - read_at < _HEADS_S


async def _look_and_take(
    db: Documents, calls: Sequence[Wanted], claimed: List[List[Document]], rules: QueueRules, now: int
) -> None:
    first = calls[0]
    db.remember(("heads", _same_jobs(first)), time.monotonic())
    for _ in range(_ROUNDS):
        seats = [n for n, wanted in enumerate(calls) for _ in range(wanted.limit - len(claimed[n]))]
        if not seats:
            break
        most = min(len(seats), _MOST_AT_ONCE)
        heads = await _heads(db, first, rules.limited, most, now)
        if not heads:
            break
        for queue in {job["q"] for job in heads if job["ck"] is not None} - rules.keyed:
            await mark_keyed(db, queue)
            rules.keyed.add(queue)
        heads = await _within_limits(db, heads, rules.limited, now)
        picks = [_Pick(caller, calls[caller], job) for caller, job in zip(seats, heads)]
        got = await _take_all(db, picks, now)
        await _give_tokens_back(db, heads, [job for _, job in got], rules.limited)
        for caller, job in got:
            claimed[caller].append(job)


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
        allowed = min(most, tokens_of(limit, now))
        if allowed > 0:
            found += await db.find(JOBS, _claimable(wanted, [queue], now), sort=_BEST_FIRST, limit=allowed)
    found.sort(key=lambda job: (-job["pr"], job["ra"], job["id"]))
    return found[:most]


async def _take_all(db: Documents, picks: Sequence[_Pick], now: int) -> List[Tuple[int, Document]]:
    """Claim those of `picks` that are still to be had, each with the number of its call; park those whose key is full."""
    got = await _take_plain(db, [pick for pick in picks if pick.job["ck"] is None], now)
    for pick in picks:
        if pick.job["ck"] is not None:
            found = await _take_keyed(db, pick.wanted, pick.job, now)
            if found is not None:
                got.append((pick.caller, found))
    return got


def _taking(wanted: Wanted, now: int, **more: Any) -> Dict[str, Any]:
    fields = {
        "st": "running", "w": wanted.worker, "sa": now, "ua": now, "lu": now + wanted.lease_us, "fa": None, "pg": None,
        "cr": 0, "rs": None, **more,
    }  # fmt: skip
    return {"$set": fields, "$inc": {"f": 1, "at": 1, "v": 1}}


def _taken(pick: _Pick, now: int) -> Document:
    """Return a job as it is once `_taking` has been applied to it as it was read."""
    change = _taking(pick.wanted, now)
    counted = {name: pick.job[name] + step for name, step in change["$inc"].items()}
    return {**pick.job, **change["$set"], **counted}


async def _take_plain(db: Documents, picks: Sequence[_Pick], now: int) -> List[Tuple[int, Document]]:
    if not picks:
        return []
    first = picks[0].wanted
    still = _claimable(first, first.queues, now)
    if len(picks) == 1:
        found = await db.change(JOBS, {"_id": picks[0].job["_id"], **still}, _taking(first, now))
        return [] if found is None else [(picks[0].caller, found)]
    mark = new_id()
    matched = await _mark_all(db, picks, still, mark, now)
    if matched == len(picks):
        # all of them, and none has changed since it was read: they need not be read again
        return [(pick.caller, _taken(pick, now)) for pick in picks]
    if not matched:
        return []
    callers = {pick.job["_id"]: pick.caller for pick in picks}
    marked = await db.find(JOBS, {"_id": {"$in": list(callers)}, "ct": mark, "st": "running"})
    return [(callers[job["_id"]], job) for job in marked]


async def _mark_all(db: Documents, picks: Sequence[_Pick], still: Dict[str, Any], mark: str, now: int) -> int:
    """Claim those of `picks` that have not changed since they were read; return how many."""
    changes: List[Tuple[Document, Document]] = [
        ({"_id": pick.job["_id"], **still, "v": pick.job["v"]}, _taking(pick.wanted, now, ct=mark)) for pick in picks
    ]  # fmt: skip
    where, change = changes[0]
    if all(other[0]["v"] == where["v"] and other[1] == change for other in changes):
        ids = {"$in": [pick.job["_id"] for pick in picks]}
        return await db.update(JOBS, {**where, "_id": ids}, change, many=True)
    return await db.update_each(JOBS, changes)


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
    async for _ in Tries():
        limit = limited[queue]
        most = min(count, tokens_of(limit, now))
        if most < 1:
            return 0
        new = {"tokens": filled(limit, now) - most, "at": max(now, limit["at"]), "r": new_mark()}
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
            changed = await db.change(QUEUES, where, {"$inc": {"tokens": count}, "$set": {"r": new_mark()}})
            limited[queue] = changed if changed is not None else limited[queue]


@FORMS.form_of(next_due_in_operation)
async def next_due_in(db: Documents, queues: Tuple[str, ...], tenant_id: Optional[str]) -> Optional[float]:
    """Return seconds until a job of these queues is due or a lease runs out; None: neither."""
    paused = {found["_id"] for found in await limits_of(db, queues) if found["paused"]}
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

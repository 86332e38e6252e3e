"""The job store in MongoDB: concurrency keys.

The document of a key holds who runs: `hs`, and how many these are: `n`. A claim first takes a place there, by a change with
the condition that `n` is below the job's limit, and then the job; an end gives the place back after the job has ended. So
never more run than may; what a process that dies between leaves is a place that nobody needs, and whoever finds the key
full looks at each place and takes back those:

    place = job, fence of the claim, the job's epoch, when it was taken

One whose job runs with it is needed. One whose claim may still come (the job is scheduled, with the fence before it, and of
that epoch) is taken back only when it is old, and only after the job's epoch was raised, which makes that claim fail.

A job that finds its key full is parked. After that the key is looked at again: a place that was given back just before would
have let nobody in.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from modules.job_store.mongo_documents import FORMS, JOBS, SLOTS
from modules.job_store.settling import unpark_waiting as unpark_waiting_operation
from modules.storage.documents import Document, Documents, key_of
from modules.store_common.errors import AlreadyExistsError

__all__ = ["give_back", "next_in", "park", "take_place", "unpark_waiting"]

# A claim that took a place so long ago, in microseconds, is taken for dead; it may be alive all the same, see above.
_PATIENCE_US = 10_000_000
_SEPARATOR = "\x1f"


async def take_place(db: Documents, job: Document, now: int) -> Optional[str]:
    """Take a place for a job that is to be claimed; None: its key is full.

    Returns:
        What to give back.
    """
    place = _SEPARATOR.join((job["id"], str(job["f"] + 1), str(job["ep"]), str(now)))
    if await _take(db, job, place):
        return place
    if await _take_back_unneeded(db, job["t"], job["ck"], now) and await _take(db, job, place):
        return place
    return None


async def _take(db: Documents, job: Document, place: str) -> bool:
    where = {"_id": key_of(job["t"], job["ck"]), "n": {"$lt": job["cl"]}}
    change = {"$inc": {"n": 1}, "$push": {"hs": place}, "$setOnInsert": {"t": job["t"], "k": job["ck"]}}
    try:
        return await db.update(SLOTS, where, change, upsert=True) == 1
    except AlreadyExistsError:
        return False


async def give_back(db: Documents, tenant_id: str, key: str, place: str) -> List[str]:
    """Give a place back and let the next job in; return the queues in which one came free."""
    await _remove(db, tenant_id, key, place)
    return await next_in(db, tenant_id, key)


async def _remove(db: Documents, tenant_id: str, key: str, place: str) -> bool:
    where: Dict[str, Any] = {"_id": key_of(tenant_id, key), "hs": place}
    if await db.delete(SLOTS, {**where, "n": 1}):
        return True
    return await db.update(SLOTS, where, {"$inc": {"n": -1}, "$pull": {"hs": place}}) == 1


async def next_in(db: Documents, tenant_id: str, key: str) -> List[str]:
    """Let the first parked job of a key be claimed; return its queue, nothing without one."""
    where = {"t": tenant_id, "pk": 1, "ck": key}
    found = await db.change(JOBS, where, {"$set": {"pk": 0}}, sort=[("pr", -1), ("ra", 1)], fields=("q",))
    return [] if found is None else [found["q"]]


async def park(db: Documents, job: Document) -> None:
    """Keep a job out of claims until a running one of its key ends."""
    where = {"_id": job["_id"], "st": "scheduled", "pk": 0, "v": job["v"]}
    if not await db.update(JOBS, where, {"$set": {"pk": 1}}):
        return
    slots = await db.find_one(SLOTS, {"_id": key_of(job["t"], job["ck"])})
    if slots is None or slots["n"] < job["cl"]:
        await next_in(db, job["t"], job["ck"])


async def _take_back_unneeded(db: Documents, tenant_id: str, key: str, now: int) -> int:
    """Take back the places of a key that nobody needs; return how many."""
    slots = await db.find_one(SLOTS, {"_id": key_of(tenant_id, key)})
    if slots is None:
        return 1
    ids = sorted({key_of(tenant_id, place.split(_SEPARATOR)[0]) for place in slots["hs"]})
    found = await db.find(JOBS, {"_id": {"$in": ids}}, fields=("id", "st", "f", "ep", "ht"))
    jobs = {job["id"]: job for job in found}
    count = 0
    for place in slots["hs"]:
        if await _is_unneeded(db, jobs.get(place.split(_SEPARATOR)[0]), place, now):
            count += await _remove(db, tenant_id, key, place)
    return count


async def _is_unneeded(db: Documents, job: Optional[Document], place: str, now: int) -> bool:
    if job is None:
        return True
    _, fence, epoch, taken_at = place.split(_SEPARATOR)
    if job["st"] == "running":
        return job.get("ht") != place
    may_be_claimed = job["st"] == "scheduled" and (job["f"], job["ep"]) == (int(fence) - 1, int(epoch))
    if not may_be_claimed:
        return True
    if now - int(taken_at) < _PATIENCE_US:
        return False
    where = {"_id": job["_id"], "st": "scheduled", "f": job["f"], "ep": job["ep"]}
    return await db.update(JOBS, where, {"$inc": {"ep": 1}}) == 1


@FORMS.form_of(unpark_waiting_operation)
async def unpark_waiting(
    db: Documents, after: Tuple[str, str], limit: int
) -> Tuple[Optional[Tuple[str, str]], Tuple[str, ...]]:
    """Look at the next `limit` keys with parked jobs, and let one in where none runs: mends what a crash may leave."""
    freed: Dict[str, None] = {}
    position: Optional[Tuple[str, str]] = after
    now = await db.now()
    for _ in range(limit):
        found = await _next_parked(db, position)  # type: ignore[arg-type]
        if found is None:
            position = None
            break
        position = (found["t"], found["ck"])
        await _take_back_unneeded(db, *position, now)
        if await db.find_one(SLOTS, {"_id": key_of(*position)}, fields=("n",)) is None:
            freed.update(dict.fromkeys(await next_in(db, *position)))
    return position, tuple(freed)


async def _next_parked(db: Documents, after: Tuple[str, str]) -> Optional[Document]:
    tenant_id, key = after
    wheres: Sequence[Dict[str, Any]] = (
        {"t": tenant_id, "pk": 1, "ck": {"$gt": key}},
        {"t": {"$gt": tenant_id}, "pk": 1},
    )
    for where in wheres:
        found = await db.find_one(JOBS, where, sort=[("t", 1), ("pk", 1), ("ck", 1)], fields=("t", "ck"))
        if found is not None:
            return found
    return None

"""The job store in MongoDB: log lines, progress, workers, and what the background work removes."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

from modules.job_store import maintenance, upkeep
from modules.job_store.mongo_documents import DELETED, FORMS, HIDDEN, JOBS, LOGS, RUNS, WORKERS, instant
from modules.job_store.mongo_lifecycle import mark_deleted, remove_marked
from modules.job_store.records import WorkerInfo
from modules.storage.documents import Document, Documents, key_of
from modules.store_common.values import JsonText, decode_json, encode_text

__all__ = [
    "add_logs",
    "forget_results",
    "forget_worker",
    "next_tenant",
    "purge_part",
    "set_progress",
    "sweep_workers",
    "worker_seen",
    "workers",
]

_MOST_WORKERS = 1000


def _current(claim: Tuple[str, str, int]) -> Dict[str, Any]:
    tenant_id, job_id, fence = claim
    return {"_id": key_of(tenant_id, job_id), "f": fence, "st": "running"}


@FORMS.form_of(upkeep.add_logs)
async def add_logs(db: Documents, claim: Tuple[str, str, int], lines: Sequence[Tuple[str, str, str]]) -> bool:
    """Add log lines (id, level, message) to the run of a claim; False when the claim was lost."""
    tenant_id, job_id, fence = claim
    if await db.find_one(JOBS, _current(claim), fields=("f",)) is None:
        return False
    common = {"t": tenant_id, "j": job_id, "n": fence, "ca": await db.now()}
    await db.insert(
        LOGS,
        [
            {
                "_id": key_of(tenant_id, job_id, line),
                "id": line,
                "lv": level,
                "m": encode_text(message),
                **common,
            }
            for line, level, message in lines
        ],
    )
    return True


@FORMS.form_of(upkeep.set_progress)
async def set_progress(db: Documents, claim: Tuple[str, str, int], progress: JsonText) -> bool:
    """Note how far a run is; False when the claim was lost."""
    return await db.update(JOBS, _current(claim), {"$set": {"pg": str(progress)}}) == 1


@FORMS.form_of(upkeep.worker_seen)
async def worker_seen(db: Documents, worker: str, queues: JsonText, info: JsonText, running: int) -> None:
    """Note that a worker is there."""
    now = await db.now()
    fields = {"queues": str(queues), "info": str(info), "running": running, "seen": now}
    await db.upsert_each(WORKERS, [({"_id": worker}, {"$set": fields, "$setOnInsert": {"ca": now}})])


@FORMS.form_of(upkeep.forget_worker)
async def forget_worker(db: Documents, worker: str) -> bool:
    """Forget a worker."""
    return await db.delete(WORKERS, {"_id": worker}) == 1


@FORMS.form_of(upkeep.workers)
async def workers(db: Documents, since_us: int) -> List[WorkerInfo]:
    """Return the workers that told of themselves since `since_us` microseconds ago."""
    where = {"seen": {"$gte": await db.now() - since_us}}
    return [
        WorkerInfo(
            found["_id"], tuple(decode_json(found["queues"])), found["running"], decode_json(found["info"]),
            instant(found["ca"]), instant(found["seen"]),
        )
        for found in await db.find(WORKERS, where, sort=[("_id", 1)], limit=_MOST_WORKERS)
    ]  # fmt: skip


@FORMS.form_of(maintenance.sweep_workers)
async def sweep_workers(db: Documents, silent_us: int) -> int:
    """Forget workers that have been silent for so many microseconds."""
    return await db.delete(WORKERS, {"seen": {"$lt": await db.now() - silent_us}}, many=True)


@FORMS.form_of(maintenance.next_tenant)
async def next_tenant(db: Documents, after: str) -> Optional[str]:
    """Return the tenant with jobs that comes after the one given."""
    where = {"t": {"$gt": after}, "st": {"$nin": HIDDEN}}
    found = await db.find_one(JOBS, where, sort=[("t", 1)], fields=("t",))
    return None if found is None else str(found["t"])


@FORMS.form_of(maintenance.purge_part)
async def purge_part(db: Documents, tenant_id: str, status: str, age_us: int, before: str, limit: int) -> int:
    """Remove jobs of a status that ended longer ago; return how many."""
    cutoff = await db.now() - age_us
    where = {"t": tenant_id, "st": status, "id": {"$lt": before}, "fa": {"$lt": cutoff}}
    found = await db.find(JOBS, where, sort=[("id", 1)], limit=limit, fields=("id",))
    if not found:
        return 0
    # whoever was run again meanwhile does not fit any more
    ids = [job["_id"] for job in found]
    still = {"_id": {"$in": ids}, "st": status, "fa": {"$lt": cutoff}}
    await db.update(JOBS, still, mark_deleted(), many=True)
    marked = await db.find(JOBS, {"_id": {"$in": ids}, "st": DELETED}, fields=("id",))
    if marked:
        await remove_marked(db, tenant_id, [job["id"] for job in marked])
    return len(found)


@FORMS.form_of(maintenance.forget_results)
async def forget_results(db: Documents, limit: int) -> int:
    """Forget results whose time is over, and finish what was being removed; return how many results."""
    for job in await db.find(JOBS, {"st": DELETED}, limit=limit, fields=("t", "id")):
        await remove_marked(db, job["t"], [job["id"]])
    now = await db.now()
    count = 0
    for job in await db.find(JOBS, {"rt": {"$lte": now}}, limit=limit):
        count += await _forget_in(db, job, now)
    left = limit - count
    if left > 0:
        runs = await db.find(RUNS, {"ru": {"$lte": now}}, limit=left, fields=("n",))
        ids = {"$in": [run["_id"] for run in runs]}
        if runs:
            await db.update(RUNS, {"_id": ids}, {"$set": {"res": None}, "$unset": {"ru": ""}}, many=True)
        count += len(runs)
    return count


async def _forget_in(db: Documents, job: Document, now: int) -> int:
    """Forget results that still stand in a job, unless its runs changed meanwhile."""
    runs: List[Document] = []
    count = 0
    for run in job["er"]:
        if run.get("ru") is not None and run["ru"] <= now:
            run = {name: value for name, value in run.items() if name != "ru"}
            run["res"] = None
            count += 1
        runs.append(run)
    later = [run["ru"] for run in runs if run.get("ru") is not None]
    change: Dict[str, Any] = {"$set": {"er": runs}, "$inc": {"rv": 1}}
    if later:
        change["$set"]["rt"] = min(later)
    else:
        change["$unset"] = {"rt": ""}
    return count if await db.update(JOBS, {"_id": job["_id"], "rv": job["rv"]}, change) else 0

"""The job store in MongoDB: how runs end, heartbeats, and rescuing jobs whose worker is gone.

The end of a run is one change of its job, with the condition that the claim is the current one; the run stands in the job
from then on. The place of a concurrency key is given back after that (see `mongo_slots`).
"""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, Optional, Sequence, Tuple, Union

from modules.job_store import settling as op
from modules.job_store.errors import JobLeaseLostError
from modules.job_store.limits import decode_options
from modules.job_store.models import FINAL_STATUSES
from modules.job_store.mongo_documents import FORMS, JOBS, RUNS, instant
from modules.job_store.mongo_enqueue import complete_batches
from modules.job_store.mongo_slots import give_back
from modules.job_store.mongo_trail import run_document
from modules.job_store.settling import LOST_ERROR, Settled, Settlement
from modules.storage.documents import Document, Documents, Tries, key_of
from modules.store_common.backoff import full_jitter
from modules.store_common.errors import ConcurrencyError
from modules.store_common.ids import new_id
from modules.store_common.values import encode_text

__all__ = ["beat", "current_claims", "rescue", "settle_all", "settle_keyed", "settle_one"]

_READ = ("t", "id", "st", "f", "v", "cr", "at", "w", "sa", "ck", "ht", "rt", "lu")


def _everybody(*_: Any) -> Hashable:
    return "settle"


async def _settle_batch(
    db: Documents, calls: Sequence[Tuple[Settlement]]
) -> Sequence[Union[str, BaseException]]:
    items = [call[0] for call in calls]
    if len({(item.tenant_id, item.id) for item in items}) < len(items):
        statuses = [(await _settle(db, [item]))[0][0] for item in items]
    else:
        statuses = (await _settle(db, items))[0]
    return [
        JobLeaseLostError(item.id, item.fence) if status is None else status
        for item, status in zip(items, statuses)
    ]


@FORMS.form_of(op.settle_one, turn=_everybody, batch=_settle_batch)
async def settle_one(db: Documents, item: Settlement) -> str:
    """End one run and return what the job became."""
    status = (await _settle(db, [item]))[0][0]
    if status is None:
        raise JobLeaseLostError(item.id, item.fence)
    return status


@FORMS.form_of(op.settle_all)
async def settle_all(db: Documents, batch: Sequence[Settlement]) -> List[Optional[str]]:
    """End runs and return what each job became; None for a claim that was lost."""
    return (await _settle(db, batch))[0]


@FORMS.form_of(op.settle_keyed)
async def settle_keyed(db: Documents, batch: Sequence[Settlement]) -> Settled:
    """End runs, and let in the next job of each concurrency key that came free."""
    statuses, jobs = await _settle(db, batch)
    return Settled(statuses, await _free(db, jobs))


async def _free(db: Documents, jobs: Sequence[Document]) -> Tuple[str, ...]:
    freed: Dict[str, None] = {}
    for job in jobs:
        if job["ck"] is not None:
            freed.update(dict.fromkeys(await give_back(db, job["t"], job["ck"], job["ht"])))
    return tuple(freed)


async def _settle(
    db: Documents, batch: Sequence[Settlement], expired_at: Optional[int] = None
) -> Tuple[List[Optional[str]], List[Document]]:
    """End runs; return what each job became, and the jobs that were changed.

    Args:
        db: The collections.
        batch: Each of another job.
        expired_at: Only those whose lease ran out by then.
    """
    statuses: List[Optional[str]] = [None] * len(batch)
    changed: List[Document] = []
    mark = new_id()
    open_ = list(range(len(batch)))
    async for attempt in Tries():
        found = await _read(db, [batch[n] for n in open_])
        steps: List[Tuple[int, Document, str, Tuple[Document, Document]]] = []
        for n in open_:
            item = batch[n]
            job = found.get(key_of(item.tenant_id, item.id))
            if job is None or job["f"] != item.fence or job["st"] != "running":
                if attempt and job is not None:
                    statuses[n] = await _settled_by(db, item, mark)
                continue
            if expired_at is not None and job["lu"] > expired_at:
                continue
            status, step = _step(job, item, await db.now(), mark, expired_at)
            steps.append((n, job, status, step))
        if not steps:
            break
        changes = [step for _, _, _, step in steps]
        matched = (
            await db.update_each(JOBS, changes) if len(changes) > 1 else await db.update(JOBS, *changes[0])
        )
        changed += [job for _, job, _, _ in steps if job["id"] not in {other["id"] for other in changed}]
        if matched == len(steps):
            for n, _, status, _ in steps:
                statuses[n] = status
            break
        open_ = [n for n, _, _, _ in steps]
    else:
        raise ConcurrencyError("the jobs kept changing while they were settled; try again")
    done = {(batch[n].tenant_id, batch[n].id) for n, status in enumerate(statuses) if status is not None}
    return statuses, [job for job in changed if (job["t"], job["id"]) in done]


async def _read(db: Documents, items: Sequence[Settlement]) -> Dict[str, Document]:
    ids = [key_of(item.tenant_id, item.id) for item in items]
    if len(ids) == 1:
        one = await db.find_one(JOBS, {"_id": ids[0]}, fields=_READ)
        return {} if one is None else {ids[0]: one}
    return {job["_id"]: job for job in await db.find(JOBS, {"_id": {"$in": ids}}, fields=_READ)}


def _step(
    job: Document, item: Settlement, now: int, mark: str, expired_at: Optional[int]
) -> Tuple[str, Tuple[Document, Document]]:
    """Return what the job becomes, and the change that makes it so."""
    cancelled = job["cr"] == 1 and item.status != "succeeded"
    status = "cancelled" if cancelled else item.status
    run_status = "cancelled" if status == "cancelled" else item.run_status
    error = None if item.error is None else str(item.error)
    result = None if item.result is None else str(item.result)
    run = run_document(job, item.fence, run_status, now, err=error, res=result, mk=mark)
    fields: Dict[str, Any] = {
        "st": status, "ua": now, "fa": now if status in FINAL_STATUSES else None, "rs": encode_text(item.reason),
    }  # fmt: skip
    if item.delay_us > 0:
        fields["ra"] = now + item.delay_us
    if item.keep_us is not None:
        run["ru"] = now + item.keep_us
        fields["rt"] = min(run["ru"], job.get("rt", run["ru"]))
    gone = {"lu": ""}
    if status in FINAL_STATUSES:
        gone["nk"] = ""
    where = {"_id": job["_id"], "f": item.fence, "st": "running", "cr": job["cr"]}
    if expired_at is not None:
        where["lu"] = {"$lte": expired_at}
    change = {
        "$set": fields, "$unset": gone, "$inc": {"v": 1, "rv": 1, "at": item.delta}, "$push": {"er": run},
    }  # fmt: skip
    return status, (where, change)


async def _settled_by(db: Documents, item: Settlement, mark: str) -> Optional[str]:
    """Return what a job became by us, when not all of a batch were ours; None: somebody else ended the run."""
    job = await db.find_one(JOBS, {"_id": key_of(item.tenant_id, item.id)}, fields=("st", "er"))
    runs = [] if job is None else [run for run in job["er"] if run["n"] == item.fence]
    if not runs:
        kept = await db.find_one(RUNS, {"_id": key_of(item.tenant_id, item.id, item.fence)})
        runs = [] if kept is None else [kept]
    if not runs or runs[0].get("mk") != mark:
        return None
    return "cancelled" if runs[0]["st"] == "cancelled" else item.status


@FORMS.form_of(op.rescue)
async def rescue(db: Documents, limit: int) -> Tuple[List[Tuple[str, str, str]], Tuple[str, ...]]:
    """End the runs whose lease ran out, and complete what dead processes left half enqueued."""
    now = await db.now()
    await complete_batches(db, now)
    expired = await db.find(JOBS, {"lu": {"$lte": now}}, sort=[("lu", 1)], limit=limit)
    lost: List[Settlement] = []
    queues: Dict[str, None] = {}
    for job in expired:
        retry = decode_options(job["op"], job["ma"]).retry
        last = job["at"] >= job["ma"]
        delay_s = 0.0 if last else full_jitter(job["at"], base_s=retry.base_s, cap_s=retry.cap_s)
        reason = f"JobLeaseLost: attempt {job['at']} of {job['ma']} was the last" if last else None
        status, delay_us = ("failed", 0) if last else ("scheduled", round(delay_s * 1e6))
        lost.append(
            Settlement(
                job["t"],
                job["id"],
                job["f"],
                status,
                delay_us,
                0,
                reason,
                "lost",
                LOST_ERROR,
                None,
                None,
                job["ck"],
            )
        )
        queues[job["q"]] = None
    if not lost:
        return [], ()
    statuses, jobs = await _settle(db, lost, now)
    freed = await _free(db, jobs)
    ended = [(s.tenant_id, s.id, status) for s, status in zip(lost, statuses) if status is not None]
    return ended, tuple(dict.fromkeys((*queues, *freed)))


@FORMS.form_of(op.beat)
async def beat(
    db: Documents, claims: Sequence[Tuple[str, str, int]], lease_us: int
) -> List[Optional[Tuple[int, Any]]]:
    """Extend the leases of claims (tenant, id, fence); for each whether it is to be cancelled, and its new end."""
    until = {"$set": {"lu": await db.now() + lease_us}}
    if len(claims) == 1:
        tenant_id, job_id, fence = claims[0]
        where = {"_id": key_of(tenant_id, job_id), "f": fence, "st": "running"}
        job = await db.change(JOBS, where, until, fields=("cr", "lu"))
        return [None if job is None else (job["cr"], instant(job["lu"]))]
    current = [{"_id": key_of(tenant_id, job_id), "f": fence} for tenant_id, job_id, fence in claims]
    await db.update(JOBS, {"$or": current, "st": "running"}, until, many=True)
    found = await _current(db, claims)
    return [None if job is None else (job["cr"], instant(job["lu"])) for job in found]


@FORMS.form_of(op.current_claims)
async def current_claims(db: Documents, claims: Sequence[Tuple[str, str, int]]) -> List[Optional[int]]:
    """Return for each claim (tenant, id, fence) whether it is to be cancelled (1); None when it was lost."""
    return [None if job is None else job["cr"] for job in await _current(db, claims)]


async def _current(db: Documents, claims: Sequence[Tuple[str, str, int]]) -> List[Optional[Document]]:
    ids = [key_of(tenant_id, job_id) for tenant_id, job_id, _ in claims]
    jobs = {job["_id"]: job for job in await db.find(JOBS, {"_id": {"$in": ids}}, fields=_READ)}
    found: List[Optional[Document]] = []
    for place, (_, _, fence) in zip(ids, claims):
        job = jobs.get(place)
        is_current = job is not None and job["f"] == fence and job["st"] == "running"
        found.append(job if is_current else None)
    return found

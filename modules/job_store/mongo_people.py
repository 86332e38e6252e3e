"""The job store in MongoDB: who answers for a job (assignments), and which tasks it serves. Both stand in the job's document."""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, Optional

from modules.job_store import people
from modules.job_store.errors import JobNotFoundError
from modules.job_store.mongo_documents import FORMS, HIDDEN, JOBS, find_job, instant
from modules.job_store.mongo_lifecycle import event_document, overtaken, require_job
from modules.job_store.mongo_trail import move_trail
from modules.job_store.records import Assignment
from modules.storage.documents import Document, Documents, Tries, key_of

__all__ = [
    "assign",
    "link_task",
    "list_assignments",
    "list_jobs_of_task",
    "list_tasks",
    "unassign",
    "unlink_task",
]

_Fields = Dict[str, Any]


def _one_job(tenant_id: str, job_id: str, *_: Any) -> Hashable:
    return tenant_id, job_id


def _slot(assignee: str) -> str:
    """Return the name of an assignee's field: any text may be a name, but not that of a field."""
    return "as.x" + assignee.encode().hex()


async def _tell(
    db: Documents, found: Document, where: _Fields, change: Dict[str, _Fields], data: _Fields, now: int
) -> Optional[Document]:
    """Change who answers for a job and tell of it, if it is in the run that it was read in."""
    event = event_document(found, "assignment", data, now, running=found["st"] == "running")
    same = {"_id": found["_id"], "st": found["st"], "f": found["f"], **where}
    changed = await db.change(JOBS, same, {**change, "$inc": {"rv": 1}, "$push": {"ev": event}})
    if changed is not None:
        await move_trail(db, [changed])
    return changed


@FORMS.form_of(people.assign, turn=_one_job)
async def assign(db: Documents, tenant_id: str, job_id: str, assignee: str, status: str) -> Assignment:
    """Have `assignee` answer for a job, or change how that stands."""
    slot = _slot(assignee)
    async for _ in Tries():
        found = await require_job(db, tenant_id, job_id)
        now = await db.now()
        known = found["as"].get(slot[3:])
        entry = {"a": assignee, "ca": now, **(known or {}), "s": status, "ua": now}
        where = {slot: {"$exists": known is not None}}
        data = {"assignee": assignee, "status": status}
        if await _tell(db, found, where, {"$set": {slot: entry}}, data, now) is not None:
            return _assignment(job_id, entry)
    raise overtaken(job_id)


def _assignment(job_id: str, entry: Document) -> Assignment:
    return Assignment(job_id, entry["a"], entry["s"], instant(entry["ca"]), instant(entry["ua"]))


@FORMS.form_of(people.unassign, turn=_one_job)
async def unassign(db: Documents, tenant_id: str, job_id: str, assignee: str) -> bool:
    """Take an assignment away."""
    slot = _slot(assignee)
    async for _ in Tries():
        found = await require_job(db, tenant_id, job_id)
        if slot[3:] not in found["as"]:
            return False
        data = {"assignee": assignee, "status": None}
        where, change = {slot: {"$exists": True}}, {"$unset": {slot: ""}}
        if await _tell(db, found, where, change, data, await db.now()) is not None:
            return True
    raise overtaken(job_id)


@FORMS.form_of(people.list_assignments)
async def list_assignments(db: Documents, tenant_id: str, job_id: str) -> List[Assignment]:
    """Return who answers for a job."""
    found = await find_job(db, tenant_id, job_id, ["as"])
    entries = [] if found is None else sorted(found["as"].values(), key=lambda entry: str(entry["a"]))
    return [_assignment(job_id, entry) for entry in entries[: people.MOST_OF_A_JOB]]


@FORMS.form_of(people.link_task)
async def link_task(db: Documents, tenant_id: str, job_id: str, task_id: str) -> None:
    """Link a job to a task."""
    found = await require_job(db, tenant_id, job_id)
    where = {"_id": found["_id"], "st": {"$nin": HIDDEN}}
    if not await db.update(JOBS, where, {"$addToSet": {"ts": task_id}}):
        raise JobNotFoundError(job_id)


@FORMS.form_of(people.unlink_task)
async def unlink_task(db: Documents, tenant_id: str, job_id: str, task_id: str) -> bool:
    """Take a link away."""
    where = {"_id": key_of(tenant_id, job_id), "st": {"$nin": HIDDEN}, "ts": task_id}
    return await db.update(JOBS, where, {"$pull": {"ts": task_id}}) == 1


@FORMS.form_of(people.list_tasks)
async def list_tasks(db: Documents, tenant_id: str, job_id: str) -> List[str]:
    """Return the tasks of a job."""
    found = await find_job(db, tenant_id, job_id, ["ts"])
    return [] if found is None else sorted(found["ts"])[: people.MOST_OF_A_JOB]


@FORMS.form_of(people.list_jobs_of_task)
async def list_jobs_of_task(db: Documents, tenant_id: str, task_id: str, after: str, limit: int) -> List[str]:
    """Return the ids of the jobs of a task."""
    where = {"t": tenant_id, "ts": task_id, "id": {"$gt": after}, "st": {"$nin": HIDDEN}}
    found = await db.find(JOBS, where, sort=[("id", 1)], limit=limit, fields=("id",))
    return [job["id"] for job in found]

"""The job store in MongoDB: changing jobs by hand, and deleting them.

A change reads the job, decides, and is applied if the job has not changed since; else it is decided again. The event that
tells of it is part of the change. A job that is deleted is marked first, which nobody can see through; what is its own is
removed after, and by the next sweep if the process dies.
"""

from __future__ import annotations

from typing import Any, Dict, Hashable, List, Optional, Sequence, Tuple

from modules.job_store import lifecycle as op
from modules.job_store.errors import JobNotFoundError, JobTransitionError
from modules.job_store.lifecycle import Moved, When
from modules.job_store.limits import Options, check_expected, encode_options
from modules.job_store.models import FINAL_STATUSES, may_become
from modules.job_store.mongo_documents import (
    DELETED,
    EVENTS,
    FORMS,
    JOBS,
    LOGS,
    RUNS,
    due_at,
    find_job,
    job_of,
    place_of,
)
from modules.job_store.mongo_queues import note_keys
from modules.job_store.mongo_slots import next_in
from modules.job_store.mongo_trail import move_trail
from modules.job_store.records import Job
from modules.storage.documents import Document, Documents, Tries, key_of
from modules.store_common.errors import ConcurrencyError
from modules.store_common.ids import new_id
from modules.store_common.values import encode_json, encode_text

__all__ = [
    "change_job",
    "delete_job",
    "event_document",
    "mark_deleted",
    "move_job",
    "overtaken",
    "remove_marked",
    "require_job",
]

_Fields = Dict[str, Any]


def _one_job(tenant_id: str, job_id: str, *_: Any) -> Hashable:
    return tenant_id, job_id


def event_document(job: Document, kind: str, data: _Fields, now: int, *, running: bool) -> Document:
    """Return an event of a job."""
    event_id = new_id()
    place = place_of(job["f"], running=running) + event_id
    return {"id": event_id, "p": place, "ty": kind, "d": str(encode_json(data, "the event")), "ca": now}


async def require_job(db: Documents, tenant_id: str, job_id: str) -> Document:
    """Return a job's document.

    Raises:
        JobNotFoundError: there is none.
    """
    found = await find_job(db, tenant_id, job_id)
    if found is None:
        raise JobNotFoundError(job_id)
    return found


async def _apply(
    db: Documents, job: Document, fields: _Fields, event: Document, **more: _Fields
) -> Optional[Document]:
    """Change a job and tell of it, if it has not changed since it was read; return it, None when it has."""
    change = {
        "$set": {"ua": event["ca"], **fields}, "$inc": {"v": 1, "rv": 1, "ep": 1}, "$push": {"ev": event}, **more,
    }  # fmt: skip
    where = {"_id": job["_id"], "v": job["v"], "st": job["st"]}
    changed = await db.change(JOBS, where, change)
    if changed is not None:
        await move_trail(db, [changed])
    return changed


async def _let_next_in(db: Documents, job: Document) -> List[str]:
    """A job of a key that leaves the claims may have been the one let in: let in the next."""
    if job["ck"] is None or job["st"] != "scheduled" or job["pk"]:
        return []
    return await next_in(db, job["t"], job["ck"])


def overtaken(job_id: str) -> ConcurrencyError:
    """Return the error of a change that others kept overtaking."""
    return ConcurrencyError(f"job {job_id!r} kept changing; try again")


@FORMS.form_of(op.change_job, turn=_one_job)
async def change_job(
    db: Documents, tenant_id: str, job_id: str, changes: _Fields, when: When, expected: Optional[int]
) -> Moved:
    """Set fields of a draft or scheduled job."""
    async for _ in Tries():
        found = await require_job(db, tenant_id, job_id)
        job = job_of(found)
        check_expected("job", job, expected)
        if job.status not in ("draft", "scheduled"):
            raise JobTransitionError(
                job_id, job.status, "another job (only draft and scheduled jobs are changed)"
            )
        if "queue" in changes:
            await note_keys(db, [{"queue": changes["queue"], "concurrency_key": found["ck"]}])
        now = await db.now()
        names = sorted(changes) + (["run_at"] if when != (None, None) else [])
        event = event_document(found, "updated", {"fields": names}, now, running=False)
        fields, more = _changed_fields(job, tenant_id, changes)
        fields["ra"] = due_at(when.run_at, when.delay_us, now, found["ra"])
        changed = await _apply(db, found, fields, event, **more)
        if changed is not None:
            queues = await _let_next_in(db, found)
            queues += [changed["q"]] if changed["st"] == "scheduled" else []
            return Moved(job_of(changed), tuple(queues))
    raise overtaken(job_id)


def _changed_fields(job: Job, tenant_id: str, changes: _Fields) -> Tuple[_Fields, Dict[str, _Fields]]:
    retry = changes.get("retry", job.retry)
    options = encode_options(Options(retry, changes.get("timeout_s", job.timeout_s), job.keep_result_s))
    fields: _Fields = {"pk": 0, "ma": retry.max_attempts, "op": None if options is None else str(options)}
    for name, place in (("queue", "q"), ("priority", "pr"), ("name", "name")):
        if name in changes:
            fields[place] = changes[name]
    if "payload" in changes:
        fields["pl"] = str(changes["payload"])
    if changes.get("name") is not None:
        fields["nk"] = key_of(tenant_id, changes["name"])
    return fields, {"$unset": {"nk": ""}} if "name" in changes and changes["name"] is None else {}


@FORMS.form_of(op.move_job, turn=_one_job)
async def move_job(
    db: Documents,
    tenant_id: str,
    job_id: str,
    wanted: str,
    when: When,
    reason: Optional[str],
    expected: Optional[int],
    only_from: Tuple[str, ...],
) -> Moved:
    """Move a job that is not running to draft, scheduled or cancelled; ask the worker of a running one to stop."""
    async for _ in Tries():
        found = await require_job(db, tenant_id, job_id)
        check_expected("job", job_of(found), expected)
        status = found["st"]
        if not may_become(status, wanted) or (only_from and status not in only_from):
            raise JobTransitionError(job_id, status, wanted)
        now = await db.now()
        if status == "running":
            event = event_document(found, "cancel_requested", {"reason": reason}, now, running=True)
            changed = await _apply(db, found, {"cr": 1, "rs": encode_text(reason)}, event)
            if changed is not None:
                return Moved(job_of(changed), ())
            continue
        changed = await _move(db, found, wanted, when, reason, now)
        if changed is not None:
            queues = await _let_next_in(db, found)
            return Moved(job_of(changed), (*queues, *([found["q"]] if wanted == "scheduled" else [])))
    raise overtaken(job_id)


async def _move(
    db: Documents, found: Document, wanted: str, when: When, reason: Optional[str], now: int
) -> Optional[Document]:
    again = found["st"] in FINAL_STATUSES
    if again and when == (None, None):
        when = When(None, 0)
    fields: _Fields = {
        "st": wanted, "rs": encode_text(reason), "pk": 0, "cr": 0, "pg": None,
        "fa": now if wanted == "cancelled" else None, "ra": due_at(when.run_at, when.delay_us, now, found["ra"]),
    }  # fmt: skip
    more: Dict[str, _Fields] = {}
    if again:
        fields["at"] = 0
    if found["name"] is not None:
        if wanted == "cancelled":
            more["$unset"] = {"nk": ""}
        else:
            fields["nk"] = key_of(found["t"], found["name"])
    kinds = {"scheduled": "scheduled", "draft": "drafted", "cancelled": "cancelled"}
    data = {"from": found["st"], "reason": reason}
    event = event_document(found, "rerun" if again else kinds[wanted], data, now, running=False)
    return await _apply(db, found, fields, event, **more)


# --- deleting -------------------------------------------------------------------------------------------------------


@FORMS.form_of(op.delete_job, turn=_one_job)
async def delete_job(
    db: Documents, tenant_id: str, job_id: str, expected: Optional[int]
) -> Tuple[bool, Tuple[str, ...]]:
    """Remove a job that is not running, with everything of it; False when there is none."""
    async for _ in Tries():
        found = await find_job(db, tenant_id, job_id)
        if found is None:
            return False, ()
        check_expected("job", job_of(found), expected)
        if found["st"] == "running":
            raise JobTransitionError(job_id, "running", "deleted: cancel it first")
        where = {"_id": found["_id"], "v": found["v"], "st": found["st"]}
        if await db.update(JOBS, where, mark_deleted()):
            await remove_marked(db, tenant_id, [job_id])
            return True, tuple(await _let_next_in(db, found))
    raise overtaken(job_id)


def mark_deleted() -> Dict[str, Any]:
    """Return the change that lets a job be there no longer."""
    return {
        "$set": {"st": DELETED, "pk": 0},
        "$inc": {"v": 1, "ep": 1},
        "$unset": {"nk": "", "ik": "", "uk": "", "rt": ""},
    }


async def remove_marked(db: Documents, tenant_id: str, job_ids: Sequence[str]) -> int:
    """Remove jobs that are marked, with everything of theirs, the jobs last; return how many."""
    one_or_many: Any = job_ids[0] if len(job_ids) == 1 else {"$in": list(job_ids)}
    for collection in (RUNS, EVENTS, LOGS):
        await db.delete(collection, {"t": tenant_id, "j": one_or_many}, many=True)
    places = [key_of(tenant_id, job_id) for job_id in job_ids]
    place: Any = places[0] if len(places) == 1 else {"$in": places}
    await db.delete(JOBS, {"aj": place}, many=True)
    return await db.delete(JOBS, {"_id": place, "st": DELETED}, many=True)

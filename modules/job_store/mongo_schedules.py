"""The job store in MongoDB: schedules.

A schedule fires by one change of its document, which moves it on and notes which jobs are to be made, by id and nominal
time; the jobs are made after that, and the note is taken away. Whoever comes across an old note makes them: their ids are
known, so each is made once.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Dict, Hashable, List, Optional, Sequence

from modules.job_store import timetable as op
from modules.job_store import upkeep
from modules.job_store.encoding import decode_schedule, encode_recurrence, encode_template
from modules.job_store.enqueue import Prepared, prepare
from modules.job_store.errors import ScheduleNotFoundError
from modules.job_store.limits import check_expected
from modules.job_store.mongo_documents import FORMS, SCHEDULES, instant, micros
from modules.job_store.mongo_enqueue import enqueue_prepared
from modules.job_store.records import Schedule
from modules.job_store.schedules import Recurrence, anchored, first_time, jittered
from modules.job_store.upkeep import DueSchedules
from modules.storage.documents import NEVER, Document, Documents, Tries, key_of
from modules.store_common.errors import ConcurrencyError
from modules.store_common.ids import new_id
from modules.store_common.values import JsonText, decode_json

__all__ = [
    "add_schedule",
    "change_schedule",
    "delete_schedule",
    "due_schedules",
    "fire",
    "get_schedule",
    "get_schedule_by_name",
    "list_schedules",
    "next_schedule_in",
]

# A note that is older is not being worked on: much longer than any call may take.
_OLD_US = 60_000_000
_NOTES_AT_ONCE = 20


def _one_schedule(tenant_id: str, schedule_id: str, *_: Any) -> Hashable:
    return tenant_id, schedule_id


def _schedule_of(found: Document) -> Schedule:
    next_at = None if found["na"] == NEVER else instant(found["na"])
    return decode_schedule(
        (
            found["t"], found["id"], found["name"], found["en"], decode_json(found["rec"]), decode_json(found["job"]),
            next_at, instant(found["la"]), found["v"], instant(found["ca"]), instant(found["ua"]),
        )
    )  # fmt: skip


def _next(value: Optional[datetime]) -> int:
    found = micros(value)
    return NEVER if found is None else found


async def _find(db: Documents, tenant_id: str, schedule_id: str) -> Optional[Document]:
    return await db.find_one(SCHEDULES, {"_id": key_of(tenant_id, schedule_id)})


@FORMS.form_of(op.add_schedule)
async def add_schedule(
    db: Documents, tenant_id: str, name: str, recurrence: Recurrence, job: JsonText, enabled: bool
) -> Schedule:
    """Add a schedule; its first time is counted by the server's clock."""
    now = await db.now()
    fixed = anchored(recurrence, instant(now))
    schedule_id = new_id()
    document = {
        "_id": key_of(tenant_id, schedule_id), "t": tenant_id, "id": schedule_id, "name": name, "en": int(enabled),
        "v": 1, "rec": str(encode_recurrence(fixed)), "job": str(job), "na": _next(first_time(fixed, instant(now))),
        "la": None, "ca": now, "ua": now,
    }  # fmt: skip
    await db.insert(SCHEDULES, [document])
    return _schedule_of(document)


@FORMS.form_of(op.get_schedule)
async def get_schedule(db: Documents, tenant_id: str, schedule_id: str) -> Optional[Schedule]:
    """Return a schedule."""
    found = await _find(db, tenant_id, schedule_id)
    return None if found is None else _schedule_of(found)


@FORMS.form_of(op.get_schedule_by_name)
async def get_schedule_by_name(db: Documents, tenant_id: str, name: str) -> Optional[Schedule]:
    """Return the schedule of a name."""
    found = await db.find_one(SCHEDULES, {"t": tenant_id, "name": name})
    return None if found is None else _schedule_of(found)


@FORMS.form_of(op.list_schedules)
async def list_schedules(db: Documents, tenant_id: str, after: str, limit: int) -> List[Schedule]:
    """Return schedules by name."""
    where = {"t": tenant_id, "name": {"$gt": after}}
    return [_schedule_of(found) for found in await db.find(SCHEDULES, where, sort=[("name", 1)], limit=limit)]


@FORMS.form_of(op.change_schedule, turn=_one_schedule)
async def change_schedule(
    db: Documents, tenant_id: str, schedule_id: str, changes: Dict[str, Any], expected: Optional[int]
) -> Schedule:
    """Change a schedule; a new recurrence, or switching it on, counts its next time from now."""
    async for _ in Tries():
        document = await _find(db, tenant_id, schedule_id)
        if document is None:
            raise ScheduleNotFoundError(schedule_id)
        found = _schedule_of(document)
        check_expected("schedule", found, expected)
        if "fi" in document:
            await _make_jobs(db, document)
        now = await db.now()
        recurrence = anchored(changes.get("recurrence", found.recurrence), instant(now))
        enabled: bool = changes.get("enabled", found.enabled)
        next_at = found.next_at
        if "recurrence" in changes or (enabled and not found.enabled):
            next_at = first_time(recurrence, instant(now))
        fields = {
            "name": changes.get("name", found.name), "en": int(enabled), "rec": str(encode_recurrence(recurrence)),
            "job": str(encode_template(changes.get("job", found.job))), "na": _next(next_at), "ua": now,
        }  # fmt: skip
        where = {"_id": document["_id"], "v": found.version, "na": document["na"], "fi": {"$exists": False}}
        changed = await db.change(SCHEDULES, where, {"$set": fields, "$inc": {"v": 1}})
        if changed is not None:
            return _schedule_of(changed)
    raise ConcurrencyError(f"schedule {schedule_id!r} kept changing; try again")


@FORMS.form_of(op.delete_schedule, turn=_one_schedule)
async def delete_schedule(db: Documents, tenant_id: str, schedule_id: str) -> bool:
    """Remove a schedule; the jobs that it made stay."""
    async for _ in Tries():
        document = await _find(db, tenant_id, schedule_id)
        if document is None:
            return False
        if "fi" in document:
            await _make_jobs(db, document)
        if await db.delete(SCHEDULES, {"_id": document["_id"], "fi": {"$exists": False}}):
            return True
    raise ConcurrencyError(f"schedule {schedule_id!r} kept firing; try again")


# --- firing ---------------------------------------------------------------------------------------------------------


@FORMS.form_of(upkeep.due_schedules)
async def due_schedules(db: Documents, limit: int) -> DueSchedules:
    """Return schedules whose time has come; what a dead scheduler noted is made first."""
    now = await db.now()
    for document in await db.find(SCHEDULES, {"fa": {"$lte": now - _OLD_US}}, limit=_NOTES_AT_ONCE):
        await _make_jobs(db, document)
    found = await db.find(SCHEDULES, {"en": 1, "na": {"$lte": now}}, sort=[("na", 1)], limit=limit)
    return DueSchedules(instant(now), tuple(_schedule_of(document) for document in found))


@FORMS.form_of(upkeep.next_schedule_in)
async def next_schedule_in(db: Documents) -> Optional[float]:
    """Return in how many seconds the next schedule is due; None: there is none."""
    where = {"en": 1, "na": {"$lt": NEVER}}
    found = await db.find_one(SCHEDULES, where, sort=[("na", 1)], fields=("na",))
    return None if found is None else (found["na"] - await db.now()) / 1e6


@FORMS.form_of(upkeep.fire)
async def fire(
    db: Documents,
    schedule: Schedule,
    jobs: Sequence[Prepared],
    next_at: Optional[datetime],
    last_at: Optional[datetime],
) -> Optional[List[str]]:
    """Move a schedule on and make its jobs, if it still is where the caller saw it; None when it is not."""
    now = await db.now()
    place = key_of(schedule.tenant_id, schedule.id)
    notes = [{"i": job.fields["id"], "t": micros(job.fields["scheduled_for"])} for job in jobs]
    fields: Dict[str, Any] = {"na": _next(next_at)}
    if last_at is not None:
        fields["la"] = micros(last_at)
    if notes:
        fields.update(fi=notes, fa=now)
    where = {
        "_id": place, "na": _next(schedule.next_at), "v": schedule.version, "en": 1, "fi": {"$exists": False},
    }  # fmt: skip
    if not await db.update(SCHEDULES, where, {"$set": fields}):
        return None
    made = [(await enqueue_prepared(db, job)).id for job in jobs]
    if notes:
        await _forget_note(db, place, now)
    return made


async def _make_jobs(db: Documents, document: Document) -> None:
    """Make the jobs of a note, those that are not there yet, and take it away."""
    schedule = _schedule_of(document)
    for note in document["fi"]:
        nominal = instant(note["t"])
        job = replace(schedule.job, run_at=jittered(schedule.recurrence, schedule.id, nominal), delay_s=0.0)
        prepared = prepare(schedule.tenant_id, job, schedule_id=schedule.id, scheduled_for=nominal)
        prepared.fields["id"] = note["i"]
        await enqueue_prepared(db, prepared)
    await _forget_note(db, document["_id"], document["fa"])


async def _forget_note(db: Documents, place: str, noted_at: int) -> None:
    await db.update(SCHEDULES, {"_id": place, "fa": noted_at}, {"$unset": {"fi": "", "fa": ""}})

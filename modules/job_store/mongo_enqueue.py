"""The job store in MongoDB: enqueueing.

One job is one document, with its name, its keys and its links in it: so it is there with all of them, or not at all, and
unique indexes decide who is first. Jobs that go in together are staged, and published by one change of their batch:

    note the batch  ->  insert, staged  ->  the batch is published  ->  each job  ->  forget the batch

Whoever finds an old batch completes it: a published one is carried on, one that is not is removed.

A call whose unique key another job holds is answered by that job, and the call's idempotency key stands for that job from
then on. An alias says so: a document among the jobs that nobody sees, with the idempotency key where a job has it. So
whatever takes such a key, job or alias, goes in by one insert, and the unique index lets one of them in.
"""

from __future__ import annotations

from typing import AbstractSet, Any, Dict, List, Optional, Sequence

from modules.job_store import enqueue as op
from modules.job_store.enqueue import Enqueued, Key, Prepared, check_digest
from modules.job_store.enqueue_alike import enqueue_alike as alike_operation
from modules.job_store.models import FINAL_STATUSES
from modules.job_store.mongo_documents import (
    ALIAS,
    BATCHES,
    DELETED,
    FORMS,
    JOBS,
    STAGED,
    instant,
    is_visible,
    job_document,
)
from modules.job_store.mongo_queues import note_keys
from modules.storage.documents import Document, Documents, Tries, key_of
from modules.store_common.errors import AlreadyExistsError, BusyError, ConcurrencyError, StorageError
from modules.store_common.ids import new_id
from modules.store_common.values import JsonText

__all__ = [
    "complete_batches",
    "enqueue_alike",
    "enqueue_many",
    "enqueue_one",
    "enqueue_prepared",
    "enqueue_with_keys",
]

_Fields = Dict[str, Any]
# A batch that is older is not being worked on: much longer than any call may take.
_OLD_US = 60_000_000
_BATCHES_AT_ONCE = 20
# What staged documents become, in the order in which they are published: an alias after the job that it may name.
_BECOME = ("scheduled", "draft", ALIAS)
_INSERTED_AT_ONCE = 1000
# Fewer than MongoDB takes in one command (48 MB).
_BYTES_AT_ONCE = 16 * 1024 * 1024


def _done(document: Document, *, created: bool) -> Enqueued:
    return Enqueued(document["id"], instant(document["ra"]), instant(document["ca"]), created)


@FORMS.form_of(op.enqueue_one)
async def enqueue_one(db: Documents, job: _Fields) -> Enqueued:
    """Insert a job without keys."""
    await note_keys(db, [job])
    document = job_document(job, await db.now())
    await db.insert(JOBS, [document])
    return _done(document, created=True)


@FORMS.form_of(op.enqueue_many)
async def enqueue_many(db: Documents, jobs: Sequence[_Fields]) -> None:
    """Insert jobs without keys, all or none; those of one time keep their order."""
    await note_keys(db, jobs)
    now = await db.now()
    await _together(db, [job_document(job, now, n - len(jobs) + 1) for n, job in enumerate(jobs)], now)


@FORMS.form_of(alike_operation)
async def enqueue_alike(db: Documents, shared: _Fields, ids: List[str], payloads: List[JsonText]) -> None:
    """Insert jobs that differ in their payload, all or none."""
    common = {**shared, "schedule_id": None, "scheduled_for": None}
    jobs = [{**common, "id": job_id, "payload": payload} for job_id, payload in zip(ids, payloads)]
    await enqueue_many(db, jobs)


async def _together(db: Documents, documents: Sequence[Document], now: int) -> None:
    if len(documents) == 1:
        await db.insert(JOBS, documents)
        return
    batch = await _begin(db, now)
    try:
        await _insert(db, [_staged(document, batch) for document in documents])
    except StorageError:
        await _drop(db, batch)
        raise
    await _publish(db, batch, {document["st"] for document in documents})


async def _insert(db: Documents, documents: Sequence[Document]) -> None:
    start = size = 0
    for index, document in enumerate(documents):
        length = len(document["pl"])
        if index > start and (index - start >= _INSERTED_AT_ONCE or size + length > _BYTES_AT_ONCE):
            await db.insert(JOBS, documents[start:index])
            start, size = index, 0
        size += length
    await db.insert(JOBS, documents[start:])


# --- batches --------------------------------------------------------------------------------------------------------


def _staged(document: Document, batch: str) -> Document:
    return {**document, "st": STAGED, "to": document["st"], "b": batch}


async def _begin(db: Documents, now: int) -> str:
    batch = new_id()
    await db.insert(BATCHES, [{"_id": batch, "at": now, "st": "staging"}])
    return batch


async def _publish(db: Documents, batch: str, statuses: AbstractSet[str]) -> None:
    """Publish what was staged, to become `statuses`.

    Raises:
        BusyError: it took so long that somebody took it for dead; nothing was enqueued.
    """
    where = {"_id": batch, "st": "staging"}
    if not await db.update(BATCHES, where, {"$set": {"st": "published"}}):
        raise BusyError("enqueueing the jobs took too long and was undone; try again, with fewer at once")
    await _carry_on(db, batch, [status for status in _BECOME if status in statuses])


async def _carry_on(db: Documents, batch: str, statuses: Sequence[str] = _BECOME) -> None:
    for status in statuses:
        where = {"b": batch, "st": STAGED, "to": status}
        await db.update(JOBS, where, {"$set": {"st": status}, "$unset": {"b": "", "to": ""}}, many=True)
    await db.delete(BATCHES, {"_id": batch})


async def _drop(db: Documents, batch: str) -> None:
    where = {"_id": batch, "st": {"$in": ["staging", "dropped"]}}
    if await db.update(BATCHES, where, {"$set": {"st": "dropped"}}):
        await db.delete(JOBS, {"b": batch, "st": STAGED}, many=True)
        await db.delete(BATCHES, {"_id": batch})


async def complete_batches(db: Documents, now: int) -> None:
    """Publish or remove what dead processes left."""
    where = {"at": {"$lte": now - _OLD_US}}
    for found in await db.find(BATCHES, where, limit=_BATCHES_AT_ONCE):
        if found["st"] == "published":
            await _carry_on(db, found["_id"])
        else:
            await _drop(db, found["_id"])


# --- keys -----------------------------------------------------------------------------------------------------------


@FORMS.form_of(op.enqueue_with_keys)
async def enqueue_with_keys(db: Documents, jobs: Sequence[Prepared]) -> List[Enqueued]:
    """Insert jobs that may have keys and links, all or none; for one whose key is taken, its holder is returned."""
    if len(jobs) == 1:
        return [await enqueue_prepared(db, jobs[0])]
    await note_keys(db, [job.fields for job in jobs])
    now = await db.now()
    batch = await _begin(db, now)
    done: List[Enqueued] = []
    try:
        for n, job in enumerate(jobs):
            document = _staged(_keyed_document(job, now, n - len(jobs) + 1), batch)
            done.append(await _insert_keyed(db, job, document))
    except StorageError:
        await _drop(db, batch)
        raise
    statuses = {job.fields["status"] for job in jobs}
    await _publish(db, batch, statuses | {ALIAS for job in jobs if len(job.keys) == 2})
    return done


async def enqueue_prepared(db: Documents, job: Prepared) -> Enqueued:
    """Insert one job with its keys and links; the job that holds a key, when one does."""
    await note_keys(db, [job.fields])
    return await _insert_keyed(db, job, _keyed_document(job, await db.now(), 0))


def _keyed_document(job: Prepared, now: int, place: int) -> Document:
    document = job_document(job.fields, now, place)
    document["ts"] = sorted(set(job.task_ids))
    for key in job.keys:
        text = key_of(document["t"], key.key)
        if key.kind == "idempotency":
            document.update(ik=text, ud=key.digest)
        else:
            document.update(uk=text, uw=None if key.keep_us is None else now + key.keep_us)
    return document


async def _insert_keyed(db: Documents, job: Prepared, document: Document) -> Enqueued:
    keys = {key.kind: key for key in job.keys}
    async for _ in Tries():
        try:
            await db.insert(JOBS, [document])
            return _done(document, created=True)
        except AlreadyExistsError:
            holder = await _holder(db, document, keys)
        if holder is not None:
            return _done(holder, created=holder["_id"] == document["_id"])
    raise ConcurrencyError("another call is enqueueing a job of the same key; try again")


async def _holder(db: Documents, document: Document, keys: Dict[str, Key]) -> Optional[Document]:
    """Return the job that holds a key of `document`; None: look again.

    Raises:
        IdempotencyConflictError: the holder of the idempotency key has another body.
        AlreadyExistsError: the name is taken.
    """
    if "ik" in document:
        found = await db.find_one(JOBS, {"ik": document["ik"]})
        if found is not None:
            return await _known_by(db, found, document, keys["idempotency"])
    if "uk" in document:
        found = await db.find_one(JOBS, {"uk": document["uk"]})
        if found is not None and _may_be_seen(found, document):
            return await _holder_of_unique(db, found, document)
    if "nk" in document and await db.find_one(JOBS, {"nk": document["nk"]}, fields=("nk",)) is not None:
        raise AlreadyExistsError("a job of this name is not final")
    mine = await db.find_one(JOBS, {"_id": document["_id"]})
    return mine if is_visible(mine) else None


def _may_be_seen(found: Document, document: Document) -> bool:
    """Whether `found` is there for everybody, or goes in together with `document`."""
    return is_visible(found) or (found["st"] == STAGED and found["b"] == document.get("b"))


async def _holder_of_unique(db: Documents, found: Document, document: Document) -> Optional[Document]:
    """Return the job that has the unique key of `document` if it still holds it; else it loses the key, and None."""
    if found["st"] in FINAL_STATUSES and (found["uw"] is None or found["uw"] <= await db.now()):
        where = {"_id": found["_id"], "uk": document["uk"], "v": found["v"]}
        await db.update(JOBS, where, {"$unset": {"uk": ""}})
        return None
    if "ik" in document and not await _add_alias(db, found, document):
        return None
    return found


# --- aliases --------------------------------------------------------------------------------------------------------


async def _known_by(db: Documents, found: Document, document: Document, key: Key) -> Optional[Document]:
    """Return the job behind an idempotency key, which `found` has; None: it is not there yet, or no longer."""
    job: Optional[Document] = found
    if "aj" in found:
        if found["st"] == STAGED and found["b"] != document.get("b"):
            return None
        job = await db.find_one(JOBS, {"_id": found["aj"]})
        if job is None or job["st"] == DELETED:
            await db.delete(JOBS, {"_id": found["_id"]})
            return None
    if job is None or not _may_be_seen(job, document):
        return None
    check_digest(key, found["ud"])
    return job


async def _add_alias(db: Documents, job: Document, document: Document) -> bool:
    """Let the idempotency key of `document` stand for `job`; False: the key is taken, or the job is gone."""
    alias = {"_id": key_of(job["t"], new_id()), "t": job["t"], "st": ALIAS, "aj": job["_id"]}
    alias.update(ik=document["ik"], ud=document["ud"])
    try:
        await db.insert(JOBS, [alias if "b" not in document else _staged(alias, document["b"])])
    except AlreadyExistsError:
        return False
    # whoever removes a job removes its aliases, but may have looked for them before this one was there
    there = await db.find_one(JOBS, {"_id": job["_id"]}, fields=("st",))
    if there is None or there["st"] == DELETED:
        await db.delete(JOBS, {"_id": alias["_id"]})
        return False
    return True

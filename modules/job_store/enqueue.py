"""Enqueueing: a job that was acknowledged is there, inside a unit of work if and only if that commits."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from modules.job_store import enqueue_statements as sql
from modules.job_store.base import JobRoom
from modules.job_store.enqueue_alike import common_fields, enqueue_alike
from modules.job_store.errors import JobNameTakenError
from modules.job_store.limits import MAX_BATCH, check_seconds, digest_of, job_fields
from modules.job_store.records import NewJob, RetryPolicy
from modules.storage.operations import Transaction, write
from modules.store_common.errors import AlreadyExistsError, IdempotencyConflictError, InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "Enqueue",
    "Enqueued",
    "Key",
    "Prepared",
    "check_digest",
    "enqueue_keyed",
    "enqueue_many",
    "enqueue_one",
    "enqueue_with_keys",
    "prepare",
]

_Fields = Dict[str, Any]
_FINAL = ("succeeded", "failed", "cancelled")


class Key(NamedTuple):
    """A key that a new job asks for."""

    kind: str
    key: str
    digest: str
    keep_us: Optional[int]


class Prepared(NamedTuple):
    """A new job, checked and encoded."""

    fields: _Fields
    keys: Tuple[Key, ...]
    task_ids: Tuple[str, ...]


class Enqueued(NamedTuple):
    """What became of a new job: its id and times, or those of the job that had its key."""

    id: str
    run_at: datetime
    created_at: datetime
    created: bool


def prepare(
    tenant_id: str,
    job: NewJob,
    *,
    schedule_id: Optional[str] = None,
    scheduled_for: Optional[datetime] = None,
) -> Prepared:
    """Return `job` as its statements take it, with a new id.

    Raises:
        InvalidValueError: it breaks the contract.
    """
    fields = job_fields(job)
    due = (fields["run_at"], fields["delay_us"])
    fields.update(tenant_id=tenant_id, id=new_id(), schedule_id=schedule_id, scheduled_for=scheduled_for)
    keys: List[Key] = []
    if job.unique_window_s is not None and job.unique_key is None:
        raise InvalidValueError("unique_window_s needs a unique_key")
    if job.idempotency_key is not None:
        check_identifier(job.idempotency_key, "idempotency_key")
        keys.append(Key("idempotency", job.idempotency_key, digest_of(fields, due), None))
    if job.unique_key is not None:
        check_identifier(job.unique_key, "unique_key")
        window = None
        if job.unique_window_s is not None:
            window = round(check_seconds(job.unique_window_s, "unique_window_s") * 1_000_000)
        keys.append(Key("unique", job.unique_key, "", window))
    if not isinstance(job.task_ids, tuple):
        raise InvalidValueError("task_ids must be a tuple of ids")
    for task_id in job.task_ids:
        check_identifier(task_id, "a task id")
    return Prepared(fields, tuple(keys), job.task_ids)


# --- operations ---------------------------------------------------------------------------------------------------


async def _enqueue_batch(
    tx: Transaction, calls: Sequence[Tuple[_Fields]]
) -> Sequence[Union[Enqueued, BaseException]]:
    jobs = [call[0] for call in calls]
    rows = await tx.all(sql.ENQUEUE_BATCH, count=len(jobs), **_columns(jobs))
    times = {job_id: (run_at, created_at) for job_id, run_at, created_at in rows}
    return [Enqueued(job["id"], *times[job["id"]], True) for job in jobs]


def _columns(jobs: Sequence[_Fields]) -> Dict[str, List[Any]]:
    return {name: [job[name] for job in jobs] for name in sql.FIELDS}


def _named(job: _Fields) -> Tuple[str, Optional[str]]:
    return job["tenant_id"], job["name"] or job["id"]


@write(atomic=False, batch=_enqueue_batch, conflict_key=_named)
async def enqueue_one(tx: Transaction, job: _Fields) -> Enqueued:
    """Insert a job without keys."""
    row = await tx.one(sql.ENQUEUE, **job)
    return Enqueued(job["id"], row[0], row[1], True)


@write
async def enqueue_many(tx: Transaction, jobs: Sequence[_Fields]) -> None:
    """Insert jobs without keys, all or none."""
    if tx.dialect == "sqlite":
        await tx.run_many(sql.ENQUEUE_QUIETLY, jobs)
        return
    for start in range(0, len(jobs), MAX_BATCH):
        part = jobs[start : start + MAX_BATCH]
        await tx.all(sql.ENQUEUE_BATCH, count=len(part), **_columns(part))


@write
async def enqueue_with_keys(tx: Transaction, jobs: Sequence[Prepared]) -> List[Enqueued]:
    """Insert jobs that may have keys and links, all or none; for one whose key is taken, its holder is returned."""
    results: Dict[int, Enqueued] = {}
    # in the order of the keys, so that two transactions never wait for each other in a circle
    for n, job in sorted(enumerate(jobs), key=lambda item: [key[:2] for key in item[1].keys]):
        results[n] = await enqueue_keyed(tx, job)
    return [results[n] for n in range(len(jobs))]


async def enqueue_keyed(tx: Transaction, job: Prepared) -> Enqueued:
    """Insert one job with its keys and links, inside another operation; the job that holds a key, when one does."""
    taken: List[Key] = []
    for key in job.keys:
        found = await _take_key(tx, job, key)
        if found is not None:
            for other in taken:
                # a key that was free is now that of the job which is there instead
                await tx.run(sql.MOVE_KEY, **_key(job, other, found.id))
            return found
        taken.append(key)
    done = await enqueue_one(tx, job.fields)
    for task_id in job.task_ids:
        await tx.run(sql.LINK, tenant_id=job.fields["tenant_id"], job_id=done.id, task_id=task_id)
    return done


def _key(job: Prepared, key: Key, job_id: str) -> Dict[str, Any]:
    return {
        "tenant_id": job.fields["tenant_id"],
        "kind": key.kind,
        "key": key.key,
        "job_id": job_id,
        "digest": key.digest,
        "keep_us": key.keep_us,
    }


def check_digest(key: Key, digest: Optional[str]) -> None:
    """Refuse an idempotency key that came with another body.

    Raises:
        IdempotencyConflictError: the job that has the key has another `digest`.
    """
    if digest != key.digest:
        raise IdempotencyConflictError(
            f"the idempotency key {key.key!r} was used for a job with another body; use a new key for a new job"
        )


async def _take_key(tx: Transaction, job: Prepared, key: Key) -> Optional[Enqueued]:
    """Take `key` for `job`; the job that holds it, when it does."""
    mine = _key(job, key, job.fields["id"])
    if await tx.first(sql.ADD_KEY, **mine) is not None:
        return None
    where = {"tenant_id": mine["tenant_id"], "kind": key.kind, "key": key.key}
    holder, digest, in_window, status, run_at, created_at = await tx.one(sql.FIND_KEY, **where)
    if key.kind == "idempotency" and status is not None:
        check_digest(key, digest)
        return Enqueued(holder, run_at, created_at, False)
    if key.kind == "unique" and status is not None and (in_window or status not in _FINAL):
        return Enqueued(holder, run_at, created_at, False)
    await tx.run(sql.MOVE_KEY, **mine)
    return None


# --- the room -----------------------------------------------------------------------------------------------------


class Enqueue(JobRoom):
    """Adds jobs."""

    async def enqueue(
        self,
        handler: str,
        payload: Any = None,
        *,
        name: Optional[str] = None,
        queue: str = "default",
        priority: int = 0,
        run_at: Optional[datetime] = None,
        delay_s: float = 0.0,
        draft: bool = False,
        retry: Optional[RetryPolicy] = None,
        timeout_s: Optional[float] = None,
        idempotency_key: Optional[str] = None,
        unique_key: Optional[str] = None,
        unique_window_s: Optional[float] = None,
        concurrency_key: Optional[str] = None,
        concurrency_limit: int = 1,
        keep_result_s: Optional[float] = None,
        task_ids: Sequence[str] = (),
        tenant_id: Optional[str] = None,
    ) -> str:
        """Enqueue a job and return its id; see `NewJob` for what the arguments mean, their units and limits.

        Returns:
            The id of the new job, or of the one that holds its idempotency or unique key.

        Raises:
            JobNameTakenError: a job of this name is not final yet.
            IdempotencyConflictError: the idempotency key came with another body.
        """
        job = NewJob(
            handler, payload, name, queue, priority, run_at, delay_s, draft, RetryPolicy() if retry is None else retry,
            timeout_s, idempotency_key, unique_key, unique_window_s, concurrency_key, concurrency_limit, keep_result_s,
            tuple(task_ids),
        )  # fmt: skip
        return (await self.enqueue_job(job, tenant_id=tenant_id)).id

    async def enqueue_job(self, job: NewJob, *, tenant_id: Optional[str] = None) -> Enqueued:
        """Enqueue `job`; says also when it is due, and whether it is new or was there (`created`)."""
        prepared = prepare(self._tenant(tenant_id), job)
        try:
            if prepared.keys or prepared.task_ids:
                done = (await self._executor.run(enqueue_with_keys, [prepared]))[0]
            else:
                done = await self._executor.run(enqueue_one, prepared.fields)
        except AlreadyExistsError as exc:
            raise JobNameTakenError(job.name) from exc
        if done.created and not job.draft:
            self._announce((job.queue,))
        return done

    async def enqueue_many(self, jobs: Sequence[NewJob], *, tenant_id: Optional[str] = None) -> List[str]:
        """Enqueue jobs, all or none, and return their ids in order.

        Args:
            jobs: Up to 100,000; those of the same priority and time are claimed in this order.
            tenant_id: Whose jobs.

        Raises:
            JobNameTakenError, IdempotencyConflictError: as `enqueue`; nothing was enqueued.
        """
        tenant_id = self._tenant(tenant_id)
        if isinstance(jobs, (str, bytes)) or not isinstance(jobs, Sequence) or len(jobs) > 100_000:
            raise InvalidValueError("jobs must be a sequence of at most 100,000 NewJob")
        if not jobs:
            return []
        shared = common_fields(tenant_id, jobs)
        if shared is not None:
            ids = [new_id() for _ in jobs]
            payloads = [encode_json(job.payload, "payload") for job in jobs]
            await self._executor.run(enqueue_alike, shared, ids, payloads)
            self._announce((jobs[0].queue,))
            return ids
        prepared = [prepare(tenant_id, job) for job in jobs]
        try:
            if any(job.keys or job.task_ids for job in prepared):
                ids = [done.id for done in await self._executor.run(enqueue_with_keys, prepared)]
            else:
                await self._executor.run(enqueue_many, [job.fields for job in prepared])
                ids = [job.fields["id"] for job in prepared]
        except AlreadyExistsError as exc:
            raise JobNameTakenError() from exc
        self._announce(job.fields["queue"] for job in prepared)
        return ids

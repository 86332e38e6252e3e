"""What workers and schedulers tell and ask besides jobs: a room of `JobQueue`."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from modules.job_store import upkeep_statements as sql
from modules.job_store.base import Wake, announce
from modules.job_store.encoding import decode_schedule
from modules.job_store.enqueue import Prepared, enqueue_keyed, prepare
from modules.job_store.errors import JobLeaseLostError
from modules.job_store.limits import MAX_BATCH, check_count, check_integer, check_names, check_seconds
from modules.job_store.records import ClaimedJob, QueueLimit, Schedule, WorkerInfo
from modules.job_store.schedules import jittered
from modules.job_store.settle_statements import PROGRESS
from modules.storage.operations import Executor, Transaction, read, write
from modules.store_common.clock import require_utc
from modules.store_common.errors import InvalidValueError
from modules.store_common.ids import new_id
from modules.store_common.values import JsonText, check_identifier, check_text, encode_json, encode_text

__all__ = [
    "LOG_LEVELS",
    "DueSchedules",
    "QueueUpkeep",
    "add_logs",
    "due_schedules",
    "fire",
    "forget_worker",
    "limits",
    "next_schedule_in",
    "set_limit",
    "set_progress",
    "worker_seen",
    "workers",
]

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
_WORKER_SEEN_S = 60.0
_MAX_TIMES = 1000


class DueSchedules(NamedTuple):
    """Schedules whose time has come, and the database's time."""

    now: datetime
    schedules: Tuple[Schedule, ...]


# --- operations ---------------------------------------------------------------------------------------------------


@write
async def add_logs(
    tx: Transaction, claim: Tuple[str, str, int], lines: Sequence[Tuple[str, str, str]]
) -> bool:
    """Add log lines (id, level, message) to the run of a claim; False when the claim was lost."""
    tenant_id, job_id, fence = claim
    if await tx.first(sql.CURRENT, tenant_id=tenant_id, id=job_id, fence=fence) is None:
        return False
    if tx.dialect == "postgresql":
        ids, levels, messages = zip(*lines)
        await tx.run(
            sql.ADD_LOGS,
            tenant_id=tenant_id,
            job_id=job_id,
            run=fence,
            ids=ids,
            levels=levels,
            messages=[encode_text(message) for message in messages],
        )
        return True
    where = {"tenant_id": tenant_id, "job_id": job_id, "run": fence}
    await tx.run_many(
        sql.ADD_LOG, [{**where, "id": i, "level": level, "message": m} for i, level, m in lines]
    )
    return True


@write(atomic=False)
async def set_progress(tx: Transaction, claim: Tuple[str, str, int], progress: JsonText) -> bool:
    """Note how far a run is; False when the claim was lost."""
    tenant_id, job_id, fence = claim
    return await tx.run(PROGRESS, tenant_id=tenant_id, id=job_id, fence=fence, progress=progress) == 1


@write(atomic=False)
async def worker_seen(tx: Transaction, worker: str, queues: JsonText, info: JsonText, running: int) -> None:
    """Note that a worker is there."""
    await tx.run(sql.WORKER_SEEN, id=worker, queues=queues, info=info, running=running)


@write(atomic=False)
async def forget_worker(tx: Transaction, worker: str) -> bool:
    """Forget a worker."""
    return await tx.run(sql.FORGET_WORKER, id=worker) == 1


@read
async def workers(tx: Transaction, since_us: int) -> List[WorkerInfo]:
    """Return the workers that told of themselves since `since_us` microseconds ago."""
    return [
        WorkerInfo(worker, tuple(queues), running, info, started_at, seen_at)
        for worker, queues, running, info, started_at, seen_at in await tx.all(sql.WORKERS, lease_us=since_us)
    ]


@write(atomic=False)
async def set_limit(tx: Transaction, limit: QueueLimit) -> None:
    """Limit a queue, or take its limit away."""
    if not limit.paused and limit.rate_per_s is None:
        await tx.run(sql.DROP_LIMIT, name=limit.queue)
        return
    burst = limit.burst if limit.burst is not None else limit.rate_per_s
    await tx.run(
        sql.SET_LIMIT, name=limit.queue, paused=int(limit.paused), rate=limit.rate_per_s,
        burst=None if limit.rate_per_s is None or burst is None else max(1.0, burst),
    )  # fmt: skip


@read
async def limits(tx: Transaction) -> List[QueueLimit]:
    """Return the limits of all queues that have one."""
    return [
        QueueLimit(name, bool(paused), rate, burst) for name, paused, rate, burst in await tx.all(sql.LIMITS)
    ]


@read(snapshot=True)
async def due_schedules(tx: Transaction, limit: int) -> DueSchedules:
    """Return schedules whose time has come."""
    rows = await tx.all(sql.DUE, limit=limit)
    now = rows[0][0] if rows else (await tx.one(sql.NOW_IS))[0]
    return DueSchedules(now, tuple(decode_schedule(row[1:]) for row in rows))


@read(snapshot=True)
async def next_schedule_in(tx: Transaction) -> Optional[float]:
    """Return in how many seconds the next schedule is due, by the database's clock; None: there is none."""
    row = await tx.one(sql.NEXT_SCHEDULE)
    if row[0] is None:
        return None
    now: datetime = (await tx.one(sql.NOW_IS))[0]
    return float((row[0] - now).total_seconds())


@write
async def fire(
    tx: Transaction,
    schedule: Schedule,
    jobs: Sequence[Prepared],
    next_at: Optional[datetime],
    last_at: Optional[datetime],
) -> Optional[List[str]]:
    """Move a schedule on and insert its jobs, if it still is where the caller saw it; None when it is not."""
    moved = await tx.first(
        sql.ADVANCE, tenant_id=schedule.tenant_id, id=schedule.id, until=schedule.next_at, version=schedule.version,
        next_at=next_at, last_at=last_at,
    )  # fmt: skip
    if moved is None:
        return None
    return [(await enqueue_keyed(tx, job)).id for job in jobs]


# --- the room -----------------------------------------------------------------------------------------------------


class QueueUpkeep:
    """Log lines, progress, workers, limits of queues, due schedules."""

    def __init__(
        self, executor: Executor, *, wake: Optional[Wake] = None, tenant_id: Optional[str] = None
    ) -> None:
        self._executor = executor
        self._wake = wake
        self._tenant_id = tenant_id

    async def log(
        self, claim: ClaimedJob, lines: Union[str, Sequence[Tuple[str, str]]], *, level: str = "info"
    ) -> None:
        """Keep log lines of a run.

        Args:
            claim: Whose run.
            lines: One message, or up to 1,000 pairs of level and message.
            level: Of one message: debug, info, warning, error or critical.

        Raises:
            JobLeaseLostError: the claim is not the job's current one; nothing was kept.
        """
        pairs = [(level, lines)] if isinstance(lines, str) else lines
        if not isinstance(pairs, Sequence) or not 1 <= len(pairs) <= MAX_BATCH:
            raise InvalidValueError(f"lines must be a text or 1 to {MAX_BATCH:,} pairs of level and message")
        checked = []
        for kind, message in pairs:
            if kind not in LOG_LEVELS:
                raise InvalidValueError(f"a level is one of {', '.join(LOG_LEVELS)}")
            checked.append((new_id(), kind, check_text(message, "a message")))
        key = self._key(claim)
        if not await self._executor.run(add_logs, key, checked):
            raise JobLeaseLostError(claim.id, claim.fence)

    async def progress(self, claim: ClaimedJob, progress: Any) -> None:
        """Note how far a run is, for people who look: any JSON value, for example 0.5 or a mapping.

        Raises:
            JobLeaseLostError: the claim is not the job's current one.
        """
        encoded = encode_json(progress, "progress", max_bytes=64 * 1024)
        if not await self._executor.run(set_progress, self._key(claim), encoded):
            raise JobLeaseLostError(claim.id, claim.fence)

    async def register_worker(
        self,
        worker: str,
        queues: Sequence[str],
        *,
        running: int = 0,
        info: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """Say that a worker is there; again every now and then. Who is silent for a day is forgotten.

        Args:
            worker: Its name, unique among those that run.
            queues: What it claims from.
            running: Jobs that it is running.
            info: More about it, for people; JSON.
        """
        check_identifier(worker, "worker")
        names = encode_json(list(check_names(queues, "queues")), "queues")
        details = encode_json(dict(info or {}), "info", max_bytes=64 * 1024)
        await self._executor.run(
            worker_seen, worker, names, details, check_integer(running, "running", 0, 1_000_000)
        )

    async def forget_worker(self, worker: str) -> bool:
        """Say that a worker is gone; return whether it was known."""
        return await self._executor.run(forget_worker, check_identifier(worker, "worker"))

    async def list_workers(self, *, seen_within_s: float = _WORKER_SEEN_S) -> List[WorkerInfo]:
        """Return the workers that told of themselves within the last `seen_within_s` seconds, at most 1,000."""
        since = check_seconds(seen_within_s, "seen_within_s")
        return await self._executor.run(workers, round(since * 1e6))

    async def set_queue_limit(
        self,
        queue: str,
        *,
        paused: bool = False,
        rate_per_s: Optional[float] = None,
        burst: Optional[float] = None,
    ) -> None:
        """Limit a queue over all tenants and workers; without arguments the limit is taken away.

        Args:
            queue: Which queue.
            paused: Nothing is claimed from it.
            rate_per_s: Jobs that may start per second on average.
            burst: Jobs that may start at once when fewer were started before; None: those of one second, at least one.
        """
        check_identifier(queue, "queue")
        if not isinstance(paused, bool):
            raise InvalidValueError("paused must be a bool")
        for name, value in (("rate_per_s", rate_per_s), ("burst", burst)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= 1e6):
                raise InvalidValueError(f"{name} must be a number greater than 0, up to 1,000,000")
        if burst is not None and rate_per_s is None:
            raise InvalidValueError("burst needs rate_per_s")
        limit = QueueLimit(
            queue, paused, None if rate_per_s is None else float(rate_per_s), None if burst is None else float(burst)
        )  # fmt: skip
        await self._executor.run(set_limit, limit)
        self._announce((queue,))

    async def list_queue_limits(self) -> List[QueueLimit]:
        """Return the queues that have a limit, by name, at most 1,000."""
        return await self._executor.run(limits)

    async def due_schedules(self, *, limit: int = 100) -> DueSchedules:
        """Return schedules whose time has come, of every tenant, the longest due first, and the database's time."""
        return await self._executor.run(due_schedules, check_count(limit))

    async def next_schedule_in(self) -> Optional[float]:
        """Return in how many seconds the next schedule is due, by the database's clock; None: there is none."""
        return await self._executor.run(next_schedule_in)

    async def fire_schedule(
        self, schedule: Schedule, times: Sequence[datetime], next_at: Optional[datetime]
    ) -> Optional[List[str]]:
        """Make the jobs of a schedule for these nominal times and move it on to `next_at`, in one transaction.

        However many schedulers call this for the same schedule, one of them makes the jobs.

        Args:
            schedule: As `due_schedules` gave it.
            times: Nominal times, up to 1,000; none: it is only moved on.
            next_at: The next nominal time; None: it is over.

        Returns:
            The ids of the jobs (of one that holds the `unique_key`, where there is one); None when another scheduler was
            first, or the schedule was changed meanwhile.
        """
        if not isinstance(schedule, Schedule):
            raise InvalidValueError(f"schedule must be a Schedule, not {type(schedule).__name__}")
        if len(times) > _MAX_TIMES:
            raise InvalidValueError(f"a schedule fires for at most {_MAX_TIMES:,} times at once")
        jobs = [_job_of(schedule, time) for time in times]
        last_at = max(times) if times else None
        ids = await self._executor.run(fire, schedule, jobs, require_utc(next_at, "next_at"), last_at)
        if ids:
            self._announce((schedule.job.queue,))
        return ids

    def _key(self, claim: ClaimedJob) -> Tuple[str, str, int]:
        if not isinstance(claim, ClaimedJob):
            raise InvalidValueError(
                f"a claim is the ClaimedJob that claim() gave, not {type(claim).__name__}"
            )
        if self._tenant_id is not None and claim.tenant_id != self._tenant_id:
            raise JobLeaseLostError(claim.id, claim.fence)
        return claim.tenant_id, claim.id, claim.fence

    def _announce(self, queues: Iterable[str]) -> None:
        announce(self._executor, self._wake, queues)


def _job_of(schedule: Schedule, nominal: datetime) -> Prepared:
    job = replace(schedule.job, run_at=jittered(schedule.recurrence, schedule.id, nominal), delay_s=0.0)
    return prepare(schedule.tenant_id, job, schedule_id=schedule.id, scheduled_for=nominal)

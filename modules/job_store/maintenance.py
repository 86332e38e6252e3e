"""Upkeep of the job store across tenants: rescue, purge, forgotten results, and numbers for health."""

from __future__ import annotations

import time
from datetime import datetime
from typing import NamedTuple, Optional, Tuple

from modules.job_store import reading_statements as reading
from modules.job_store.base import JobRoom, Wake, announce
from modules.job_store.lifecycle import delete_jobs
from modules.job_store.lifecycle_statements import FORGET_RESULTS, NEXT_TENANT, OLD
from modules.job_store.limits import check_count, check_seconds
from modules.job_store.models import FINAL_STATUSES
from modules.job_store.settling import rescue, unpark_waiting
from modules.job_store.upkeep_statements import NOW_IS, SWEEP_WORKERS, WORKERS
from modules.storage.operations import Executor, Transaction, read, write
from modules.store_common.values import check_identifier

__all__ = [
    "COUNTED",
    "MOST_QUEUES",
    "SEEN_US",
    "JobMaintenance",
    "JobNumbers",
    "Purging",
    "forget_results",
    "job_numbers",
    "next_tenant",
    "purge",
    "purge_part",
    "sweep_workers",
]

_BATCH = 500
_DAY_S = 86_400.0
_WORKER_FORGOTTEN_S = 86_400.0
COUNTED = 10_000
_ABOVE_EVERY_PRIORITY = 32_767
# Queues that health looks at, and keys of a round of unparking.
MOST_QUEUES = 100
#: A worker that was seen so many microseconds ago is there.
SEEN_US = 60_000_000
_KEYS_AT_ONCE = 100


class JobNumbers(NamedTuple):
    """How the job store stands, over all tenants.

    Attributes:
        backlog: Claimable jobs, due or not, counted to 10,000.
        running: Jobs under way, counted to 10,000.
        dead: Failed jobs, counted to 10,000.
        oldest_due_at: Since when the job that is due longest waits; None when none is due.
        overdue_s: For how long, in seconds.
        workers: Workers that told of themselves within a minute.
    """

    backlog: int
    running: int
    dead: int
    oldest_due_at: Optional[datetime]
    overdue_s: float
    workers: int


def _id_before(age_s: float) -> str:
    """Return a text that sorts behind the ids of ours that were made `age_s` seconds ago (UUIDv7: they begin with the time).

    The machine that made an id may have had a wrong clock: a day is left for that.
    """
    milliseconds = int((time.time() - age_s + _DAY_S) * 1000)
    digits = f"{max(milliseconds, 0):012x}"
    return f"{digits[:8]}-{digits[8:]}"


@write
async def purge_part(
    tx: Transaction, tenant_id: str, status: str, age_us: int, before: str, limit: int
) -> int:
    """Remove jobs of a status that ended longer ago; return how many."""
    rows = await tx.all(OLD, tenant_id=tenant_id, status=status, delay_us=age_us, before=before, limit=limit)
    return await delete_jobs(tx, tenant_id, [row[0] for row in rows]) if rows else 0


@write(atomic=False)
async def forget_results(tx: Transaction, limit: int) -> int:
    """Forget results whose time is over; return how many."""
    return await tx.run(FORGET_RESULTS, limit=limit)


@write(atomic=False)
async def sweep_workers(tx: Transaction, silent_us: int) -> int:
    """Forget workers that have been silent for so many microseconds."""
    return await tx.run(SWEEP_WORKERS, lease_us=silent_us)


@read
async def next_tenant(tx: Transaction, after: str) -> Optional[str]:
    """Return the tenant with jobs that comes after the one given."""
    tenant: Optional[str] = (await tx.one(NEXT_TENANT, tenant_id=after))[0]
    return tenant


@read(snapshot=True, urgent=True)
async def job_numbers(tx: Transaction) -> JobNumbers:
    """Return how the job store stands, at a cost that does not grow with the number of jobs."""
    backlog = (await tx.one(reading.BACKLOG, limit=COUNTED))[0]
    running = (await tx.one(reading.RUNNING, limit=COUNTED))[0]
    dead = (await tx.one(reading.DEAD, limit=COUNTED))[0]
    first: Optional[datetime] = None
    queue: Optional[str] = ""
    for _ in range(MOST_QUEUES):
        queue = (await tx.one(reading.NEXT_QUEUE, queue=queue))[0]
        if queue is None:
            break
        level: Optional[int] = _ABOVE_EVERY_PRIORITY
        while True:
            level = (await tx.one(reading.TOP_OF_QUEUE, queue=queue, priority=level))[0]
            if level is None:
                break
            run_at = (await tx.one(reading.FIRST_DUE, queue=queue, priority=level))[0]
            first = run_at if first is None else min(first, run_at)
    now: datetime = (await tx.one(NOW_IS))[0]
    seen = len(await tx.all(WORKERS, lease_us=SEEN_US))
    if first is None or first > now:
        return JobNumbers(backlog, running, dead, None, 0.0, seen)
    return JobNumbers(backlog, running, dead, first, (now - first).total_seconds(), seen)


class Purging(JobRoom):
    """Purges one tenant's jobs."""

    async def purge(self, *, older_than_days: float, tenant_id: Optional[str] = None) -> int:
        """Remove jobs that ended more than `older_than_days` ago, with all that is theirs; return how many.

        Works in batches of 500, each a transaction of its own.

        Args:
            older_than_days: 0: all that are final.
            tenant_id: Whose jobs.
        """
        age_s = check_seconds(older_than_days, "older_than_days") * _DAY_S
        return await purge(self._executor, self._tenant(tenant_id), age_s)


async def purge(executor: Executor, tenant_id: str, age_s: float) -> int:
    """Remove a tenant's jobs that ended more than `age_s` seconds ago."""
    total = 0
    before = _id_before(age_s)
    for status in FINAL_STATUSES:
        while True:
            count = await executor.run(purge_part, tenant_id, status, round(age_s * 1e6), before, _BATCH)
            total += count
            if count < _BATCH:
                break
    return total


class JobMaintenance:
    """What the manager does in the background; has no tenant and gives no data.

    Args:
        executor: A pool's.
        wake: Wakes the workers that wait on a channel.
    """

    def __init__(self, executor: Executor, *, wake: Optional[Wake] = None) -> None:
        self._executor = executor
        self._wake = wake

    async def rescue_expired(self, limit: int = 100) -> int:
        """End the runs whose lease ran out, and let jobs in that wait for a key of which none runs; return how many."""
        ended, queues = await self._executor.run(rescue, check_count(limit))
        announce(self._executor, self._wake, queues)
        return len(ended) + await self._unpark()

    async def _unpark(self) -> int:
        position: Optional[Tuple[str, str]] = ("", "")
        count = 0
        while position is not None:
            position, freed = await self._executor.run(unpark_waiting, position, _KEYS_AT_ONCE)
            announce(self._executor, self._wake, freed)
            count += len(freed)
        return count

    async def sweep(self) -> int:
        """Forget results whose time is over, and workers that are silent for a day; return how many results."""
        total = 0
        while True:
            count = await self._executor.run(forget_results, _BATCH)
            total += count
            if count < _BATCH:
                break
        await self._executor.run(sweep_workers, round(_WORKER_FORGOTTEN_S * 1e6))
        return total

    async def purge(self, days: float, tenant_id: Optional[str] = None) -> int:
        """Remove jobs that ended more than `days` ago, of every tenant or one; return how many."""
        age_s = check_seconds(days, "days") * _DAY_S
        if tenant_id is not None:
            return await purge(self._executor, check_identifier(tenant_id, "tenant_id"), age_s)
        total = 0
        tenant: Optional[str] = await self._executor.run(next_tenant, "")
        while tenant is not None:
            total += await purge(self._executor, tenant, age_s)
            tenant = await self._executor.run(next_tenant, tenant)
        return total

    async def numbers(self) -> JobNumbers:
        """Return how the job store stands."""
        return await self._executor.run(job_numbers)

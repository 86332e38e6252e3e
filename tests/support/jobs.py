"""What the suites of the job store share: the store from one fixture, and ways to make leases end without waiting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from sqlalchemy import text

from modules.job_store.mongo_documents import JOBS
from modules.job_store.queue import JobQueue
from modules.job_store.repository import JobStore
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement

__all__ = ["Jobs", "executor_of_jobs", "jobs_of", "let_leases_expire"]

_EXPIRE = Statement(text("UPDATE atlas_jobs SET lease_until = started_at WHERE status = 'running'"))
_DUE = Statement(text("UPDATE atlas_jobs SET run_at = created_at WHERE status = 'scheduled'"))


@write
async def expire_leases(tx: Transaction) -> int:
    """Let every lease have run out."""
    return await tx.run(_EXPIRE)


@write
async def make_all_due(tx: Transaction) -> int:
    """Let every scheduled job be due."""
    return await tx.run(_DUE)


def executor_of_jobs(storage: Any) -> Any:
    """Return what runs the operations of a manager's job store."""
    return storage.jobs._executor


async def let_leases_expire(storage: Any) -> None:
    """Let every lease have run out, whatever it was."""
    executor = executor_of_jobs(storage)
    if executor.dialect == "mongodb":
        await executor.documents.update(JOBS, {"st": "running"}, {"$set": {"lu": 1}}, many=True)
        return
    await executor.run(expire_leases)


@dataclass
class Jobs:
    """A job store under test.

    Attributes:
        store: Of one tenant at a time.
        queue: Of all tenants.
        storage: What it belongs to.
    """

    store: JobStore
    queue: JobQueue
    storage: Any

    @property
    def executor(self) -> Any:
        """What runs the store's operations."""
        return executor_of_jobs(self.storage)

    async def expire_leases(self) -> None:
        """Let every lease have run out, whatever it was."""
        await let_leases_expire(self.storage)

    async def make_all_due(self) -> None:
        """Let every scheduled job be due, whatever its time was."""
        executor = self.executor
        if executor.dialect == "mongodb":
            await executor.documents.update(JOBS, {"st": "scheduled"}, {"$set": {"ra": 1}}, many=True)
            return
        await executor.run(make_all_due)

    async def status(self, job_id: str, tenant_id: Optional[str] = None) -> str:
        """Return the status of a job."""
        return (await self.store.require(job_id, tenant_id=tenant_id)).status


def jobs_of(storage: Any) -> Jobs:
    """Return the job store of a manager; its queue never rescues by itself, so that tests say when."""
    queue = storage.job_queue
    queue._rescued_at = float("inf")
    return Jobs(storage.jobs, queue, storage)

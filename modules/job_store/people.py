"""Who answers for a job (assignments), and which tasks it serves (links)."""

from __future__ import annotations

from typing import List, Optional

from sqlalchemy import String, bindparam, text

from modules.job_store.base import JobRoom
from modules.job_store.enqueue_statements import LINK
from modules.job_store.lifecycle import add_event, locked_job
from modules.job_store.records import Assignment, Page, page_of
from modules.job_store.sql import NOW, binds, columns
from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.arguments import check_limit
from modules.store_common.cursors import decode_cursor, encode_cursor
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier

__all__ = [
    "ASSIGN",
    "ASSIGNMENTS",
    "ASSIGNMENT_STATUSES",
    "JOBS_OF_TASK",
    "MOST_OF_A_JOB",
    "TASKS",
    "UNASSIGN",
    "UNLINK",
    "People",
    "assign",
    "link_task",
    "list_assignments",
    "list_jobs_of_task",
    "list_tasks",
    "unassign",
    "unlink_task",
]  # fmt: skip

ASSIGNMENT_STATUSES = ("pending", "accepted", "declined", "completed")
MOST_OF_A_JOB = 1000

_ASSIGN = (
    "INSERT INTO atlas_job_assignments (tenant_id, job_id, assignee, status, created_at, updated_at)"
    " VALUES (:tenant_id, :job_id, :assignee, :status, {now}, {now})"
    " ON CONFLICT (tenant_id, job_id, assignee) DO UPDATE SET status = excluded.status, updated_at = excluded.updated_at"
    " RETURNING job_id, assignee, status, created_at, updated_at"
)
_ASSIGN_BINDS = binds("tenant_id", "job_id", "assignee", "status")
_ASSIGNMENT = columns("job_id", "assignee", "status", "created_at", "updated_at")
ASSIGN = Statement(
    sqlite=text(_ASSIGN.format(now=NOW["sqlite"])).bindparams(*_ASSIGN_BINDS).columns(**_ASSIGNMENT),
    postgresql=text(_ASSIGN.format(now=NOW["postgresql"])).bindparams(*_ASSIGN_BINDS).columns(**_ASSIGNMENT),
)
UNASSIGN = Statement(
    text(
        "DELETE FROM atlas_job_assignments WHERE tenant_id = :tenant_id AND job_id = :job_id AND assignee = :assignee"
    ).bindparams(*binds("tenant_id", "job_id", "assignee"))
)
ASSIGNMENTS = Statement(
    text(
        "SELECT job_id, assignee, status, created_at, updated_at FROM atlas_job_assignments"
        " WHERE tenant_id = :tenant_id AND job_id = :job_id ORDER BY assignee LIMIT :limit"
    )
    .bindparams(*binds("tenant_id", "job_id", "limit"))
    .columns(**_ASSIGNMENT)
)
UNLINK = Statement(
    text(
        "DELETE FROM atlas_job_tasks WHERE tenant_id = :tenant_id AND job_id = :job_id AND task_id = :task_id"
    ).bindparams(*binds("tenant_id", "job_id", "task_id"))
)
TASKS = Statement(
    text(
        "SELECT task_id FROM atlas_job_tasks WHERE tenant_id = :tenant_id AND job_id = :job_id ORDER BY task_id LIMIT :limit"
    )
    .bindparams(*binds("tenant_id", "job_id", "limit"))
    .columns(**columns("task_id"))
)
JOBS_OF_TASK = Statement(
    text(
        "SELECT job_id FROM atlas_job_tasks WHERE tenant_id = :tenant_id AND task_id = :task_id AND job_id > :after"
        " ORDER BY job_id LIMIT :limit"
    )
    .bindparams(*binds("tenant_id", "task_id", "limit"), bindparam("after", type_=String()))
    .columns(**columns("job_id"))
)


@write
async def assign(tx: Transaction, tenant_id: str, job_id: str, assignee: str, status: str) -> Assignment:
    """Set who answers for a job, and how that stands."""
    await locked_job(tx, tenant_id, job_id)
    row = await tx.one(ASSIGN, tenant_id=tenant_id, job_id=job_id, assignee=assignee, status=status)
    await add_event(tx, tenant_id, job_id, "assignment", {"assignee": assignee, "status": status})
    return Assignment(*row)


@write
async def unassign(tx: Transaction, tenant_id: str, job_id: str, assignee: str) -> bool:
    """Take an assignment away."""
    await locked_job(tx, tenant_id, job_id)
    if await tx.run(UNASSIGN, tenant_id=tenant_id, job_id=job_id, assignee=assignee) == 0:
        return False
    await add_event(tx, tenant_id, job_id, "assignment", {"assignee": assignee, "status": None})
    return True


@read
async def list_assignments(tx: Transaction, tenant_id: str, job_id: str) -> List[Assignment]:
    """Return who answers for a job."""
    rows = await tx.all(ASSIGNMENTS, tenant_id=tenant_id, job_id=job_id, limit=MOST_OF_A_JOB)
    return [Assignment(*row) for row in rows]


@write
async def link_task(tx: Transaction, tenant_id: str, job_id: str, task_id: str) -> None:
    """Link a job to a task."""
    await locked_job(tx, tenant_id, job_id)
    await tx.run(LINK, tenant_id=tenant_id, job_id=job_id, task_id=task_id)


@write(atomic=False)
async def unlink_task(tx: Transaction, tenant_id: str, job_id: str, task_id: str) -> bool:
    """Take a link away."""
    return await tx.run(UNLINK, tenant_id=tenant_id, job_id=job_id, task_id=task_id) == 1


@read
async def list_tasks(tx: Transaction, tenant_id: str, job_id: str) -> List[str]:
    """Return the tasks of a job."""
    rows = await tx.all(TASKS, tenant_id=tenant_id, job_id=job_id, limit=MOST_OF_A_JOB)
    return [row[0] for row in rows]


@read
async def list_jobs_of_task(
    tx: Transaction, tenant_id: str, task_id: str, after: str, limit: int
) -> List[str]:
    """Return the ids of the jobs of a task."""
    rows = await tx.all(JOBS_OF_TASK, tenant_id=tenant_id, task_id=task_id, after=after, limit=limit)
    return [row[0] for row in rows]


class People(JobRoom):
    """Keeps assignments and links."""

    async def assign(
        self, job_id: str, assignee: str, *, status: str = "pending", tenant_id: Optional[str] = None
    ) -> Assignment:
        """Have `assignee` answer for a job, or change how that stands.

        Args:
            job_id: Which job, of any status.
            assignee: A person or agent; a label, checked against nothing.
            status: pending, accepted, declined or completed.
            tenant_id: Whose job.

        Raises:
            JobNotFoundError: there is no such job.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        check_identifier(assignee, "assignee")
        if status not in ASSIGNMENT_STATUSES:
            raise InvalidValueError(f"the status of an assignment is one of {', '.join(ASSIGNMENT_STATUSES)}")
        return await self._executor.run(assign, tenant_id, job_id, assignee, status)

    async def unassign(self, job_id: str, assignee: str, *, tenant_id: Optional[str] = None) -> bool:
        """Take an assignment away and return whether it was there."""
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        return await self._executor.run(unassign, tenant_id, job_id, check_identifier(assignee, "assignee"))

    async def list_assignments(self, job_id: str, *, tenant_id: Optional[str] = None) -> List[Assignment]:
        """Return who answers for a job, by name, at most 1,000; none for a job that does not exist."""
        tenant_id = self._tenant(tenant_id)
        return await self._executor.run(list_assignments, tenant_id, check_identifier(job_id, "job_id"))

    async def link_task(self, job_id: str, task_id: str, *, tenant_id: Optional[str] = None) -> None:
        """Link a job to a task; harmless when it is linked. The task is a label here and need not exist.

        Raises:
            JobNotFoundError: there is no such job.
        """
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        await self._executor.run(link_task, tenant_id, job_id, check_identifier(task_id, "task_id"))

    async def unlink_task(self, job_id: str, task_id: str, *, tenant_id: Optional[str] = None) -> bool:
        """Take a link away and return whether it was there."""
        tenant_id = self._tenant(tenant_id)
        check_identifier(job_id, "job_id")
        return await self._executor.run(unlink_task, tenant_id, job_id, check_identifier(task_id, "task_id"))

    async def list_tasks(self, job_id: str, *, tenant_id: Optional[str] = None) -> List[str]:
        """Return the ids of the tasks of a job, at most 1,000."""
        tenant_id = self._tenant(tenant_id)
        return await self._executor.run(list_tasks, tenant_id, check_identifier(job_id, "job_id"))

    async def list_jobs_of_task(
        self, task_id: str, *, limit: int = 100, cursor: Optional[str] = None, tenant_id: Optional[str] = None
    ) -> Page[str]:
        """Return a page of the ids of the jobs that serve a task, the oldest first."""
        tenant_id = self._tenant(tenant_id)
        check_identifier(task_id, "task_id")
        check_limit(limit)
        position = decode_cursor(cursor, tenant_id, "jobs of task", 1, filters=task_id)
        after = "" if position is None else check_identifier(position[0], "the cursor")
        found = await self._executor.run(list_jobs_of_task, tenant_id, task_id, after, limit + 1)
        more = len(found) > limit
        found = found[:limit]
        return page_of(
            found, encode_cursor(tenant_id, "jobs of task", [found[-1]], filters=task_id) if more else None
        )

"""`JobStore`: the public face of the job store, put together from its rooms."""

from __future__ import annotations

from typing import Optional

from modules.job_store.enqueue import Enqueue
from modules.job_store.lifecycle import Lifecycle
from modules.job_store.maintenance import Purging
from modules.job_store.people import People
from modules.job_store.queue import JobQueue
from modules.job_store.reading import Reading
from modules.job_store.timetable import Schedules

__all__ = ["JobStore"]


class JobStore(Enqueue, Reading, Lifecycle, Schedules, People, Purging):
    """Jobs of one tenant at a time: enqueue, read, change, schedule.

    Args:
        executor: A pool's executor, or that of a unit of work.
        tenancy: How the tenant of a call is found.
        wake: Wakes the workers that wait on a channel; None: they find out by looking.
    """

    def queue(self, *, tenant_id: Optional[str] = None) -> JobQueue:
        """Return what a worker of one tenant calls: claim, heartbeat, settle; `storage.job_queue` serves all tenants.

        Args:
            tenant_id: Whose jobs.
        """
        return JobQueue(self._executor, wake=self._wake, tenant_id=self._tenant(tenant_id))

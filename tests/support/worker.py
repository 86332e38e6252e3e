"""What the tests of workers share: a registry, a worker with short times, and ways to wait for what it does."""

from __future__ import annotations

import asyncio
from typing import Any, Callable, Dict, List, Optional

from modules.job_store.records import Job, JobRun
from modules.orchestration import HandlerRegistry, Worker
from tests.support.leaks import wait_until

__all__ = ["PATIENT_S", "Bench"]

#: For conditions on a loaded machine; passed only when something is wrong.
PATIENT_S = 60.0


class Bench:
    """A storage with handlers.

    Attributes:
        handlers: Register the test's own here.
        seen: What the handlers have noted with `note`.
    """

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.jobs = storage.jobs
        self.handlers = HandlerRegistry()
        self.seen: List[Any] = []

    def handler(self, name: str) -> Callable[[Any], Any]:
        return self.handlers.handler(name)

    def worker(self, **options: Any) -> Worker:
        return Worker(
            self.storage, self.handlers, **{"poll_s": 0.2, "lease_s": 60.0, "grace_s": 30.0, **options}
        )

    async def work_off(self, **options: Any) -> Worker:
        """Run a worker until nothing is due."""
        made = self.worker(**options)
        await asyncio.wait_for(made.run_until_idle(), PATIENT_S)
        return made

    def note(self, what: Any) -> None:
        self.seen.append(what)

    async def until_seen(self, what: Any) -> None:
        await wait_until(lambda: what in self.seen, PATIENT_S, f"{what!r} in {self.seen!r}")

    async def until_true(self, look: Callable[[], Any], expected: Any) -> None:
        """Look again and again until it gives `expected`."""
        end = asyncio.get_running_loop().time() + PATIENT_S
        found = await look()
        while found != expected:
            assert asyncio.get_running_loop().time() < end, f"{found!r} and not {expected!r}"
            await asyncio.sleep(0.01)
            found = await look()

    async def until(self, job_id: str, *statuses: str, tenant_id: Optional[str] = None) -> Job:
        """Wait for the job to become one of these."""
        end = asyncio.get_running_loop().time() + PATIENT_S
        while True:
            job: Job = await self.jobs.require(job_id, tenant_id=tenant_id)
            if job.status in statuses:
                return job
            assert asyncio.get_running_loop().time() < end, f"{job.status} and not {statuses}: {job}"
            await asyncio.sleep(0.01)

    async def runs(self, job_id: str, tenant_id: Optional[str] = None) -> List[JobRun]:
        """Return the runs, oldest first."""
        page = await self.jobs.list_runs(job_id, tenant_id=tenant_id)
        return list(reversed(list(page)))

    async def error(self, job_id: str) -> Dict[str, Any]:
        """Return the error of the last run."""
        found = (await self.runs(job_id))[-1].error
        assert found is not None
        return found

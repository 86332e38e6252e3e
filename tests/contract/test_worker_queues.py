"""How many queues a worker may have, and when it has worked them off."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from modules.job_store.records import ClaimedJob, RetryPolicy
from modules.orchestration import JobContext
from modules.store_common.errors import InvalidValueError
from tests.support.worker import PATIENT_S, Bench

_MOST = [f"q{number}" for number in range(1000)]


async def test_a_worker_serves_a_thousand_queues(storage: Any) -> None:
    bench = Bench(storage)

    @bench.handler("h")
    async def h(job: JobContext) -> Any:
        return job.queue

    job = await bench.jobs.enqueue("h", queue=_MOST[-1])
    await bench.work_off(queues=_MOST)
    assert (await bench.runs(job))[0].result == "q999"


async def test_more_are_refused(storage: Any) -> None:
    with pytest.raises(InvalidValueError, match="queues"):
        Bench(storage).worker(queues=[*_MOST, "one more"])


async def test_a_job_that_comes_back_while_a_claim_is_under_way_is_worked_off(
    storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim looked before the job was due again, and answers after its run was settled: that is not idle."""
    bench = Bench(storage)
    worker = bench.worker()
    looked = asyncio.Event()
    queue = storage.job_queue
    given = queue.claim

    async def claim(*args: Any, **options: Any) -> List[ClaimedJob]:
        found: List[ClaimedJob] = await given(*args, **options)
        if not found and not looked.is_set():
            looked.set()
            await bench.until_true(_retried, 1)
        return found

    async def _retried() -> int:
        return worker.statistics.retried

    @bench.handler("h")
    async def h(job: JobContext) -> None:
        if job.attempt == 1:
            # has the worker look
            await bench.jobs.enqueue("h", delay_s=3600)
        await asyncio.wait_for(looked.wait(), PATIENT_S)
        raise ConnectionError

    monkeypatch.setattr(queue, "claim", claim)
    job_id = await bench.jobs.enqueue("h", retry=RetryPolicy(max_attempts=2, base_s=0.0))
    await asyncio.wait_for(worker.run_until_idle(), PATIENT_S)
    assert (await bench.jobs.require(job_id)).status == "failed"

"""Which job a claim takes while keys and limits come and go; on every backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import pytest

from modules.job_store.records import ClaimedJob, NewJob
from tests.support import backends as support
from tests.support.jobs import Jobs, jobs_of

backend = support.backend


@pytest.fixture
def jobs(storage: Any) -> Jobs:
    return jobs_of(storage)


async def _one(jobs: Jobs, queue: str) -> ClaimedJob:
    (claim,) = await jobs.queue.claim("w", [queue])
    return claim


async def _next(jobs: Jobs, *queues: str) -> Optional[str]:
    claims = await jobs.queue.claim("w", queues or ("default",))
    return claims[0].name if claims else None


async def test_a_claim_takes_the_best_job_whatever_came_since_the_last_one(jobs: Jobs) -> None:
    for n in range(4):
        await jobs.store.enqueue("h", name=f"plain{n}")
    assert [await _next(jobs), await _next(jobs)] == ["plain0", "plain1"]
    for n in range(2):
        await jobs.store.enqueue("h", name=f"key{n}", priority=5, concurrency_key="k")
    assert await _next(jobs) == "key0"
    assert await _next(jobs) == "plain2", "the key is full"
    await jobs.queue.set_queue_limit("default", paused=True)
    assert await _next(jobs) is None
    await jobs.queue.set_queue_limit("default")
    await jobs.store.enqueue("h", name="best", priority=9)
    assert [await _next(jobs), await _next(jobs), await _next(jobs)] == ["best", "plain3", None]


async def test_however_a_job_with_a_key_goes_in_it_is_the_best(jobs: Jobs) -> None:
    best = NewJob("h", "best", priority=5, concurrency_key="k", concurrency_limit=9)
    ways = {
        "alone": [best],
        "alike": [best, replace(best, payload=2)],
        "unlike": [best, replace(best, handler="other", priority=-1)],
        "unique": [replace(best, unique_key="u")],
        "some with keys": [best, NewJob("h", idempotency_key="i")],
    }
    for queue, batch in ways.items():
        await jobs.store.enqueue_many([NewJob("h", n, queue=queue) for n in range(3)])
        found = [await _one(jobs, queue), await _one(jobs, queue)]
        await jobs.store.enqueue_many([replace(job, queue=queue) for job in batch])
        found.append(await _one(jobs, queue))
        assert [claim.payload for claim in found] == [0, 1, "best"], queue


async def test_a_job_with_a_key_that_moves_to_another_queue_is_the_best_there(jobs: Jobs) -> None:
    for n in range(3):
        await jobs.store.enqueue("h", name=f"plain{n}", queue="b")
    job_id = await jobs.store.enqueue("h", name="keyed", queue="a", priority=5, concurrency_key="k")
    assert [await _next(jobs, "b"), await _next(jobs, "b")] == ["plain0", "plain1"]
    await jobs.store.update(job_id, queue="b")
    assert [await _next(jobs, "b"), await _next(jobs, "b"), await _next(jobs, "b")] == [
        "keyed",
        "plain2",
        None,
    ]

"""Idempotency keys of calls that another's job answers, because it holds the unique key they came with; on every backend."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Awaitable, Callable, List

import pytest

from modules.job_store.records import NewJob
from modules.store_common.errors import ConcurrencyError, IdempotencyConflictError
from tests.support import backends as support
from tests.support.jobs import Jobs, jobs_of

backend = support.backend


@pytest.fixture
def jobs(storage: Any) -> Jobs:
    return jobs_of(storage)


@pytest.mark.parametrize("holder_ends", [False, True])
async def test_calls_at_once_agree_on_the_job_of_a_key(jobs: Jobs, backend: str, holder_ends: bool) -> None:
    """P6: some calls come with a unique key that a job holds, some without it: one effect and the same answer."""
    chance = random.Random(11)
    for number in range(support.sized(backend, 20, 6)):
        unique, key = f"u{number}", f"k{number}"
        holder = await jobs.store.enqueue("h", "holder", unique_key=unique)
        before = sum((await jobs.store.counts()).values())
        both = NewJob("h", number, idempotency_key=key, unique_key=unique)
        bare = NewJob("h", number, idempotency_key=key)
        calls: List[Callable[[], Awaitable[Any]]] = [
            lambda job=job, many=many: _enqueue(jobs, job, many)  # type: ignore[misc]
            for job in (both, bare)
            for many in (False, False, False, True)
        ]
        if holder_ends:
            calls.append(lambda job_id=holder: jobs.store.cancel(job_id))  # type: ignore[misc]
        chance.shuffle(calls)
        answers = {found for found in await asyncio.gather(*[call() for call in calls]) if type(found) is str}

        assert len(answers) == 1, "one key, two jobs"
        answer = answers.pop()
        assert {await jobs.store.enqueue_job(job) for job in (both, bare)} == {
            (
                answer,
                (await jobs.store.require(answer)).run_at,
                (await jobs.store.require(answer)).created_at,
                False,
            )
        }
        company = 2  # of the batches
        assert sum((await jobs.store.counts()).values()) == before + company + (answer != holder)


async def _enqueue(jobs: Jobs, job: NewJob, many: bool) -> str:
    while True:
        try:
            if many:
                return (await jobs.store.enqueue_many([job, NewJob("h", "company")]))[0]
            return (await jobs.store.enqueue_job(job)).id
        except ConcurrencyError:
            # on a busy machine another call's batch may take longer than this one waits for it
            continue


async def test_a_key_that_came_to_stand_for_a_job_is_no_job(jobs: Jobs) -> None:
    held = await jobs.store.enqueue("h", "held", name="n", unique_key="u")
    for key in ("i", "j"):
        assert await jobs.store.enqueue("h", "mine", unique_key="u", idempotency_key=key) == held
    many = [NewJob("h", n, unique_key="v", idempotency_key=f"v{n}") for n in range(3)]
    first, *others = await jobs.store.enqueue_many(many)
    assert others == [first, first], "its own call's job holds the unique key"

    assert [job.id for job in await jobs.store.list_jobs()] == [first, held]
    assert (await jobs.store.counts())["scheduled"] == sum((await jobs.store.counts()).values()) == 2
    assert [found.scheduled for found in await jobs.store.queue_statistics()] == [2]
    assert [due.job_id for due in await jobs.store.next_due()] == [held, first]
    assert {claim.id for claim in await jobs.queue.claim("w", limit=9)} == {held, first}
    with pytest.raises(IdempotencyConflictError):
        await jobs.store.enqueue("h", "other", idempotency_key="i")
    with pytest.raises(IdempotencyConflictError):
        await jobs.store.enqueue("h", 7, idempotency_key="v1")
    assert await jobs.store.enqueue("h", "mine", idempotency_key="i") == held
    assert await jobs.store.enqueue("h", 2, idempotency_key="v2") == first
    assert await jobs.store.enqueue("h", "mine", idempotency_key="i", tenant_id="other") != held


@pytest.mark.parametrize("way", ["delete", "purge"])
async def test_a_key_goes_with_the_job_that_it_came_to_stand_for(jobs: Jobs, way: str) -> None:
    held = await jobs.store.enqueue("h", "held", unique_key="u")
    for key in ("i", "j"):
        await jobs.store.enqueue("h", "mine", unique_key="u", idempotency_key=key)
    await jobs.store.cancel(held)
    assert await jobs.store.enqueue("h", "mine", idempotency_key="i") == held, "final ones too"
    assert await jobs.store.enqueue("h", "mine", idempotency_key="i", unique_key="u") == held
    if way == "delete":
        assert await jobs.store.delete(held)
    else:
        assert await jobs.store.purge(older_than_days=0) == 1
    new = await jobs.store.enqueue_job(NewJob("h", "another body", idempotency_key="i"))
    assert new.created
    assert await jobs.store.enqueue("h", "another body", idempotency_key="i") == new.id
    if jobs.executor.dialect == "mongodb":
        documents: Any = jobs.executor.documents
        assert await documents.count("atlas_jobs", {}) == 1, "nothing of the old one is left"

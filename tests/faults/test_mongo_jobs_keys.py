"""Keys of jobs in MongoDB: other calls, and deaths, between the steps of a call that another's job answers."""

from __future__ import annotations

from typing import Any, AsyncIterator

import pytest

from modules.job_store.mongo_documents import ALIAS, BATCHES, JOBS, STAGED
from modules.job_store.records import NewJob
from modules.storage.documents import key_of
from modules.storage.manager import StorageManager
from tests.support.jobs import Jobs, jobs_of

pytestmark = [pytest.mark.mongodb, pytest.mark.usefixtures("mongodb")]
LONG_AGO_US = 3_600_000_000


@pytest.fixture
async def jobs(mongo_settings: Any, leaks: Any) -> AsyncIterator[Jobs]:
    async with StorageManager(mongo_settings, background=False) as made:
        yield jobs_of(made)


def _db(jobs: Jobs) -> Any:
    return jobs.executor.documents


@pytest.mark.parametrize("many", [False, True])
async def test_who_looks_for_the_unique_key_may_be_overtaken(jobs: Jobs, many: bool) -> None:
    """Another call takes the idempotency key while this one finds the job that holds its unique key: they agree."""
    held = await jobs.store.enqueue("h", unique_key="u")
    db = _db(jobs)
    given = db.find_one
    theirs = []

    async def overtaken(collection: str, where: Any, **more: Any) -> Any:
        if "uk" in where and not theirs:
            theirs.append(await jobs.store.enqueue("h", "mine", idempotency_key="i"))
        return await given(collection, where, **more)

    db.find_one = overtaken
    job = NewJob("h", "mine", idempotency_key="i", unique_key="u")
    mine = (await jobs.store.enqueue_many([job, NewJob("h")] if many else [job]))[0]
    assert [mine] == theirs
    assert mine != held
    assert (await jobs.store.counts())["scheduled"] == (3 if many else 2)


async def test_the_holder_is_removed_before_the_key_stands_for_it(jobs: Jobs) -> None:
    held = await jobs.store.enqueue("h", unique_key="u")
    db = _db(jobs)
    given = db.insert

    async def late(collection: str, documents: Any) -> None:
        if documents[0]["st"] == ALIAS and await jobs.store.get(held) is not None:
            assert await jobs.store.delete(held)
        await given(collection, documents)

    db.insert = late
    made = await jobs.store.enqueue_job(NewJob("h", idempotency_key="i", unique_key="u"))
    assert made.created
    assert await jobs.store.get(held) is None
    assert [(job["id"], job["ik"]) for job in await db.find(JOBS, {})] == [(made.id, key_of("default", "i"))]


async def test_a_key_of_a_job_that_is_gone_is_free(jobs: Jobs) -> None:
    """The caller died when its key stood for a job that had just been removed."""
    db = _db(jobs)
    gone = {"_id": key_of("default", "a"), "t": "default", "st": ALIAS, "aj": key_of("default", "gone")}
    await db.insert(JOBS, [{**gone, "ik": key_of("default", "i"), "ud": "another body"}])
    made = await jobs.store.enqueue_job(NewJob("h", idempotency_key="i"))
    assert made.created
    assert await db.count(JOBS, {}) == 1


@pytest.mark.parametrize("state", ["staging", "published"])
async def test_a_key_of_a_batch_that_died_goes_with_it(jobs: Jobs, state: str) -> None:
    db = _db(jobs)
    held = await jobs.store.enqueue("h", unique_key="u")
    both = NewJob("h", "mine", idempotency_key="i", unique_key="u")
    assert await jobs.store.enqueue_many([both, NewJob("h", "company")]) == [
        held,
        *await _company(jobs, held),
    ]
    change = {"st": STAGED, "to": "scheduled", "b": "dead"}
    assert await db.update(JOBS, {"st": "scheduled", "uk": None}, {"$set": change})
    assert await db.update(JOBS, {"st": ALIAS}, {"$set": {**change, "to": ALIAS}})
    await db.insert(BATCHES, [{"_id": "dead", "at": await db.now() - LONG_AGO_US, "st": state}])

    await jobs.queue.rescue_expired()
    assert await db.count(BATCHES, {}) == 0
    bare = await jobs.store.enqueue_job(NewJob("h", "mine", idempotency_key="i"))
    if state == "published":
        assert (bare.id, bare.created) == (held, False)
    else:
        assert bare.created
    assert (await jobs.store.counts())["scheduled"] == 2
    assert await db.count(JOBS, {"st": STAGED}) == 0


async def _company(jobs: Jobs, held: str) -> Any:
    return [job.id for job in await jobs.store.list_jobs() if job.id != held]

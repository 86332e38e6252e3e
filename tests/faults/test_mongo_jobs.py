"""Jobs in MongoDB: what a process leaves that dies between two steps is completed by the next, and counts once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, AsyncIterator, Dict, List

import pytest

from modules.job_store.maintenance import JobMaintenance
from modules.job_store.mongo_documents import BATCHES, JOBS, QUEUES, RUNS, SCHEDULES, SLOTS, STAGED
from modules.job_store.records import ClaimedJob, NewJob, RetryPolicy
from modules.job_store.schedules import Recurrence
from modules.storage.documents import key_of
from modules.storage.manager import StorageManager
from modules.store_common.errors import ConcurrencyError
from tests.support.crew import CrewOfProcesses
from tests.support.jobs import Jobs, executor_of_jobs, jobs_of
from tests.support.leaks import wait_until

pytestmark = [pytest.mark.mongodb, pytest.mark.usefixtures("mongodb")]
FULL = os.environ.get("ATLAS_TEST_FULL") == "1"
COUNT, KILLS = (240, 20) if FULL else (16, 1)
LONG_AGO_US = 3_600_000_000
PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
async def jobs(mongo_settings: Any, leaks: Any) -> AsyncIterator[Jobs]:
    async with StorageManager(mongo_settings, background=False) as made:
        yield jobs_of(made)


def _db(jobs: Jobs) -> Any:
    return executor_of_jobs(jobs.storage).documents


async def _one(jobs: Jobs) -> ClaimedJob:
    (claim,) = await jobs.queue.claim("w", limit=5)
    return claim


async def _stage(jobs: Jobs, state: str) -> List[str]:
    """Put jobs back into the state in which their batch is `state`."""
    ids = await jobs.store.enqueue_many([NewJob("h", n, name=f"n{n}") for n in range(3)])
    change = {"$set": {"st": STAGED, "to": "scheduled", "b": "dead"}}
    await _db(jobs).update(JOBS, {"st": "scheduled"}, change, many=True)
    old = await _db(jobs).now() - LONG_AGO_US
    await _db(jobs).insert(BATCHES, [{"_id": "dead", "at": old, "st": state}])
    return ids


async def test_a_batch_that_was_not_published_is_as_if_it_never_was(jobs: Jobs) -> None:
    ids = await _stage(jobs, "staging")
    assert await jobs.store.get(ids[0]) is None
    assert await jobs.store.get_by_name("n0") is None
    assert list(await jobs.store.list_jobs()) == []
    assert await jobs.queue.claim("w", limit=9) == []
    await jobs.queue.rescue_expired()
    assert await _db(jobs).count(JOBS, {}) == await _db(jobs).count(BATCHES, {}) == 0
    await jobs.store.enqueue("h", name="n0")


async def test_a_published_batch_is_completed(jobs: Jobs) -> None:
    ids = await _stage(jobs, "published")
    await jobs.queue.rescue_expired()
    assert [job.id for job in await jobs.store.list_jobs()] == ids[::-1]
    assert await _db(jobs).count(BATCHES, {}) == 0
    assert [claim.id for claim in await jobs.queue.claim("w", limit=9)] == ids


async def test_a_batch_under_way_is_left_alone(jobs: Jobs) -> None:
    await _stage(jobs, "staging")
    await _db(jobs).update(BATCHES, {"_id": "dead"}, {"$set": {"at": await _db(jobs).now()}})
    await jobs.queue.rescue_expired()
    assert await _db(jobs).count(JOBS, {"st": STAGED}) == 3
    with pytest.raises(ConcurrencyError):
        # what another call is enqueueing may come or not
        await _db(jobs).update(JOBS, {"name": "n0"}, {"$set": {"uk": key_of("default", "u")}})
        await jobs.store.enqueue("h", unique_key="u")


async def test_a_place_whose_claim_never_came_is_taken_back(jobs: Jobs) -> None:
    """The claimer took a place of the key, and died before it took the job."""
    job_id = await jobs.store.enqueue("h", concurrency_key="k")
    now = await _db(jobs).now()
    place = "\x1f".join((job_id, "1", "0", str(now)))
    slots = {"_id": key_of("default", "k"), "t": "default", "k": "k", "n": 1, "hs": [place]}
    await _db(jobs).insert(SLOTS, [slots])
    assert await jobs.queue.claim("w") == [], "it may come still"
    assert (await jobs.store.require(job_id)).waiting_for_key
    old = "\x1f".join((job_id, "1", "0", str(now - LONG_AGO_US)))
    await _db(jobs).update(SLOTS, {"_id": slots["_id"]}, {"$set": {"hs": [old]}})
    await JobMaintenance(jobs.executor).rescue_expired()

    assert (await _one(jobs)).id == job_id
    found = await _db(jobs).find_one(JOBS, {"id": job_id})
    assert found["ep"] == 1, "the claim that never came is shut out"


async def test_a_place_that_was_not_given_back_is_taken_back(jobs: Jobs) -> None:
    """The worker's end was stored, and the process died before it gave the place back."""
    first, second = [await jobs.store.enqueue("h", concurrency_key="k") for _ in range(2)]
    claim = await _one(jobs)
    slots = await _db(jobs).find_one(SLOTS, {})
    await jobs.queue.complete(claim)
    await _db(jobs).delete(SLOTS, {})
    await _db(jobs).insert(SLOTS, [slots])
    await _db(jobs).update(JOBS, {"id": second}, {"$set": {"pk": 1}})
    assert await jobs.queue.claim("w") == []
    await JobMaintenance(jobs.executor).rescue_expired()

    assert (await _one(jobs)).id == second
    assert await jobs.status(first) == "succeeded"


async def test_a_job_with_a_key_in_a_queue_without_a_mark_is_not_passed_over(jobs: Jobs) -> None:
    """An earlier release put it there; a claim that reads what is due first finds it and marks the queue."""
    await jobs.store.enqueue_many([NewJob("h", n) for n in range(3)])
    await jobs.store.enqueue("h", "keyed", priority=5, concurrency_key="k")
    assert await _db(jobs).delete(QUEUES, {}) == 1
    first = await jobs.queue.claim("w")
    assert [claim.payload for claim in first] == ["keyed"]
    assert (await _db(jobs).find_one(JOBS, {"id": first[0].id}))["ht"], "it has its place"
    mark = await _db(jobs).find_one(QUEUES, {"_id": "default"})
    assert (mark["k"], mark["paused"], mark["rate"]) == (1, 0, None), "earlier releases take it for no limit"
    assert await jobs.queue.list_queue_limits() == []


async def test_a_mark_outlives_the_limit_of_its_queue(jobs: Jobs) -> None:
    await jobs.queue.set_queue_limit("default", rate_per_s=2.0)
    await jobs.store.enqueue("h", concurrency_key="k")
    assert [limit.rate_per_s for limit in await jobs.queue.list_queue_limits()] == [2.0]
    await jobs.queue.set_queue_limit("default")
    assert await jobs.queue.list_queue_limits() == []
    assert [found["k"] for found in await _db(jobs).find(QUEUES, {})] == [1]
    await jobs.queue.set_queue_limit("default", paused=True)
    await jobs.queue.set_queue_limit("other", paused=True)
    assert [limit.queue for limit in await jobs.queue.list_queue_limits()] == ["default", "other"]
    assert await jobs.queue.claim("w") == []
    await jobs.queue.set_queue_limit("other")
    assert await _db(jobs).count(QUEUES, {}) == 1


async def test_claims_at_once_get_each_its_own_jobs(jobs: Jobs) -> None:
    """They share a look; each has its own worker and lease."""
    await jobs.store.enqueue_many([NewJob("h", n, priority=n % 3) for n in range(20)])
    asked = {f"w{n}": (1 + n % 3, 60 + 10 * n) for n in range(8)}
    parts = await asyncio.gather(
        *[jobs.queue.claim(name, limit=most, lease_s=lease_s) for name, (most, lease_s) in asked.items()]
    )

    assert [len(part) for part in parts] == [most for most, _ in asked.values()]
    claims = {claim.id: claim for part in parts for claim in part}
    assert len(claims) == sum(len(part) for part in parts)
    assert sorted(claim.priority for claim in claims.values()) == [0] * 2 + [1] * 7 + [2] * 6
    for (name, (_, lease_s)), part in zip(asked.items(), parts):
        for claim in part:
            job = await jobs.store.require(claim.id)
            assert (job.status, job.worker, job.runs, job.attempts) == ("running", name, claim.fence, 1)
            assert job.lease_until == claim.lease_until == claim.claimed_at + timedelta(seconds=lease_s)
    await asyncio.gather(*[jobs.queue.complete(claim) for claim in claims.values()])
    assert (await jobs.store.counts())["succeeded"] == len(claims)


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize("calls", [1, 3])
async def test_a_claim_gives_out_only_what_it_took_itself(jobs: Jobs, calls: int, taken: bool) -> None:
    """Another client changes a job, or takes it, after it was read: it is not given out as it was read."""
    ids = await jobs.store.enqueue_many([NewJob("h", n) for n in range(6)])
    db = _db(jobs)
    name = "update" if calls == 1 else "update_each"
    given = getattr(db, name)

    async def overtaken(*args: Any, **kwargs: Any) -> int:
        setattr(db, name, given)
        if taken:
            await jobs.queue.claim("other", ["default", "elsewhere"])
        else:
            await jobs.store.update(ids[0], payload="changed")
        return int(await given(*args, **kwargs))

    setattr(db, name, overtaken)
    parts = await asyncio.gather(*[jobs.queue.claim(f"w{n}", limit=3 // calls) for n in range(calls)])
    claims = [claim for part in parts for claim in part]
    assert getattr(db, name) == given, "it was overtaken"
    assert {claim.id for claim in claims} == set(ids[1:4] if taken else ids[:3])
    for claim in claims:
        job = await jobs.store.require(claim.id)
        assert (job.payload, job.runs, job.worker[:1]) == (claim.payload, claim.fence, "w")


async def test_runs_on_their_way_are_seen_once(jobs: Jobs) -> None:
    """The mover put them into their own collection, and died before it took them out of the job."""
    job_id = await jobs.store.enqueue("h", retry=RetryPolicy(5, 0.0))
    for _ in range(3):
        await jobs.queue.fail(await _one(jobs), "E")
    found = await _db(jobs).find_one(JOBS, {"id": job_id})
    copy = {"_id": key_of("default", job_id, 3), "t": "default", "j": job_id, **found["er"][0]}
    await _db(jobs).insert(RUNS, [copy])

    async def look() -> None:
        assert [run.number for run in await jobs.store.list_runs(job_id)] == [3, 2, 1]
        kinds = [event.type for event in await jobs.store.list_events(job_id)]
        assert kinds == ["created", *["run_started", "run_finished"] * 3]

    await look()
    await jobs.queue.fail(await _one(jobs), "E", retry=False)
    assert [run.number for run in await jobs.store.list_runs(job_id)] == [4, 3, 2, 1]
    page = await jobs.store.list_runs(job_id, limit=2)
    assert [run.number for run in await jobs.store.list_runs(job_id, cursor=page.next_cursor)] == [2, 1]


async def test_many_events_move_out_of_the_job(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h")
    for n in range(60):
        await jobs.store.update(job_id, priority=n % 7)
    found = await _db(jobs).find_one(JOBS, {"id": job_id})
    assert len(found["ev"]) < 50
    seen: List[str] = []
    cursor = None
    while True:
        page = await jobs.store.list_events(job_id, limit=7, cursor=cursor)
        seen += [event.type for event in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["created", *["updated"] * 60]
    assert await jobs.store.delete(job_id)
    assert await _db(jobs).count("atlas_job_events", {}) == 0


async def test_a_job_half_deleted_is_gone_and_is_removed(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", name="n", retry=RetryPolicy(5, 0.0))
    for _ in range(2):
        await jobs.queue.fail(await _one(jobs), "E")
    await _db(jobs).update(JOBS, {"id": job_id}, {"$set": {"st": "deleted"}, "$unset": {"nk": ""}})
    assert await jobs.store.get(job_id) is None
    assert await jobs.store.delete(job_id) is False
    await jobs.store.enqueue("h", name="n")
    await JobMaintenance(jobs.executor).sweep()
    assert await _db(jobs).count(JOBS, {}) == 1
    assert await _db(jobs).count(RUNS, {}) == 0


async def test_a_schedule_that_died_while_firing_makes_each_job_once(jobs: Jobs) -> None:
    made = await jobs.store.create_schedule("s", Recurrence(at=PAST), NewJob("h", {"n": 1}))
    ids = await jobs.queue.fire_schedule(made, [PAST], None)
    assert ids is not None
    old = await _db(jobs).now() - LONG_AGO_US
    other = "0" * 8 + "-dead"
    notes = [{"i": name, "t": 1_577_836_800_000_000} for name in (ids[0], other)]
    await _db(jobs).update(SCHEDULES, {"id": made.id}, {"$set": {"fi": notes, "fa": old}})
    for _ in range(2):
        await jobs.queue.due_schedules()

    found = {job.id: job for job in await jobs.store.list_jobs()}
    assert set(found) == {ids[0], other}
    assert {(job.schedule_id, job.scheduled_for) for job in found.values()} == {(made.id, PAST)}
    assert (await jobs.store.update_schedule(made.id, enabled=False)).version == 2


async def test_many_dead_workers_jobs_are_rescued_at_once(jobs: Jobs) -> None:
    """As many as one rescue takes; FerretDB 1 stands still for ever when one command changes a hundred documents."""
    ids = await jobs.store.enqueue_many([NewJob("h", n) for n in range(110)])
    assert len(await jobs.queue.claim("w", limit=110)) == len(ids)
    await jobs.expire_leases()
    assert await jobs.queue.rescue_expired() == 100
    assert await jobs.queue.rescue_expired() == 10
    assert (await jobs.store.counts())["running"] == 0


@pytest.mark.timeout(900 if FULL else 240)
async def test_killed_workers_lose_nothing(
    jobs: Jobs, mongo_settings: Any, tmp_path: Path, child_environment: Dict[str, str]
) -> None:
    """P20, small: worker processes are killed while they work; every job ends once, and no stale word counts."""
    url = f"{mongo_settings.mongo.get_url()}/{mongo_settings.mongo.database}"
    crew = CrewOfProcesses(url, tmp_path, child_environment)
    chance = random.Random(7)
    retry = RetryPolicy(max_attempts=1000, base_s=0.0)
    ids = set(await jobs.store.enqueue_many([NewJob("effect", n, retry=retry) for n in range(COUNT)]))
    options = {"lease": 2.0, "concurrency": 4, "grace": 60}
    killed = 0
    try:
        workers = [crew.start(name=f"w{n}", ready=False, **options) for n in range(2)]
        for following in range(COUNT // (KILLS + 1), COUNT, COUNT // (KILLS + 1)):
            await wait_until(lambda n=following: len(crew.runs()) >= n, 90, f"{following} jobs ran")
            number = chance.randrange(len(workers))
            await asyncio.to_thread(workers[number].end, signal.SIGKILL)
            killed += 1
            workers[number] = crew.start(name=f"w{killed + 2}", ready=False, **options)
        end = time.monotonic() + 90
        while (await jobs.store.counts())["succeeded"] < COUNT:
            assert time.monotonic() < end, await jobs.store.counts()
            await asyncio.sleep(0.1)
        outcomes = [await asyncio.to_thread(worker.end) for worker in workers]
    finally:
        crew.close()

    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    ended = crew.runs()
    assert set(ended) == ids
    runs = [(await jobs.store.require(i), list(await jobs.store.list_runs(i))) for i in sorted(ids)]
    assert [(r[0].status, r[0].number, r[0].result) for _, r in runs] == [
        ("succeeded", job.runs, job.runs) for job, _ in runs
    ]
    lost = sum(run.status == "lost" for _, r in runs for run in r)
    assert sum(run.status == "succeeded" for _, r in runs for run in r) == COUNT
    assert sum(ended.values()) - COUNT <= lost <= killed * (4 + 1000)


async def test_who_settles_twice_knows_which_was_theirs(jobs: Jobs) -> None:
    """Another client ended one run of a batch between the read and the change: that one is lost, the rest is ours."""
    await jobs.store.enqueue_many([NewJob("h", n) for n in range(3)])
    claims = await jobs.queue.claim("w", limit=3)
    db = _db(jobs)
    given = db.update_each

    async def overtaken(collection: str, changes: Any) -> int:
        db.update_each = given
        await jobs.queue.complete(claims[1], "theirs")
        return int(await given(collection, changes))

    db.update_each = overtaken
    statuses = await jobs.queue.settle_to([_succeeded(claim) for claim in claims])

    assert statuses == ["succeeded", None, "succeeded"]
    runs: Dict[str, Any] = {claim.id: (await jobs.store.list_runs(claim.id))[0].result for claim in claims}
    assert list(runs.values()) == [None, "theirs", None]


def _succeeded(claim: ClaimedJob) -> Any:
    from modules.job_store.records import Outcome

    return Outcome(claim, "succeeded")

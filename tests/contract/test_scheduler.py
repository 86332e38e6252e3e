"""The scheduler on each database: each time is made once, however many schedulers run, whatever befalls them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from typing import Any, List

import pytest
from sqlalchemy import bindparam, text

from modules.job_store.mongo_documents import SCHEDULES
from modules.job_store.records import NewJob
from modules.job_store.schedules import MissedRuns, Recurrence
from modules.orchestration import OrchestrationError, Scheduler
from modules.storage.columns import UtcDateTime
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from modules.store_common.clock import to_microseconds
from tests.support.jobs import executor_of_jobs
from tests.support.worker import PATIENT_S, Bench

_MOVE = Statement(
    text("UPDATE atlas_job_schedules SET next_at = :next_at").bindparams(
        bindparam("next_at", type_=UtcDateTime())
    )
)


@write
async def move_schedules(tx: Transaction, next_at: datetime) -> None:
    """Let every schedule wait since, or until, that time: what a clock that jumps does to them."""
    await tx.run(_MOVE, next_at=next_at)


async def _move(storage: Any, next_at: datetime) -> None:
    executor = executor_of_jobs(storage)
    if executor.dialect == "mongodb":
        await executor.documents.update(SCHEDULES, {}, {"$set": {"na": to_microseconds(next_at)}}, many=True)
        return
    await executor.run(move_schedules, next_at)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mongodb", marks=pytest.mark.mongodb),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param in ("postgresql", "mongodb"):
        request.getfixturevalue("postgres" if request.param == "postgresql" else "mongodb")
    return str(request.param)


@pytest.fixture
def bench(storage: Any) -> Bench:
    return Bench(storage)


async def _times(bench: Bench) -> List[datetime]:
    """Return the nominal times of all jobs that schedules have made."""
    page = await bench.jobs.list_jobs(limit=1000)
    return [job.scheduled_for for job in page if job.scheduled_for is not None]


async def test_five_schedulers_make_each_second_once(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        await bench.jobs.create_schedule(name, Recurrence(every_s=1, missed=MissedRuns.ALL), NewJob(name))
    schedulers = [Scheduler(bench.storage, poll_s=0.05) for _ in range(5)]
    running = [asyncio.ensure_future(scheduler.run()) for scheduler in schedulers]

    async def enough() -> bool:
        return len(await _times(bench)) >= 9

    await bench.until_true(enough, True)
    for scheduler in schedulers:
        scheduler.stop()
    await asyncio.wait_for(asyncio.gather(*running), PATIENT_S)

    page = await bench.jobs.list_jobs(limit=1000)
    made = Counter((job.handler, job.scheduled_for) for job in page)
    assert max(made.values()) == 1
    assert sum(scheduler.made for scheduler in schedulers) == len(page)
    for name in ("a", "b", "c"):
        times = sorted(when for handler, when in made if handler == name and when is not None)
        # none was left out either
        assert [later - earlier for earlier, later in zip(times, times[1:])] == [timedelta(seconds=1)] * (
            len(times) - 1
        )


async def test_many_at_the_same_moment_make_a_time_once(bench: Bench) -> None:
    await bench.jobs.create_schedule("one", Recurrence(every_s=3600), NewJob("one"))

    made = await asyncio.gather(*[Scheduler(bench.storage).fire_due() for _ in range(5)])

    assert sorted(made) == [0, 0, 0, 0, 1]
    assert len(await _times(bench)) == 1


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("one", 1), ("all", 10)])
async def test_missed_runs_follow_their_policy(bench: Bench, missed: str, count: int) -> None:
    recurrence = Recurrence(every_s=3600, missed=MissedRuns(missed))
    schedule = await bench.jobs.create_schedule("hourly", recurrence, NewJob("hourly"))
    assert schedule.next_at is not None
    # the first time is now; nobody looked for nine and a half hours
    start = schedule.next_at - timedelta(hours=9)
    moved = Recurrence(every_s=3600, missed=MissedRuns(missed), start_at=start - timedelta(minutes=30))
    await bench.jobs.update_schedule(schedule.id, recurrence=moved)
    await _move(bench.storage, start - timedelta(minutes=30))

    assert await Scheduler(bench.storage).fire_due() == count
    assert await Scheduler(bench.storage).fire_due() == 0
    after = await bench.jobs.get_schedule(schedule.id)
    assert after is not None
    assert after.next_at is not None
    assert after.next_at > schedule.next_at


async def test_a_clock_that_is_set_back_makes_no_time_twice(bench: Bench) -> None:
    schedule = await bench.jobs.create_schedule("hourly", Recurrence(every_s=3600), NewJob("hourly"))
    assert await Scheduler(bench.storage).fire_due() == 1
    assert schedule.next_at is not None
    # the clock had been two hours ahead, and is right again: the next time lies in the future
    await _move(bench.storage, schedule.next_at + timedelta(hours=2))

    assert await Scheduler(bench.storage).fire_due() == 0
    assert len(await _times(bench)) == 1


async def test_a_worker_runs_what_a_scheduler_makes(bench: Bench) -> None:
    @bench.handler("tick")
    async def tick(job: Any) -> None:
        bench.note(job.claim.scheduled_for)

    schedule = await bench.jobs.create_schedule("tick", Recurrence(every_s=3600), NewJob("tick"))
    async with bench.worker(poll_s=600.0), Scheduler(bench.storage):
        await bench.until_seen(schedule.next_at)


async def test_it_runs_once_at_a_time(bench: Bench) -> None:
    scheduler = Scheduler(bench.storage)
    async with scheduler:
        await asyncio.sleep(0)
        with pytest.raises(OrchestrationError, match="already"):
            await scheduler.run()
    scheduler.stop()

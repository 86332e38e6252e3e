"""P23 for workers and schedulers: SIGTERM loses nothing and really ends, whatever the handlers do."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from modules.job_store.records import NewJob
from modules.job_store.schedules import Recurrence
from modules.storage.manager import StorageManager
from tests.support.crew import CrewOfProcesses
from tests.support.timing import assert_in_time

GRACE_S = 1.0
#: What is promised beyond the grace, in seconds.
OVERTIME_S = 2.0
#: What a worker may take to give its jobs back; longer than promised, which is looked at by itself.
STORE_S = 30.0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, databases: Any) -> str:
    return str(databases.url(request.param, migrated=True))


@pytest.fixture
def crew(url: str, tmp_path: Path, child_environment: Dict[str, str]) -> Iterator[CrewOfProcesses]:
    made = CrewOfProcesses(url, tmp_path, child_environment)
    yield made
    made.close()


def enqueue(url: str, count: int, handler: str = "effect") -> List[str]:
    async def work() -> List[str]:
        async with StorageManager({"sql": {"url": url}}) as storage:
            return await storage.jobs.enqueue_many([NewJob(handler) for _ in range(count)])

    return asyncio.run(work())


def told(out: str) -> List[Any]:
    return [json.loads(line) for line in out.splitlines()]


def test_under_load_it_ends_in_order_and_nothing_is_lost(crew: CrewOfProcesses, url: str) -> None:
    jobs = enqueue(url, 400)
    worker = crew.start(grace=30, kind="slow", concurrency=4, cancel=STORE_S, store=STORE_S)
    crew.until(lambda: len(crew.runs()) >= 4, 60, "jobs run")
    started = time.monotonic()
    code, out, err = worker.end()
    # the handlers take 0.3 s each, so nothing here takes the grace
    assert_in_time(started, 5 + OVERTIME_S, "an orderly end")

    assert code == 0, err
    counted, left = told(out)
    assert left == {"threads": [], "tasks": []}
    assert "Task was destroyed" not in err
    # everything that was begun came to its end and is stored; the rest is there as if nothing had been
    assert crew.runs("begin") == crew.runs("end")
    assert crew.succeeded() == set(crew.runs("end"))
    assert set(crew.statuses()) <= {"succeeded", "scheduled"}
    assert sum(crew.statuses().values()) == len(jobs)
    assert counted["abandoned"] == 0
    attempts = crew.stored("SELECT count(*) FROM atlas_jobs WHERE status = 'scheduled' AND attempts > 0")
    assert attempts == [(0,)]


@pytest.mark.parametrize("handler", ["effect", "thread"])
def test_a_handler_that_ignores_being_stopped_does_not_hold_it(
    crew: CrewOfProcesses, url: str, handler: str
) -> None:
    enqueue(url, 3, handler)
    worker = crew.start(grace=GRACE_S, kind="stubborn", store=STORE_S)
    crew.until(lambda: len(crew.runs("begin")) == 3, 60, "three begin")
    started = time.monotonic()
    code, out, err = worker.end()
    assert_in_time(started, GRACE_S + OVERTIME_S, "an end without the handlers")

    assert code == 1, err
    assert told(out)[0]["left_behind"] == 3
    # given back at once: nobody has to wait for the lease
    assert crew.statuses() == {"scheduled": 3}


def test_a_handler_that_blocks_the_loop_does_not_hold_it(crew: CrewOfProcesses, url: str) -> None:
    enqueue(url, 1)
    worker = crew.start(grace=GRACE_S, kind="blocking", lease=2)
    crew.until(lambda: len(crew.runs("begin")) == 1, 60, "it begins")
    started = time.monotonic()
    code, _, err = worker.end()
    assert_in_time(started, GRACE_S + OVERTIME_S, "an end without the loop")

    assert code == 1, err
    # it could not be given back; its lease runs out, and the next worker has it
    crew.start(kind="quick", lease=2)
    crew.until(lambda: crew.statuses() == {"succeeded": 1}, 60, "the next worker runs it")


def test_a_second_signal_ends_at_once(crew: CrewOfProcesses, url: str) -> None:
    enqueue(url, 1)
    worker = crew.start(grace=600, kind="stubborn")
    crew.until(lambda: len(crew.runs("begin")) == 1, 60, "it begins")
    worker.send(signal.SIGTERM)
    crew.until(lambda: crew.lines("signal"), 60, "the first signal is taken")
    started = time.monotonic()
    code, _, _ = worker.end()
    assert_in_time(started, OVERTIME_S, "an end at once")

    assert code == 128 + signal.SIGTERM
    assert crew.statuses() == {"running": 1}  # until its lease runs out


def test_a_scheduler_ends_in_order(crew: CrewOfProcesses, url: str) -> None:
    async def schedule() -> None:
        async with StorageManager({"sql": {"url": url}}) as storage:
            await storage.jobs.create_schedule("often", Recurrence(every_s=1), NewJob("effect"))

    asyncio.run(schedule())
    scheduler = crew.start(kind="scheduler")
    crew.until(lambda: sum(crew.statuses().values()) >= 1, 60, "a job is made")
    started = time.monotonic()
    code, out, err = scheduler.end()
    assert_in_time(started, OVERTIME_S, "the end of a scheduler")

    assert code == 0, err
    assert told(out) == [{"threads": [], "tasks": []}]

"""P20, P21, P22, P24: workers are killed, frozen and given wrong clocks; no job is lost, no stale word counts.

At least once is the promise, so a job may run twice; how often that happens is counted and bounded: only the runs that were
under way when their worker was killed or frozen.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from modules.job_store.records import NewJob, RetryPolicy
from modules.storage.manager import StorageManager
from tests.conftest import skip_or_fail
from tests.support.crew import CrewOfProcesses, WorkerProcess
from tests.support.timing import assert_in_time

FULL = os.environ.get("ATLAS_TEST_FULL") == "1"
JOBS = 10_000 if FULL else 400
WORKERS = 4
CONCURRENCY = 8
LEASE_S = 2.0
HOURS_S = 2 * 3600
#: How many workers are killed, and how many frozen, at least.
FATES = 3

pytestmark = pytest.mark.timeout(1500 if FULL else 240)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def url(request: pytest.FixtureRequest, databases: Any) -> str:
    return str(databases.url(request.param, migrated=True))


@pytest.fixture
def crew(url: str, tmp_path: Path, child_environment: Dict[str, str]) -> Iterator[CrewOfProcesses]:
    made = CrewOfProcesses(url, tmp_path, child_environment)
    yield made
    made.close()


def enqueue(url: str, count: int) -> List[str]:
    retry = RetryPolicy(max_attempts=1000, base_s=0.0)

    async def work() -> List[str]:
        async with StorageManager({"sql": {"url": url}}) as storage:
            return await storage.jobs.enqueue_many([NewJob("effect", retry=retry) for _ in range(count)])

    return asyncio.run(work())


def test_killed_and_frozen_workers_lose_nothing(crew: CrewOfProcesses, url: str) -> None:
    jobs = set(enqueue(url, JOBS))
    chance = random.Random(7)  # which worker, and what befalls it; when is up to the machine
    counted = Counter[str]()
    workers: List[WorkerProcess] = []
    frozen: Dict[int, float] = {}

    def start() -> WorkerProcess:
        counted["started"] += 1
        return crew.start(
            name=f"w{counted['started']}", lease=LEASE_S, concurrency=CONCURRENCY, grace=60, ready=False
        )

    workers = [start() for _ in range(WORKERS)]
    for worker in workers:
        worker.wait_ready()
    end = time.monotonic() + (1200 if FULL else 180)
    step = max(1, JOBS // 12)
    following = step
    while True:
        assert time.monotonic() < end, crew.statuses()
        for number, until in list(frozen.items()):
            if time.monotonic() >= until:
                workers[number].send(signal.SIGCONT)
                del frozen[number]
        done = len(crew.runs())
        if done >= following:
            following += step
            _befall(workers, frozen, chance, counted, start)
        if done >= len(jobs) and crew.statuses().get("succeeded", 0) == len(jobs):
            if min(counted["killed"], counted["frozen"]) >= FATES:
                break
            jobs.update(enqueue(url, 4 * step))  # the work was done before enough had befallen the workers
        time.sleep(0.02)
    for number in frozen:
        workers[number].send(signal.SIGCONT)
    outcomes = [worker.end() for worker in workers]

    assert [code for code, _, _ in outcomes] == [0] * WORKERS, outcomes
    _check(crew, jobs, counted)


def _befall(
    workers: List[WorkerProcess],
    frozen: Dict[int, float],
    chance: random.Random,
    counted: Counter[str],
    start: Any,
) -> None:
    """Kill one worker and start another in its place, or freeze one for longer than its lease."""
    number = chance.choice([n for n in range(WORKERS) if n not in frozen] or [0])
    if counted["killed"] <= counted["frozen"] or len(frozen) >= WORKERS - 2:
        frozen.pop(number, None)
        workers[number].end(signal.SIGKILL)
        counted["killed"] += 1
        workers[number] = start()
    else:
        workers[number].send(signal.SIGSTOP)
        counted["frozen"] += 1
        frozen[number] = time.monotonic() + LEASE_S + 1.0


def _check(crew: CrewOfProcesses, jobs: Any, counted: Counter[str]) -> None:
    ended = crew.runs("end")
    # 0 lost: every job ran to its end at least once, and is stored as succeeded
    assert set(ended) == jobs
    assert crew.succeeded() == jobs
    # 0 stale completions: exactly one run of each job succeeded, it is the last one, and what it returned is its own number
    rows = crew.stored(
        "SELECT r.job_id, r.number, j.fence, CAST(r.result AS TEXT) FROM atlas_job_runs r"
        " JOIN atlas_jobs j ON j.id = r.job_id WHERE r.status = 'succeeded'"
    )
    assert len(rows) == len(jobs)
    stale = [row for row in rows if not (row[1] == row[2] == int(row[3]))]
    assert stale == []
    # duplicates: only what was in the hands of a worker when something befell it
    twice = sum(count - 1 for count in ended.values())
    # a frozen or killed worker holds what runs, what it claimed ahead, and what has ended and is not stored
    most = (counted["killed"] + counted["frozen"]) * (CONCURRENCY + 1000)
    lost = crew.stored("SELECT count(*) FROM atlas_job_runs WHERE status = 'lost'")[0][0]
    fates = f"{counted['killed']} kills, {counted['frozen']} freezes"
    print(f"\n{len(jobs)} jobs, {fates}: {lost} runs lost, {twice} ran to the end twice")
    assert twice <= lost <= most


def test_a_stalled_job_is_picked_up_by_itself(crew: CrewOfProcesses, url: str) -> None:
    """P21 with a short lease: the worker is killed in the middle; another one, which was idle all the time, takes over."""
    victim = crew.start(name="victim", lease=LEASE_S, kind="stubborn")
    (job,) = enqueue(url, 1)
    crew.until(lambda: crew.lines("begin"), 60, "the job begins")
    crew.start(name="heir", lease=LEASE_S)
    victim.end(signal.SIGKILL)
    killed = time.monotonic()
    crew.until(lambda: crew.lines("end"), 60, "another worker runs it")
    # the lease and one poll
    assert_in_time(killed, LEASE_S + 5.0, "taking over")

    first = crew.lines("end")[0]
    assert (first[0], first[2]) == (job, "heir")
    assert int(first[1]) >= 2


def _faketime() -> str:
    for directory in (
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib/faketime",
    ):
        path = Path(directory) / "libfaketime.so.1"
        if path.exists():
            return str(path)
    skip_or_fail(
        "faketime", "libfaketime is not installed (a wrong clock for one process): apt-get install faketime"
    )
    raise AssertionError


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_wrong_clock_steals_nothing(crew: CrewOfProcesses, url: str, hours: int) -> None:
    """P22: one worker's clock is two hours off, and it lives in another time zone; leases are the database's."""
    if url.startswith("sqlite"):
        pytest.skip("SQLite has no clock but the process's: see the note in docs/orchestration.md")
    library = _faketime()
    # three that are held, by leases that no pause of the machine outlasts: whoever sees them as expired steals them
    enqueue(url, 3)
    held_s = {"lease": HOURS_S / 120, "heartbeat": LEASE_S / 4}
    honest = crew.start(name="honest", kind="stubborn", grace=0.5, concurrency=3, **held_s)
    crew.until(lambda: len(crew.lines("begin")) == 3, 60, "three begin")
    wrong = crew.start(
        {"LD_PRELOAD": library, "FAKETIME": f"{hours:+d}h", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "Pacific/Kiritimati"},
        name="wrong", **held_s,
    )  # fmt: skip
    more = enqueue(url, 50)
    crew.until(lambda: len(crew.runs()) >= 50, 60, "the worker with the wrong clock works")
    held = time.monotonic() + 2 * LEASE_S
    crew.until(lambda: time.monotonic() >= held, 60, "heartbeats and rescues pass")

    assert set(crew.runs()) == set(more)
    assert {words[2] for words in crew.lines("end")} <= {"wrong", "honest"}
    # 0 early steals: nothing was taken from the honest worker, and nothing of the other's was lost
    assert crew.stored("SELECT count(*) FROM atlas_job_runs WHERE status = 'lost'") == [(0,)]
    assert {words[1] for words in crew.lines("begin")} == {"1"}
    started: Optional[float] = crew.stored(
        "SELECT max(abs(extract(epoch FROM started_at - created_at))) FROM atlas_jobs"
    )[0][0]
    assert started is not None
    assert float(started) < HOURS_S / 2
    assert wrong.end()[0] == 0
    assert honest.end()[0] == 1


def test_many_processes_on_one_sqlite_file_and_in_the_way_of_each_other(
    databases: Any, tmp_path: Path, child_environment: Dict[str, str]
) -> None:
    """P24: several workers on one file: no job runs twice, nobody is refused."""
    url = str(databases.url("sqlite", migrated=True))
    crew = CrewOfProcesses(url, tmp_path, child_environment)
    try:
        jobs = set(enqueue(url, JOBS))
        workers = [crew.start(name=f"w{n}", ready=False) for n in range(WORKERS)]
        for worker in workers:
            worker.wait_ready()
        crew.until(lambda: crew.statuses() == {"succeeded": len(jobs)}, 1200 if FULL else 180, "all succeed")
        outcomes = [worker.end() for worker in workers]
    finally:
        crew.close()

    assert [code for code, _, _ in outcomes] == [0] * WORKERS, outcomes
    assert crew.runs() == Counter(jobs)
    assert not [err for _, _, err in outcomes if "locked" in err or "Traceback" in err]

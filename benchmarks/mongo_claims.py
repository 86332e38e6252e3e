"""Claims on MongoDB protocol: this package beside PyMongo by hand, on the same documents under the same indexes.

Each repetition puts the same due jobs in, not timed, and takes all of them, one a call; the two run in turns. By hand a claim
is one `find_one_and_update`: the first due job by priority and time, with a new fence and a lease. It knows nothing of
queues' limits, concurrency keys and dead workers; what it claims has no run behind it, so there is no trail to write.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, List

from benchmarks.contest import Plan
from benchmarks.report import Report
from benchmarks.timing import Sample, Series, sample_of
from modules.job_store.enqueue import prepare
from modules.job_store.mongo_documents import FORMS, JOBS, job_document
from modules.job_store.records import NewJob
from modules.store_common.clock import to_microseconds, utc_now

__all__ = ["OURS", "RAW", "due_jobs", "measure_claims", "open_jobs"]

OURS, RAW = "ours (MongoDB)", "PyMongo by hand"
# Few at a time, and often: FerretDB decodes all that are due for each claim, and that would hide what a claim costs.
_JOBS = 32
_REFILLS = 3
# Well before now: the clocks of the client and the server differ.
_DUE_US = 60_000_000
_LEASE_S = 60
_PAYLOAD = {"conversation": "c1", "text": "summarise what was said since Monday", "limit": 20}

_Claim = Callable[[int], Any]


def due_jobs(count: int, now: int) -> List[Dict[str, Any]]:
    """Return documents of jobs that are due, as the store keeps them, in five priorities."""
    made = []
    for number in range(count):
        fields = prepare("default", NewJob("h", _PAYLOAD, priority=number % 5)).fields
        made.append({**job_document(fields, now), "ra": now - _DUE_US + number})
    return made


@asynccontextmanager
async def open_jobs(url: str, directory: Path, database: str) -> AsyncIterator[Any]:
    """Open this package's storage with its jobs in `database`."""
    from modules.storage.manager import StorageManager

    settings = {
        "sql": {"path": str(directory / f"{database}.sqlite3")},
        "mongo": {"url": url, "database": database},
        "vectors": {"backend": "none"},
        "use_mongo_for_jobs": True,
        "use_mongo_for_conversations": True,
    }
    async with StorageManager(settings) as storage:
        yield storage


async def measure_claims(
    report: Report, plan: Plan, url: str, directory: Path, tasks: List[int], say: Callable[[str], None]
) -> Dict[Any, Series]:
    """Return the repetitions by contender and number of tasks, and record the figures in `report`."""
    from pymongo import AsyncMongoClient

    names = {OURS: "atlas_bench_claims", RAW: "atlas_bench_claims_raw"}
    series: Dict[Any, Series] = {}
    client: Any = AsyncMongoClient(url, w="majority", tz_aware=True)
    try:
        async with open_jobs(url, directory, names[OURS]) as storage:
            by_hand = client[names[RAW]][JOBS]
            for index in FORMS.indexes:
                if index.collection == JOBS:
                    await by_hand.create_index(index.keys, unique=index.unique, sparse=index.sparse)
            claims = {OURS: _ours(storage), RAW: _by_hand(by_hand)}
            for count in tasks:
                label = f"claim, {count} task{'s' if count > 1 else ''}"
                say(label)
                for _ in range(plan.repetitions):
                    for name, claim in claims.items():
                        sample = await _sample(client[names[name]][JOBS], claim, count)
                        series.setdefault((name, count), Series()).samples.append(sample)
                for name in claims:
                    report.record(name, label, series[name, count])
    finally:
        await client.close()
    return series


async def _sample(jobs: Any, claim: _Claim, tasks: int) -> Sample:
    """Put jobs in and take all of them, several times; only the taking is timed."""
    latencies: List[float] = []

    async def work(task: int) -> None:
        for _ in range(_JOBS // tasks):
            started = time.perf_counter()
            found = await claim(task)
            latencies.append(time.perf_counter() - started)
            assert found, "there was a job for each call"

    elapsed = 0.0
    for _ in range(_REFILLS):
        await jobs.delete_many({})
        await jobs.insert_many(due_jobs(_JOBS, to_microseconds(utc_now())))
        started = time.perf_counter()
        await asyncio.gather(*[work(task) for task in range(tasks)])
        elapsed += time.perf_counter() - started
    return sample_of(latencies, elapsed)


def _ours(storage: Any) -> _Claim:
    async def claim(task: int) -> Any:
        return await storage.job_queue.claim(f"w{task}", lease_s=_LEASE_S)

    return claim


def _by_hand(jobs: Any) -> _Claim:
    import orjson

    async def claim(task: int) -> Any:
        now = to_microseconds(utc_now())
        where = {"st": "scheduled", "pk": 0, "q": "default", "ra": {"$lte": now}}
        new = {
            "st": "running", "w": f"w{task}", "sa": now, "ua": now, "lu": now + _LEASE_S * 1_000_000, "fa": None,
            "pg": None, "cr": 0, "rs": None,
        }  # fmt: skip
        change = {"$set": new, "$inc": {"f": 1, "at": 1, "v": 1}}
        found = await jobs.find_one_and_update(
            where, change, sort=[("pr", -1), ("ra", 1)], return_document=True
        )
        return None if found is None else (found, orjson.loads(found["pl"]))

    return claim

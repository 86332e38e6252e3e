"""Jobs that do nothing: enqueue and drain beside other queues on one PostgreSQL server; SQLite; latency; cost of idling."""

from __future__ import annotations

import asyncio
import importlib.util
import statistics
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, List, Optional, Tuple

from typing_extensions import Protocol

from benchmarks import ours, postgresql_contest
from benchmarks.contest import Plan
from benchmarks.report import Report, Row

__all__ = ["Queue", "run"]

GROUP = "Jobs on PostgreSQL, one worker, no-op"
SQLITE = "Jobs on SQLite, one worker, no-op"
OURS = "ours"
_BATCH = 1000
_LATENCIES = 200
_IDLE_S = 5.0
_SETTLE_S = 0.5


class Queue(Protocol):
    """What is measured of each contender."""

    async def enqueue(self, count: int, batch: int) -> float:
        """Enqueue `count` jobs in calls of `batch`; return seconds."""
        ...

    async def drain(self, count: int) -> float:
        """Run a worker until `count` jobs have run and their end is stored; return seconds."""
        ...


class _Ours:
    def __init__(self, storage: Any, concurrency: int = 10) -> None:
        from modules.orchestration import HandlerRegistry

        self._storage = storage
        self._concurrency = concurrency
        self.handlers = HandlerRegistry()

        @self.handlers.handler("noop")
        async def noop(job: Any) -> None:
            return None

    async def enqueue(self, count: int, batch: int) -> float:
        from modules.job_store.records import NewJob

        started = time.perf_counter()
        for start in range(0, count, batch):
            jobs = [NewJob("noop", {}) for _ in range(min(batch, count - start))]
            await self._storage.jobs.enqueue_many(jobs)
        return time.perf_counter() - started

    async def drain(self, count: int) -> float:
        from modules.orchestration import Worker

        worker = Worker(self._storage, self.handlers, concurrency=self._concurrency)
        left = count
        ended = 0.0

        def stored(*_: Any) -> None:
            nonlocal left, ended
            left -= 1
            if left == 0:
                ended = time.perf_counter()
                worker.stop()

        worker.on_ended = stored
        started = time.perf_counter()
        await worker.run()
        return ended - started


@asynccontextmanager
async def _open_ours(url: str) -> AsyncIterator[_Ours]:
    async with ours.open_storage(url) as storage:
        yield _Ours(storage)


Rates = Dict[str, List[Tuple[float, float]]]


def run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure and add the rows to `report`."""
    with postgresql_contest.server() as url:
        asyncio.run(_contest(report, plan, url, say))
        asyncio.run(_postgresql_alone(report, url, say))
    asyncio.run(_sqlite(report, plan, directory, say))


async def _contest(report: Report, plan: Plan, url: str, say: Callable[[str], None]) -> None:
    from benchmarks.jobs_peers import PEERS

    contenders: List[Tuple[str, Any, int, int]] = [(OURS, _open_ours, _BATCH, 10_000)]
    for name, (package, opened, batch, count) in PEERS.items():
        if importlib.util.find_spec(package) is not None:
            contenders.append((name, opened, batch, count))
    rates: Rates = {name: [] for name, *_ in contenders}
    async with AsyncExitStack() as stack:
        queues: List[Tuple[str, Queue, int, int]] = []
        for n, (name, opened, batch, count) in enumerate(contenders):
            own = await stack.enter_async_context(postgresql_contest.database(url, f"jobs_{n}"))
            queues.append((name, await stack.enter_async_context(opened(own)), batch, count))
        for _ in range(plan.repetitions):
            for name, queue, batch, count in queues:
                jobs = count // 2 if plan.quick else count
                say(f"{name}, {jobs:,} jobs")
                enqueued = await queue.enqueue(jobs, batch)
                drained = await queue.drain(jobs)
                rates[name].append((jobs / enqueued, jobs / drained))
    _judge(report, rates)


def _judge(report: Report, rates: Rates) -> None:
    def best(names: List[str], which: int, repetition: int) -> Optional[float]:
        found = [rates[name][repetition][which] for name in names if name in rates]
        return max(found) if found else None

    groups = {"pgqueuer": [n for n in rates if n.startswith("pgqueuer")],
              "procrastinate": [n for n in rates if n.startswith("procrastinate")]}  # fmt: skip
    wanted: List[Tuple[str, int, str, Optional[float]]] = [
        ("enqueue in batches of 1,000", 0, "pgqueuer", 1.0),
        ("drain", 1, "pgqueuer", 1.0),
        ("enqueue in batches of 1,000", 0, "procrastinate", None),
        ("drain", 1, "procrastinate", 10.0),
    ]
    for what, which, peer, target in wanted:
        title = f"{what}, to {peer}'s best of its settings"
        pairs = [(mine[which], best(groups[peer], which, n)) for n, mine in enumerate(rates[OURS])]
        values = [a / b for a, b in pairs if b is not None]
        if not values:
            report.rows.append(Row(GROUP, title, target=target, detail="not installed"))
            continue
        mine_median = statistics.median(a for a, _ in pairs)
        peer_median = statistics.median(b for _, b in pairs if b is not None)
        detail = f"{mine_median:,.0f} to {peer_median:,.0f} jobs/s; ours keeps every run as a row"
        report.rows.append(
            Row(
                GROUP,
                title,
                ">=",
                target,
                statistics.median(values),
                detail=detail,
                spread=(min(values), max(values)),
            )
        )
    for name, pairs in rates.items():
        detail = f"enqueue {statistics.median(a for a, _ in pairs):,.0f}/s"
        drained = [b for _, b in pairs]
        report.rows.append(
            Row(GROUP, f"drain by {name}", measured=statistics.median(drained), unit="jobs/s", detail=detail,
                spread=(min(drained), max(drained)))
        )  # fmt: skip


async def _postgresql_alone(report: Report, url: str, say: Callable[[str], None]) -> None:
    async with postgresql_contest.database(url, "jobs_idle") as own, _open_ours(own) as queue:
        await _latency(report, GROUP, queue, 10.0, say)
        await _idle(report, GROUP, queue, say)


async def _sqlite(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    count = 5_000 if plan.quick else 20_000
    async with _open_ours(f"sqlite:///{directory / 'jobs.sqlite3'}") as queue:
        rates = []
        for _ in range(plan.repetitions):
            say(f"sqlite, {count:,} jobs")
            enqueued = await queue.enqueue(count, _BATCH)
            drained = await queue.drain(count)
            rates.append((count / (enqueued + drained), count / enqueued, count / drained))
        whole = [rate for rate, _, _ in rates]
        detail = f"enqueue {statistics.median(r[1] for r in rates):,.0f}/s, drain {statistics.median(r[2] for r in rates):,.0f}/s"
        report.rows.append(
            Row(SQLITE, "enqueued, run and stored", ">=", 5000, statistics.median(whole), "jobs/s", detail,
                (min(whole), max(whole)))
        )  # fmt: skip
        await _latency(report, SQLITE, queue, None, say)
        await _idle(report, SQLITE, queue, say)


async def _latency(
    report: Report, group: str, queue: Any, target: Optional[float], say: Callable[[str], None]
) -> None:
    """From the call of enqueue() to the first line of the handler, on a worker that waits."""
    from modules.orchestration import HandlerRegistry, Worker

    say("latency of one job on an idle worker")
    handlers = HandlerRegistry()
    begun: asyncio.Queue[float] = asyncio.Queue()

    @handlers.handler("noop")
    async def noop(job: Any) -> None:
        begun.put_nowait(time.perf_counter())

    latencies: List[float] = []
    async with Worker(queue._storage, handlers):
        await asyncio.sleep(_SETTLE_S)
        for _ in range(_LATENCIES):
            started = time.perf_counter()
            await queue._storage.jobs.enqueue("noop")
            latencies.append((await begun.get() - started) * 1000)
            await asyncio.sleep(0.01)
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.99)]
    report.rows.append(
        Row(group, "one job on an idle worker, enqueue() to handler, p50", "<=", target, p50, "ms",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms of {_LATENCIES}")
    )  # fmt: skip


async def _idle(report: Report, group: str, queue: Any, say: Callable[[str], None]) -> None:
    from modules.orchestration import Worker

    say("an idle worker")
    async with Worker(queue._storage, queue.handlers):
        await asyncio.sleep(_SETTLE_S)
        before = time.process_time()
        await asyncio.sleep(_IDLE_S)
        used_ms = (time.process_time() - before) * 1000 / _IDLE_S
    report.rows.append(
        Row(
            group,
            "processor time of an idle worker, of each second",
            "<=",
            None,
            used_ms,
            "ms",
            f"over {_IDLE_S:g} s",
        )
    )

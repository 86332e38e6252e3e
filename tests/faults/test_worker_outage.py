"""P20, P21 for a worker whose PostgreSQL goes away in the middle: nothing is lost, nothing runs twice under a valid lease."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator, Dict, List, Tuple

import pytest

from modules.job_store.records import NewJob
from modules.orchestration import JobContext
from modules.storage.manager import StorageManager
from tests.faults.conftest import OwnServer
from tests.faults.proxy import Proxy
from tests.support.leaks import wait_until
from tests.support.worker import PATIENT_S, Bench

pytestmark = pytest.mark.postgresql


class Log:
    """What the handlers of one worker did: (job, "begin" | "end" | "cancelled"), and a gate that holds them."""

    def __init__(self) -> None:
        self.lines: List[Tuple[str, str]] = []
        self.gate = asyncio.Event()

    async def handler(self, job: JobContext) -> str:
        self.lines.append((job.id, "begin"))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.lines.append((job.id, "cancelled"))
            raise
        self.lines.append((job.id, "end"))
        return "done"

    def count(self, what: str) -> int:
        return sum(1 for _, done in self.lines if done == what)


def _settings(url: str) -> Dict[str, Any]:
    return {"sql": {"url": url, "auto_migrate": False, "command_timeout_s": 5.0}}


@pytest.fixture
async def bench(own_server: OwnServer, leaks: Any) -> AsyncIterator[Bench]:
    """On a server of one's own, directly."""
    url = own_server.cluster.url(own_server.new_database(), tcp=True)
    async with StorageManager(_settings(url)) as storage:
        yield Bench(storage)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_runs_end_while_the_server_is_away_and_are_stored_when_it_is_back(
    own_server: OwnServer, bench: Bench, end: str
) -> None:
    log = Log()
    bench.handlers.handler("held")(log.handler)
    jobs = await bench.jobs.enqueue_many([NewJob("held") for _ in range(12)])
    async with bench.worker(concurrency=4, prefetch=0, lease_s=60.0, heartbeat_s=0.2) as worker:
        await wait_until(lambda: log.count("begin") == 4, PATIENT_S, "four begin")
        getattr(own_server.cluster, end)()
        log.gate.set()
        await wait_until(lambda: log.count("end") == 4, PATIENT_S, "they end")
        await wait_until(lambda: worker.statistics.outages, PATIENT_S, "the worker notices")
        assert worker.statistics.succeeded == 0
        own_server.cluster.process = None
        own_server.cluster.start()
        for job in jobs:
            await bench.until(job, "succeeded")
        late = await bench.jobs.enqueue("held")
        await bench.until(late, "succeeded")

    # the leases outlived the outage: every job was run by this worker, once
    assert sorted(log.lines) == sorted((job, what) for job in [*jobs, late] for what in ("begin", "end"))
    assert [run.status for job in jobs for run in await bench.runs(job)] == ["succeeded"] * 12
    assert worker.statistics.lost == 0


async def test_a_worker_cut_off_for_longer_than_its_lease_stops_and_another_goes_on(
    own_server: OwnServer, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    name = bench.storage.get_settings().sql.database
    mine, others = Log(), Log()
    others.gate.set()
    async with Proxy("127.0.0.1", own_server.cluster.port) as proxy:
        url = own_server.cluster.url(name, port=proxy.port)
        async with StorageManager(_settings(url)) as far:
            cut_off = Bench(far)
            cut_off.handlers.handler("held")(mine.handler)
            bench.handlers.handler("held")(others.handler)
            job = await bench.jobs.enqueue("held")
            async with cut_off.worker(lease_s=4.0, heartbeat_s=0.2, name="cut-off") as worker:
                await wait_until(lambda: mine.count("begin") == 1, PATIENT_S, "it begins")
                await proxy.down()
                async with bench.worker(lease_s=4.0, heartbeat_s=0.2, name="other"):
                    await bench.until(job, "succeeded")
                    await wait_until(lambda: mine.count("cancelled") == 1, PATIENT_S, "it stops by itself")
                await proxy.up()
                mine.gate.set()
                late = await bench.jobs.enqueue("held")
                await bench.until(late, "succeeded")

    assert mine.lines == [(job, "begin"), (job, "cancelled"), (late, "begin"), (late, "end")]
    assert others.lines == [(job, "begin"), (job, "end")]
    assert [(run.worker, run.status) for run in await bench.runs(job)][-1] == ("other", "succeeded")
    assert (await bench.runs(late))[0].worker == "cut-off"
    assert worker.statistics.lost == 1
    assert proxy.hits["down"] >= 1


async def test_answers_that_are_swallowed_do_not_double_a_run(own_server: OwnServer, bench: Bench) -> None:
    name = bench.storage.get_settings().sql.database
    log = Log()
    log.gate.set()
    async with Proxy("127.0.0.1", own_server.cluster.port) as proxy:
        url = own_server.cluster.url(name, port=proxy.port)
        settings = _settings(url)
        # no prepared statements: the text by which the proxy knows the request is in each of them
        settings["sql"]["pooler"] = "transaction"
        async with StorageManager(settings) as far:
            cut_off = Bench(far)
            cut_off.handlers.handler("held")(log.handler)
            async with cut_off.worker(concurrency=1, prefetch=0, lease_s=60.0, heartbeat_s=0.2) as worker:
                await cut_off.until(await bench.jobs.enqueue("held"), "succeeded")
                # what the worker says of its next run is done by the server, and the answer is lost
                log.gate.clear()
                job = await bench.jobs.enqueue("held")
                await wait_until(lambda: log.count("begin") == 2, PATIENT_S, "it begins")
                proxy.drop_reply(b"atlas_job_runs")
                log.gate.set()
                await wait_until(lambda: proxy.hits["drop_reply"], PATIENT_S, "an answer is lost")
                proxy.heal()
                await bench.until(job, "succeeded")
                await bench.until(await bench.jobs.enqueue("held"), "succeeded")

    assert (log.count("begin"), log.count("end")) == (3, 3)
    assert [run.status for run in await bench.runs(job)] == ["succeeded"]
    assert worker.statistics.claimed == 3

"""The worker on each database: what handlers get, how runs end, and what is kept of them."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Callable, List

import pytest

from modules.job_store.errors import JobLeaseTooShortError
from modules.job_store.records import NewJob, RetryPolicy
from modules.orchestration import GiveUpJobError, JobContext, OrchestrationError, RetryJobError
from modules.orchestration.running import Runner
from modules.store_common.errors import InvalidValueError
from modules.store_common.tenancy import current_tenant
from tests.support.leaks import wait_until
from tests.support.worker import PATIENT_S, Bench

AT_ONCE = RetryPolicy(max_attempts=3, base_s=0.0)


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


async def _progress_of(bench: Bench, job_id: str) -> Any:
    return (await bench.jobs.require(job_id)).progress


async def _names_of_workers(bench: Bench) -> List[str]:
    return [worker.id for worker in await bench.storage.job_queue.list_workers()]


@pytest.fixture
def bench(storage: Any) -> Bench:
    return Bench(storage)


def _time_out_when(began: Callable[[], bool], monkeypatch: Any) -> None:
    """Let no time be up before `began()`: a thread of a busy machine may begin later than a short limit allows."""
    time_out = Runner._time_out

    def patient(runner: Runner, held: Any) -> None:
        if began():
            time_out(runner, held)
        else:
            runner._set_timer(held, 0.01, lambda _: patient(runner, held))

    monkeypatch.setattr(Runner, "_time_out", patient)


async def test_handlers_of_both_kinds_run_and_their_results_are_kept(bench: Bench) -> None:
    @bench.handler("async")
    async def on_the_loop(job: JobContext) -> Any:
        assert threading.current_thread() is threading.main_thread()
        return {"got": job.payload}

    @bench.handler("plain")
    def in_a_thread(job: JobContext) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        return [job.payload, job.attempt, job.max_attempts, job.queue, job.name]

    first = await bench.jobs.enqueue("async", {"a": 1})
    second = await bench.jobs.enqueue("plain", "text", name="nightly")
    worker = await bench.work_off()

    assert (await bench.runs(first))[0].result == {"got": {"a": 1}}
    assert (await bench.runs(second))[0].result == ["text", 1, 5, "default", "nightly"]
    assert {(await bench.jobs.require(i)).status for i in (first, second)} == {"succeeded"}
    assert (await bench.runs(first))[0].worker == worker.name
    assert worker.statistics.succeeded == 2
    assert worker.statistics.by_handler == {"async": 1, "plain": 1}


async def test_an_error_is_kept_without_secrets_and_tried_again_by_the_policy(bench: Bench) -> None:
    @bench.handler("fails")
    async def fails(job: JobContext) -> None:
        bench.note(job.attempt)
        if job.is_last_attempt:
            bench.note("last")
        raise ConnectionError("cannot reach postgresql://joe:hunter2@db/x")

    job_id = await bench.jobs.enqueue("fails", retry=AT_ONCE)
    worker = await bench.work_off()

    assert bench.seen == [1, 2, 3, "last"]
    assert (await bench.jobs.require(job_id)).status == "failed"
    runs = await bench.runs(job_id)
    assert [run.status for run in runs] == ["failed"] * 3
    error = await bench.error(job_id)
    assert error["type"] == "ConnectionError"
    assert error["message"] == "cannot reach postgresql://joe:***@db/x"
    assert "in fails" in error["details"]["traceback"]
    assert "hunter2" not in error["details"]["traceback"].replace('joe:hunter2@db/x")', "")
    assert (worker.statistics.retried, worker.statistics.failed) == (2, 1)


async def test_a_job_without_a_handler_here_fails_with_a_clear_reason(bench: Bench) -> None:
    job_id = await bench.jobs.enqueue("unknown", retry=AT_ONCE)
    await bench.work_off()

    job = await bench.jobs.require(job_id)
    assert (job.status, job.attempts) == ("failed", 3)
    error = await bench.error(job_id)
    assert error["type"] == "HandlerNotFoundError"
    assert "no handler 'unknown'" in error["message"]


async def test_a_handler_says_how_to_go_on(bench: Bench) -> None:
    @bench.handler("later")
    async def later(job: JobContext) -> str:
        if job.attempt == 1:
            raise RetryJobError("the other side is busy", delay_s=0.0)
        return "done"

    @bench.handler("never")
    async def never(job: JobContext) -> None:
        raise GiveUpJobError("the address does not exist")

    again = await bench.jobs.enqueue(
        "later", retry=RetryPolicy(max_attempts=2, give_up_on=("RetryJobError",))
    )
    dead = await bench.jobs.enqueue("never")
    await bench.work_off()

    assert [run.status for run in await bench.runs(again)] == ["failed", "succeeded"]
    job = await bench.jobs.require(dead)
    assert (job.status, job.attempts) == ("failed", 1)
    assert (await bench.error(dead))["message"] == "the address does not exist"


@pytest.mark.parametrize(
    "value", [object(), {1: "a"}, float("nan"), "\ud800"], ids=["object", "key", "nan", "surrogate"]
)
async def test_a_result_that_cannot_be_kept_fails_the_run_and_no_other(bench: Bench, value: Any) -> None:
    @bench.handler("odd")
    async def odd(job: JobContext) -> Any:
        return value

    @bench.handler("fine")
    async def fine(job: JobContext) -> Any:
        return 1

    wrong = await bench.jobs.enqueue("odd", retry=RetryPolicy(max_attempts=1))
    right = [await bench.jobs.enqueue("fine") for _ in range(3)]
    await bench.work_off()

    assert (await bench.error(wrong))["type"] == "InvalidValueError"
    assert {(await bench.jobs.require(job_id)).status for job_id in right} == {"succeeded"}


async def test_an_async_run_that_takes_too_long_is_cancelled(bench: Bench) -> None:
    @bench.handler("slow")
    async def slow(job: JobContext) -> None:
        assert job.remaining_s is not None
        assert job.remaining_s <= 0.1
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            bench.note(job.stop_reason)
            raise

    job_id = await bench.jobs.enqueue("slow", timeout_s=0.1, retry=RetryPolicy(max_attempts=1))
    worker = await bench.work_off()

    assert bench.seen == ["timeout"]
    assert (await bench.error(job_id))["type"] == "JobTimeoutError"
    assert worker.statistics.timed_out == 1
    assert worker.left_behind == 0


async def test_a_plain_run_that_takes_too_long_is_told_and_left_behind(
    bench: Bench, monkeypatch: Any
) -> None:
    began, release = threading.Event(), threading.Event()
    _time_out_when(began.is_set, monkeypatch)

    @bench.handler("stuck")
    def stuck(job: JobContext) -> str:
        began.set()
        bench.note(("stopped", job.wait_stopped(PATIENT_S)))
        release.wait(PATIENT_S)
        return "nobody hears this"

    @bench.handler("next")
    def following(job: JobContext) -> str:
        return "ran"

    first = await bench.jobs.enqueue("stuck", timeout_s=0.1, retry=RetryPolicy(max_attempts=1))
    second = await bench.jobs.enqueue("next")
    worker = await bench.work_off(concurrency=1)

    try:
        assert (await bench.error(first))["type"] == "JobTimeoutError"
        assert (await bench.runs(second))[0].result == "ran"
        await bench.until_seen(("stopped", True))
        assert worker.left_behind == 1
        assert worker.statistics.abandoned == 1
    finally:
        release.set()


async def test_a_run_that_ignores_its_cancellation_is_left_behind(bench: Bench, monkeypatch: Any) -> None:
    monkeypatch.setattr("modules.orchestration.running.PATIENCE_S", 0.2)
    release = asyncio.Event()

    @bench.handler("stubborn")
    async def stubborn(job: JobContext) -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                bench.note("ignored")

    job_id = await bench.jobs.enqueue("stubborn", timeout_s=0.05, retry=RetryPolicy(max_attempts=1))
    worker = await bench.work_off()

    assert "ignored" in bench.seen
    assert (await bench.error(job_id))["type"] == "JobTimeoutError"
    assert worker.left_behind == 1
    release.set()


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_cancelling_a_running_job_is_told_to_its_handler(bench: Bench, kind: str) -> None:
    @bench.handler("async")
    async def waits(job: JobContext) -> None:
        bench.note("began")
        await asyncio.sleep(600)

    @bench.handler("plain")
    def looks(job: JobContext) -> None:
        bench.note("began")
        assert job.wait_stopped(PATIENT_S)
        bench.note(job.stop_reason)
        job.raise_if_stopped()

    job_id = await bench.jobs.enqueue(kind)
    # the next heartbeat would be long after the test: its worker is told at once
    async with bench.worker(lease_s=600.0) as worker:
        await bench.until_seen("began")
        await bench.jobs.cancel(job_id, reason="changed my mind")
        job = await bench.until(job_id, "cancelled")

    assert [run.status for run in await bench.runs(job_id)] == ["cancelled"]
    assert job.attempts == 1
    assert worker.statistics.cancelled == 1
    if kind == "plain":
        assert bench.seen[-1] == "cancelled"


async def test_a_lost_lease_stops_the_handler_and_its_result_is_refused(bench: Bench) -> None:
    from tests.support.jobs import let_leases_expire

    @bench.handler("long")
    async def long(job: JobContext) -> str:
        bench.note(("began", job.claim.fence))
        if job.claim.fence == 1:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                bench.note(job.stop_reason)
                raise
        return "the second"

    job_id = await bench.jobs.enqueue("long", retry=AT_ONCE)
    async with bench.worker(lease_s=60.0, heartbeat_s=1.0) as worker:
        await bench.until_seen(("began", 1))
        # a heartbeat between the two would have kept it
        while (await bench.runs(job_id))[0].status != "lost":
            await let_leases_expire(bench.storage)
            await bench.storage.job_queue.rescue_expired()
        await bench.until(job_id, "succeeded")
        await bench.until_seen("lease_lost")

    assert [run.status for run in await bench.runs(job_id)] == ["lost", "succeeded"]
    assert worker.statistics.lost == 1


async def test_handlers_act_as_the_tenant_of_their_job(bench: Bench) -> None:
    @bench.handler("async")
    async def on_the_loop(job: JobContext) -> Any:
        await job.storage.kv.set("notes", "a", job.tenant_id)
        return current_tenant()

    @bench.handler("plain")
    def in_a_thread(job: JobContext) -> Any:
        return [current_tenant(), job.call(job.storage.kv.get("notes", "a"))]

    await bench.jobs.enqueue("async", tenant_id="acme")
    await bench.work_off()
    second = await bench.jobs.enqueue("plain", tenant_id="acme")
    other = await bench.jobs.enqueue("plain", tenant_id="globex")
    await bench.work_off()

    assert (await bench.runs(second, "acme"))[0].result == ["acme", "acme"]
    assert (await bench.runs(other, "globex"))[0].result == ["globex", None]


async def test_a_worker_of_one_tenant_leaves_the_others_jobs_alone(bench: Bench) -> None:
    @bench.handler("noop")
    async def noop(job: JobContext) -> None: ...

    mine = await bench.jobs.enqueue("noop", tenant_id="acme")
    theirs = await bench.jobs.enqueue("noop", tenant_id="globex")
    await bench.work_off(tenant_id="acme")

    assert (await bench.jobs.require(mine, tenant_id="acme")).status == "succeeded"
    assert (await bench.jobs.require(theirs, tenant_id="globex")).status == "scheduled"


async def test_call_on_the_loop_is_refused(bench: Bench) -> None:
    @bench.handler("wrong")
    async def wrong(job: JobContext) -> Any:
        with pytest.raises(RuntimeError, match="await the call"):
            job.call(job.storage.kv.get("a", "b"))
        return "refused"

    job_id = await bench.jobs.enqueue("wrong")
    await bench.work_off()

    assert (await bench.runs(job_id))[0].result == "refused"


async def test_progress_and_lines_are_stored_while_it_runs_and_the_rest_at_its_end(bench: Bench) -> None:
    go_on = asyncio.Event()

    @bench.handler("tells")
    async def tells(job: JobContext) -> None:
        job.progress(0.5)
        job.log("half way, token=abcdefgh")
        await go_on.wait()
        job.progress({"rows": 10})
        job.log("done", "warning")
        with pytest.raises(InvalidValueError):
            job.log("x", "shout")
        with pytest.raises(InvalidValueError):
            job.progress(object())

    job_id = await bench.jobs.enqueue("tells")
    async with bench.worker():
        await bench.until_true(lambda: _progress_of(bench, job_id), 0.5)
        go_on.set()
        job = await bench.until(job_id, "succeeded")

    lines = [(line.level, line.message) for line in await bench.jobs.list_logs(job_id)]
    assert lines == [("info", "half way, token=***"), ("warning", "done")]
    assert job.progress == {"rows": 10}


async def test_no_more_run_at_once_than_allowed(bench: Bench) -> None:
    now: List[int] = [0, 0]

    @bench.handler("counted")
    async def counted(job: JobContext) -> None:
        now[0] += 1
        now[1] = max(now)
        await asyncio.sleep(0.001)
        now[0] -= 1

    await bench.jobs.enqueue_many([NewJob("counted") for _ in range(60)])
    worker = await bench.work_off(concurrency=4)

    assert now[1] <= 4
    assert worker.statistics.succeeded == 60


async def test_a_wake_up_reaches_an_idle_worker_and_a_delayed_job_runs_when_it_is_due(bench: Bench) -> None:
    @bench.handler("noop")
    async def noop(job: JobContext) -> None:
        bench.note(job.payload)

    # nobody looks within the time of the test: it is told, or knows by itself
    async with bench.worker(poll_s=600.0):
        await bench.until(await bench.jobs.enqueue("noop", "now"), "succeeded")
        await bench.until(await bench.jobs.enqueue("noop", "later", delay_s=0.3), "succeeded")

    assert bench.seen == ["now", "later"]


async def test_other_queues_are_left_alone(bench: Bench) -> None:
    @bench.handler("noop")
    async def noop(job: JobContext) -> None: ...

    await bench.jobs.enqueue("noop", queue="a")
    other = await bench.jobs.enqueue("noop", queue="c")
    worker = await bench.work_off(queues=["a", "b"])

    assert worker.statistics.succeeded == 1
    assert (await bench.jobs.require(other)).status == "scheduled"


async def test_the_worker_is_known_while_it_runs(bench: Bench) -> None:
    async with bench.worker(name="w-1", queues=["a"]):
        await bench.until_true(lambda: _names_of_workers(bench), ["w-1"])
    assert await bench.storage.job_queue.list_workers() == []


async def test_wrong_arguments_are_refused(bench: Bench) -> None:
    for options in (
        {"concurrency": 0}, {"concurrency": 2.5}, {"prefetch": -1}, {"queues": []}, {"queues": "a"}, {"queues": [" "]},
        {"grace_s": -1}, {"poll_s": 0}, {"lease_s": 0}, {"timeout_s": 0}, {"name": ""}, {"tenant_id": " "},
    ):  # fmt: skip
        with pytest.raises(InvalidValueError):
            bench.worker(**options)
    with pytest.raises(JobLeaseTooShortError):
        bench.worker(lease_s=10, heartbeat_s=6)


async def test_it_runs_once_at_a_time(bench: Bench) -> None:
    worker = bench.worker()
    async with worker:
        await wait_until(lambda: worker._stop_asked is not None, PATIENT_S)
        with pytest.raises(OrchestrationError, match="already"):
            await worker.run()
    await worker.run_until_idle()
    worker.stop()


async def test_a_stop_before_it_runs_is_not_lost(bench: Bench) -> None:
    """A signal may come while a process is still starting."""
    worker = bench.worker()
    worker.stop()
    await asyncio.wait_for(worker.run(), PATIENT_S)
    # that was the first run; the next one works
    job_id = await bench.jobs.enqueue("unknown", retry=RetryPolicy(max_attempts=1))
    await asyncio.wait_for(worker.run_until_idle(), PATIENT_S)
    assert (await bench.jobs.require(job_id)).status == "failed"

"""The job store as workers use it: claims, fences, leases, retries, keys and limits; on every backend."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from modules.job_store.errors import JobLeaseLostError, JobLeaseTooShortError
from modules.job_store.limits import LeasePolicy
from modules.job_store.records import ClaimedJob, NewJob, Outcome, RetryPolicy
from modules.store_common.errors import ConcurrencyError, InvalidValueError
from tests.support import backends as support
from tests.support.jobs import Jobs, jobs_of

backend = support.backend

SURE = RetryPolicy(max_attempts=3, base_s=0.0)


@pytest.fixture
def jobs(storage: Any) -> Jobs:
    return jobs_of(storage)


async def _one(jobs: Jobs, **kwargs: Any) -> ClaimedJob:
    (claim,) = await jobs.queue.claim("w", **kwargs)
    return claim


async def test_claims_go_by_priority_then_time_over_all_queues(jobs: Jobs) -> None:
    names = {}
    for queue, priority, delay in (
        ("a", 0, 0), ("b", 5, 0), ("a", 5, 0), ("b", -1, 0), ("a", 5, 500), ("c", 99, 0), ("b", 0, 0)
    ):  # fmt: skip
        job_id = await jobs.store.enqueue("h", queue=queue, priority=priority, delay_s=delay)
        names[job_id] = f"{queue}{priority}{'+' if delay else ''}"
    found: List[str] = []
    while True:
        part = await jobs.queue.claim("w", ["a", "b"], limit=2)
        found += [names[claim.id] for claim in part]
        if not part:
            break

    assert found == ["b5", "a5", "a0", "b0", "b-1"], "not the one that is not due, nor the other queue"
    assert [names[c.id] for c in await jobs.queue.claim("w", ["c"], limit=5)] == ["c99"]


async def test_a_claim_tells_the_worker_what_it_needs(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue(
        "h", {"a": 1}, name="n", retry=RetryPolicy(7, 2.0, 9.0, None, ("Bad",)), timeout_s=5, keep_result_s=3
    )
    claim = await _one(jobs, lease_s=30)

    assert (claim.tenant_id, claim.id, claim.fence, claim.attempt) == ("default", job_id, 1, 1)
    assert (claim.handler, claim.payload, claim.name, claim.queue) == ("h", {"a": 1}, "n", "default")
    assert claim.retry == RetryPolicy(7, 2.0, 9.0, None, ("Bad",))
    assert (claim.timeout_s, claim.keep_result_s) == (5.0, 3.0)
    assert (claim.lease_until - claim.claimed_at).total_seconds() == pytest.approx(30, abs=0.01)
    job = await jobs.store.require(job_id)
    assert (job.status, job.worker, job.runs, job.attempts) == ("running", "w", 1, 1)
    run = (await jobs.store.list_runs(job_id))[0]
    assert (run.number, run.status, run.worker, run.finished_at) == (1, "running", "w", None)


async def test_a_success_keeps_its_run(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h")
    claim = await _one(jobs)
    assert await jobs.queue.complete(claim, {"sum": 3}) == "succeeded"

    job = await jobs.store.require(job_id)
    assert (job.status, job.lease_until) == ("succeeded", None)
    assert job.finished_at is not None
    (run,) = await jobs.store.list_runs(job_id)
    assert (run.status, run.result, run.error, run.attempt) == ("succeeded", {"sum": 3}, None, 1)
    kinds = [event.type for event in await jobs.store.list_events(job_id)]
    assert kinds == ["created", "run_started", "run_finished"]


async def test_a_failure_is_tried_again_until_its_attempts_are_used_up(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=SURE)
    for attempt in (1, 2):
        claim = await _one(jobs)
        assert claim.attempt == attempt
        assert await jobs.queue.fail(claim, "Oops", "why", details={"n": attempt}) == "scheduled"
    assert await jobs.queue.fail(await _one(jobs), "Oops", "why") == "failed"

    job = await jobs.store.require(job_id)
    assert job.status == "failed"
    assert job.reason == "Oops: attempt 3 of 3 was the last"
    runs = await jobs.store.list_runs(job_id)
    assert [(run.number, run.status) for run in runs] == [(3, "failed"), (2, "failed"), (1, "failed")]
    assert runs[2].error == {"type": "Oops", "message": "why", "details": {"n": 1}}
    assert [job.id for job in await jobs.store.list_jobs(status="failed")] == [job_id]


@pytest.mark.parametrize(
    ("policy", "error", "wish", "status"),
    [
        (RetryPolicy(5, 0.0, retry_on=("A",)), "A", None, "scheduled"),
        (RetryPolicy(5, 0.0, retry_on=("A",)), "B", None, "failed"),
        (RetryPolicy(5, 0.0, retry_on=("A",)), "B", True, "scheduled"),
        (RetryPolicy(5, 0.0, give_up_on=("A",)), "A", None, "failed"),
        (RetryPolicy(5, 0.0, give_up_on=("A",)), "B", None, "scheduled"),
        (RetryPolicy(5, 0.0), "A", False, "failed"),
        (RetryPolicy(1, 0.0), "A", True, "failed"),
    ],
)
async def test_which_errors_are_tried_again(
    jobs: Jobs, policy: Any, error: str, wish: Any, status: str
) -> None:
    await jobs.store.enqueue("h", retry=policy)

    assert await jobs.queue.fail(await _one(jobs), error, retry=wish) == status


async def test_a_retry_waits_by_the_database_clock(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=RetryPolicy(3, 1000.0, 1000.0))
    claim = await _one(jobs)
    await jobs.queue.fail(claim, "Oops", delay_s=500)
    job = await jobs.store.require(job_id)

    assert (job.run_at - job.updated_at).total_seconds() == pytest.approx(500, abs=0.01)
    assert await jobs.queue.claim("w") == []
    await jobs.make_all_due()
    assert (await _one(jobs)).attempt == 2


async def test_a_released_job_has_lost_no_attempt(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=RetryPolicy(1))
    await jobs.queue.release(await _one(jobs))
    claim = await _one(jobs)

    assert (claim.attempt, claim.fence) == (1, 2)
    assert [run.status for run in await jobs.store.list_runs(job_id)] == ["running", "released"]


async def test_a_stale_worker_changes_nothing(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=SURE)
    stale = await _one(jobs)
    await jobs.expire_leases()
    assert await jobs.queue.rescue_expired() == 1
    current = await _one(jobs)
    assert (current.fence, current.attempt) == (2, 2)
    for call in (
        jobs.queue.complete(stale), jobs.queue.fail(stale, "E"), jobs.queue.release(stale), jobs.queue.heartbeat([stale]),
        jobs.queue.log(stale, "line"), jobs.queue.progress(stale, 0.5),
    ):  # fmt: skip
        with pytest.raises(JobLeaseLostError) as caught:
            await call
        assert isinstance(caught.value, ConcurrencyError)
        assert (caught.value.job_id, caught.value.fence) == (job_id, 1)
    assert await jobs.queue.settle(
        [
            Outcome(stale, "succeeded"),
        ]
    ) == [stale]
    assert await jobs.queue.cancellations([stale, current]) == [stale]

    assert await jobs.queue.complete(current) == "succeeded"
    assert [run.status for run in await jobs.store.list_runs(job_id)] == ["succeeded", "lost"]
    assert list(await jobs.store.list_logs(job_id)) == []


async def test_a_heartbeat_keeps_a_job_from_being_rescued(jobs: Jobs) -> None:
    await jobs.store.enqueue_many([NewJob("h"), NewJob("h")])
    kept, dropped = await jobs.queue.claim("w", limit=2)
    await jobs.expire_leases()
    beat = await jobs.queue.heartbeat([kept], lease_s=60)
    assert (beat.kept, beat.cancelled, beat.lost) == ((kept,), (), ())

    assert await jobs.queue.rescue_expired() == 1
    beat = await jobs.queue.heartbeat([kept, dropped])
    assert (beat.kept, beat.lost) == ((kept,), (dropped,))
    assert await jobs.queue.complete(kept) == "succeeded"


async def test_a_job_whose_worker_dies_every_time_is_dead_at_last(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=RetryPolicy(2, 0.0))
    for _ in range(2):
        await _one(jobs)
        await jobs.expire_leases()
        await jobs.queue.rescue_expired()

    job = await jobs.store.require(job_id)
    assert (job.status, job.reason) == ("failed", "JobLeaseLost: attempt 2 of 2 was the last")
    assert [run.status for run in await jobs.store.list_runs(job_id)] == ["lost", "lost"]


async def test_expired_leases_are_rescued_by_claiming(jobs: Jobs) -> None:
    await jobs.store.enqueue("h", retry=SURE)
    await _one(jobs)
    await jobs.expire_leases()
    jobs.queue._rescued_at = float("-inf")

    assert (await _one(jobs)).fence == 2


@pytest.mark.parametrize(
    ("lease_s", "heartbeat_s", "timeout_s"), [(10, None, 10), (10, None, None), (10, 6, None), (10, 6, 5)]
)
def test_a_lease_that_cannot_work_is_refused(lease_s: float, heartbeat_s: Any, timeout_s: Any) -> None:
    with pytest.raises(JobLeaseTooShortError):
        LeasePolicy(lease_s, heartbeat_s, timeout_s)
    assert LeasePolicy(60, 30, timeout_s)
    assert LeasePolicy(61, None, 60)


async def test_a_running_job_is_told_to_stop(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=SURE)
    claim = await _one(jobs)
    assert (await jobs.store.cancel(job_id, reason="enough")).cancel_requested
    beat = await jobs.queue.heartbeat([claim])
    assert beat.cancelled == (claim,)
    assert await jobs.queue.cancellations([claim]) == [claim]
    assert await jobs.queue.fail(claim, "Cancelled") == "cancelled", (
        "what was to be cancelled is not tried again"
    )
    assert (await jobs.store.list_runs(job_id))[0].status == "cancelled"

    other = await jobs.store.enqueue("h", retry=SURE)
    claim = await _one(jobs)
    await jobs.store.cancel(other)
    assert await jobs.queue.complete(claim) == "succeeded", "it was done before it could be stopped"
    third = await jobs.store.enqueue("h", retry=SURE)
    await _one(jobs)
    await jobs.store.cancel(third)
    await jobs.expire_leases()
    await jobs.queue.rescue_expired()
    assert await jobs.status(third) == "cancelled", "nor when its worker dies"


async def test_many_outcomes_in_one_call(jobs: Jobs) -> None:
    ids = await jobs.store.enqueue_many([NewJob("h", n, retry=SURE) for n in range(5)])
    claims = await jobs.queue.claim("w", limit=5)
    lost = await jobs.queue.settle(
        [
            Outcome(claims[0], "succeeded", result=[1]), Outcome(claims[1], "failed", error_type="E", delay_s=0),
            Outcome(claims[2], "released"), Outcome(claims[3], "cancelled", error_message="stopped"),
            Outcome(claims[4], "failed", error_type="E", retry=False),
        ]
    )  # fmt: skip

    assert lost == []
    assert [await jobs.status(job_id) for job_id in ids] == [
        "succeeded", "scheduled", "scheduled", "cancelled", "failed"
    ]  # fmt: skip
    assert (await jobs.store.require(ids[3])).reason == "stopped"
    with pytest.raises(InvalidValueError):
        await jobs.queue.settle([Outcome(claims[0], "done")])
    with pytest.raises(InvalidValueError):
        await jobs.queue.settle([Outcome(claims[0], "released"), Outcome(claims[0], "released")])


async def test_no_job_is_claimed_twice(jobs: Jobs, backend: str) -> None:
    count = support.sized(backend, 400, 60)
    ids = await jobs.store.enqueue_many([NewJob("h", n, priority=n % 3) for n in range(count)])

    async def worker(name: str) -> List[str]:
        mine: List[str] = []
        empty = 0
        while empty < 3:
            claims = await jobs.queue.claim(name, limit=7)
            empty = 0 if claims else empty + 1
            mine += [claim.id for claim in claims]
            await asyncio.gather(*[jobs.queue.complete(claim) for claim in claims])
        return mine

    found = [job_id for part in await asyncio.gather(*[worker(f"w{n}") for n in range(8)]) for job_id in part]
    assert sorted(found) == sorted(ids)
    assert (await jobs.store.counts())["succeeded"] == count


async def test_a_concurrency_limit_is_exact(jobs: Jobs) -> None:
    await jobs.store.enqueue_many(
        [NewJob("h", n, concurrency_key=f"k{n % 2}", concurrency_limit=1 + n % 2) for n in range(40)]
        + [NewJob("h", "free") for _ in range(10)]
    )
    running = {"k0": 0, "k1": 0}
    done = 0

    async def worker(name: str) -> None:
        nonlocal done
        idle = 0
        while done < 50 and idle < 200:
            claims = await jobs.queue.claim(name, limit=4)
            idle = 0 if claims else idle + 1
            for claim in claims:
                if claim.concurrency_key is not None:
                    running[claim.concurrency_key] += 1
                    assert running["k0"] <= 1
                    assert running["k1"] <= 2
            await asyncio.sleep(0)
            for claim in claims:
                if claim.concurrency_key is not None:
                    running[claim.concurrency_key] -= 1
                await jobs.queue.complete(claim)
                done += 1

    await asyncio.gather(*[worker(f"w{n}") for n in range(6)])
    assert done == 50
    assert (await jobs.store.counts())["succeeded"] == 50


async def test_a_key_that_waits_is_let_in_when_its_turn_is_given_up(jobs: Jobs) -> None:
    first, second, third = [
        await jobs.store.enqueue("h", concurrency_key="k", name=f"n{n}") for n in range(3)
    ]
    claim = await _one(jobs, limit=5)
    assert claim.id == first
    assert await jobs.queue.claim("w", limit=5) == []
    assert (await jobs.store.require(third)).waiting_for_key
    await jobs.queue.complete(claim)
    await jobs.store.cancel(second)
    assert (await _one(jobs, limit=5)).id == third
    fourth = await jobs.store.enqueue("h", concurrency_key="k")
    assert await jobs.queue.claim("w", limit=5) == []
    await jobs.expire_leases()
    await jobs.queue.rescue_expired()
    await jobs.make_all_due()
    claims = await jobs.queue.claim("w", limit=5)
    assert len(claims) == 1
    assert claims[0].id in (third, fourth)


async def test_what_needs_no_key_is_not_passed_over_for_what_waits_for_one(jobs: Jobs) -> None:
    """Both jobs of the key are better; the one that may not run must not take the place of one that may."""
    for priority in (1, 0):
        await jobs.store.enqueue("h", priority=priority, concurrency_key="k", name=f"k{priority}")
    await jobs.store.enqueue("h", priority=0, name="free")
    assert [c.name for c in await jobs.queue.claim("w", limit=2)] == ["k1", "free"]
    assert await jobs.queue.claim("w", limit=2) == []


async def test_a_paused_queue_gives_nothing(jobs: Jobs) -> None:
    await jobs.store.enqueue_many([NewJob("h", queue=queue) for queue in ("a", "b", "a")])
    await jobs.queue.set_queue_limit("a", paused=True)
    assert [c.queue for c in await jobs.queue.claim("w", ["a", "b"], limit=9)] == ["b"]
    assert [limit.queue for limit in await jobs.queue.list_queue_limits()] == ["a"]
    await jobs.queue.set_queue_limit("a")
    assert len(await jobs.queue.claim("w", ["a", "b"], limit=9)) == 2
    assert await jobs.queue.list_queue_limits() == []


async def test_a_rate_limit_holds_over_all_workers(jobs: Jobs) -> None:
    await jobs.store.enqueue_many([NewJob("h", n) for n in range(50)])
    await jobs.queue.set_queue_limit("default", rate_per_s=0.001, burst=5)
    parts = await asyncio.gather(*[jobs.queue.claim(f"w{n}", limit=3) for n in range(8)])

    assert sum(len(part) for part in parts) == 5
    for wrong in ({"rate_per_s": 0}, {"burst": 3}, {"rate_per_s": -1}, {"paused": 1}):
        with pytest.raises(InvalidValueError):
            await jobs.queue.set_queue_limit("default", **wrong)


async def test_progress_and_log_lines_of_a_run(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=SURE)
    claim = await _one(jobs)
    await jobs.queue.progress(claim, {"done": 3, "of": 10})
    await jobs.queue.log(claim, "one\x00")
    await jobs.queue.log(claim, [("warning", "two"), ("error", "three")])
    assert (await jobs.store.require(job_id)).progress == {"done": 3, "of": 10}
    await jobs.queue.fail(claim, "E", delay_s=0)
    await jobs.queue.log(await _one(jobs), "four")

    lines = await jobs.store.list_logs(job_id, limit=2)
    assert [(line.run, line.level, line.message) for line in lines] == [
        (1, "info", "one\x00"),
        (1, "warning", "two"),
    ]
    rest = await jobs.store.list_logs(job_id, limit=2, cursor=lines.next_cursor)
    assert [line.message for line in rest] == ["three", "four"]
    assert [line.message for line in await jobs.store.list_logs(job_id, run=2)] == ["four"]
    for wrong in ([], [("loud", "x")], [("info", 3)]):
        with pytest.raises(InvalidValueError):
            await jobs.queue.log(claim, wrong)


async def test_workers_tell_that_they_are_there(jobs: Jobs) -> None:
    await jobs.queue.register_worker("w1", ["a", "b"], running=3, info={"host": "x"})
    await jobs.queue.register_worker("w2", ["a"])
    await jobs.queue.register_worker("w1", ["b"], running=1)
    first, second = await jobs.queue.list_workers()

    assert (first.id, first.queues, first.running, first.info) == ("w1", ("b",), 1, {})
    assert first.seen_at >= first.started_at
    assert await jobs.queue.forget_worker("w1") is True
    assert await jobs.queue.forget_worker("w1") is False
    assert [worker.id for worker in await jobs.queue.list_workers()] == [second.id]


@pytest.mark.parametrize(
    "wrong",
    [{"worker": ""}, {"queues": []}, {"queues": "default"}, {"queues": [""]}, {"limit": 0}, {"limit": 1001}, {"lease_s": 0},
     {"lease_s": float("nan")}],
)  # fmt: skip
async def test_wrong_claims_are_refused(storage: Any, wrong: Any) -> None:
    with pytest.raises(InvalidValueError):
        await storage.job_queue.claim(**{"worker": "w", **wrong})

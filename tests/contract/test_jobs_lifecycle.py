"""The job store: changing jobs by hand, schedules, assignments, links, purge, health; on every backend."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from modules.job_store.errors import JobTransitionError, ScheduleNameTakenError, ScheduleNotFoundError
from modules.job_store.maintenance import JobMaintenance
from modules.job_store.models import FINAL_STATUSES, JOB_STATUSES, TRANSITIONS, may_become
from modules.job_store.records import NewJob, Outcome, RetryPolicy
from modules.job_store.schedules import Recurrence
from modules.store_common.errors import ConcurrencyError, InvalidValueError
from tests.support import backends as support
from tests.support.jobs import Jobs, jobs_of

backend = support.backend

PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def jobs(storage: Any) -> Jobs:
    return jobs_of(storage)


def test_the_table_of_moves() -> None:
    assert set(TRANSITIONS) == set(JOB_STATUSES)
    assert all(may_become(status, "scheduled") for status in ("draft", "running", *FINAL_STATUSES))
    assert not any(may_become(status, "running") for status in JOB_STATUSES if status != "scheduled")
    assert not any(may_become(status, other) for status in FINAL_STATUSES for other in FINAL_STATUSES)


async def test_an_update_expects_a_version(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", name="n", retry=RetryPolicy(3), timeout_s=9)
    job = await jobs.store.update(job_id, priority=7, queue="q", payload=[1], expected_version=1)
    assert (job.priority, job.queue, job.payload, job.version) == (7, "q", [1], 2)
    assert (job.name, job.retry, job.timeout_s) == ("n", RetryPolicy(3), 9.0)
    with pytest.raises(ConcurrencyError) as caught:
        await jobs.store.update(job_id, name=None, expected_version=1)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert (await jobs.store.update(job_id, name=None, timeout_s=None)).name is None
    for wrong in ({}, {"priority": 1000}, {"queue": ""}, {"payload": float("nan")}, {"timeout_s": 0}):
        with pytest.raises(InvalidValueError):
            await jobs.store.update(job_id, **wrong)
    await jobs.queue.claim("w", ["q"])
    for call in (jobs.store.update(job_id, priority=1), jobs.store.reschedule(job_id, delay_s=1)):
        with pytest.raises(JobTransitionError):
            await call


async def test_illegal_moves_are_refused_and_name_both(jobs: Jobs) -> None:
    draft = await jobs.store.enqueue("h", draft=True)
    assert await jobs.queue.claim("w") == []
    with pytest.raises(JobTransitionError) as caught:
        await jobs.store.rerun(draft)
    assert (caught.value.status, caught.value.wanted) == ("draft", "scheduled")
    assert (await jobs.store.schedule(draft)).status == "scheduled"
    assert (await jobs.store.to_draft(draft)).status == "draft"
    await jobs.store.schedule(draft)
    (claim,) = await jobs.queue.claim("w")
    for call in (
        jobs.store.schedule(draft),
        jobs.store.to_draft(draft),
        jobs.store.rerun(draft),
        jobs.store.delete(draft),
    ):
        with pytest.raises(JobTransitionError):
            await call
    await jobs.queue.complete(claim)
    with pytest.raises(JobTransitionError, match=r"is succeeded and cannot become cancelled"):
        await jobs.store.cancel(draft)


async def test_a_rerun_is_a_new_run_and_the_old_ones_stay(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", retry=RetryPolicy(1))
    (claim,) = await jobs.queue.claim("w")
    await jobs.queue.fail(claim, "E")
    assert await jobs.store.redrive_dead(handler="other") == 0
    assert await jobs.store.redrive_dead() == 1
    (claim,) = await jobs.queue.claim("w")
    assert (claim.attempt, claim.fence) == (1, 2)
    await jobs.queue.complete(claim, 5)
    job = await jobs.store.rerun(job_id, delay_s=100)
    assert (job.status, job.attempts, job.finished_at, job.reason) == ("scheduled", 0, None, None)

    assert [(r.number, r.status) for r in await jobs.store.list_runs(job_id)] == [
        (2, "succeeded"),
        (1, "failed"),
    ]
    kinds = [e.type for e in await jobs.store.list_events(job_id)]
    assert kinds == ["created", *["run_started", "run_finished", "rerun"] * 2]
    page = await jobs.store.list_events(job_id, limit=3)
    rest = await jobs.store.list_events(job_id, cursor=page.next_cursor)
    assert [e.type for e in (*page, *rest)] == kinds


async def test_the_history_is_in_order_within_a_tick_of_the_clock(jobs: Jobs) -> None:
    """SQLite's clock has steps of 1 ms: a run, its end and what follows may be in one."""
    job_id = await jobs.store.enqueue("h")
    for _ in range(10):
        (claim,) = await jobs.queue.claim("w")
        await jobs.store.cancel(job_id)
        await jobs.queue.complete(claim)
        await jobs.store.rerun(job_id)
    kinds = [e.type for e in await jobs.store.list_events(job_id)]
    assert kinds == ["created", *["run_started", "cancel_requested", "run_finished", "rerun"] * 10]


async def test_a_job_is_rescheduled(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h")
    job = await jobs.store.reschedule(job_id, delay_s=1000)
    assert (job.run_at - job.updated_at).total_seconds() == pytest.approx(1000, abs=0.01)
    assert await jobs.queue.claim("w") == []
    assert (await jobs.store.reschedule(job_id, run_at=PAST)).run_at == PAST
    assert len(await jobs.queue.claim("w")) == 1
    for wrong in ({}, {"run_at": PAST, "delay_s": 1}):
        with pytest.raises(InvalidValueError):
            await jobs.store.reschedule(job_id, **wrong)


async def test_assignments_and_links(jobs: Jobs) -> None:
    job_id = await jobs.store.enqueue("h", task_ids=["t1"])
    await jobs.store.link_task(job_id, "t2")
    await jobs.store.link_task(job_id, "t2")
    assert await jobs.store.list_tasks(job_id) == ["t1", "t2"]
    assert list(await jobs.store.list_jobs_of_task("t2")) == [job_id]
    assert [await jobs.store.unlink_task(job_id, "t2") for _ in range(2)] == [True, False]
    made = await jobs.store.assign(job_id, "ada")
    assert (made.assignee, made.status) == ("ada", "pending")
    assert (await jobs.store.assign(job_id, "ada", status="accepted")).created_at == made.created_at
    assert [a.status for a in await jobs.store.list_assignments(job_id)] == ["accepted"]
    with pytest.raises(InvalidValueError):
        await jobs.store.assign(job_id, "ada", status="maybe")
    assert [await jobs.store.unassign(job_id, "ada") for _ in range(2)] == [True, False]


async def test_purging_removes_what_is_old_and_final(jobs: Jobs) -> None:
    ids = await jobs.store.enqueue_many(
        [NewJob("h", n, keep_result_s=0 if n == 0 else None) for n in range(4)]
    )
    claims = await jobs.queue.claim("w", limit=2)
    await jobs.queue.settle([Outcome(c, "succeeded", result=1) for c in claims])
    maintenance = JobMaintenance(jobs.executor)
    assert await maintenance.sweep() == 1, "a result whose time is over"
    runs = [(await jobs.store.list_runs(job_id))[0].result for job_id in ids[:2]]
    assert runs == [None, 1]
    assert await jobs.store.purge(older_than_days=1) == 0
    assert await maintenance.purge(1) == 0
    assert await jobs.store.purge(older_than_days=0, tenant_id="other") == 0
    while not await maintenance.purge(0):
        pass  # what ended within this step of the clock is not older than nothing; both ended together
    assert [job.id for job in await jobs.store.list_jobs()] == ids[:1:-1]


async def test_health_says_how_the_job_store_stands(jobs: Jobs) -> None:
    await jobs.store.enqueue("h", retry=RetryPolicy(1))
    (claim,) = await jobs.queue.claim("w")
    await jobs.queue.fail(claim, "E")
    await jobs.store.enqueue("h")
    late = await jobs.store.enqueue("h", queue="late")
    await jobs.queue.register_worker("w", ["default"])
    health = await jobs.storage.health_check()
    assert health.job_store.status.value == "healthy", health.job_store.message
    details = health.job_store.details
    assert (details["backlog"], details["running"], details["dead"], details["workers"]) == (2, 0, 1, 1)
    await jobs.store.reschedule(late, run_at=PAST)
    health = await jobs.storage.health_check()
    assert health.job_store.status.value == "degraded"
    assert health.job_store.details["oldest_due_at"] == PAST.isoformat()


async def test_a_schedule_comes_back_as_it_was_given(jobs: Jobs) -> None:
    recurrence = Recurrence(
        cron="0 9 * * 1", timezone="Europe/Berlin", jitter_s=5, end_at=PAST + timedelta(days=9000)
    )
    job = NewJob(
        "h", {"a": 1}, queue="q", retry=RetryPolicy(2, give_up_on=("E",)), unique_key="u", task_ids=("t",)
    )
    made = await jobs.store.create_schedule("weekly", recurrence, job)
    assert (made.recurrence, made.job, made.enabled) == (recurrence, job, True)
    assert made.next_at is not None
    assert await jobs.store.get_schedule(made.id) == made == await jobs.store.get_schedule_by_name("weekly")
    assert made.to_dict()["recurrence"]["cron"] == "0 9 * * 1"
    with pytest.raises(ScheduleNameTakenError):
        await jobs.store.create_schedule("weekly", recurrence, job)
    changed = await jobs.store.update_schedule(made.id, enabled=False, name="other", expected_version=1)
    assert (changed.enabled, changed.name, changed.version) == (False, "other", 2)
    with pytest.raises(ConcurrencyError):
        await jobs.store.update_schedule(made.id, enabled=True, expected_version=1)
    with pytest.raises(ScheduleNotFoundError):
        await jobs.store.update_schedule("nope", enabled=True)
    for wrong in (
        NewJob("h", name="n"),
        NewJob("h", idempotency_key="i"),
        NewJob("h", delay_s=1),
        NewJob(""),
    ):
        with pytest.raises(InvalidValueError):
            await jobs.store.create_schedule("wrong", recurrence, wrong)
    assert [await jobs.store.delete_schedule(made.id) for _ in range(2)] == [True, False]
    assert list(await jobs.store.list_schedules()) == []


async def test_five_schedulers_fire_a_time_once(jobs: Jobs) -> None:
    # its next time is years from now: it is not due
    made = await jobs.store.create_schedule(
        "s", Recurrence(at=PAST + timedelta(days=36500)), NewJob("h", queue="q")
    )
    await jobs.store.create_schedule("off", Recurrence(at=PAST), NewJob("h"), enabled=False)
    await jobs.store.create_schedule("once", Recurrence(at=PAST), NewJob("h", {"n": 1}))
    assert made.next_at is not None
    (due,) = (await jobs.queue.due_schedules()).schedules
    assert due.name == "once"
    assert (await jobs.queue.next_schedule_in() or 0) < 0
    answers = await asyncio.gather(*[jobs.queue.fire_schedule(due, [PAST], None) for _ in range(5)])

    (ids,) = [answer for answer in answers if answer is not None]
    job = await jobs.store.require(ids[0])
    assert (job.schedule_id, job.scheduled_for, job.payload) == (due.id, PAST, {"n": 1})
    assert (await jobs.queue.due_schedules()).schedules == ()
    after = await jobs.store.get_schedule(due.id)
    assert after is not None
    assert (after.next_at, after.last_at) == (None, PAST)
    changed = await jobs.store.update_schedule(made.id, enabled=True)
    assert await jobs.queue.fire_schedule(made, [PAST], None) is None, "it was changed meanwhile"
    assert await jobs.queue.fire_schedule(changed, [], changed.next_at) == []

"""The job store: enqueueing and reading, on every backend."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any, List

import pytest

from modules.job_store.errors import JobNameTakenError, JobNotFoundError
from modules.job_store.records import NewJob, RetryPolicy
from modules.store_common.errors import (
    IdempotencyConflictError,
    InvalidCursorError,
    InvalidValueError,
    StorageError,
)
from tests.support import backends as support
from tests.support.jobs import Jobs, jobs_of

backend = support.backend

SOON = datetime.now(timezone.utc) + timedelta(hours=1)
NAIVE = SOON.replace(tzinfo=None)


@pytest.fixture
def jobs(storage: Any) -> Jobs:
    return jobs_of(storage)


async def test_a_job_comes_back_as_it_was_given(jobs: Jobs) -> None:
    payload = {"text": "a\x00b", "n": [1, 2.5, None, True], "deep": {"x": {}}}
    retry = RetryPolicy(3, 0.5, 60.0, ("TimeoutError",), ("ValueError",))
    job_id = await jobs.store.enqueue(
        "send", payload, name="mail", queue="slow", priority=-7, run_at=SOON, retry=retry, timeout_s=30,
        concurrency_key="c", concurrency_limit=2, keep_result_s=60,
    )  # fmt: skip
    job = await jobs.store.require(job_id)

    assert (job.handler, job.payload, job.name, job.queue, job.priority) == (
        "send",
        payload,
        "mail",
        "slow",
        -7,
    )
    assert (job.run_at, job.retry, job.timeout_s) == (SOON, retry, 30.0)
    assert (job.concurrency_key, job.concurrency_limit, job.keep_result_s) == ("c", 2, 60.0)
    assert (job.status, job.attempts, job.runs, job.version) == ("scheduled", 0, 0, 1)
    assert job.created_at == job.updated_at
    assert await jobs.store.get_by_name("mail") == job
    assert job.to_dict()["retry"]["max_attempts"] == 3


async def test_what_is_not_there(jobs: Jobs) -> None:
    assert await jobs.store.get("nope") is None
    assert await jobs.store.get_by_name("nope") is None
    for call in (jobs.store.require, jobs.store.list_runs, jobs.store.list_logs, jobs.store.list_events):
        with pytest.raises(JobNotFoundError) as caught:
            await call("nope")
        assert isinstance(caught.value, LookupError)
    assert await jobs.store.delete("nope") is False


async def test_a_name_is_taken_while_its_job_is_not_final(jobs: Jobs) -> None:
    first = await jobs.store.enqueue("h", name="n")
    for taken in (
        jobs.store.enqueue("h", name="n"),
        jobs.store.enqueue_many([NewJob("h", name="n"), NewJob("h")]),
    ):
        with pytest.raises(JobNameTakenError):
            await taken
    assert (await jobs.store.counts())["scheduled"] == 1, "nothing of the refused ones is there"
    await jobs.store.enqueue("h", name="n", tenant_id="other")
    await jobs.store.cancel(first)
    second = await jobs.store.enqueue("h", name="n")

    found = await jobs.store.get_by_name("n")
    assert getattr(found, "id", None) == second, "the newest of the name"
    with pytest.raises(JobNameTakenError):
        await jobs.store.rerun(first)


async def test_names_in_one_call_that_are_the_same(jobs: Jobs) -> None:
    calls = [jobs.store.enqueue("h", name="same") for _ in range(20)]
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert sum(isinstance(r, str) for r in results) == 1
    assert sum(isinstance(r, JobNameTakenError) for r in results) == 19


async def test_many_are_enqueued_in_order_or_not_at_all(jobs: Jobs, backend: str) -> None:
    assert await jobs.store.enqueue_many([]) == []
    count = support.sized(backend, 250, 50)
    ids = await jobs.store.enqueue_many([NewJob("h", n) for n in range(count)])
    claimed: List[str] = []
    while len(claimed) < count:
        claimed += [claim.id for claim in await jobs.queue.claim("w", limit=2 * count // 5)]

    assert claimed == ids
    with pytest.raises(InvalidValueError):
        await jobs.store.enqueue_many([NewJob("h"), NewJob("h", priority=101)])
    assert (await jobs.store.counts())["scheduled"] == 0


async def test_one_idempotency_key_has_one_effect(jobs: Jobs, backend: str) -> None:
    """P6: 50 concurrent callers for each of the keys; one effect and the same answer."""
    keys = [f"k{n}" for n in range(support.sized(backend, 20, 2))]

    async def caller(key: str) -> str:
        return await jobs.store.enqueue("h", {"key": key}, idempotency_key=key)

    answers = await asyncio.gather(*[caller(key) for key in keys for _ in range(50)])

    assert len(set(answers)) == len(keys)
    assert all(len(set(answers[n * 50 : n * 50 + 50])) == 1 for n in range(len(keys)))
    assert (await jobs.store.counts())["scheduled"] == len(keys)
    with pytest.raises(IdempotencyConflictError):
        await jobs.store.enqueue("h", {"key": "other"}, idempotency_key="k0")
    first = await jobs.store.enqueue_job(NewJob("h", {"key": "k0"}, idempotency_key="k0"))
    assert (first.id, first.created) == (answers[0], False)
    await jobs.store.cancel(answers[0])
    assert await jobs.store.enqueue("h", {"key": "k0"}, idempotency_key="k0") == answers[0], "final ones too"
    await jobs.store.delete(answers[0])
    assert await jobs.store.enqueue("h", "new", idempotency_key="k0") != answers[0], (
        "the key went with its job"
    )


async def test_a_unique_key_holds_until_its_job_is_final(jobs: Jobs) -> None:
    answers = await asyncio.gather(*[jobs.store.enqueue("h", n, unique_key="u") for n in range(30)])
    assert len(set(answers)) == 1
    await jobs.store.cancel(answers[0])
    again = await jobs.store.enqueue("h", unique_key="u")
    assert again != answers[0]

    windowed = await jobs.store.enqueue("h", unique_key="w", unique_window_s=3600)
    await jobs.store.cancel(windowed)
    assert await jobs.store.enqueue("h", unique_key="w", unique_window_s=3600) == windowed
    short = await jobs.store.enqueue("h", unique_key="s", unique_window_s=0)
    await jobs.store.cancel(short)
    assert await jobs.store.enqueue("h", unique_key="s") != short


async def test_both_keys_at_once(jobs: Jobs) -> None:
    held = await jobs.store.enqueue("h", unique_key="u")
    found = await jobs.store.enqueue("h", unique_key="u", idempotency_key="i")
    assert found == held
    assert await jobs.store.enqueue("h", unique_key="u", idempotency_key="i") == held, (
        "the key is that of the job found"
    )
    many = await jobs.store.enqueue_many([NewJob("h", 1, idempotency_key=k) for k in ("b", "a", "b")])
    assert many[0] == many[2] != many[1]


@pytest.mark.needs("sql")
async def test_a_job_in_a_unit_of_work_is_there_if_it_commits(jobs: Jobs) -> None:
    with pytest.raises(KeyError):
        async with jobs.storage.unit_of_work() as uow:
            await uow.jobs.enqueue("h", idempotency_key="i")
            await uow.kv.set("n", "k", 1)
            raise KeyError
    assert await jobs.queue.claim("w", limit=10) == []
    async with jobs.storage.unit_of_work() as uow:
        await uow.kv.set("n", "k", 1)
        job_id = await uow.jobs.enqueue("h", idempotency_key="i")
        assert (await uow.jobs.require(job_id)).status == "scheduled"

    assert [claim.id for claim in await jobs.queue.claim("w", limit=10)] == [job_id]


async def test_pages_of_jobs(jobs: Jobs) -> None:
    ids = await jobs.store.enqueue_many([NewJob("h", n, queue=f"q{n % 2}") for n in range(25)])
    await jobs.store.enqueue("h", tenant_id="other")
    seen: List[str] = []
    cursor = None
    while True:
        page = await jobs.store.list_jobs(limit=10, cursor=cursor)
        seen += [job.id for job in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ids[::-1]
    assert [job.id for job in await jobs.store.list_jobs(queue="q1", limit=3)] == ids[1::2][::-1][:3]
    await jobs.store.cancel(ids[3])
    assert [job.id for job in await jobs.store.list_jobs(status="cancelled")] == [ids[3]]
    page = await jobs.store.list_jobs(status="scheduled", limit=5)
    assert len(page) == 5
    for wrong in (
        {"status": "cancelled"}, {"tenant_id": "other", "status": "scheduled"}, {"queue": "q1", "status": "scheduled"}
    ):  # fmt: skip
        with pytest.raises(InvalidCursorError):
            await jobs.store.list_jobs(cursor=page.next_cursor, **wrong)
    with pytest.raises(InvalidValueError):
        await jobs.store.list_jobs(status="dead")
    assert await jobs.store.counts() == {
        "draft": 0, "scheduled": 24, "running": 0, "succeeded": 0, "failed": 0, "cancelled": 1
    }  # fmt: skip


async def test_what_is_due_next(jobs: Jobs) -> None:
    later = await jobs.store.enqueue("h", queue="a", delay_s=100)
    last = await jobs.store.enqueue("h", queue="b", priority=9, delay_s=1000)
    now = await jobs.store.enqueue("h", queue="c", priority=-9)
    await jobs.store.enqueue("h", draft=True)
    due = await jobs.store.next_due()

    assert [job.job_id for job in due] == [now, later, last]
    assert [job.job_id for job in await jobs.store.next_due(limit=1)] == [now]
    assert [job.job_id for job in await jobs.store.next_due(queue="b")] == [last]
    statistics = {s.queue: s for s in await jobs.store.queue_statistics()}
    assert (statistics["a"].scheduled, statistics["a"].due, statistics["a"].oldest_due_at) == (1, 0, None)
    assert statistics["c"].due == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"handler": ""}, {"handler": "h", "name": " "}, {"handler": "h", "queue": "a\nb"},
        {"handler": "h", "priority": 101}, {"handler": "h", "priority": True}, {"handler": "h", "payload": {1: 2}},
        {"handler": "h", "run_at": NAIVE}, {"handler": "h", "run_at": SOON, "delay_s": 1},
        {"handler": "h", "delay_s": -1}, {"handler": "h", "delay_s": float("nan")}, {"handler": "h", "timeout_s": 0},
        {"handler": "h", "concurrency_key": "k", "concurrency_limit": 0}, {"handler": "h", "unique_window_s": 1},
        {"handler": "h", "retry": RetryPolicy(0)}, {"handler": "h", "retry": RetryPolicy(retry_on=("",))},
        {"handler": "h", "keep_result_s": -1}, {"handler": "h", "task_ids": ("",)}, {"handler": "h", "retry": 3},
    ],
)  # fmt: skip
async def test_wrong_arguments_are_refused_before_anything_is_touched(storage: Any, wrong: Any) -> None:
    with pytest.raises(InvalidValueError):
        await storage.jobs.enqueue(**wrong)


async def test_two_tenants_do_not_see_each_other(jobs: Jobs) -> None:
    mine = await jobs.store.enqueue("h", name="n", unique_key="u", tenant_id="a")
    theirs = await jobs.store.enqueue("h", name="n", unique_key="u", tenant_id="b")
    assert mine != theirs
    assert await jobs.store.get(mine, tenant_id="b") is None
    for call in (jobs.store.cancel, jobs.store.rerun, jobs.store.schedule, jobs.store.list_events):
        with pytest.raises(StorageError):
            await call(mine, tenant_id="b")
    assert await jobs.store.delete(mine, tenant_id="b") is False
    narrow = jobs.store.queue(tenant_id="b")
    assert [claim.id for claim in await narrow.claim("w", limit=10)] == [theirs]
    assert await narrow.claim("w", limit=10) == []
    both = await jobs.queue.claim("w", limit=10)
    assert [(claim.tenant_id, claim.id) for claim in both] == [("a", mine)]
    with pytest.raises(StorageError):
        await narrow.complete(both[0])
    assert await jobs.queue.complete(both[0]) == "succeeded"

"""`atlas-storage jobs ...` as a user has it, with wrong input too."""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable

import pytest

from modules.job_store.records import NewJob
from modules.job_store.repository import JobStore
from modules.storage.manager import StorageManager


@pytest.fixture
def jobs(cli: Any, databases: Any) -> Any:
    """The program on a database that has all tables."""
    cli.url = databases.url("sqlite", migrated=True)
    return cli


def seed(cli: Any, work: Callable[[JobStore], Awaitable[Any]]) -> Any:
    """Do something to the jobs before the program looks at them."""

    async def run() -> Any:
        async with StorageManager({"sql": {"url": cli.url}}) as storage:
            return await work(storage.jobs)

    return asyncio.run(run())


def test_a_job_that_is_enqueued_is_there(cli_on: Any) -> None:
    words = ["mail.send", '{"to": "ada"}', "--name", "welcome", "--priority", "3", "--json"]
    made = cli_on("jobs", "enqueue", *words).json
    shown = cli_on("jobs", "show", "welcome", "--json").json
    assert (shown["id"], shown["status"]) == (made["id"], "scheduled")
    assert (shown["payload"], shown["priority"]) == ({"to": "ada"}, 3)
    assert [event["type"] for event in shown["events"]] == ["created"]


def test_a_payload_may_come_from_standard_input(jobs: Any) -> None:
    made = jobs("jobs", "enqueue", "h", "-", stdin=b'{"n": 1}').stdout.strip()
    assert seed(jobs, lambda store: store.require(made)).payload == {"n": 1}


def test_a_key_with_another_body_is_refused(jobs: Any) -> None:
    seed(jobs, lambda store: store.enqueue("h", {"n": 1}, idempotency_key="k"))
    assert "another body" in jobs("jobs", "enqueue", "h", "2", "--key", "k", code=1).stderr


def test_jobs_are_listed_newest_first(jobs: Any) -> None:
    made = seed(jobs, lambda store: store.enqueue_many([NewJob("a"), NewJob("b")]))
    assert [job["id"] for job in jobs("jobs", "list", "--json").lines] == made[::-1]


def test_a_job_is_shown_with_its_history(jobs: Any) -> None:
    made = seed(jobs, lambda store: store.enqueue("h"))
    assert "created" in jobs("jobs", "show", made).stdout


def test_a_job_is_cancelled(jobs: Any) -> None:
    seed(jobs, lambda store: store.enqueue("h", name="n"))
    words = ["cancel", "n", "--reason", "no need", "--json"]
    assert jobs("jobs", *words).json["status"] == "cancelled"


async def _cancelled(store: JobStore) -> str:
    made = await store.enqueue("h", name="n")
    await store.cancel(made)
    return made


def test_a_cancelled_job_is_not_cancelled_again(jobs: Any) -> None:
    made = seed(jobs, _cancelled)
    refused = jobs("jobs", "cancel", made, code=1)
    assert "is cancelled and cannot become cancelled" in refused.stderr


def test_a_cancelled_job_is_run_again(jobs: Any) -> None:
    made = seed(jobs, _cancelled)
    assert jobs("jobs", "retry", made, "--json").json == {"retried": 1}
    assert seed(jobs, lambda store: store.require(made)).status == "scheduled"


def _dead(cli: Any) -> str:
    async def run() -> str:
        async with StorageManager({"sql": {"url": cli.url}}) as storage:
            made = await storage.jobs.enqueue("h")
            (claim,) = await storage.job_queue.claim("w", ["default"], limit=1, lease_s=60.0)
            await storage.job_queue.fail(claim, "ValueError", "no", retry=False)
            return made

    return asyncio.run(run())


def test_dead_jobs_are_listed(jobs: Any) -> None:
    made = _dead(jobs)
    assert [job["id"] for job in jobs("jobs", "dead", "--json").lines] == [made]


def test_all_dead_jobs_are_run_again(jobs: Any) -> None:
    made = _dead(jobs)
    assert jobs("jobs", "retry", "--all-dead", "--json").json == {"retried": 1}
    assert seed(jobs, lambda store: store.require(made)).status == "scheduled"


def test_jobs_are_counted(jobs: Any) -> None:
    seed(jobs, lambda store: store.enqueue("h"))
    stats = jobs("jobs", "stats", "--json").json
    assert (stats["jobs"]["scheduled"], stats["queues"][0]["queue"]) == (1, "default")


def test_the_counts_are_a_table_for_people(jobs: Any) -> None:
    seed(jobs, lambda store: store.enqueue("h"))
    assert "default" in jobs("jobs", "stats").stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "nope"], 1, "there is no job 'nope'"),
        (["cancel", "nope"], 1, "there is no job 'nope'"),
        (["list", "--status", "dead"], 2, "a status is one of"),
        (["list", "--limit", "0"], 2, "--limit"),
        (["enqueue", "h", "--priority", "1000"], 2, "priority"),
        (["enqueue", "h", "--at", "tomorrow"], 2, "--at"),
        (["enqueue", "h", "--at", "2030-01-01T00:00:00"], 2, "time zone"),
        (["enqueue", " "], 2, "handler"),
        (["retry"], 2, "--all-dead"),
        (["retry", "x", "--all-dead"], 2, "--all-dead"),
        (["retry", "x", "--queue", "q"], 2, "--all-dead"),
    ],
)
def test_wrong_input_is_one_line(cli: Any, words: Any, code: int, said: str) -> None:
    result = cli("jobs", *words, code=code)

    assert said in result.stderr
    assert result.stderr.startswith("error:")
    assert result.stderr.count("\n") == 1

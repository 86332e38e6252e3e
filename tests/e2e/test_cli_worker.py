"""`worker` and `scheduler` as processes: wrong input, signals, what they print, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from typing import Any, List

import pytest

HANDLERS = """
import asyncio
from modules.orchestration import handler

@handler("greet")
async def greet(job):
    return "hello " + job.payload

@handler("fails")
def fails(job):
    raise ValueError("password=hunter2 is wrong")

@handler("waits")
async def waits(job):
    await asyncio.sleep(600)
"""


@pytest.fixture
def shop(cli: Any) -> Any:
    """The program in a directory with a package of handlers."""
    package = cli.directory / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "handlers.py").write_text(HANDLERS)
    (cli.directory / "empty.py").write_text("")
    (cli.directory / "broken.py").write_text("raise RuntimeError('token=hunter2')")
    return cli


def enqueue(cli: Any, *jobs: Any) -> None:
    """Put jobs into the database that the program will find in its working directory."""
    from modules.job_store.records import NewJob, RetryPolicy
    from modules.storage.manager import StorageManager

    async def work() -> None:
        url = f"sqlite:///{cli.directory / '.atlas' / 'storage.sqlite3'}"
        async with StorageManager({"sql": {"url": url}}) as storage:
            for name, payload in jobs:
                await storage.jobs.enqueue_job(NewJob(name, payload, retry=RetryPolicy(max_attempts=1)))

    asyncio.run(work())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there are no handlers: give --import"),
        (["--import", "empty"], "empty registers none"),
        (["--import", "nowhere.handlers"], "there is no module 'nowhere.handlers'"),
        (["--import", "../shop"], "no name of a module"),
        (["--import", "broken"], "raised RuntimeError"),
        (["--import", "shop.handlers", "--queues", ""], "--queues"),
        (["--import", "shop.handlers", "--queues", "a,,b"], "--queues"),
        (["--import", "shop.handlers", "--queues", "a\nb"], "queues"),
        (["--import", "shop.handlers", "--concurrency", "0"], "concurrency"),
        (["--import", "shop.handlers", "--concurrency", "many"], "--concurrency"),
        (["--import", "shop.handlers", "--lease", "0"], "lease"),
        (["--import", "shop.handlers", "--grace", "-1"], "grace"),
    ],
)
def test_wrong_input_is_one_line(shop: Any, arguments: List[str], message: str) -> None:
    result = shop("worker", "--until-idle", *arguments, code=2)

    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result
    assert message in result.stderr
    assert "hunter2" not in result.stderr


def test_it_works_off_what_is_there(shop: Any) -> None:
    enqueue(shop, ("greet", "world"), ("fails", None), ("greet", "moon"))
    result = shop("worker", "--import", "shop.handlers", "--until-idle")

    assert "fails" in result.stdout
    assert "ValueError: password=*** is wrong" in result.stdout
    assert "hunter2" not in result.stdout
    assert "2 succeeded, 1 failed" in result.stdout
    assert result.stderr == ""


def test_json_lines(shop: Any) -> None:
    enqueue(shop, ("greet", "world"))
    lines = shop("--json", "worker", "--import", "shop.handlers", "--until-idle", "--name", "w1").lines

    assert [line["event"] for line in lines] == ["started", "ended", "stopped"]
    assert lines[0]["handlers"] == ["fails", "greet", "waits"]
    assert (lines[1]["handler"], lines[1]["status"]) == ("greet", "succeeded")
    assert (lines[2]["worker"], lines[2]["succeeded"]) == ("w1", 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_order_and_gives_back_what_runs(shop: Any, number: int) -> None:
    enqueue(shop, ("waits", None))
    with _start(shop, "worker", "--import", "shop.handlers", "--grace", "0.2") as process:
        # the handler says nothing, so look at the database
        _until_running(shop)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)

    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["released"] == 1
    assert err == ""


def test_the_scheduler_makes_what_is_due(shop: Any) -> None:
    from modules.job_store.records import NewJob
    from modules.job_store.schedules import Recurrence
    from modules.storage.manager import StorageManager

    async def schedule() -> None:
        url = f"sqlite:///{shop.directory / '.atlas' / 'storage.sqlite3'}"
        async with StorageManager({"sql": {"url": url}}) as storage:
            await storage.jobs.create_schedule("hello", Recurrence(every_s=3600), NewJob("greet", "world"))

    asyncio.run(schedule())
    assert "hello: 1 job" in shop("scheduler", "--once").stdout
    assert "0 jobs made" in shop("scheduler", "--once").stdout
    assert "1 succeeded" in shop("worker", "--import", "shop.handlers", "--until-idle", "--scheduler").stdout


def _start(cli: Any, *arguments: str) -> Any:
    return subprocess.Popen(
        cli.patient("--json", *arguments),
        cwd=cli.directory,
        env=cli.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until_running(cli: Any) -> None:
    import sqlite3
    from contextlib import closing

    path = os.path.join(cli.directory, ".atlas", "storage.sqlite3")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            if connection.execute("SELECT count(*) FROM atlas_jobs WHERE status = 'running'").fetchone()[0]:
                return
        time.sleep(0.02)
    raise AssertionError("no job runs")

"""`python -m ATLAS`: everything in one process, a job is run, a signal ends it without a loss."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict

import pytest

from modules.storage.manager import StorageManager

pytest.importorskip("uvicorn", reason="the server extra is not installed")
pytest.importorskip("fastapi", reason="the server extra is not installed")

_HANDLERS = """
import pathlib
from modules.orchestration import handler

@handler("note")
async def note(job):
    pathlib.Path("note.txt").write_text(job.payload["text"])
    return "noted"
"""
_DEADLINE_S = 60.0


async def _with_jobs(path: Path, use: Callable[[Any], Awaitable[Any]]) -> Any:
    async with StorageManager({"sql": {"path": str(path)}}, background=False) as storage:
        return await use(storage.jobs)


def _metrics(url: str, path: Path) -> str:
    async def token() -> str:
        async with StorageManager({"sql": {"path": str(path)}}, background=False) as storage:
            return (await storage.access.create_token("watcher", scopes=["monitor"])).text

    request = urllib.request.Request(
        f"{url}/metrics", headers={"Authorization": f"Bearer {asyncio.run(token())}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def _until(condition: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + _DEADLINE_S
    while time.monotonic() < ends:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {_DEADLINE_S:.0f} s: {what}")


class _Running:
    """The process, and what it has said."""

    def __init__(self, cli: Any, *arguments: str) -> None:
        self.log = cli.directory / "atlas.log"
        environment: Dict[str, str] = {
            **cli.environment,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            # a machine that is busy with other tests is no store that does not answer
            "ATLAS_HEALTH_CHECK_TIMEOUT": "60",
        }
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ATLAS", *arguments],
                cwd=cli.directory,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def url(self) -> str:
        words = _until(
            lambda: [line for line in self.said().splitlines() if line.startswith("server")], self.said()
        )
        return str(words[0].split()[1])

    def ended(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(_DEADLINE_S)


def test_everything_runs_together_and_ends_together(cli: Any) -> None:
    (cli.directory / "handlers.py").write_text(_HANDLERS, encoding="utf-8")
    (cli.directory / "config.yaml").write_text("storage: {server: {port: 0}}\n", encoding="utf-8")
    running = _Running(cli, "--import", "handlers", "--no-scheduler")
    try:
        url = running.url()
        with urllib.request.urlopen(f"{url}/livez", timeout=30) as answer:
            assert answer.status == 200
        path = cli.directory / ".atlas" / "storage.sqlite3"
        assert "atlas_storage_operation_seconds_count{" in _metrics(url, path), (
            "counted without being asked to"
        )
        job = asyncio.run(_with_jobs(path, lambda jobs: jobs.enqueue("note", {"text": "done by a job"})))
        note = cli.directory / "note.txt"
        _until(lambda: note.exists() and note.read_text(encoding="utf-8") == "done by a job", running.said())
        _until(
            lambda: asyncio.run(_with_jobs(path, lambda jobs: jobs.require(job))).status == "succeeded",
            running.said(),
        )
        assert running.ended() == 0, running.said()
    finally:
        running.process.kill()
        running.process.wait()
    assert "Traceback" not in running.said()


def test_a_store_that_cannot_be_opened_is_one_line(cli: Any) -> None:
    (cli.directory / "config.yaml").write_text(
        "storage: {sql: {path: /dev/null/x.sqlite3}}\n", encoding="utf-8"
    )

    running = _Running(cli)

    assert running.process.wait(_DEADLINE_S) == 1
    assert running.said().startswith("error: ATLAS could not start")
    assert running.said().count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--import", "no_such_module"], "no_such_module"),
        (["--concurrency", "0"], "concurrency"),
        (["--nope"], "nope"),
    ],
)
def test_wrong_options_are_told(cli: Any, arguments: Any, words: str) -> None:
    running = _Running(cli, *arguments)

    assert running.process.wait(_DEADLINE_S) == 2
    assert words in running.said()
    assert "Traceback" not in running.said()

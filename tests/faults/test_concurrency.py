"""P19: no lost update, no lost or reordered message. P24: SQLite under many processes, and after a fork."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from typing import Any, Dict, List

import pytest

from modules.storage.manager import StorageManager
from modules.store_common.errors import ConcurrencyError, StorageError, WrongProcessError
from tests.support.postgres import ROOT

WRITERS, APPENDS = 50, 200


async def test_fifty_writers(storage: Any) -> None:
    """10,000 messages, each once, the sequence without gaps, each writer's own in its order."""
    await storage.conversations.create_conversation("c")

    async def write(writer: int) -> None:
        for number in range(APPENDS):
            await storage.conversations.add_message("c", "user", [writer, number])

    await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
    seen: List[Any] = []
    sequences: List[int] = []
    async for message in storage.conversations.stream_messages("c"):
        seen.append(message.content)
        sequences.append(message.sequence)
    assert sequences == list(range(1, WRITERS * APPENDS + 1))
    for writer in range(WRITERS):
        assert [number for who, number in seen if who == writer] == list(range(APPENDS))


async def test_fifty_compare_and_set(storage: Any) -> None:
    """50 callers add one with optimistic versions: 50 at the end, and nobody was told yes who had lost."""
    await storage.kv.set("ns", "counter", 0)
    refused = 0

    async def add() -> None:
        nonlocal refused
        while True:
            entry = await storage.kv.get_entry("ns", "counter")
            if await storage.kv.compare_and_set(
                "ns", "counter", entry.value + 1, expected_version=entry.version
            ):
                return
            refused += 1

    await asyncio.gather(*(add() for _ in range(50)))
    assert await storage.kv.get("ns", "counter") == 50
    assert refused >= 1, "they never met"


async def test_four_hundred_increments(storage: Any) -> None:
    answers = await asyncio.gather(*(storage.kv.increment("ns", "n") for _ in range(400)))
    assert sorted(answers) == list(range(1, 401))


async def test_appends_that_expect_a_sequence(storage: Any) -> None:
    """Of 50 callers that expect the same last sequence exactly one wins each time."""
    await storage.conversations.create_conversation("c")
    for last in range(5):
        outcomes = await asyncio.gather(
            *(storage.conversations.add_message("c", "user", n, expect=last) for n in range(50)),
            return_exceptions=True,
        )
        won = [o for o in outcomes if not isinstance(o, BaseException)]
        assert len(won) == 1
        assert all(isinstance(o, ConcurrencyError) for o in outcomes if isinstance(o, BaseException))
        assert won[0].sequence == last + 1


CHILD = """
import asyncio, sys
from modules.storage.manager import StorageManager
async def main(url, run, count):
    async with StorageManager({"sql": {"url": url, "sqlite_busy_timeout_s": 200.0}}) as manager:
        for n in range(count):
            async with manager.unit_of_work() as uow:
                await uow.kv.increment("ns", "total")
                await uow.kv.set("ns", f"{run}-{n}", n)
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.mark.timeout(400)
def test_eight_processes(databases: Any, child_environment: Dict[str, str]) -> None:
    """8 x 500 write transactions on one file, opened and migrated by all at the same time: none is refused."""
    url = databases.url("sqlite")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, url, f"p{n}", "500"],
            cwd=str(ROOT),
            env=child_environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(8)
    ]
    errors = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [0] * 8, next(e for e in errors if e)[-1500:]
    path = url.partition(":///")[2]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM atlas_kv_entries").fetchone() == (4001,)
        assert connection.execute(
            "SELECT value_json FROM atlas_kv_entries WHERE key = 'total'"
        ).fetchone() == ("4000",)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    wal = path + "-wal"
    assert not os.path.exists(wal) or os.path.getsize(wal) <= 64 * 1024 * 1024


def _in_child(manager: StorageManager, report: Any) -> None:
    async def use() -> str:
        try:
            await manager.kv.set("ns", "k", "child")
        except StorageError as exc:
            return type(exc).__name__
        return "no error"

    report.send(asyncio.run(use()))
    report.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_use_after_a_fork_is_refused(storage: Any) -> None:
    """In the child; the parent is not disturbed."""
    await storage.kv.set("ns", "k", "parent")
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(storage, theirs))
    child.start()
    theirs.close()
    try:
        answer = await asyncio.to_thread(lambda: ours.recv() if ours.poll(60) else "no answer")
    finally:
        child.kill()
        child.join()
        child.close()
        ours.close()
    assert answer == WrongProcessError.__name__
    await storage.kv.set("ns", "k2", "parent")
    assert await storage.kv.get_many("ns", ["k", "k2"]) == {"k": "parent", "k2": "parent"}

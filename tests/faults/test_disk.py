"""P2: a full disk or an I/O error is a typed error, leaves nothing half-written, and is over when it is over.

strace gives an error instead of a write or sync of SQLite's: the N-th of them (N = 1, 2, 3 ... until a run meets none), or
the N-th and all after it, or the N-th and the 25 after it. After each run a process without errors looks at the database,
in the end one writes to it. `ATLAS_TEST_FULL=1` tries every N, otherwise every 17th write and every 7th sync.

A sync that failed after the last write of a COMMIT leaves a transaction that was told as failed and may be there when the
database is opened again, whole: the error says so. Nothing told as failed by a write is ever there.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest

from modules.storage.manager import StorageManager
from tests.support.postgres import ROOT

pytestmark = pytest.mark.timeout(3000 if os.environ.get("ATLAS_TEST_FULL") else 400)

STEPS = (
    {"pwrite64": 1, "fdatasync": 1} if os.environ.get("ATLAS_TEST_FULL") else {"pwrite64": 17, "fdatasync": 7}
)
# More calls than the work of a child makes.
ALL = 420
# What a failed write may say, and a failed sync: SQLite tells the two apart, and knows no full disk in a sync.
WRITE_ERRORS = {"ENOSPC": "StorageFullError", "EIO": "StorageIOError"}
# So many runs after one another without any error: there is no later call to fail. (Some calls do no harm when they fail.)
CLEAN = 30 if os.environ.get("ATLAS_TEST_FULL") else 2


@contextmanager
def _children(strace: str, url: str, call: str, error: str, when: str, env: Dict[str, str]) -> Iterator[Any]:
    command = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:error={error}:when={when}"]
    command += [sys.executable, "-m", "tests.faults.disk_child", url, call]
    with subprocess.Popen(
        command, cwd=str(ROOT), env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n", "the children cannot be made"

            def child(run: str, burn: int) -> Dict[str, str]:
                process.stdin.write(f"{run} {burn}\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                outcomes: Dict[str, str] = json.loads(process.stdout.readline())  # type: ignore[union-attr]
                return outcomes

            yield child
        finally:
            process.stdin.close()
            process.wait(20)


def _look(path: str) -> Tuple[Set[str], Set[str]]:
    """Return the messages and keys that are there, after checks of the whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        messages = connection.execute(
            "SELECT id, sequence FROM atlas_messages WHERE conversation_id = 'c'"
        ).fetchall()
        ((last,),) = connection.execute(
            "SELECT last_sequence FROM atlas_conversations WHERE id = 'c'"
        ).fetchall()
        keys = {
            key for (key,) in connection.execute("SELECT key FROM atlas_kv_entries WHERE namespace = 'disk'")
        }
    assert sorted(sequence for _, sequence in messages) == list(range(1, last + 1)), "the sequence has gaps"
    return {name for name, _ in messages}, keys


def _compare(outcomes: Dict[str, str], messages: Set[str], keys: Set[str]) -> List[str]:
    """Compare what a child was told with what is there; returns what was told as failed and is there nevertheless."""
    unexpected = []
    for name, outcome in outcomes.items():
        kind = name[0]
        there = (
            [name in messages]
            if kind == "a"
            else [name in keys]
            if kind == "k"
            else [name in messages, name in keys]
        )
        assert len(set(there)) == 1, f"half of {name} is there ({outcome})"
        assert there[0] or outcome != "ok", f"{name} was acknowledged and is not there"
        if there[0] and outcome != "ok":
            unexpected.append(name)
    return unexpected


def _transaction(name: str) -> str:
    _, _, number = name.split("-")
    return f"batch {number[0]}" if len(number) > 1 else name


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("lasting", ["once", "a while", "from then on"])
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
async def test_an_error_of_the_disk(
    strace: str, databases: Any, tmp_path: Path, child_environment: Any, call: str, lasting: str, error: str
) -> None:
    url = databases.url("sqlite", migrated=True)
    path = url.partition(":///")[2]
    when = {"once": f"{ALL}", "a while": f"{ALL}..{ALL + 25}", "from then on": f"{ALL}+"}[lasting]
    allowed = {"ok", WRITE_ERRORS[error]} if call == "pwrite64" else {"ok", "StorageIOError"}
    seen: Counter[str] = Counter()
    runs, met, clean, nth = 0, 0, 0, 1
    with _children(strace, url, call, error, when, child_environment) as child:
        while (clean < CLEAN or not met) and nth < ALL:
            outcomes = child(f"r{nth}", ALL - nth)
            runs += 1
            assert set(outcomes.values()) <= allowed, (nth, outcomes)
            failed = [name for name, outcome in outcomes.items() if outcome != "ok"]
            met += bool(failed)
            clean = 0 if failed else clean + 1
            seen.update(outcomes.values())
            late = _compare(outcomes, *_look(path))
            seen["told as failed, and there"] += len(late)
            if lasting == "once":
                # what shares a transaction shares its fate; everything after it works again
                assert len({_transaction(name) for name in failed}) <= 1, (nth, outcomes)
            nth += STEPS[call]
        assert clean >= CLEAN, "the runs never got past the last call"
    async with StorageManager({"sql": {"url": url}}) as manager:
        await manager.kv.set("disk", "after", 1)
        assert await manager.kv.get("disk", "after") == 1
        await manager.conversations.add_message("c", "user", "after")
    print(f"{call} {error} {lasting}: {runs} runs, {dict(seen)}")
    assert met >= (runs - CLEAN) * 0.6, "hardly any error was met: this proves nothing"
    if call == "pwrite64":
        assert not seen["told as failed, and there"]

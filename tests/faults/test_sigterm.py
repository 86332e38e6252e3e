"""P23: SIGTERM under load loses nothing and really ends: exit within the grace + 2 s, no threads or tasks left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict

import pytest

from tests.support.postgres import ROOT
from tests.support.timing import assert_in_time

GRACE_S = 2.0

# A small program as users write it: a signal handler that ends the `async with` block, some load, and a task that
# ignores its cancellation for a while.
PROGRAM = """
import asyncio, os, signal, sys, threading, json
from modules.storage.manager import StorageManager

async def load(manager, worker, acks):
    n = 0
    while True:
        n += 1
        await manager.kv.set("load", f"{worker}-{n}", n)
        os.write(acks, f"{worker}-{n}\\n".encode())

async def stubborn():
    for _ in range(3):
        try:
            await asyncio.sleep(0.5)
        except asyncio.CancelledError:
            continue

async def main(url, path):
    acks = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with StorageManager({"sql": {"url": url, "auto_migrate": False}}) as manager:
        tasks = [asyncio.create_task(load(manager, w, acks)) for w in range(8)]
        tasks.append(asyncio.create_task(stubborn()))
        await stop.wait()
        for task in tasks[:-1] if sys.argv[3] == "calm" else tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=float(sys.argv[4]))
    for _ in range(1000):  # a thread that has said its last word needs a moment to end
        left = [t.name for t in threading.enumerate() if t is not threading.main_thread()]
        if not left:
            break
        await asyncio.sleep(0.01)
    others = [repr(t) for t in asyncio.all_tasks() if t is not asyncio.current_task() and "stubborn" not in repr(t)]
    print(json.dumps({"threads": left, "tasks": others}), flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
@pytest.mark.parametrize("how", ["calm", "stubborn", "twice"])
def test_sigterm_under_load(
    backend: str, how: str, databases: Any, tmp_path: Path, child_environment: Dict[str, str]
) -> None:
    url = databases.url(backend, migrated=True)
    acks = tmp_path / "acks"
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(acks), how, str(GRACE_S)],
        cwd=str(ROOT),
        env=child_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 60
        while not acks.exists() or acks.read_bytes().count(b"\n") < 200:
            assert time.monotonic() < end, "the program does not write"
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        if how == "twice":
            time.sleep(0.05)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert_in_time(started, GRACE_S + 2.0, "an orderly end")
    # a second signal that comes when the loop has ended and said its last word finds nobody who handles it
    late = how == "twice" and out.endswith("\n") and process.returncode == -signal.SIGTERM
    assert process.returncode == 0 or late, err
    assert json.loads(out) == {"threads": [], "tasks": []}
    assert "Task was destroyed" not in err
    acknowledged = set(acks.read_text().split())
    stored = _keys(url, backend)
    assert len(acknowledged) >= 200
    assert not acknowledged - stored, "acknowledged and lost"


def _keys(url: str, backend: str) -> Any:
    sql = "SELECT key FROM atlas_kv_entries WHERE namespace = 'load'"
    if backend == "sqlite":
        import sqlite3
        from contextlib import closing

        with closing(sqlite3.connect(url.partition(":///")[2])) as connection:
            return {key for (key,) in connection.execute(sql)}
    import psycopg

    with psycopg.connect(url) as session:
        return {key for (key,) in session.execute(sql).fetchall()}

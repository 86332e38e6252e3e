"""P1: an acknowledged write survives `kill -9` of the process, and of the server.

Children are killed by strace at chosen system calls (see `zygote`): the writes and syncs of SQLite, the sends of a
PostgreSQL client. After each kill the database must hold everything that was acknowledged, whole units of work only, a
gapless conversation, and pass its integrity check.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set, Tuple

import pytest

from tests.support.postgres import ROOT

#: Runs queries in one snapshot: a PostgreSQL server may still be committing what a killed client had sent.
pytestmark = pytest.mark.timeout(400)  # two hundred processes each; 20 s alone on the machine

Fetch = Callable[[List[str]], List[List[Tuple[Any, ...]]]]
QUERIES = [
    "SELECT id, sequence FROM atlas_messages WHERE conversation_id = 'c'",
    "SELECT namespace, key FROM atlas_kv_entries",
    "SELECT last_sequence FROM atlas_conversations WHERE id = 'c'",
    "SELECT id FROM atlas_tasks",
    "SELECT task_id FROM atlas_task_events WHERE type = 'created'",
]


def _check(fetch: Fetch, acks: Path) -> int:
    """Compare the database with the acknowledgements; returns how many there were."""
    told: Dict[str, Set[str]] = {"a": set(), "k": set(), "u": set()}
    lines = acks.read_text().splitlines()
    for line in lines:
        kind, _, name = line.partition(" ")
        told[kind].add(name)
    messages, entries, ((last,),), tasks, events = fetch(QUERIES)
    ids = {name for name, _ in messages}
    keys = set(entries)
    lost = {f"a-{n}" for n in told["a"]} - ids
    lost |= {f"k-{n}" for n in told["k"] if ("kill", n) not in keys}
    lost |= {f"u-{n}" for n in told["u"] if f"u-{n}" not in ids or ("unit", n) not in keys}
    lost |= {f"u-{n}" for n in told["u"]} - {name for (name,) in tasks}
    assert not lost, f"acknowledged and lost: {sorted(lost)[:5]} ({len(lost)})"
    halves = {n[2:] for n in ids if n.startswith("u-")} ^ {key for space, key in keys if space == "unit"}
    assert not halves, f"half a unit of work: {sorted(halves)[:5]}"
    assert sorted(tasks) == sorted(events), "a task without its event"
    assert {name for (name,) in tasks} == {n for n in ids if n.startswith("u-")}, "half a unit of work"
    assert sorted(sequence for _, sequence in messages) == list(range(1, last + 1)), "the sequence has gaps"
    return len(lines)


@contextmanager
def _snapshots(url: str) -> Iterator[Fetch]:
    import psycopg

    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def fetch(queries: List[str]) -> List[List[Tuple[Any, ...]]]:
            with connection.transaction():
                return [connection.execute(sql).fetchall() for sql in queries]  # type: ignore[arg-type]

        yield fetch


@contextmanager
def _zygote(
    strace: str, call: str, when: int, url: str, acks: Path, environment: Dict[str, str]
) -> Iterator[Any]:
    # strace must list the injected call in trace= as well; its report is not wanted
    command = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    command += ["-e", f"inject={call}:signal=SIGKILL:when={when}"]
    command += [sys.executable, "-m", "tests.faults.zygote", url, call, str(acks)]
    with subprocess.Popen(
        command,
        cwd=str(ROOT),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n", "the children cannot be made"

            def child(run: str, burn: int) -> int:
                process.stdin.write(f"{run} {burn}\n")  # type: ignore[union-attr]
                process.stdin.flush()  # type: ignore[union-attr]
                return int(process.stdout.readline())  # type: ignore[union-attr]

            yield child
        finally:
            process.stdin.close()
            process.wait(20)


def _kill_at(
    points: int, call: str, when: int, strace: str, url: str, tmp_path: Path, env: Any, fetch: Fetch
) -> int:
    """Kill `points` children, spread over the first `when` calls; returns how many kills landed."""
    acks = tmp_path / "acks"
    choose = random.Random(1)
    burns = [n * when // points for n in range(points)]
    choose.shuffle(burns)
    landed, acknowledged = 0, 0
    with _zygote(strace, call, when, url, acks, env) as child:
        for number, burn in enumerate(burns):
            status = child(f"r{number}", burn)
            assert status in (0, signal.SIGKILL), f"the child failed by itself: {status}"
            landed += status == signal.SIGKILL
            acknowledged = _check(fetch, acks)
    print(f"{call}: {landed} kills landed of {points}, {acknowledged} acknowledged, 0 lost")
    assert acknowledged >= points, "hardly anything was acknowledged: this proves nothing"
    return landed


@pytest.mark.parametrize(("call", "points", "when"), [("pwrite64", 130, 195), ("fdatasync", 70, 70)])
def test_sqlite_client(
    strace: str, databases: Any, tmp_path: Path, child_environment: Any, call: str, points: int, when: int
) -> None:
    url = databases.url("sqlite", migrated=True)
    path = url.partition(":///")[2]

    def fetch(queries: List[str]) -> List[List[Tuple[Any, ...]]]:
        with closing(sqlite3.connect(path)) as connection:
            return [connection.execute(sql).fetchall() for sql in queries]

    landed = _kill_at(points, call, when, strace, url, tmp_path, child_environment, fetch)
    assert landed >= points * 0.95
    assert fetch(["PRAGMA integrity_check"]) == [[("ok",)]]


@pytest.mark.postgresql
def test_postgresql_client(
    strace: str, databases: Any, postgres: Any, tmp_path: Path, child_environment: Any
) -> None:
    url = databases.url("postgresql", migrated=True)
    with _snapshots(url) as fetch:
        landed = _kill_at(200, "sendto", 200, strace, url, tmp_path, child_environment, fetch)
    assert landed >= 190


@pytest.mark.postgresql
def test_postgresql_server(own_server: Any, tmp_path: Path, child_environment: Any) -> None:
    """SIGKILL to every process of the server while a client writes; after recovery everything is there."""
    database = own_server.new_database()
    acks = tmp_path / "acks"
    url = own_server.cluster.url(database)
    choose = random.Random(2)
    met = 0
    for number in range(8):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote", url, "sendto", str(acks), "1000000"],
            cwd=str(ROOT),
            env=child_environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            before = len(acks.read_text().splitlines())
            process.stdin.write(f"s{number} 0\n")
            process.stdin.flush()
            wanted = before + choose.randrange(5, 60)
            _wait_for_lines(acks, wanted)
            own_server.cluster.kill()
            process.stdin.close()
            met += process.stdout.readline().strip() == "256"  # the child's exit code 1: it met the kill
        own_server.cluster.start()
        with _snapshots(url) as fetch:
            acknowledged = _check(fetch, acks)
    print(f"server: {met} of 8 kills met a writing client, {acknowledged} acknowledged, 0 lost")
    assert met == 8


def _wait_for_lines(path: Path, count: int) -> None:
    import time

    end = time.monotonic() + 60
    while path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end, "the client does not write"
        time.sleep(0.001)

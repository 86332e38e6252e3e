"""P13: cancellation at any point leaks nothing.

Where a cancellation lands is read from the cancelled task's own stack just before; each phase must be hit often. Giving a
connection back has no await in it, so nothing can be cancelled there; the test holds it to that.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections import Counter
from typing import Any, Dict, List, Optional

import pytest

from modules.storage.backends.sqlite_calls import CallState
from modules.store_common.errors import StorageError
from tests.support.leaks import wait_until
from tests.support.probe import add_pair, create_probe, probe_ids, slow_read

HITS = 50


def _frames(task: asyncio.Task[Any]) -> List[Any]:
    """Return the frames of a waiting task, outermost first."""
    found = []
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            found.append(frame)
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
    return found


def _postgresql_phase(task: asyncio.Task[Any]) -> Optional[str]:
    frames = _frames(task)
    for frame in frames:
        name, local = frame.f_code.co_name, frame.f_locals
        if name == "control":
            return {"B": "begin", "C": "commit", "R": "rollback"}[local["verb"][0]]
        if name == "_connect":
            return "connect"
        if name == "_wait":
            return "checkout"
        if name == "_usable":
            return "ping"
    names = {frame.f_code.co_name for frame in frames}
    return "query" if names & {"add_pair", "slow_read"} else None


async def _cancel_in(phase: str, task: asyncio.Task[Any]) -> bool:
    """Cancel the task as soon as it is in `phase`; False when it ended before."""
    while not task.done():
        if _postgresql_phase(task) == phase:
            task.cancel()
            return True
        await asyncio.sleep(0)
    return False


async def _ended(tasks: Dict[str, asyncio.Task[Any]]) -> Counter[str]:
    await asyncio.wait(list(tasks.values()))
    return Counter(
        "cancelled" if t.cancelled() else "error" if t.exception() else "done" for t in tasks.values()
    )


@pytest.mark.postgresql
async def test_every_phase_of_a_postgresql_call(databases: Any, postgres: Any, leaks: Any) -> None:
    pool = _pool(databases.url("postgresql"), size=2, overflow=2)
    leaks.database(pool.settings.get_url(), postgres)
    await pool.initialize()
    hits: Counter[str] = Counter()
    swallowed: Counter[str] = Counter()
    acknowledged = set()
    try:
        await pool.executor.run(create_probe)
        number = 0
        for phase in ("connect", "checkout", "begin", "query", "commit"):
            attempts = 0
            while hits[phase] < HITS and attempts < HITS * 12:
                attempts += 1
                if phase == "connect":
                    pool.executor.pool().shrink()
                company = 6 if phase == "checkout" else 0
                names = [f"{phase}-{number + n}" for n in range(company + 1)]
                number += company + 1
                tasks = {name: asyncio.create_task(pool.executor.run(add_pair, name)) for name in names}
                victim = names[-1]
                landed = await _cancel_in(phase, tasks[victim])
                await _ended(tasks)
                hits[phase] += landed
                if landed and not tasks[victim].cancelled():
                    swallowed[phase] += 1
                acknowledged |= {n for n, t in tasks.items() if not t.cancelled() and t.exception() is None}
        # connections in doubt are closed in the background, a second at most
        await wait_until(lambda: pool.statistics()["in_use"] == 0, 60, "connections left out")
        assert pool.statistics()["waiting"] == 0, pool.statistics()
        rows = await pool.executor.run(probe_ids)
        counts = Counter(name for name, _ in rows)
        name = pool.settings.get_url().partition("?")[0].rpartition("/")[2]
        await wait_until(
            lambda: (
                not [w for w in postgres.connections(name).values() if w.startswith("idle in transaction")]
            ),
            60,
        )
        # every slot of the pool can still be used, all at once
        await asyncio.wait_for(asyncio.gather(*(pool.executor.run(slow_read) for _ in range(8))), 60)
    finally:
        await pool.shutdown()
    print("hits:", dict(hits))
    assert all(hits[phase] >= HITS for phase in ("connect", "checkout", "begin", "query", "commit")), hits
    assert not swallowed, f"the cancellation was swallowed: {swallowed}"
    assert set(counts.values()) <= {2}, "a transaction was half applied"
    assert acknowledged <= set(counts)
    assert not [
        n
        for n in counts
        if n.startswith(("connect-", "checkout-", "begin-", "query-")) and n not in acknowledged
    ]


def test_giving_a_connection_back_cannot_be_cancelled() -> None:
    pytest.importorskip("asyncpg")
    from modules.storage.backends.postgresql_pool import PostgresPool

    assert not inspect.iscoroutinefunction(PostgresPool.release)


async def test_random_moments(pool: Any) -> None:
    """On every backend: writes are whole, acknowledged ones are there, nothing stays behind (the fixture looks)."""
    await pool.executor.run(create_probe)
    choose = random.Random(13)
    outcomes: Counter[str] = Counter()
    acknowledged = set()
    round_number = -1
    # 40 rounds bring more than that of each, unless the machine has its own mind
    while round_number < 40 or (min(outcomes["cancelled"], outcomes["done"]) < HITS and round_number < 1000):
        round_number += 1
        names = [f"{round_number}-{n}" for n in range(10)]
        tasks = {name: asyncio.create_task(pool.executor.run(add_pair, name)) for name in names}
        reads = [asyncio.create_task(pool.executor.run(slow_read)) for _ in range(3)]
        for _ in range(choose.randrange(12)):
            await asyncio.sleep(0)
        if choose.random() < 0.5:
            await asyncio.sleep(choose.random() * 0.004)
        for task in [*tasks.values(), *reads]:
            if choose.random() < 0.6:
                task.cancel()
        outcomes += await _ended(tasks)
        await asyncio.wait(reads)
        acknowledged |= {n for n, t in tasks.items() if not t.cancelled() and t.exception() is None}
    counts = Counter(name for name, _ in await pool.executor.run(probe_ids))
    assert outcomes["cancelled"] >= HITS, outcomes
    assert outcomes["done"] >= HITS, outcomes
    assert not outcomes["error"], outcomes
    assert set(counts.values()) == {2}
    assert acknowledged <= set(counts)


async def test_sqlite_calls_that_wait_and_calls_under_way(databases: Any, leaks: Any) -> None:
    """A cancelled call that waits is dropped; one that has started is finished and its result thrown away."""
    pool = _pool(databases.url("sqlite"))
    leaks.database(pool.settings.get_url())
    await pool.initialize()
    hits: Counter[str] = Counter()
    try:
        await pool.executor.run(create_probe)
        dropped, number = [], 0
        end = time.monotonic() + 60
        while (hits["queued"] < HITS or hits["started"] < HITS) and time.monotonic() < end:
            number += 1
            task = asyncio.create_task(pool.executor.run(add_pair, f"n{number}"))
            await asyncio.sleep(0)
            if number % 2:
                await asyncio.sleep(0.0002)
            call = next((f.f_locals["self"] for f in _frames(task) if f.f_code.co_name == "result"), None)
            if call is None:
                await task
                continue
            task.cancel()
            await asyncio.wait([task])
            if call.state is CallState.DROPPED:
                hits["queued"] += 1
                dropped.append(f"n{number}")
            elif task.cancelled():
                hits["started"] += 1
        counts = Counter(name for name, _ in await pool.executor.run(probe_ids))
    finally:
        await pool.shutdown()
    print("hits:", dict(hits))
    assert hits["queued"] >= HITS, hits
    assert hits["started"] >= HITS, hits
    assert set(counts.values()) == {2}
    assert not set(dropped) & set(counts), "a dropped call was run"


@pytest.mark.postgresql
async def test_a_cancelled_call_on_a_frozen_server_ends(own_server: Any, leaks: Any) -> None:
    """Cancelling must not wait for the server, and must not be swallowed, wherever the call hangs."""
    pool = _pool(own_server.cluster.url(own_server.new_database()), size=2, overflow=1)
    await pool.initialize()
    landed: Counter[str] = Counter()
    try:
        await pool.executor.run(create_probe)
        for cold in (False, True, False, True):
            await pool.executor.run(probe_ids)
            if cold:
                pool.executor.pool().shrink()
            own_server.cluster.freeze()
            try:
                tasks = {
                    f"t{cold}{n}": asyncio.create_task(pool.executor.run(add_pair, f"{cold}{n}"))
                    for n in range(6)
                }
                await asyncio.sleep(0.05)
                landed.update(str(_postgresql_phase(task)) for task in tasks.values())
                for task in tasks.values():
                    task.cancel()
                done, pending = await asyncio.wait(list(tasks.values()), timeout=15.0)
                assert not pending, "a cancelled call waits for the frozen server"
                assert all(task.cancelled() for task in done)
            finally:
                own_server.cluster.thaw()
            await wait_until(lambda: pool.statistics()["in_use"] == 0, 60, "connections left out")
    finally:
        await pool.shutdown()
    assert {"begin", "connect", "checkout"} <= set(landed), landed


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_a_cancelled_unit_of_work(storage: Any, how: str) -> None:
    """Nothing of it is kept, and the stores work on at once."""
    choose = random.Random(7)

    async def work(number: int) -> None:
        async with storage.unit_of_work() as uow:
            await uow.kv.set("unit", f"{number}-a", 1)
            await asyncio.sleep(0.002)
            await uow.kv.set("unit", f"{number}-b", 1)

    done = 0
    for number in range(60):
        delay = choose.random() * 0.008
        if how == "timeout":
            try:
                await asyncio.wait_for(work(number), delay)
                done += 1
            except asyncio.TimeoutError:
                pass
        else:
            task = asyncio.create_task(work(number))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.wait([task])
            done += not task.cancelled()
            if not task.cancelled() and task.exception() is not None:
                assert not isinstance(task.exception(), StorageError), task.exception()
    page = await storage.kv.list("unit", limit=200)
    keys = {entry.key for entry in page.entries}
    assert 60 - done > 0
    for number in range(60):
        assert (f"{number}-a" in keys) == (f"{number}-b" in keys), number
    await storage.kv.set("unit", "after", 1)


def _pool(url: str, size: int = 5, overflow: int = 10) -> Any:
    from modules.storage.pool import SQLPool
    from modules.storage.settings import StorageSettings

    settings = StorageSettings.from_dict(
        {"sql": {"url": url, "pool": {"size": size, "max_overflow": overflow}}}
    )
    return SQLPool(settings.sql)

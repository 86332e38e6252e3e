"""The worker's own threads: bounded, reused, replaced when a call is given up, gone after close."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, AsyncIterator, List

import pytest

from modules.orchestration.threads import HandlerThreads
from tests.support.leaks import LeakWatch, wait_until


@pytest.fixture
async def pool(leaks: LeakWatch) -> AsyncIterator[HandlerThreads]:
    made = HandlerThreads(2, "test-handler", spare=1)
    yield made
    made.close()
    made.join(1)


async def test_calls_run_in_at_most_as_many_threads(pool: HandlerThreads) -> None:
    seen: List[str] = []
    together = threading.Barrier(2)

    def call() -> str:
        together.wait(60)
        seen.append(threading.current_thread().name)
        return threading.current_thread().name

    names = await asyncio.gather(*[pool.submit(call).future for _ in range(8)])

    assert set(names) <= {"test-handler-1", "test-handler-2"}
    assert len(seen) == 8


async def test_errors_come_back(pool: HandlerThreads) -> None:
    def fails() -> None:
        raise KeyError("a")

    def ends() -> None:
        raise SystemExit(3)

    def stops() -> None:
        raise StopIteration

    with pytest.raises(KeyError):
        await pool.submit(fails).future
    with pytest.raises(RuntimeError, match="SystemExit"):
        await pool.submit(ends).future
    with pytest.raises(RuntimeError, match="StopIteration"):
        await pool.submit(stops).future
    assert await pool.submit(lambda: 1).future == 1


async def test_a_call_that_is_given_up_is_replaced_within_the_bound(pool: HandlerThreads) -> None:
    release = threading.Event()
    stuck = [pool.submit(lambda: release.wait(60)) for _ in range(2)]
    await wait_until(lambda: all(call.started for call in stuck), 60)
    waiting = pool.submit(lambda: "ran")

    assert pool.abandon(stuck[0])
    assert await waiting.future == "ran"
    assert pool.abandoned == 1
    assert stuck[0].future.cancelled()

    assert pool.abandon(stuck[1])
    assert not pool.exhausted  # one spare thread is left
    last = pool.submit(lambda: release.wait(60))
    await wait_until(lambda: last.started, 60)
    assert pool.abandon(last)
    assert pool.exhausted
    held = pool.submit(lambda: "held back")
    assert not held.started

    release.set()
    assert await held.future == "held back"
    await wait_until(lambda: pool.abandoned == 0, 60)


async def test_a_call_that_has_not_begun_is_only_taken_out(pool: HandlerThreads) -> None:
    release = threading.Event()
    busy = [pool.submit(lambda: release.wait(60)) for _ in range(2)]
    ran: List[Any] = []
    waiting = pool.submit(lambda: ran.append(1))

    assert not pool.abandon(waiting)
    release.set()
    await asyncio.gather(*[call.future for call in busy])
    assert await pool.submit(lambda: 2).future == 2
    assert ran == []


async def test_a_loop_that_is_gone_is_no_error_in_the_thread() -> None:
    release = threading.Event()
    made: List[HandlerThreads] = []

    async def start() -> None:
        made.append(HandlerThreads(1, "test-gone"))
        made[0].submit(lambda: release.wait(60))

    await asyncio.to_thread(lambda: asyncio.run(start()))
    thread = next(t for t in threading.enumerate() if t.name == "test-gone-1")
    made[0].close()
    release.set()
    await asyncio.to_thread(thread.join, 60)

    assert not thread.is_alive()

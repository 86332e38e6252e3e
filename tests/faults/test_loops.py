"""P25: several event loops get right behaviour or a clear error, never a hang. P26: we never block the event loop."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any, Callable, Iterator, List

import pytest

from modules.storage.manager import StorageManager
from tests.support.probe import slow_read

HANG_S = 30


def _in_thread(function: Callable[[], Any]) -> Any:
    """Run `function` in a thread of its own; a hang fails the test instead of stopping the run."""
    outcome: List[Any] = []

    def work() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as exc:
            outcome.append((None, exc))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(HANG_S)
    assert not thread.is_alive(), "it hangs"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def test_made_outside_a_loop_and_used_in_two(migrated_settings: Any) -> None:
    """Opened and closed in one loop, then the same object in the next."""
    manager = StorageManager(migrated_settings)

    async def use(value: int) -> Any:
        async with manager:
            await manager.kv.set("ns", f"k{value}", value)
            return await manager.kv.get("ns", f"k{value}")

    assert [_in_thread(lambda v=v: asyncio.run(use(v))) for v in range(4)] == [0, 1, 2, 3]


async def test_open_and_used_by_other_loops_at_the_same_time(storage: Any) -> None:
    """Four threads, each with a loop of its own, beside the loop that opened it."""

    async def use(name: str) -> int:
        await asyncio.gather(*(storage.kv.set("ns", f"{name}-{n}", n) for n in range(50)))
        async with storage.unit_of_work() as uow:
            await uow.kv.increment("ns", "units")
        return len(await storage.kv.get_many("ns", [f"{name}-{n}" for n in range(50)]))

    others = [asyncio.to_thread(_in_thread, lambda n=n: asyncio.run(use(f"t{n}"))) for n in range(4)]
    assert await asyncio.wait_for(asyncio.gather(use("main"), *others), HANG_S) == [50] * 5
    assert await storage.kv.get("ns", "units") == 5


def test_a_loop_that_ends_without_shutdown(migrated_settings: Any) -> None:
    """The first loop is closed with the manager open; the second loop can still use it and shut it down."""
    manager = StorageManager(migrated_settings)

    async def first() -> None:
        await manager.initialize()
        await manager.kv.set("ns", "k", 1)

    async def second() -> Any:
        value = await manager.kv.get("ns", "k")
        await manager.shutdown()
        return value

    _in_thread(lambda: asyncio.run(first()))
    assert _in_thread(lambda: asyncio.run(second())) == 1


class _LagProbe:
    """How late the loop wakes up from 2 ms sleeps, in seconds."""

    def __init__(self) -> None:
        self.lags: List[float] = []
        self._task: Any = None

    async def __aenter__(self) -> _LagProbe:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            self.lags.append(time.perf_counter() - before - 0.002)

    def p99_ms(self) -> float:
        return sorted(self.lags)[int(len(self.lags) * 0.99)] * 1000


def _messages(count: int) -> Iterator[Any]:
    for n in range(count):
        yield {"id": f"m{n}", "role": "user", "content": f"message {n} about apples and pears " * 5}


async def test_the_loop_is_not_blocked_by_import_and_search(storage: Any) -> None:
    """10,000 messages imported, searched and streamed, beside a probe of the loop."""
    async with _LagProbe() as probe:
        await storage.conversations.import_conversation({"id": "c"}, _messages(10_000))
        for _ in range(5):
            await storage.conversations.search_messages("apples pears")
        count = 0
        async for _ in storage.conversations.stream_messages("c"):
            count += 1
    print(f"lag p99 {probe.p99_ms():.1f} ms of {len(probe.lags)} wake-ups")
    assert count == 10_000
    assert len(probe.lags) >= 50
    assert probe.p99_ms() <= 50


async def test_eighteen_slow_calls_at_once(storage: Any) -> None:
    """They do not block the loop, and a health check beside them answers within 100 ms."""
    await storage.health_check()
    slow = [asyncio.create_task(storage.executor.run(slow_read)) for _ in range(18)]
    async with _LagProbe() as probe:
        started = time.perf_counter()
        status = await storage.health_check()
        took_ms = (time.perf_counter() - started) * 1000
        await asyncio.gather(*slow)
        await asyncio.sleep(0.05)
    print(f"health check {took_ms:.0f} ms, lag p99 {probe.p99_ms():.1f} ms")
    assert took_ms <= 100
    assert probe.p99_ms() <= 50
    assert json.dumps(status.to_dict())


@pytest.mark.parametrize("callers", [100])
async def test_a_hundred_first_calls_open_once(migrated_settings: Any, leaks: Any, callers: int) -> None:
    manager = StorageManager(migrated_settings)
    await asyncio.gather(*(manager.initialize() for _ in range(callers)))
    await manager.kv.set("ns", "k", 1)
    await asyncio.gather(*(manager.shutdown() for _ in range(callers)))
    assert not manager.is_initialized

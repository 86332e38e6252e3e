"""`OpenOnce` and `run_in_thread`: one attempt at a time, shared by every task, loop and thread that asks."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from modules.storage.opening import OpenOnce, run_in_thread


class Door:
    def __init__(self) -> None:
        self.once = OpenOnce()
        self.is_open = False
        self.attempts = 0
        self.error: Any = None
        self.gate = asyncio.Event()

    async def open(self) -> None:
        self.attempts += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.is_open = True

    async def run(self) -> None:
        await self.once.run(lambda: self.is_open, self.open)


async def _ask(door: Door, count: int) -> Any:
    tasks = [asyncio.create_task(door.run()) for _ in range(count)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


async def test_many_ask_one_opens() -> None:
    door = Door()
    tasks = await _ask(door, 100)
    door.gate.set()
    await asyncio.gather(*tasks)
    await door.run()
    assert door.attempts == 1


async def test_a_failure_is_shared_and_can_be_repeated() -> None:
    door = Door()
    door.error = OSError("no")
    tasks = await _ask(door, 10)
    door.gate.set()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in done} == {OSError}
    assert door.attempts == 1
    door.error = None
    await door.run()
    assert (door.attempts, door.is_open) == (2, True)


async def test_when_the_opener_is_cancelled_one_of_the_others_opens() -> None:
    door = Door()
    tasks = await _ask(door, 5)
    tasks[0].cancel()
    tasks[3].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    door.gate.set()
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert [type(result) for result in done] == [
        asyncio.CancelledError,
        type(None),
        type(None),
        asyncio.CancelledError,
        type(None),
    ]
    assert door.attempts == 2


async def test_several_event_loops() -> None:
    """Made outside of every loop; nothing in it is bound to one (Python 3.9)."""
    once = OpenOnce()
    opened = []
    barrier = threading.Barrier(6)

    async def opener() -> None:
        await asyncio.sleep(0.01)
        opened.append(1)

    def work() -> None:
        barrier.wait(60)
        asyncio.run(once.run(lambda: bool(opened), opener))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join(60) for thread in threads])
    assert opened == [1]


async def test_run_in_thread() -> None:
    here = threading.get_ident()
    assert await run_in_thread(threading.get_ident) != here
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda: 1 / 0)


async def test_run_in_thread_lets_a_cancellation_pass() -> None:
    gate, started = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> None:
        loop.call_soon_threadsafe(started.set)
        gate.wait(60)

    task = asyncio.create_task(run_in_thread(work))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()

"""SQLite: what passed its deadline is stopped, also between two statements, and also when its caller has gone.

`sqlite3_interrupt` alone stops a statement that runs; an operation of many short ones would go on.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, AsyncIterator, List

import pytest

from modules.storage.operations import Transaction, read, write
from modules.storage.pool import SQLPool
from modules.store_common.deadlines import deadline
from modules.store_common.errors import DeadlineExceededError
from tests.support.leaks import wait_until

from . import scratch


@pytest.fixture(params=["sqlite", "sqlite-memory"])
async def things(request: Any, databases: Any, leaks: Any) -> AsyncIterator[Any]:
    pool = SQLPool(scratch.wide_settings(databases.url(request.param)).sql)
    await pool.initialize()
    await scratch.create_things(pool)
    yield pool
    await pool.shutdown()


class Endless:
    """An operation of short statements without end; notes how it ended."""

    def __init__(self, kind: Any) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()
        self.errors: List[BaseException] = []

        async def go_on(tx: Transaction) -> None:
            number = 1_000_000
            try:
                while True:
                    self.started.set()
                    number += 1
                    if kind is write:
                        await scratch.add(tx, number, f"n{number}")
                    else:
                        await scratch.count(tx)
            except BaseException as exc:
                self.errors.append(exc)
                raise
            finally:
                self.ended.set()

        self.operation: Any = kind(go_on)

    async def has_ended(self) -> None:
        assert await asyncio.to_thread(self.ended.wait, 60), "it goes on"
        assert [type(error) for error in self.errors] == [DeadlineExceededError]


@pytest.mark.parametrize("kind", [read, write])
async def test_an_operation_of_short_statements_is_stopped(things: Any, kind: Any) -> None:
    endless = Endless(kind)
    while not endless.started.is_set():  # on a busy machine its time may be over before it begins
        with deadline(0.5), pytest.raises(DeadlineExceededError):
            await things.executor.run(endless.operation)
    await endless.has_ended()
    assert await things.executor.run(scratch.names) == []
    assert await things.executor.run(scratch.add, 1, "one") == 1


async def test_one_whose_caller_was_cancelled_is_stopped_too(things: Any) -> None:
    while True:
        endless = Endless(write)
        with deadline(1.0):
            task = asyncio.ensure_future(things.executor.run(endless.operation))
        await wait_until(lambda: endless.started.is_set() or task.done(), 60)  # noqa: B023 - awaited here
        left = task.cancel()
        await asyncio.wait([task])
        if left:
            break
        # on a busy machine its time may be over before its caller goes
        assert isinstance(task.exception(), DeadlineExceededError)
    assert task.cancelled()
    await endless.has_ended()
    assert await things.executor.run(scratch.add, 1, "one") == 1


async def test_one_in_a_unit_of_work_is_stopped(things: Any) -> None:
    endless = Endless(write)
    loop = asyncio.get_running_loop()
    while not endless.started.is_set():  # on a busy machine its time may be over before it begins
        unit = things.executor.unit(loop.time() + 1.0)
        with pytest.raises(DeadlineExceededError):
            await unit.run(endless.operation, (), {})
        if endless.started.is_set():
            await endless.has_ended()
        await unit.rollback()
    assert await things.executor.run(scratch.names) == []


async def test_the_next_call_is_not_stopped(things: Any) -> None:
    """The order to stop is for the call that is under way, not for the thread."""
    for number in range(20):
        endless = Endless(write)
        with deadline(0.02), pytest.raises(DeadlineExceededError):
            await things.executor.run(endless.operation)
        assert await things.executor.run(scratch.add, number, str(number)) == number

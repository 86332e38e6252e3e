"""The SQLite writer's group commit and the reader: who gets which outcome when a batch meets trouble.

The writer is held by one call while others gather behind it, so that they make one batch.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, List

import pytest

from modules.storage.pool import SQLPool
from modules.store_common.deadlines import deadline
from modules.store_common.errors import (
    AlreadyExistsError,
    ConstraintError,
    DeadlineExceededError,
    OverloadedError,
    StorageError,
)
from tests.support.leaks import wait_until

from . import scratch


@pytest.fixture(params=["sqlite", "sqlite-memory"])
async def things(request: Any, databases: Any, leaks: Any) -> AsyncIterator[Any]:
    pool = SQLPool(scratch.wide_settings(databases.url(request.param)).sql)
    await pool.initialize()
    await scratch.create_things(pool)
    yield pool
    await pool.shutdown()


@asynccontextmanager
async def writer_held(pool: Any) -> AsyncIterator[None]:
    started, gate = threading.Event(), threading.Event()
    busy = asyncio.create_task(pool.executor.run(scratch.hold, started, gate))
    assert await asyncio.to_thread(started.wait, 60)
    try:
        yield
    finally:
        gate.set()
        await busy


async def _gather(pool: Any, *calls: Any) -> List[Any]:
    """Run the calls as one batch of the writer; returns results and exceptions."""
    async with writer_held(pool):
        before = pool.statistics()["writer_batches"]
        tasks = [asyncio.create_task(pool.executor.run(*call)) for call in calls]
        await asyncio.sleep(0)
        assert pool.statistics()["writer_waiting"] == len(calls)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
    assert pool.statistics()["writer_batches"] == before + 1, "they made one batch"
    return results


async def test_what_waits_in_the_queue_is_counted_with_its_time(things: Any) -> None:
    before = things.statistics()
    async with writer_held(things):
        call = asyncio.create_task(things.executor.run(scratch.add, 1, "one"))
        turn = asyncio.create_task(things.executor.call_bare(lambda connection: None))
        await asyncio.sleep(0)
        began = time.monotonic()
        await wait_until(lambda: time.monotonic() - began > 0.1, 5)
    await asyncio.gather(call, turn)
    after = things.statistics()

    assert after["writer_turns"] == before["writer_turns"] + 1
    assert after["writer_calls"] == before["writer_calls"] + 2, (
        "the one that held the writer, and the one behind it"
    )
    assert after["writer_wait_ms"] - before["writer_wait_ms"] >= 199, "two, each for a tenth of a second"


async def test_one_commit_for_many(things: Any) -> None:
    results = await _gather(things, *((scratch.add, n, str(n)) for n in range(50)))
    assert results == list(range(50))
    assert await things.executor.run(scratch.names) == [str(n) for n in range(50)]


async def test_a_failing_call_fails_alone_and_leaves_nothing(things: Any) -> None:
    results = await _gather(
        things,
        (scratch.add, 1, "one"),
        (scratch.add, 2, "one"),
        (scratch.add_and_fail, 3, "three"),
        (scratch.add, 4, "four"),
    )
    assert results[0] == 1
    assert isinstance(results[1], AlreadyExistsError)
    assert isinstance(results[2], ValueError)
    assert results[3] == 4
    assert await things.executor.run(scratch.names) == ["one", "four"]


async def test_a_refused_commit_fails_every_call_of_the_batch(things: Any) -> None:
    """A deferred foreign key: every INSERT succeeds, COMMIT does not. None may have been told that it is kept."""
    results = await _gather(
        things, (scratch.add, 1, "one"), (scratch.add, 2, "two", 99), (scratch.add_and_fail, 3, "x")
    )
    assert isinstance(results[0], ConstraintError)
    assert isinstance(results[1], ConstraintError)
    assert isinstance(results[2], (ConstraintError, ValueError))
    assert results[0] is not results[1], "each its own exception"
    assert await things.executor.run(scratch.names) == []
    assert await things.executor.run(scratch.add, 1, "one") == 1


async def test_a_call_that_passes_its_deadline_harms_no_other(things: Any) -> None:
    async with writer_held(things):
        first = asyncio.create_task(things.executor.run(scratch.add, 1, "one"))
        with deadline(0.4):
            endless = asyncio.create_task(things.executor.run(scratch.slow, 1.0))
        last = asyncio.create_task(things.executor.run(scratch.add, 2, "two"))
        await asyncio.sleep(0)
    done = await asyncio.wait_for(asyncio.gather(first, endless, last, return_exceptions=True), 60)
    assert done[0] == 1
    assert isinstance(done[1], DeadlineExceededError)
    assert done[2] == 2
    assert await things.executor.run(scratch.names) == ["one", "two"]


async def test_a_call_that_never_started_is_dropped_at_its_deadline(things: Any) -> None:
    async with writer_held(things):
        with deadline(0.05), pytest.raises(DeadlineExceededError, match="not started"):
            await things.executor.run(scratch.add, 1, "one")
    await things.executor.run(scratch.add, 2, "two")
    assert await things.executor.run(scratch.names) == ["two"]


async def test_a_cancelled_call_that_never_started_is_dropped(things: Any) -> None:
    async with writer_held(things):
        task = asyncio.create_task(things.executor.run(scratch.add, 1, "one"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await things.executor.run(scratch.add, 2, "two")
    assert await things.executor.run(scratch.names) == ["two"]


async def test_a_cancelled_call_that_has_started_is_finished(things: Any) -> None:
    started, gate = threading.Event(), threading.Event()
    task = asyncio.create_task(things.executor.run(scratch.hold, started, gate))
    assert await asyncio.to_thread(started.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    await asyncio.wait_for(things.executor.run(scratch.add, 1, "one"), 60)


async def test_a_full_queue_refuses_at_once(databases: Any) -> None:
    pool = SQLPool(scratch.wide_settings(databases.url("sqlite"), sqlite_queue_size=3).sql)
    await pool.initialize()
    try:
        await scratch.create_things(pool)
        async with writer_held(pool):
            tasks = [asyncio.create_task(pool.executor.run(scratch.add, n, str(n))) for n in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(OverloadedError, match="3 calls"):
                await pool.executor.run(scratch.add, 9, "nine")
        assert await asyncio.gather(*tasks) == [0, 1, 2]
        assert await pool.executor.run(scratch.add, 3, "three") == 3
    finally:
        await pool.shutdown()


async def test_an_operation_that_awaits_something_else_is_told_so(things: Any) -> None:
    from modules.storage.operations import Transaction, write

    class Pause:
        def __await__(self) -> Any:
            yield

    @write
    async def wrong(tx: Transaction) -> None:
        await Pause()

    with pytest.raises(StorageError, match="awaited something other"):
        await things.executor.run(wrong)
    await things.executor.run(scratch.add, 1, "one")


async def test_what_is_queued_is_answered_at_shutdown(databases: Any) -> None:
    pool = SQLPool(scratch.wide_settings(databases.url("sqlite")).sql)
    await pool.initialize()
    await scratch.create_things(pool)
    async with writer_held(pool):
        tasks = [asyncio.create_task(pool.executor.run(scratch.add, n, str(n))) for n in range(5)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(pool.shutdown())
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="not initialized"):
            pool.executor.run  # noqa: B018
    await closing
    assert await asyncio.gather(*tasks) == list(range(5)), "what was taken on before is finished"


async def test_reads_of_one_kind_become_one_statement(databases: Any) -> None:
    """And an error in the batch form costs only the one at fault."""
    from modules.storage.operations import Transaction, read

    batches: List[int] = []
    started, gate = threading.Event(), threading.Event()

    async def together(tx: Transaction, calls: Any) -> List[Any]:
        batches.append(len(calls))
        if any(number < 0 for (number,) in calls):
            raise ValueError("the whole batch")
        return [KeyError(number) if number == 0 else number * 10 for (number,) in calls]

    @read(batch=together)
    async def tenfold(tx: Transaction, number: int) -> int:
        if number < 0:
            raise ValueError("this one")
        return number * 10

    @read
    async def occupy(tx: Transaction) -> None:
        started.set()
        gate.wait(60)

    async def run_together(*numbers: int) -> List[Any]:
        started.clear()
        gate.clear()
        busy = asyncio.create_task(pool.executor.run(occupy))
        assert await asyncio.to_thread(started.wait, 60)
        tasks = [asyncio.create_task(pool.executor.run(tenfold, number)) for number in numbers]
        await asyncio.sleep(0)
        gate.set()
        await busy
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    pool = SQLPool(scratch.wide_settings(databases.url("sqlite")).sql)
    await pool.initialize()
    try:
        assert await run_together(1, 2, 3) == [10, 20, 30]
        assert batches == [3]
        results = await run_together(1, 0, 2)
        assert [results[0], results[2]] == [10, 20]
        assert isinstance(results[1], KeyError)
        results = await run_together(1, -1, 2)
        assert [results[0], results[2]] == [10, 20]
        assert isinstance(results[1], ValueError)
        assert str(results[1]) == "this one"
    finally:
        await pool.shutdown()


async def test_the_loss_of_a_whole_batch_is_told(things: Any, caplog: Any) -> None:
    """SQLite itself ends the transaction (here: ON CONFLICT ROLLBACK); the others are run again, each by itself."""
    from sqlalchemy import text

    from modules.storage.operations import Transaction, write
    from modules.storage.statements import Statement

    poison = Statement(text("INSERT OR ROLLBACK INTO things (id, name) VALUES (1, 'one')"))

    @write
    async def rolls_all_back(tx: Transaction) -> None:
        await tx.run(poison)

    with caplog.at_level(logging.WARNING):
        results = await _gather(
            things,
            (scratch.add, 1, "one"),
            (rolls_all_back,),
            (scratch.add, 2, "two"),
            (scratch.add, 3, "three"),
        )
    assert results[0] == 1
    assert isinstance(results[1], StorageError)
    assert results[2:] == [2, 3]
    assert "storage.sqlite.batch_lost" in caplog.messages
    assert await things.executor.run(scratch.names) == ["one", "two", "three"]

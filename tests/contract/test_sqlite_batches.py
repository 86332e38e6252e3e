"""The writer's batch: one that fails leaves nothing and takes nobody with it, whether it fails early, half-way or late."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any, AsyncIterator, List

import pytest
from sqlalchemy import Integer, bindparam, column, text

from modules.storage.backends.sqlite_connection import SQLiteOptions
from modules.storage.backends.sqlite_executor import SQLiteExecutor
from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.errors import AlreadyExistsError, ConcurrencyError

INSERT = Statement(text("INSERT INTO numbers (n) VALUES (:n)").bindparams(bindparam("n", type_=Integer)))
ALL = Statement(text("SELECT n FROM numbers ORDER BY n").columns(column("n", Integer)))


@write
async def add(tx: Transaction, number: int) -> int:
    await tx.run(INSERT, n=number)
    return number


@write
async def add_and_fail(tx: Transaction, number: int) -> int:
    await tx.run(INSERT, n=number)
    raise ConcurrencyError("half-way", 0, 0)


@write
async def refuse(tx: Transaction) -> int:
    raise ConcurrencyError("before anything was changed", 0, 0)


@read
async def numbers(tx: Transaction) -> List[int]:
    return [row[0] for row in await tx.all(ALL)]


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[SQLiteExecutor]:
    made = SQLiteExecutor(SQLiteOptions(tmp_path / "batches.sqlite3"))
    made.open()
    await made.call_bare(
        lambda connection: connection.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY)").close()
    )
    yield made
    assert await made.close()


async def _in_one_batch(executor: SQLiteExecutor, *calls: Any) -> List[Any]:
    """Let the calls wait together while the writer is held, so that it takes them as one batch."""
    held, go = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        held.set()
        assert go.wait(20)

    holding = asyncio.ensure_future(executor.call_bare(hold))
    await asyncio.to_thread(held.wait, 20)
    tasks = [asyncio.ensure_future(call) for call in calls]
    # one turn of the loop starts all of them: each gets as far as the queue
    await asyncio.sleep(0)
    assert executor.statistics()["writer_waiting"] == len(tasks)
    before = executor.statistics()["writer_batches"]
    go.set()
    await holding
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert executor.statistics()["writer_batches"] == before + 1
    return outcomes


async def test_a_batch_without_failures(executor: SQLiteExecutor) -> None:
    assert await _in_one_batch(executor, *[executor.run(add, n) for n in range(50)]) == list(range(50))
    assert await executor.run(numbers) == list(range(50))


async def test_a_refusal_before_any_change(executor: SQLiteExecutor) -> None:
    outcomes = await _in_one_batch(executor, executor.run(add, 1), executor.run(refuse), executor.run(add, 2))
    assert (outcomes[0], type(outcomes[1]), outcomes[2]) == (1, ConcurrencyError, 2)
    assert await executor.run(numbers) == [1, 2]


async def test_a_failure_half_way_is_undone_alone(executor: SQLiteExecutor) -> None:
    outcomes = await _in_one_batch(
        executor,
        executor.run(add, 1),
        executor.run(add_and_fail, 2),
        executor.run(add, 3),
        executor.run(add_and_fail, 4),
        executor.run(add, 5),
    )
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [1, 3, 5]
    assert [type(outcome) for outcome in outcomes if not isinstance(outcome, int)] == [ConcurrencyError] * 2
    assert await executor.run(numbers) == [1, 3, 5]


async def test_a_statement_that_the_database_refuses(executor: SQLiteExecutor) -> None:
    outcomes = await _in_one_batch(executor, executor.run(add, 1), executor.run(add, 1), executor.run(add, 2))
    assert (outcomes[0], type(outcomes[1]), outcomes[2]) == (1, AlreadyExistsError, 2)
    assert await executor.run(numbers) == [1, 2]


async def test_a_caller_that_left_is_not_run_twice(executor: SQLiteExecutor) -> None:
    runs: List[int] = []
    leaving: List[asyncio.Task[Any]] = []

    @write
    async def fail_after_the_caller_left(tx: Transaction, number: int) -> int:
        runs.append(number)
        await tx.run(INSERT, n=number)
        gone = threading.Event()

        def leave() -> None:
            leaving[0].cancel()
            # cancelling reaches the future at once; the task sees it later
            gone.set()

        loop.call_soon_threadsafe(leave)
        assert gone.wait(20)
        raise ConcurrencyError("too late", 0, 0)

    async def start() -> Any:
        leaving.append(asyncio.current_task())  # type: ignore[arg-type]
        return await executor.run(fail_after_the_caller_left, 2)

    loop = asyncio.get_running_loop()
    outcomes = await _in_one_batch(executor, executor.run(add, 1), start(), executor.run(add, 3))
    assert (outcomes[0], type(outcomes[1]), outcomes[2]) == (1, asyncio.CancelledError, 3)
    assert runs == [2]
    assert await executor.run(numbers) == [1, 3]

"""SQLite: the writer's turn of a unit of work, and its end by itself at the deadline."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from typing import Any

import pytest

from modules.storage.pool import SQLPool

from . import scratch


@pytest.mark.parametrize("backend", ["sqlite", "sqlite-memory"])
async def test_a_rollback_that_meets_the_end_by_itself_is_harmless(
    backend: str, databases: Any, leaks: Any
) -> None:
    pool = SQLPool(scratch.wide_settings(databases.url(backend)).sql)
    await pool.initialize()
    await scratch.create_things(pool)
    ends, asked = threading.Event(), threading.Event()

    def traced(statement: str) -> None:
        if statement.startswith("ROLLBACK"):
            ends.set()
            asked.wait(60)

    unit = pool.executor.unit(asyncio.get_running_loop().time() + 60)
    await unit.run(scratch.add, (1, "one"), {})
    turn = unit._turn
    assert turn is not None

    def let_it_pass(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(traced)
        turn._deadline = time.monotonic()  # the writer looks at it after this call

    await turn.call(let_it_pass)
    assert await asyncio.to_thread(ends.wait, 60)
    rollback = asyncio.ensure_future(unit.rollback())
    await asyncio.sleep(0)
    asked.set()
    await rollback
    assert await pool.executor.run(scratch.names) == []
    await pool.shutdown()

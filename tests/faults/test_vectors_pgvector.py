"""A client killed while it upserts leaves what was acknowledged: whole batches, none missing, none in part."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any, Dict
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.postgresql

BATCH = 300
KILLED_AFTER = list(range(1, 21)) if os.environ.get("ATLAS_TEST_FULL") else [1, 2, 5]
CHILD = """
import asyncio, sys
import numpy as np
from modules.storage.pool import SQLPool
from modules.storage.settings import StorageSettings
from modules.storage.vectors.base import VectorDocument
from modules.storage.vectors.pgvector import PgvectorProvider

async def main(url, batch):
    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": url}}).sql)
    await pool.initialize()
    provider = PgvectorProvider(pool.executor)
    await provider.initialize()
    for number in range(100_000):
        # every second batch replaces the one before it, in several statements of one transaction
        first = number // 2 * batch
        documents = [
            VectorDocument(f"d{first + n:07d}", np.full(3000, number + 1, dtype=np.float32), metadata={"batch": number})
            for n in range(batch)
        ]
        await provider.upsert("docs", documents)
        print(number, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


@pytest.mark.parametrize("acknowledged", KILLED_AFTER)
async def test_a_killed_client_leaves_what_was_acknowledged(
    databases: Any, postgres: Any, child_environment: Dict[str, str], acknowledged: int
) -> None:
    from modules.storage.pool import SQLPool
    from modules.storage.settings import StorageSettings
    from modules.storage.vectors.pgvector import PgvectorProvider

    url = databases.url("postgresql")
    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": url}}).sql)
    await pool.initialize()
    provider = PgvectorProvider(pool.executor)
    await provider.initialize()
    await provider.create_collection("docs", 3000)
    database = urlsplit(url).path.lstrip("/")
    ours = set(postgres.connections(database))
    last = await _kill_after(acknowledged, url, child_environment, postgres, database)
    try:
        # the server still does what the killed client had sent
        postgres.until_alone(database, ours)
        found: Dict[int, int] = {}
        cursor = None
        while True:
            page = await provider.scroll("docs", limit=1000, cursor=cursor)
            for item in page.items:
                batch = item.metadata["batch"]
                found[batch] = found.get(batch, 0) + 1
                assert float(item.vector[0]) == float(item.vector[-1]) == batch + 1
            cursor = page.next_cursor
            if cursor is None:
                break
        assert set(found.values()) == {BATCH}, "a batch is there in part"
        newest = max(found)
        # the batch under way may have been committed before its acknowledgement was sent
        assert newest in (last, last + 1)
        assert sorted(found) == sorted({*range(1, newest, 2), newest})
    finally:
        await provider.shutdown()
        await pool.shutdown()


async def _kill_after(
    acknowledged: int, url: str, environment: Dict[str, str], postgres: Any, database: str
) -> int:
    """Kill the child when it has said so many batches, in the middle of the next; return the last it said."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, url, str(BATCH), stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert child.stdout is not None
    try:
        for _ in range(acknowledged):
            assert await asyncio.wait_for(child.stdout.readline(), 60)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            running = postgres.connections(database).values()
            if any(state.startswith("active: WITH known") for state in running):
                break
        else:
            raise AssertionError("the client was never seen writing")
    finally:
        os.kill(child.pid, signal.SIGKILL)
        rest = (await child.stdout.read()).split()
        await child.wait()
    return int(rest[-1]) if rest else acknowledged - 1

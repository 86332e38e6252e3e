"""Job queues on PostgreSQL that others wrote: the same no-op jobs, on the same server, by their own batched calls."""

from __future__ import annotations

import logging
import time
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict, Tuple

from benchmarks.jobs_contest import Queue

__all__ = ["PEERS"]


class _Pgqueuer:
    """pgqueuer through its asyncpg driver; `batch` is its own batch size for claims and completions."""

    def __init__(self, connection: Any, batch: int) -> None:
        from pgqueuer.db import AsyncpgDriver
        from pgqueuer.queries import Queries

        self._driver = AsyncpgDriver(connection)
        self._queries = Queries(self._driver)
        self._batch = batch

    async def install(self) -> None:
        await self._queries.install()

    async def enqueue(self, count: int, batch: int) -> float:
        started = time.perf_counter()
        for start in range(0, count, batch):
            size = min(batch, count - start)
            await self._queries.enqueue(["noop"] * size, [b"{}"] * size, [0] * size)
        return time.perf_counter() - started

    async def drain(self, count: int) -> float:
        from datetime import timedelta

        from pgqueuer import PgQueuer
        from pgqueuer.models import Job

        worker = PgQueuer(self._driver)
        left = count
        ended = 0.0

        @worker.entrypoint("noop")
        async def noop(job: Job) -> None:
            nonlocal left, ended
            left -= 1
            if left == 0:
                ended = time.perf_counter()
                worker.shutdown.set()

        started = time.perf_counter()
        await worker.run(dequeue_timeout=timedelta(seconds=1), batch_size=self._batch)
        return ended - started


@asynccontextmanager
async def _pgqueuer(url: str, batch: int) -> AsyncIterator[Queue]:
    import asyncpg

    logging.getLogger("pgqueuer").setLevel(logging.CRITICAL)
    connection = await asyncpg.connect(url)
    try:
        queue = _Pgqueuer(connection, batch)
        if not await connection.fetchval("SELECT to_regclass('pgqueuer')"):
            await queue.install()
        yield queue
    finally:
        await connection.close()


class _Procrastinate:
    def __init__(self, app: Any, concurrency: int) -> None:
        self._app = app
        self._concurrency = concurrency
        self._left = 0
        self._ended = 0.0

        @app.task(name="noop")
        async def noop() -> None:
            self._left -= 1
            if self._left == 0:
                self._ended = time.perf_counter()

        self._noop = noop

    async def enqueue(self, count: int, batch: int) -> float:
        started = time.perf_counter()
        for start in range(0, count, batch):
            rows: Any = [{}] * min(batch, count - start)
            await self._noop.batch_defer_async(*rows)
        return time.perf_counter() - started

    async def drain(self, count: int) -> float:
        self._left = count
        started = time.perf_counter()
        await self._app.run_worker_async(
            wait=False, concurrency=self._concurrency, install_signal_handlers=False
        )
        return self._ended - started


@asynccontextmanager
async def _procrastinate(url: str, concurrency: int) -> AsyncIterator[Queue]:
    import procrastinate

    logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
    app = procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=concurrency + 4)
    )
    async with app.open_async():
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        yield _Procrastinate(app, concurrency)


#: name -> (package, what opens it on the database at a URL, size of an enqueued batch, jobs of one measurement)
PEERS: Dict[str, Tuple[str, Any, int, int]] = {
    "pgqueuer, batch 10": ("pgqueuer", lambda url: _pgqueuer(url, 10), 1000, 5000),
    "pgqueuer, batch 100": ("pgqueuer", lambda url: _pgqueuer(url, 100), 1000, 10_000),
    "procrastinate, 1 at a time": ("procrastinate", lambda url: _procrastinate(url, 1), 1000, 600),
    "procrastinate, 10 at a time": ("procrastinate", lambda url: _procrastinate(url, 10), 1000, 600),
}

"""Does a claim cost the same with many jobs queued? `python -m benchmarks.jobs_store [--rows N]`: p50 at 1,000 and at N.

The table is filled by SQL. Claims of one job, with the settlement after each, in turns on the two databases, so that what
else the machine does is in both figures. Nine of ten jobs are not due, and they have the highest priority: a claim that
walked over them would show it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

from benchmarks import ours
from benchmarks.postgresql_contest import database, server
from modules.job_store.records import Outcome

__all__ = ["main"]

SMALL = 1_000
LIMIT = 1.3
_ROUNDS = 8
_CLAIMS = 50
_COLUMNS = (
    "tenant_id, id, handler, queue, status, priority, parked, attempts, max_attempts, fence, version, cancel_requested,"
    " run_at, created_at, updated_at, payload"
)
# one of ten is due, at priority 0; the others are due tomorrow, at priority 5
_POSTGRESQL = (
    f"INSERT INTO atlas_jobs ({_COLUMNS}) SELECT 'default', lpad(n::text, 36, '0'), 'h', 'default', 'scheduled',"
    " CASE WHEN n % 10 = 0 THEN 0 ELSE 5 END, 0, 0, 5, 0, 1, 0,"
    " now() + CASE WHEN n % 10 = 0 THEN - (n * interval '1 microsecond') ELSE interval '1 day' END, now(), now(), '{}'"
    " FROM generate_series(1, $1::int) AS n"
)
_NOW_US = "(CAST(strftime('%s', 'now') AS INTEGER) * 1000000)"
_SQLITE = (
    f"WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < ?) INSERT INTO atlas_jobs ({_COLUMNS})"
    " SELECT 'default', printf('%036d', n), 'h', 'default', 'scheduled', CASE WHEN n % 10 = 0 THEN 0 ELSE 5 END, 0, 0, 5, 0,"
    f" 1, 0, {_NOW_US} + CASE WHEN n % 10 = 0 THEN -n ELSE 86400000000 END, {_NOW_US}, {_NOW_US}, '{{}}' FROM s"
)


async def _fill_postgresql(url: str, rows: int) -> None:
    import asyncpg

    connection = await asyncpg.connect(url)
    await connection.execute(_POSTGRESQL, rows, timeout=600)
    await connection.execute("VACUUM ANALYZE atlas_jobs", timeout=600)
    await connection.close()


def _fill_sqlite(path: Path, rows: int) -> None:
    import sqlite3

    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(_SQLITE, (rows,))
    connection.close()


async def _measure(urls: Dict[int, str]) -> Dict[int, float]:
    """Return the median claim of each in microseconds."""
    managers = {rows: ours.open_storage(url) for rows, url in urls.items()}
    storages: Dict[int, Any] = {rows: await manager.__aenter__() for rows, manager in managers.items()}
    times: Dict[int, List[float]] = {rows: [] for rows in urls}
    try:
        for turn in range(_ROUNDS):
            for rows, storage in storages.items():
                for _ in range(_CLAIMS if turn else 10):
                    started = time.perf_counter()
                    claims = await storage.job_queue.claim("w", limit=1)
                    elapsed = time.perf_counter() - started
                    assert len(claims) == 1
                    # given back, so that the small table does not run out
                    await storage.job_queue.settle([Outcome(claims[0], "released")])
                    if turn:
                        times[rows].append(elapsed * 1e6)
    finally:
        for manager in managers.values():
            await manager.__aexit__(None, None, None)
    return {rows: statistics.median(found) for rows, found in times.items()}


def _tell(dialect: str, found: Dict[int, float]) -> None:
    (small, first), (large, second) = sorted(found.items())
    print(
        f"{dialect}: claim p50 {first:,.0f} us at {small:,} queued, {second:,.0f} us at {large:,}:"
        f" {second / first:.2f} (target <= {LIMIT})"
    )


async def _run_sqlite(rows: int, directory: Path) -> None:
    urls = {}
    for count in (SMALL, rows):
        path = directory / f"jobs-{count}.sqlite3"
        urls[count] = f"sqlite:///{path}"
        async with ours.open_storage(urls[count]):
            pass
        _fill_sqlite(path, count)
    _tell("SQLite", await _measure(urls))


async def _run_postgresql(rows: int, url: str) -> None:
    async with database(url, "small") as small, database(url, "large") as large:
        urls = {SMALL: small, rows: large}
        for count, name in urls.items():
            async with ours.open_storage(name):
                pass
            await _fill_postgresql(name, count)
        _tell("PostgreSQL", await _measure(urls))


def main() -> None:
    """Measure on both and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_run_sqlite(rows, Path(directory)))
    with server() as url:
        asyncio.run(_run_postgresql(rows, url))


if __name__ == "__main__":
    main()

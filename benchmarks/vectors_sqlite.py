"""The embedded vector store beside plain NumPy and plain sqlite3: `python -m benchmarks.vectors_sqlite [rows] [dimension]`.

Prints upserts per second, the first search (which loads the matrix), p50 and p95 of later ones against `matrix @ query`
with `argpartition` over the same data, filtered searches, and recall@10 against NumPy in float64.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Awaitable, Callable, List

import numpy as np

from modules.storage.pool import SQLPool
from modules.storage.schema import Base
from modules.storage.settings import StorageSettings
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.sqlite import SQLiteVectorProvider
from modules.storage.vectors.sqlite_models import TABLES

BATCH = 1000


def metadata_of(number: int) -> Any:
    return {
        "n": number,
        "share": number % 1000,
        "lang": "en" if number % 2 else "de",
        "source": f"file {number % 50}",
    }


def raw_upserts(directory: Path, matrix: Any) -> float:
    """Return rows per second of plain executemany in transactions of BATCH rows."""
    connection = sqlite3.connect(directory / "raw.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE v (id TEXT PRIMARY KEY, metadata TEXT, vector BLOB)")
    started = time.perf_counter()
    for start in range(0, len(matrix), BATCH):
        rows = [(f"d{start + n}", "{}", row.tobytes()) for n, row in enumerate(matrix[start : start + BATCH])]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO v VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
    took = time.perf_counter() - started
    connection.close()
    return len(matrix) / took


async def timed(call: Callable[[int], Awaitable[Any]], rounds: int) -> str:
    times: List[float] = []
    for turn in range(rounds):
        started = time.perf_counter()
        await call(turn)
        times.append((time.perf_counter() - started) * 1000)
    times.sort()
    return f"p50 {statistics.median(times):8.2f} ms   p95 {times[int(rounds * 0.95)]:8.2f} ms"


async def main(rows: int, dimension: int) -> None:
    matrix = np.random.default_rng(1).normal(size=(rows, dimension)).astype(np.float32)
    queries = np.random.default_rng(2).normal(size=(60, dimension)).astype(np.float32)
    print(f"{rows:,} x {dimension}, cosine")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        print(f"upsert  plain sqlite3  {raw_upserts(directory, matrix):10,.0f} rows/s")
        settings = StorageSettings.from_dict({"sql": {"url": f"sqlite:///{directory / 'ours.sqlite3'}"}})
        pool = SQLPool(settings.sql)
        await pool.initialize()
        Base.metadata.create_all(pool.engine, tables=TABLES)
        provider = SQLiteVectorProvider(pool.executor)
        await provider.initialize()
        await measure(provider, matrix, queries)
        await provider.shutdown()
        await pool.shutdown()


async def measure(provider: SQLiteVectorProvider, matrix: Any, queries: Any) -> None:
    rows, dimension = matrix.shape
    await provider.create_collection("bench", dimension)
    documents = [VectorDocument(f"d{n}", row, metadata=metadata_of(n)) for n, row in enumerate(matrix)]
    started = time.perf_counter()
    for start in range(0, rows, BATCH):
        await provider.upsert("bench", documents[start : start + BATCH])
    print(f"upsert  ours           {rows / (time.perf_counter() - started):10,.0f} rows/s")

    def under(condition: Any) -> Callable[[int], Awaitable[Any]]:
        return lambda turn: provider.search("bench", queries[turn % len(queries)], top_k=10, filter=condition)

    ours = under(None)
    filters: List[Any] = [
        ("50 %", {"lang": "en"}),
        ("10 %", {"share": {"$lt": 100}}),
        ("1 %", {"share": {"$lt": 10}}),
    ]

    cold: List[Any] = [("cold, 0.1 % filter", {"share": 0}), ("cold, 50 % filter ", {"lang": "en"})]
    for title, condition in cold:
        print(f"search  {title:22} {await timed(under(condition), 1)}")
    provider._cache.clear()
    print(f"search  first, loads matrix    {await timed(ours, 1)}")
    normal = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)

    async def plain(turn: int) -> Any:
        scores = normal @ queries[turn % len(queries)]
        found = np.argpartition(scores, -10)[-10:]
        return found[np.argsort(-scores[found])]

    for _ in range(2):
        print(f"search  plain NumPy            {await timed(plain, 60)}")
        print(f"search  ours                   {await timed(ours, 60)}")
    for title, condition in filters:
        print(f"search  {title:5} filter, new      {await timed(under(condition), 1)}")
        print(f"search  {title:5} filter, again    {await timed(under(condition), 20)}")

    async def after_a_write(turn: int) -> Any:
        await provider.upsert("bench", [VectorDocument(f"d{turn}", matrix[turn])])
        return await ours(turn)

    print(f"upsert of 1 and search         {await timed(after_a_write, 20)}")
    hits = 0
    wide = matrix.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    for query in queries[:20]:
        truth = {f"d{n}" for n in np.argsort(-(wide @ query))[:10]}
        hits += len(truth & {hit.document.id for hit in await provider.search("bench", query, top_k=10)})
    print(f"recall@10 {hits / 200:.4f}; matrices {provider.cache_size_bytes / 2**20:,.0f} MiB")


if __name__ == "__main__":
    asyncio.run(main(*(int(given) for given in [*sys.argv[1:], "100000", "384"][:2])))

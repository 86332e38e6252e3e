"""`python -m benchmarks.vectors_pgvector`: the pgvector provider beside hand-written asyncpg with pgvector's own codec.

Both work on tables of the same shape, on one server started for this. Prints JSON: rows a second, milliseconds, recall at
10 against exact NumPy. "clustered" is easy, as embeddings of text are; "gaussian" is hard: independent numbers, where
nothing is much nearer than the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Any, Awaitable, Callable, Dict, List, Optional

import asyncpg
import numpy as np

from benchmarks import postgresql_contest
from benchmarks.vectors import make_data
from modules.storage.pool import SQLPool
from modules.storage.settings import StorageSettings
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.pgvector import PgvectorProvider

TOP_K = 10
BATCH = 2000
_DIRECT_SEARCH = (
    "SELECT id, content, metadata, embedding <=> $1 AS distance FROM direct"
    " WHERE tenant_id = $2 AND namespace = $3 ORDER BY embedding <=> $1 LIMIT 10"
)
_DIRECT_UPSERT = (
    "INSERT INTO direct SELECT 'default', 'default', d.id, d.v, d.c, d.m::json, d.m::jsonb, now()"
    " FROM unnest($1::text[], $2::vector[], $3::text[], $4::text[]) AS d(id, v, c, m)"
    " ON CONFLICT (tenant_id, namespace, id) DO UPDATE SET embedding = excluded.embedding, content = excluded.content,"
    " metadata = excluded.metadata, search = excluded.search"
)


async def _timed(call: Callable[[int], Awaitable[Any]], count: int) -> Dict[str, Any]:
    await call(0)
    spent: List[float] = []
    results = []
    for number in range(count):
        started = time.perf_counter()
        results.append(await call(number))
        spent.append((time.perf_counter() - started) * 1000)
    ordered = sorted(spent)
    return {
        "p50_ms": round(statistics.median(ordered), 2),
        "p95_ms": round(ordered[int(0.95 * (count - 1))], 2),
        "results": results,
    }


async def run(url: str, kind: str, rows: int, dimension: int, queries: int) -> Dict[str, Any]:
    """Measure one kind of data."""
    from pgvector import Vector
    from pgvector.asyncpg import register_vector

    data, asked = make_data(kind, rows, dimension, 1), make_data(kind, queries, dimension, 2)
    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": url, "command_timeout_s": 600}}).sql)
    await pool.initialize()
    provider = PgvectorProvider(pool.executor, auto_build=False)
    await provider.initialize()
    await provider.delete_collection("bench")
    await provider.create_collection("bench", dimension, index={"index_metadata": ["n"]})
    physical = next(iter(provider._tables))
    raw: Any = await asyncpg.connect(url)
    await register_vector(raw)
    await raw.execute("DROP TABLE IF EXISTS direct")
    await raw.execute(f'CREATE TABLE direct (LIKE "{physical}" INCLUDING ALL)')
    metadata = [{"hundred": n % 100, "lang": "en" if n % 2 else "de", "n": n} for n in range(rows)]
    figures: Dict[str, Any] = {"kind": kind, "rows": rows, "dimension": dimension}
    ours = direct = 0.0
    for start in range(0, rows, BATCH):
        part = range(start, min(rows, start + BATCH))
        documents = [VectorDocument(f"d{n}", data[n], f"text {n}", metadata[n]) for n in part]
        begun = time.perf_counter()
        await provider.upsert("bench", documents)
        ours += time.perf_counter() - begun
        begun = time.perf_counter()
        await raw.execute(
            _DIRECT_UPSERT,
            [f"d{n}" for n in part],
            [Vector(data[n]) for n in part],
            [f"text {n}" for n in part],
            [json.dumps(metadata[n]) for n in part],
        )
        direct += time.perf_counter() - begun
    figures["upsert_rows_per_s"] = {"ours": round(rows / ours), "direct": round(rows / direct)}
    await raw.execute("DROP TABLE direct")
    begun = time.perf_counter()
    await provider.rebuild_index("bench")
    figures["build_and_measure_s"] = round(time.perf_counter() - begun, 1)
    state = await provider.index_state("bench")
    figures["state"] = {k: v for k, v in state.to_json().items() if k != "index"}
    truth = np.argsort(-(asked @ data.T), axis=1)

    def recall(results: List[List[str]], keep: Optional[Callable[[int], bool]] = None) -> float:
        hits = 0
        for row, found in zip(truth, results):
            nearest = [f"d{n}" for n in row if keep is None or keep(n)][:TOP_K]
            hits += len(set(nearest) & set(found))
        return round(hits / (TOP_K * len(results)), 4)

    async def search(number: int, filter: Optional[Dict[str, Any]] = None) -> List[str]:
        found = await provider.search("bench", asked[number], top_k=TOP_K, filter=filter)
        assert len(found) == TOP_K
        assert found.complete or found.reason
        return [hit.document.id for hit in found]

    await raw.execute(f"SET hnsw.ef_search = {int(state.effort)}")

    async def by_hand(number: int) -> List[str]:
        sql = _DIRECT_SEARCH.replace("direct", f'"{physical}"')
        return [row[0] for row in await raw.fetch(sql, Vector(asked[number]), "default", "default")]

    cases: Dict[str, Any] = {
        "direct, unfiltered": (by_hand, None),
        "unfiltered": (search, None),
        "filter 1 %": (lambda n: search(n, {"hundred": 7}), lambda n: n % 100 == 7),
        "filter 1 %, range": (lambda n: search(n, {"hundred": {"$gte": 99}}), lambda n: n % 100 >= 99),
        "filter 1 %, range, B-tree": (
            lambda n: search(n, {"n": {"$lt": rows // 100}}),
            lambda n: n < rows // 100,
        ),
        "filter 10 %, range": (lambda n: search(n, {"hundred": {"$lt": 10}}), lambda n: n % 100 < 10),
        "filter 50 %": (lambda n: search(n, {"lang": "en"}), lambda n: n % 2 == 1),
    }
    for name, (call, keep) in cases.items():
        timed = await _timed(call, queries)
        timed["recall"] = recall(timed.pop("results"), keep)
        figures[name] = timed
        print(kind, name, timed, flush=True)
    begun = time.perf_counter()
    await provider.upsert("bench", [VectorDocument(f"new{n}", asked[n % queries]) for n in range(200)])
    figures["rows_per_s_with_index"] = round(200 / (time.perf_counter() - begun))
    await raw.close()
    await provider.delete_collection("bench")
    await provider.shutdown()
    await pool.shutdown()
    return figures


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--hard-rows", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument(
        "--url", default="", help="a PostgreSQL database to use instead of a server of its own"
    )
    given = parser.parse_args()

    async def all_of(url: str) -> None:
        for kind, rows in (("clustered", given.rows), ("gaussian", given.hard_rows)):
            if rows:
                print(
                    json.dumps(await run(url, kind, rows, given.dimension, given.queries), indent=1),
                    flush=True,
                )

    if given.url:
        asyncio.run(all_of(given.url))
        return
    with postgresql_contest.server() as url:
        asyncio.run(all_of(url))


if __name__ == "__main__":
    main()

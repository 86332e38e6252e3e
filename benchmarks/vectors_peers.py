"""The peers of `vectors`: NumPy and sqlite3, asyncpg with pgvector's codec, Chroma's clients, Pinecone's SDK."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import warnings
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, List, Sequence

import numpy as np

from benchmarks import postgresql_contest
from benchmarks.contest import Plan
from benchmarks.report import Report
from benchmarks.vectors import TOP_K, Peer, contest, workload
from modules.storage.manager import StorageManager
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.models import VectorDocument

__all__ = ["PARTS"]

_NAME = "bench"
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
_CHROMA_INDEX = {"hnsw": {"space": "cosine", "max_neighbors": 16, "ef_construction": 100, "ef_search": 200}}


def _store(provider: VectorProvider) -> Any:
    return lambda part: provider.upsert(_NAME, part)


def _find(provider: VectorProvider) -> Any:
    async def find(query: Any) -> List[str]:
        found = await provider.search(_NAME, query, top_k=TOP_K)
        return [hit.document.id for hit in found]

    return find


# --- embedded, beside NumPy and sqlite3


@asynccontextmanager
async def _sqlite(directory: Path, rows: int, dimension: int, **options: Any) -> AsyncIterator[Peer]:
    raw = sqlite3.connect(directory / "raw.sqlite3", isolation_level=None, check_same_thread=False)
    raw.execute("PRAGMA journal_mode = WAL")
    raw.execute("CREATE TABLE v (id TEXT PRIMARY KEY, content TEXT, metadata TEXT, vector BLOB)")
    stored: List[Any] = []

    async def store(part: Sequence[VectorDocument]) -> None:
        rows_ = [
            (d.id, d.content, json.dumps(dict(d.metadata)), np.asarray(d.vector).tobytes()) for d in part
        ]
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany("INSERT INTO v VALUES (?, ?, ?, ?)", rows_)
        raw.execute("COMMIT")
        stored.extend(d.vector for d in part)

    matrix: List[Any] = []

    async def find(query: Any) -> List[str]:
        if not matrix:
            matrix.append(np.stack(stored))
        scores = matrix[0] @ query
        found = np.argpartition(scores, -TOP_K)[-TOP_K:]
        return [f"d{n}" for n in found[np.argsort(-scores[found])]]

    settings = {"sql": {"path": str(directory / "ours.sqlite3")}}
    async with StorageManager(settings, background=False) as storage:
        provider = storage.vectors
        if options:
            provider = storage.add_vector_store("sqlite", name="tuned", options=options)
        await provider.create_collection(_NAME, dimension)

        async def loaded() -> None:
            await provider.rebuild_index(_NAME)
            await provider.search(_NAME, stored[0])

        yield Peer(
            "Vectors, embedded" + (" with an approximate index" if options else ""),
            [_store(provider), store],
            [_find(provider), find],
            loaded,
            upsert_rows_per_s=15_000,
            search_ratio=2.0,
            exact=not options,
        )
    raw.close()


def _run_sqlite(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    rows = 20_000 if plan.quick else 100_000

    async def run() -> None:
        for number, kind in enumerate(("clustered", "gaussian")):
            say(f"{kind}, {rows:,} x 384")
            place = directory / str(number)
            place.mkdir()
            async with _sqlite(place, rows, 384) as peer:
                await contest(report, peer, workload(kind, rows, 384))

    asyncio.run(run())


# --- pgvector, beside asyncpg


async def _pgvector(report: Report, url: str, kind: str, rows: int, dimension: int) -> None:
    import asyncpg
    from pgvector import Vector
    from pgvector.asyncpg import register_vector

    options = {"auto_build": False}
    async with StorageManager({"sql": {"url": url, "command_timeout_s": 600}}, background=False) as storage:
        provider: Any = storage.add_vector_store("pgvector", name="bench", options=options)
        await provider.create_collection(_NAME, dimension)
        physical = next(iter(provider._tables))
        raw: Any = await asyncpg.connect(url)
        await register_vector(raw)
        await raw.execute(f'CREATE TABLE direct (LIKE "{physical}" INCLUDING ALL)')

        async def store(part: Sequence[VectorDocument]) -> None:
            await raw.execute(
                _DIRECT_UPSERT,
                [d.id for d in part],
                [Vector(d.vector) for d in part],
                [d.content for d in part],
                [json.dumps(dict(d.metadata)) for d in part],
            )

        async def find(query: Any) -> List[str]:
            sql = _DIRECT_SEARCH.replace("direct", f'"{physical}"')
            return [row[0] for row in await raw.fetch(sql, Vector(query), "default", "default")]

        async def loaded() -> None:
            await raw.execute("DROP TABLE direct")
            await provider.rebuild_index(_NAME)
            state = await provider.index_state(_NAME)
            await raw.execute(f"SET hnsw.ef_search = {int(state.effort)}")

        peer = Peer("Vectors, pgvector", [_store(provider), store], [_find(provider), find], loaded)
        try:
            await contest(report, peer, workload(kind, rows, dimension))
        finally:
            await raw.execute("DROP TABLE IF EXISTS direct")
            await raw.close()
            await provider.delete_collection(_NAME)


def _run_pgvector(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    cases = [("clustered", 100_000, 384), ("gaussian", 50_000, 384), ("clustered", 20_000, 1536)]
    if plan.quick:
        cases = [("clustered", 20_000, 384), ("gaussian", 10_000, 384), ("clustered", 6_000, 1536)]
    with postgresql_contest.server() as url:
        for kind, rows, dimension in cases:
            say(f"{kind}, {rows:,} x {dimension}")
            asyncio.run(_pgvector(report, url, kind, rows, dimension))


# --- Chroma, beside its clients


def _chroma_rows(part: Sequence[VectorDocument]) -> Dict[str, Any]:
    return {
        "ids": [d.id for d in part],
        "embeddings": np.stack([d.vector for d in part]),
        "metadatas": [dict(d.metadata) for d in part],
        "documents": [d.content for d in part],
    }


async def _chroma(report: Report, directory: Path, rows: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import chromadb
        from chromadb.config import Settings

    from modules.storage.vectors.chroma import ChromaProvider

    provider = ChromaProvider(persist_directory=str(directory / "ours"))
    await provider.initialize()
    await provider.create_collection(_NAME, 384)
    client = chromadb.PersistentClient(
        str(directory / "direct"), settings=Settings(anonymized_telemetry=False)
    )
    direct = client.create_collection(_NAME, configuration=_CHROMA_INDEX, embedding_function=None)  # type: ignore[arg-type]

    async def store(part: Sequence[VectorDocument]) -> None:
        direct.upsert(**_chroma_rows(part))

    async def find(query: Any) -> List[str]:
        found = direct.query(
            query_embeddings=[query], n_results=TOP_K, include=["metadatas", "documents", "distances"]
        )
        return list(found["ids"][0])

    peer = Peer("Vectors, Chroma embedded", [_store(provider), store], [_find(provider), find])
    await contest(report, peer, workload("clustered", rows, 384, batch=500))
    client.close()
    await provider.shutdown()


async def _chroma_server(report: Report, directory: Path, rows: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import chromadb
    from modules.storage.vectors.chroma import ChromaProvider
    from tests.support.chroma import ChromaServer

    server = ChromaServer(directory / "server")
    server.start()
    try:
        provider = ChromaProvider(host="127.0.0.1", port=server.port)
        await provider.initialize()
        await provider.create_collection(_NAME, 384)
        client = await chromadb.AsyncHttpClient("127.0.0.1", server.port)
        direct = await client.create_collection(
            "direct", configuration=_CHROMA_INDEX, embedding_function=None
        )  # type: ignore[arg-type]

        async def store(part: Sequence[VectorDocument]) -> None:
            await direct.upsert(**_chroma_rows(part))

        async def find(query: Any) -> List[str]:
            found = await direct.query(
                query_embeddings=[query], n_results=TOP_K, include=["metadatas", "documents", "distances"]
            )
            return list(found["ids"][0])

        peer = Peer("Vectors, Chroma server", [_store(provider), store], [_find(provider), find])
        await contest(report, peer, workload("clustered", rows, 384, batch=500))
        await provider.shutdown()
    finally:
        server.stop()


def _run_chroma(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    rows = 5_000 if plan.quick else 20_000
    for name, measure in (("embedded", _chroma), ("server", _chroma_server)):
        say(f"{name}, {rows:,} x 384")
        with tempfile.TemporaryDirectory(dir=directory) as place:
            asyncio.run(measure(report, Path(place), rows))


# --- Pinecone, beside its SDK; both on the emulator


async def _pinecone(report: Report, rows: int) -> None:
    from pinecone import AsyncPinecone

    from modules.storage.vectors.pinecone import PineconeProvider
    from tests.emulators.pinecone import PineconeEmulator

    async with PineconeEmulator() as emulator:
        provider = PineconeProvider(api_key=emulator.api_key, host=emulator.host, dimension=384)
        await provider.initialize()
        await provider.create_collection(_NAME, 384)
        opened: Any = provider._opened
        sdk = opened[1].data  # the same client, used directly
        assert AsyncPinecone is not None

        async def store(part: Sequence[VectorDocument]) -> None:
            for start in range(0, len(part), 200):
                vectors = [
                    {
                        "id": d.id,
                        "values": np.asarray(d.vector).tolist(),
                        "metadata": {**d.metadata, "text": d.content},
                    }
                    for d in part[start : start + 200]
                ]
                await sdk.upsert(vectors=vectors, namespace="direct")

        async def find(query: Any) -> List[str]:
            found = await sdk.query(
                vector=query.tolist(), top_k=TOP_K, namespace="direct", include_metadata=True
            )
            return [match.id for match in found.matches]

        peer = Peer(
            "Vectors, Pinecone (emulator)", [_store(provider), store], [_find(provider), find], exact=True
        )
        await contest(report, peer, workload("clustered", rows, 384, batch=200))
        await provider.shutdown()


def _run_pinecone(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    rows = 2_000 if plan.quick else 5_000
    say(f"{rows:,} x 384")
    asyncio.run(_pinecone(report, rows))


PARTS = {
    "vectors-sqlite": _run_sqlite,
    "vectors-pgvector": _run_pgvector,
    "vectors-chroma": _run_chroma,
    "vectors-pinecone": _run_pinecone,
}

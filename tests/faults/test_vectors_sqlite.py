"""The embedded vector store when processes die, share the file, or undo what they did."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest

from modules.storage.pool import SQLPool
from modules.storage.schema import Base
from modules.storage.settings import StorageSettings
from modules.storage.unit_of_work import UnitOfWork
from modules.storage.vectors.errors import VectorStoreError
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.sqlite import SQLiteVectorProvider
from modules.storage.vectors.sqlite_models import TABLES

BATCH = 40
KILLED_AFTER = [*range(1, 25), 40, 60, 80, 99] if os.environ.get("ATLAS_TEST_FULL") else [1, 7, 23]

# Upserts batches and says after each that it was acknowledged; searches in between.
_WRITER = """
import asyncio, sys
import numpy as np
from modules.storage.pool import SQLPool
from modules.storage.settings import StorageSettings
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.sqlite import SQLiteVectorProvider

async def main(url, worker, batch):
    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": url}}).sql)
    await pool.initialize()
    provider = SQLiteVectorProvider(pool.executor)
    await provider.initialize()
    for turn in range(100):  # a search of the test finds that many at most
        made = [VectorDocument(f"{worker}-{turn:05d}-{n:02d}", [turn + 1, n, 1], metadata={"turn": turn}) for n in range(batch)]
        await provider.upsert("docs", made)
        print(turn, flush=True)
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def open_pool(url: str) -> SQLPool:
    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": url}}).sql)
    await pool.initialize()
    await asyncio.get_running_loop().run_in_executor(
        None, lambda: Base.metadata.create_all(pool.engine, tables=TABLES)
    )
    return pool


def start_writer(url: str, worker: str, environment: Dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, url, worker, str(BATCH)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def acknowledged(process: subprocess.Popen[str], wanted: int) -> List[int]:
    """Read `wanted` lines, kill the process, and return all that it said."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(wanted)]
    os.kill(process.pid, signal.SIGKILL)
    lines += process.stdout.readlines()
    process.wait()
    process.stdout.close()
    return [int(line) for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("wanted", KILLED_AFTER)
async def test_a_killed_writer_leaves_what_was_acknowledged(
    tmp_path: Path, child_environment: Dict[str, str], wanted: int
) -> None:
    url = f"sqlite:///{tmp_path / 'vectors.sqlite3'}"
    pool = await open_pool(url)
    provider = SQLiteVectorProvider(pool.executor)
    await provider.initialize()
    try:
        await provider.create_collection("docs", 3)
        await provider.search("docs", [1, 0, 0])
        process = start_writer(url, "w", child_environment)
        said = await asyncio.get_running_loop().run_in_executor(None, acknowledged, process, wanted)
        stored = await provider.count("docs")
        whole, rest = divmod(stored, BATCH)
        assert rest == 0, "part of a batch is there"
        assert whole - len(said) in (0, 1), "something acknowledged is missing, or something else is there"
        results = await provider.search("docs", [1, 1, 1], top_k=10_000, include_vectors=True)
        assert len(results) == stored
        for hit in results:
            _, turn, n = hit.document.id.split("-")
            assert list(hit.document.vector) == [int(turn) + 1, int(n), 1]
            assert hit.document.metadata == {"turn": int(turn)}
    finally:
        await provider.shutdown()
        await pool.shutdown()


async def test_what_other_processes_write_is_found(tmp_path: Path, child_environment: Dict[str, str]) -> None:
    url = f"sqlite:///{tmp_path / 'vectors.sqlite3'}"
    pool = await open_pool(url)
    provider = SQLiteVectorProvider(pool.executor)
    await provider.initialize()
    try:
        await provider.create_collection("docs", 3)
        writers = [start_writer(url, f"w{n}", child_environment) for n in range(2)]
        loop = asyncio.get_running_loop()
        said = asyncio.gather(*(loop.run_in_executor(None, acknowledged, w, 15) for w in writers))
        before = 0
        while not said.done():
            results = await provider.search("docs", [1, 1, 1], top_k=10_000)
            assert len(results) >= before, "documents were lost from the matrix"
            assert len(results) % BATCH == 0, "part of a batch was seen"
            before = len(results)
            await provider.upsert("docs", [VectorDocument("mine", [1, 1, 1])])
            assert (await provider.search("docs", [1, 1, 1], top_k=1))[0].document.id == "mine"
            assert await provider.delete("docs", ["mine"]) == 1
        counts = [len(lines) for lines in await said]
        stored = await provider.count("docs")
        assert 0 <= stored // BATCH - sum(counts) <= 2
        results = await provider.search("docs", [1, 1, 1], top_k=10_000)
        assert len(results) == stored
    finally:
        await provider.shutdown()
        await pool.shutdown()


async def test_an_upsert_joins_a_unit_of_work(tmp_path: Path) -> None:
    pool = await open_pool(f"sqlite:///{tmp_path / 'vectors.sqlite3'}")
    provider = SQLiteVectorProvider(pool.executor)
    await provider.initialize()

    def unit() -> UnitOfWork:
        return UnitOfWork(pool.executor, lambda name, executor: provider.within(executor))

    try:
        await provider.create_collection("docs", 2)
        await provider.upsert("docs", [VectorDocument("before", [1, 0])])
        assert len(await provider.search("docs", [1, 0])) == 1
        with pytest.raises(LookupError, match="changed my mind"):
            async with unit() as uow:
                await uow.vectors.upsert("docs", [VectorDocument("undone", [1, 1])])
                await uow.vectors.create_collection("undone", 2)
                inside = await uow.vectors.search("docs", [1, 1])
                assert [hit.document.id for hit in inside] == ["undone", "before"]
                raise LookupError("changed my mind")
        assert [hit.document.id for hit in await provider.search("docs", [1, 1])] == ["before"]
        assert await provider.get_collection("undone") is None
        async with unit() as uow:
            await uow.vectors.upsert("docs", [VectorDocument("kept", [1, 1], metadata={"a": 1})])
            assert len(await uow.vectors.search("docs", [1, 1], filter={"a": 1})) == 1
        # the number that the undone change had was given again, to this one
        assert [hit.document.id for hit in await provider.search("docs", [1, 1])] == ["kept", "before"]
    finally:
        await provider.shutdown()
        await pool.shutdown()


async def test_many_deletes_and_searches_agree_with_a_plain_model(tmp_path: Path) -> None:
    """Random writes through two providers, by id and by filter, few and very many, with tombstones dropped in between."""
    pool = await open_pool(f"sqlite:///{tmp_path / 'vectors.sqlite3'}")
    providers = [
        SQLiteVectorProvider(pool.executor),
        SQLiteVectorProvider(pool.executor, cache_bytes=300_000),
    ]
    chance = np.random.default_rng(7)
    model: Dict[str, Any] = {}
    try:
        for provider in providers:
            await provider.initialize()
        await providers[0].create_collection("docs", 4)
        for turn in range(60):
            provider = providers[int(chance.integers(2))]
            await change(provider, model, chance, turn)
            reader = providers[int(chance.integers(2))]
            assert await reader.count("docs") == len(model)
            query = chance.normal(size=4)
            found = [hit.document.id for hit in await reader.search("docs", query, top_k=20)]
            assert found == nearest_of(model, query)
    finally:
        for provider in providers:
            await provider.shutdown()
        await pool.shutdown()


async def change(provider: Any, model: Dict[str, Any], chance: Any, turn: int) -> None:
    what = int(chance.integers(6))
    if what < 3:
        count = [1, 50, 3000][what]
        ids = [f"d{int(n)}" for n in chance.integers(0, 6000, size=count)]
        vectors = chance.normal(size=(count, 4)).astype(np.float32)
        metadata = {"turn": turn}
        await provider.upsert("docs", [VectorDocument(i, v, metadata=metadata) for i, v in zip(ids, vectors)])
        model.update({item: (vector, turn) for item, vector in zip(ids, vectors)})
    elif what < 5:
        ids = [f"d{int(n)}" for n in chance.integers(0, 6000, size=[100, 4000][what - 3])]
        assert await provider.delete("docs", ids) == sum(
            model.pop(item, None) is not None for item in set(ids)
        )
    else:
        border = int(chance.integers(0, turn + 1))
        gone = [item for item, (_, stored) in model.items() if stored < border]
        assert await provider.delete_where("docs", {"turn": {"$lt": border}}) == len(gone)
        for item in gone:
            del model[item]


def nearest_of(model: Dict[str, Any], query: Any) -> List[str]:
    if not model:
        return []
    names = sorted(model)
    matrix = np.stack([model[name][0] for name in names]).astype(np.float64)
    asked = query.astype(np.float32).astype(np.float64)
    scores = (matrix @ asked) / np.linalg.norm(matrix, axis=1)
    return [names[n] for n in np.argsort(-scores, kind="stable")[:20]]


class Meddler:
    """An executor that lets something happen between the scoring of a search and the reading of its documents."""

    dialect = "sqlite"

    def __init__(self, executor: Any, times: int) -> None:
        self._executor = executor
        self.left = times
        self.meddle: Any = None

    async def run(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if operation.name == "get_documents" and self.left > 0:
            self.left -= 1
            await self.meddle()
        return await self._executor.run(operation, *args, **kwargs)


@pytest.mark.parametrize("kind", ["moved", "deleted", "no match any more"])
@pytest.mark.parametrize("times", [1, 100])
async def test_a_document_that_changes_under_a_search(tmp_path: Path, kind: str, times: int) -> None:
    pool = await open_pool(f"sqlite:///{tmp_path / 'vectors.sqlite3'}")
    meddler = Meddler(pool.executor, times)
    provider, other = SQLiteVectorProvider(meddler), SQLiteVectorProvider(pool.executor)
    await provider.initialize()
    await other.initialize()

    async def meddle() -> None:
        if kind == "deleted":
            # another one each time, so that every look at the matrix is out of date
            (nearest,) = await other.search("docs", [1, 0], top_k=1)
            await other.delete("docs", [nearest.document.id])
        else:
            vector = [-1, 0.01] if kind == "moved" else [1, 0]
            metadata = {"a": 1 if kind == "moved" else 2}
            await other.upsert("docs", [VectorDocument("n000", vector, metadata=metadata)])

    meddler.meddle = meddle
    try:
        await provider.create_collection("docs", 2)
        await provider.upsert(
            "docs", [VectorDocument(f"n{n:03d}", [1, n / 10], metadata={"a": 1}) for n in range(300)]
        )
        results = await provider.search("docs", [1, 0], top_k=300, filter={"a": 1})
        ids = [hit.document.id for hit in results]
        if results.complete:
            expected = [
                hit.document.id for hit in await other.search("docs", [1, 0], top_k=300, filter={"a": 1})
            ]
            assert ids == expected
        else:
            assert times == 100
            assert results.reason
        assert kind != "moved" or ids[0] != "n000"
    finally:
        await provider.shutdown()
        await other.shutdown()
        await pool.shutdown()


async def test_without_tables_it_says_what_to_do(tmp_path: Path) -> None:
    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": f"sqlite:///{tmp_path / 'empty.sqlite3'}"}}).sql)
    await pool.initialize()
    try:
        provider = SQLiteVectorProvider(pool.executor)
        with pytest.raises(VectorStoreError, match="atlas-storage migrate"):
            await provider.initialize()
        assert not provider.is_initialized
    finally:
        await pool.shutdown()

"""The approximate index of the embedded vector store: used when it is good enough, never out of step, never silent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, AsyncIterator, Dict, List

import numpy as np
import pytest

from modules.storage.manager import StorageManager
from modules.storage.vectors.base import DistanceMetric, VectorDocument
from modules.storage.vectors.sqlite import SQLiteVectorProvider
from modules.storage.vectors.testing import VectorProviderContract
from modules.store_common.errors import InvalidValueError, MissingDependencyError

pytest.importorskip("faiss", reason="the package faiss-cpu is not installed")

ROWS, DIMENSION = 3_000, 24


def clustered(rows: int, seed: int) -> Any:
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((60, DIMENSION), dtype=np.float32)
    noise = np.float32(0.4) * chance.standard_normal((rows, DIMENSION), dtype=np.float32)
    return centres[chance.integers(0, 60, rows)] + noise


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[StorageManager]:
    settings = {"sql": {"path": str(tmp_path / "x.db")}, "vectors": {"sqlite_ann_rows": 1000}}
    async with StorageManager(settings, background=False) as made:
        yield made


async def fill(provider: Any, metric: DistanceMetric = DistanceMetric.COSINE) -> Dict[str, Any]:
    await provider.create_collection("docs", DIMENSION, metric=metric)
    matrix = clustered(ROWS, 1)
    documents = [VectorDocument(f"d{n:04d}", row, metadata={"n": n}) for n, row in enumerate(matrix)]
    await provider.upsert("docs", documents)
    return {item.id: item.vector for item in documents}


async def recall(provider: Any, exact: Any, queries: Any, top_k: int = 10) -> float:
    hits = 0
    for query in queries:
        near = {hit.document.id for hit in await exact.search("docs", query, top_k=top_k)}
        found = await provider.search("docs", query, top_k=top_k)
        assert (len(found), found.complete) == (top_k, True)
        scores = [hit.score for hit in found]
        assert scores == sorted(scores, reverse=True)
        hits += len(near & {hit.document.id for hit in found})
    return hits / (top_k * len(queries))


class TestApproximate(VectorProviderContract):
    """Everything else that a vector store promises holds with an index as well."""

    fuzz = 50
    odd_names = 40

    @pytest.fixture
    async def executor(self, tmp_path: Path) -> AsyncIterator[Any]:
        async with StorageManager({"sql": {"path": str(tmp_path / "x.db")}}, background=False) as storage:
            yield storage.executor

    @pytest.fixture
    def make_provider(self, executor: Any) -> Any:
        return lambda tenancy=None: SQLiteVectorProvider(executor, tenancy=tenancy, ann_rows=100)


@pytest.mark.parametrize("metric", list(DistanceMetric))
async def test_it_finds_nearly_everything_and_scores_exactly(
    storage: StorageManager, metric: DistanceMetric
) -> None:
    provider: Any = storage.vectors
    assert not provider.capabilities.exact_search
    await fill(provider, metric)
    exact = storage.add_vector_store("sqlite", name="exact", options={"ann_rows": 0})
    assert exact.capabilities.exact_search
    report = await provider.index_ready("docs")
    assert (report.rows, report.is_used) == (ROWS, True)
    assert report.recall >= 0.98
    queries = clustered(30, 2)
    assert await recall(provider, exact, queries) >= 0.95
    for query in queries[:3]:
        ours, theirs = await provider.search("docs", query), await exact.search("docs", query)
        known = {hit.document.id: hit.score for hit in theirs}
        assert all(hit.score == known[hit.document.id] for hit in ours if hit.document.id in known)
    # a filter, and more results than the index answers, are exact
    for arguments in ({"filter": {"n": {"$lt": 300}}}, {"top_k": 500}):
        ours = await provider.search("docs", queries[0], **arguments)
        theirs = await exact.search("docs", queries[0], **arguments)
        assert [hit.document.id for hit in ours] == [hit.document.id for hit in theirs]


async def test_what_changes_after_the_build_is_known_at_once(storage: StorageManager) -> None:
    provider: Any = storage.vectors
    stored = await fill(provider)
    await provider.index_ready("docs")
    query = clustered(1, 3)[0]
    best = (await provider.search("docs", query))[0].document.id
    assert await provider.delete("docs", [best]) == 1
    assert best not in [hit.document.id for hit in await provider.search("docs", query)]
    far = (await provider.search("docs", -query))[0].document.id
    await provider.upsert("docs", [VectorDocument("new", query), VectorDocument(far, query)])
    hits = await provider.search("docs", query, top_k=2)
    assert {hit.document.id for hit in hits} == {"new", far}
    assert far not in [hit.document.id for hit in await provider.search("docs", -query)]
    await provider.clear_namespace("docs")
    assert list(await provider.search("docs", query)) == []
    assert stored


async def test_it_is_built_anew_from_the_rows_whenever_it_is_not_there(tmp_path: Path) -> None:
    settings = {"sql": {"path": str(tmp_path / "x.db")}, "vectors": {"sqlite_ann_rows": 1000}}
    queries = clustered(5, 4)
    answers: List[List[str]] = []
    for turn in range(2):
        async with StorageManager(settings, background=False) as storage:
            provider: Any = storage.vectors
            if not turn:
                await fill(provider)
            report = await provider.index_ready("docs")
            assert report.is_used
            answers.append([(await provider.search("docs", query))[0].document.id for query in queries])
            await provider.rebuild_index("docs")
            matrix = provider._cache.get(next(iter(provider._cache._matrices), None))
            assert matrix is None, "the index goes with its matrix"
            assert (await provider.index_ready("docs")).is_used
    assert answers[0] == answers[1]


async def test_hard_data_stays_exact(tmp_path: Path) -> None:
    """Independent numbers in many dimensions: the measurement says that the index would miss too much."""
    settings = {"sql": {"path": str(tmp_path / "x.db")}}
    async with StorageManager(settings, background=False) as storage:
        provider: Any = storage.add_vector_store(
            "sqlite", name="tuned", options={"ann_rows": 100, "ann_recall": 1.0}
        )
        await provider.create_collection("docs", 384)
        data = np.random.default_rng(1).standard_normal((4_000, 384), dtype=np.float32)
        await provider.upsert("docs", [VectorDocument(f"d{n}", row) for n, row in enumerate(data)])
        report = await provider.index_ready("docs")
        exact = storage.vectors
        queries = np.random.default_rng(2).standard_normal((5, 384), dtype=np.float32)
        found = await recall(provider, exact, queries)
        assert found == 1.0 or report.is_used
        assert report.is_used == (report.recall >= 1.0)


async def test_a_broken_index_is_left_out(storage: StorageManager, monkeypatch: Any) -> None:
    from modules.storage.vectors import sqlite_building

    def broken(*arguments: Any) -> Any:
        raise RuntimeError("faiss is broken on purpose")

    monkeypatch.setattr(sqlite_building, "build", broken)
    provider: Any = storage.vectors
    await fill(provider)
    assert await provider.index_ready("docs") is None
    assert len(await provider.search("docs", clustered(1, 5)[0])) == 10


async def test_what_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    settings = {"sql": {"path": str(tmp_path / "x.db")}, "vectors": {"sqlite_ann_rows": 1}}
    async with StorageManager(settings, background=False) as storage:
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(MissingDependencyError, match=r"atlas-storage\[ann\]"):
            await storage.vectors.list_collections()
        for wrong in ({"ann_rows": -1}, {"ann_recall": 0.0}):
            with pytest.raises(InvalidValueError):
                SQLiteVectorProvider(storage.executor, **wrong)  # type: ignore[arg-type]

"""Reconciliation with real stores outside of the database: Chroma in this process, and the vectors of a second SQLite."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, AsyncIterator, List

import pytest

from modules.storage import reconciliation
from modules.storage.manager import StorageManager
from modules.storage.reconciliation import Difference, Reconciliation, Report
from modules.storage.vectors.base import VectorDocument

_COUNT = 24
_NAMESPACES = ("one", "two")


@pytest.fixture(params=["chroma", "second"])
async def filled(request: pytest.FixtureRequest, databases: Any, tmp_path: Path) -> AsyncIterator[Any]:
    """A manager with a default vector store outside of its database; 24 documents in each of two namespaces."""
    settings = {"sql": {"url": databases.url("sqlite", migrated=True), "auto_migrate": False}}
    other_settings = {"sql": {"url": databases.url("sqlite", migrated=True), "auto_migrate": False}}
    async with StorageManager(other_settings) as other, StorageManager(settings) as storage:
        if request.param == "chroma":
            pytest.importorskip("chromadb", reason="the package chromadb is not installed")
            options = {"persist_directory": str(tmp_path / "chroma")}
            storage.add_vector_store("chroma", name="other", options=options, default=True)
        else:
            storage.add_vector_store(
                "sqlite", name="other", options={"executor": other.executor}, default=True
            )
        async with storage.unit_of_work() as uow:
            await uow.vectors.create_collection("docs", 2)
            for space in _NAMESPACES:
                await uow.vectors.upsert("docs", _documents(_COUNT), namespace=space)
            await uow.vectors.delete("docs", ["d003"], namespace="one")
        await uow.applied(60)
        yield storage
        await storage.shutdown()


def _documents(count: int, text: str = "text") -> List[VectorDocument]:
    return [
        VectorDocument(f"d{n:03}", [1.0, n / 7], f"{text} {n}", {"n": n, "of": ["x", None]})
        for n in range(count)
    ]


async def _run(storage: Any, **how: Any) -> Report:
    return await Reconciliation(storage.executor, storage.outbox.targets.require("other"), **how).run()


async def test_every_kind_of_difference_is_found_and_mended(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_PAGE", 5)
    assert await _run(filled) == Report(compared=2 * _COUNT, equal=2 * _COUNT, done=True)
    vectors = filled.vectors
    await vectors.delete("docs", ["d001", "d002"], namespace="one")
    await vectors.upsert("docs", [VectorDocument("d005", [9.0, 9.0])], namespace="one")
    await vectors.upsert("docs", [VectorDocument("d003", [1.0, 3.0])], namespace="one")
    await vectors.upsert("docs", [VectorDocument("stranger", [1.0, 3.0])], namespace="two")

    found: List[Difference] = []
    await _run(filled, on_difference=found.append)
    assert sorted((d.kind, d.key[3], d.key[4]) for d in found) == [
        ("extra", "two", "stranger"),
        ("missing", "one", "d001"),
        ("missing", "one", "d002"),
        ("stale", "one", "d005"),
        ("undead", "one", "d003"),
    ]
    assert (await _run(filled, repair=True, prune=True)).repaired == 5
    await filled.outbox.drain(60)
    assert (await _run(filled)).differences == 0
    mended = await vectors.get("docs", ["d001", "d003", "d005"], namespace="one")
    assert {(d.id, d.content) for d in mended} == {("d001", "text 1"), ("d005", "text 5")}


async def test_what_was_lost_is_rebuilt(filled: Any) -> None:
    await filled.vectors.delete_collection("docs")
    assert (await _run(filled, repair=True)).missing == 2 * _COUNT - 1
    await filled.outbox.drain(60)
    assert (await _run(filled)).equal == 2 * _COUNT
    found = await filled.vectors.get("docs", ["d000", "d023"], namespace="two")
    assert {(d.id, d.content, d.metadata["of"][1]) for d in found} == {
        ("d000", "text 0", None),
        ("d023", "text 23", None),
    }


@pytest.mark.parametrize("filled", ["second"], indirect=True)
async def test_a_unit_does_not_write_the_vectors_of_another_database_into_its_own(filled: Any) -> None:
    assert filled.vectors.capabilities.transactional, "it could join a transaction, but not this one"
    found = await filled.sql_backend.execute_sql("SELECT count(*) AS n FROM atlas_vectors")
    assert found == [{"n": 0}]
    assert await filled.vectors.count("docs") == 2 * _COUNT - 1


@pytest.mark.parametrize("filled", ["second"], indirect=True)
async def test_memory_does_not_grow_with_what_is_compared(
    filled: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_PAGE", 50)
    peaks = []
    for count in (150, 1500):
        async with filled.unit_of_work() as uow:
            await uow.vectors.upsert("docs", _documents(count, "x" * 4000), namespace="large")
        await uow.applied(60)
        await _run(filled)  # what is loaded once is loaded
        tracemalloc.start()
        try:
            report = await _run(filled)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert (report.equal, report.differences) == (2 * _COUNT + count, 0)
    print(f"peaks of 150 and 1,500 documents: {peaks[0] / 1e6:.1f} and {peaks[1] / 1e6:.1f} MB")
    # all of the larger one at once would be 12 MB and more
    assert peaks[1] < 1.5 * peaks[0]

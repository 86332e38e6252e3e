"""`atlas-storage vectors ...` on SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from modules.storage.manager import StorageManager
from modules.storage.vectors.base import VectorDocument
from tests.contract.test_vectors_elsewhere import install


@pytest.fixture
def filled(cli_on: Any) -> Any:
    async def fill() -> None:
        async with StorageManager({"sql": {"url": cli_on.url}}) as storage:
            await storage.vectors.create_collection("docs", 2, metadata={"made": "here"})
            documents = [
                VectorDocument("a", [1.0, 0.0], "about\x1b[31m a", {"year": 2024}),
                VectorDocument("b", [0.8, 0.6], "about b", {"year": 2019}),
                VectorDocument("c", [0.0, 1.0], namespace="other"),
            ]
            await storage.vectors.upsert("docs", documents)

    asyncio.run(fill())
    return cli_on


def test_list_and_info(filled: Any) -> None:
    assert [
        (item["name"], item["count"], item["dimension"]) for item in filled("--json", "vectors", "list").lines
    ] == [("docs", 3, 2)]
    assert "docs" in filled("vectors", "list").stdout
    found = filled("--json", "vectors", "info", "docs").json
    assert (found["metric"], found["metadata"]) == ("cosine", {"made": "here"})
    assert found["provider"] in ("sqlite", "pgvector")
    assert "cosine" in filled("vectors", "info", "docs").stdout
    assert "no vector collection 'absent'" in filled("vectors", "info", "absent", code=1).stderr
    assert filled("--tenant", "acme", "--json", "vectors", "list").stdout == ""


def test_search(filled: Any) -> None:
    found = filled("--json", "vectors", "search", "docs", "[1, 0]").lines
    assert [hit["document"]["id"] for hit in found] == ["a", "b"]
    assert found[1]["score"] == pytest.approx(0.8, abs=1e-4)
    shown = filled("vectors", "search", "docs", "-", stdin=b"[1, 0]").stdout
    assert "about" in shown
    assert "\x1b[31m" not in shown
    narrow = ["--filter", '{"year": {"$lt": 2020}}', "--limit", "1"]
    assert [
        hit["document"]["id"] for hit in filled("--json", "vectors", "search", "docs", "[1,0]", *narrow).lines
    ] == ["b"]
    there = filled("--json", "vectors", "search", "docs", "[1,0]", "--namespace", "other").lines
    assert [hit["document"]["id"] for hit in there] == ["c"]
    assert "Nothing found" in filled("vectors", "search", "docs", "[1,0]", "--namespace", "empty").stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["docs", "[1, 0, 0]"], 2, "dimension"),
        (["docs", "some", "words"], 2, "no embedder"),
        (["docs", " "], 2, "blank"),
        (["docs", "[1, 0]", "--filter", "{"], 2, "--filter is not JSON"),
        (["docs", "[1, 0]", "--filter", '{"$x": 1}'], 2, "$x"),
        (["absent", "[1, 0]"], 1, "no vector collection 'absent'"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_what_is_refused(filled: Any, arguments: Any, code: int, message: str) -> None:
    failed = filled("vectors", "search", *arguments, code=code)
    assert message in failed.stderr
    assert failed.stderr.startswith("error: ")


def test_rebuild_and_recall(filled: Any) -> None:
    assert filled("--json", "vectors", "rebuild", "docs").json["count"] == 3
    assert "3 documents" in filled("vectors", "rebuild", "docs").stdout
    assert filled("--json", "vectors", "recall", "docs", "--sample", "3").json["collection"] == "docs"
    for name in ("rebuild", "recall"):
        assert "absent" in filled("vectors", name, "absent", code=1).stderr


def test_a_configuration_without_vectors(cli: Any) -> None:
    failed = cli("vectors", "list", code=2, ATLAS_VECTOR_BACKEND="none")
    assert "vectors.backend" in failed.stderr
    assert (
        "pgvector needs PostgreSQL" in cli("vectors", "list", code=2, ATLAS_VECTOR_BACKEND="pgvector").stderr
    )


def test_a_provider_of_another_package(cli: Any, tmp_path: Path) -> None:
    install(tmp_path, "box", "atlas_box:BoxProvider")
    there = {"PYTHONPATH": str(tmp_path), "ATLAS_VECTOR_BACKEND": "box"}
    assert cli("--json", "vectors", "list", **there).stdout == ""
    assert cli("--json", "health", **there).json["components"]["vector_store"]["details"]["backend"] == "box"
    wrong = cli("vectors", "list", code=2, ATLAS_VECTOR_BACKEND="box")
    assert "there are chroma, in_memory, pgvector, pinecone, sqlite, none" in wrong.stderr
    assert "ATLAS_VECTOR_BACKEND" in wrong.stderr

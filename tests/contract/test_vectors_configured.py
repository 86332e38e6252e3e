"""What the settings mean to each provider, and Chroma and Pinecone through the manager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modules.storage.health import HealthStatus
from modules.storage.manager import StorageManager
from modules.storage.vectors.base import VectorDocument
from modules.storage.vectors.factory import VectorContext
from modules.store_common.errors import NotConfiguredError


async def _round_trip(storage: StorageManager) -> None:
    await storage.vectors.create_collection("docs", 4)
    await storage.vectors.upsert(
        "docs", [VectorDocument("a", [1.0, 0.0, 0.0, 0.0], metadata={"n": [1, None]})]
    )
    [found] = await storage.vectors.get("docs", ["a"])
    assert found.metadata == {"n": [1, None]}
    health = (await storage.health_check()).vector_store
    assert health is not None
    assert (health.status, health.details["opened"]) == (HealthStatus.HEALTHY, True)
    async with storage.unit_of_work() as uow:
        await uow.vectors.upsert("docs", [VectorDocument("b", [0.0, 1.0, 0.0, 0.0])])
    await uow.applied(60)
    assert [document.id for document in await storage.vectors.get("docs", ["b"])] == ["b"]


async def test_chroma_of_the_settings(tmp_path: Path) -> None:
    pytest.importorskip("chromadb", reason="the package chromadb is not installed")
    vectors = {"backend": "chroma", "chroma_persist_directory": str(tmp_path / "chroma")}
    async with StorageManager({"sql": {"path": str(tmp_path / "x.db")}, "vectors": vectors}) as storage:
        assert not (tmp_path / "chroma").exists()
        await _round_trip(storage)


async def test_pinecone_of_the_settings(tmp_path: Path) -> None:
    pytest.importorskip(
        "pinecone", minversion="10", reason="the package pinecone (10 or later) is not installed"
    )
    pytest.importorskip("aiohttp", reason="the package aiohttp, for the emulator, is not installed")
    from tests.emulators.pinecone import PineconeEmulator

    async with PineconeEmulator() as emulator:
        vectors = {
            "backend": "none",
            "pinecone_api_key": emulator.api_key,
            "pinecone_index_name": "mine",
            "pinecone_environment": "eu-west-1",
            "embedding_dimension": 4,
        }
        async with StorageManager({"sql": {"path": str(tmp_path / "x.db")}, "vectors": vectors}) as storage:
            storage.add_vector_store("pinecone", options={"host": emulator.host, "wait_for_visibility": True})
            assert storage.vectors.name == "pinecone"
            await storage.vectors.create_collection("docs", 4)
            await storage.vectors.upsert(
                "docs", [VectorDocument("a", [1.0, 0.0, 0.0, 0.0], metadata={"n": [1]})]
            )
            assert (await storage.vectors.search("docs", [1.0, 0.0, 0.0, 0.0]))[0].document.id == "a"
            assert await storage.vectors.health_check()
    emulator.check()


@pytest.mark.postgresql
def test_what_the_settings_mean_to_each_provider() -> None:
    from modules.storage.settings import StorageSettings
    from modules.storage.vectors import factory
    from modules.store_common.tenancy import TenantPolicy

    settings = StorageSettings.from_dict(
        {
            "vectors": {
                "embedding_dimension": 8,
                "pinecone_api_key": "secret",
                "pinecone_environment": "eu-west-1",
                "pinecone_index_name": "mine",
                "pinecone_namespace": "app",
                "pinecone_metric": "dotproduct",
                "chroma_host": "c1",
                "chroma_port": 9,
                "chroma_auth_token": "token",
                "chroma_tenant": "t",
                "chroma_database": "d",
                "pgvector_index_type": "ivfflat",
                "pgvector_lists": 7,
                "pgvector_m": 50,
            }
        }
    ).vectors
    context = VectorContext(settings, TenantPolicy())
    assert factory._pinecone(context) == {
        "api_key": "secret",
        "index_name": "mine",
        "dimension": 8,
        "metric": "dot_product",
        "region": "eu-west-1",
        "namespace": "app",
    }
    assert factory._chroma(context) == {
        "persist_directory": ".atlas/chroma",
        "host": "c1",
        "port": 9,
        "auth_token": "token",
        "chroma_tenant": "t",
        "chroma_database": "d",
    }
    with pytest.raises(NotConfiguredError, match="needs PostgreSQL"):
        factory.make_vector_provider("pgvector", context)
    with pytest.raises(NotConfiguredError, match="needs a SQLite database"):
        factory.make_vector_provider("sqlite", context)
    assert "secret" not in repr(context)
    assert "token" not in repr(context).replace("chroma_auth_token", "")


async def test_the_pgvector_options_of_the_settings(storage: Any, backend: str) -> None:
    if backend != "postgresql":
        pytest.skip("pgvector is PostgreSQL's")
    await storage.shutdown()
    storage.configure(vectors={"pgvector_index_type": "ivfflat", "pgvector_lists": 7, "pgvector_m": 50})
    await storage.initialize()
    made = await storage.vectors.create_collection("docs", 2)
    assert made.index_type == "ivfflat"
    assert storage.vectors._defaults.ef_construction == 100

"""`storage.vectors`: the configured provider, when it is loaded and opened, how it fails and ends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict
from urllib.parse import urlsplit

import pytest

from modules.storage.health import HealthStatus
from modules.storage.manager import StorageManager
from modules.storage.settings import SettingsError
from modules.storage.vectors.base import VectorDocument, VectorProvider
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError, VectorUnavailableError
from modules.storage.vectors.factory import VectorContext
from modules.storage.vectors.in_memory import InMemoryProvider
from modules.storage.vectors.registry import register_vector_provider
from modules.storage.vectors.sqlite import SQLiteVectorProvider
from modules.store_common.errors import (
    AlreadyExistsError,
    InvalidValueError,
    NotConfiguredError,
    NotInitializedError,
    TenantContextError,
)
from modules.store_common.tenancy import tenant_context

try:
    from modules.storage.vectors.pgvector import PgvectorProvider
except ModuleNotFoundError:  # the core suite runs without PostgreSQL's packages
    PgvectorProvider = VectorProvider  # type: ignore[misc,assignment]

# --- made and opened ----------------------------------------------------------------------------------------------


async def test_the_provider_of_the_database(storage: Any, backend: str) -> None:
    provider = storage.vectors
    assert isinstance(provider, PgvectorProvider if backend == "postgresql" else SQLiteVectorProvider)
    assert storage.vectors is provider
    assert storage.vector_registry.default is provider
    assert storage.vector_registry.list_instances() == [provider.name]
    assert not provider.is_initialized, "handing it out opens nothing"
    assert await provider.list_collections() == []
    assert provider.is_initialized


async def test_first_calls_at_the_same_time_open_once(storage: Any, monkeypatch: Any) -> None:
    opened = 0
    whole = storage.vectors.initialize

    async def counted() -> None:
        nonlocal opened
        opened += 1
        await whole()

    monkeypatch.setattr(storage.vectors, "initialize", counted)
    await asyncio.gather(*(storage.vectors.list_collections() for _ in range(30)))
    assert opened == 1


async def test_it_survives_the_manager_but_not_in_memory(
    storage: Any, migrated_settings: Any, backend: str
) -> None:
    await storage.vectors.create_collection("docs", 2)
    await storage.vectors.upsert("docs", [VectorDocument("a", [1.0, 2.0], metadata={"k": [1, None]})])
    handed_out = storage.vectors
    await storage.shutdown()
    with pytest.raises(RuntimeError, match="not initialized"):
        await handed_out.count("docs")
    for name in ("vectors", "vector_registry"):
        with pytest.raises(RuntimeError, match="not initialized"):
            getattr(storage, name)
    await storage.initialize()
    if backend == "sqlite-memory":
        assert await storage.vectors.get_collection("docs") is None
    else:
        assert await storage.vectors.count("docs", filter={"k": 1}) == 1
    with pytest.raises(RuntimeError, match="not initialized"):
        await handed_out.count("docs")


async def test_a_manager_is_closed_while_its_provider_opens(tmp_path: Path, leaks: Any) -> None:
    going = asyncio.Event()
    go_on = asyncio.Event()

    class Slow(InMemoryProvider):
        async def initialize(self) -> None:
            going.set()
            await go_on.wait()
            await super().initialize()

    manager = StorageManager({"sql": {"path": str(tmp_path / "x.db")}, "vectors": {"backend": "none"}})
    await manager.initialize()
    slow = Slow()
    slow.open_on_use()
    manager.vector_registry.register_instance("slow", slow)
    call = asyncio.ensure_future(manager.vectors.list_collections())
    await asyncio.wait_for(going.wait(), 60)
    slow.open_on_use(False)
    await manager.shutdown()
    go_on.set()
    with pytest.raises(NotInitializedError):
        await call
    assert not slow.is_initialized, "what opened too late was closed again"


def test_a_manager_that_is_not_asked_for_vectors_loads_no_numpy(
    tmp_path: Path, child_environment: Dict[str, str]
) -> None:
    program = (
        "import asyncio, json, sys\n"
        "from modules.storage import StorageManager\n"
        "async def main():\n"
        "    async with StorageManager({'sql': {'path': sys.argv[1]}}) as storage:\n"
        "        await storage.kv.set('n', 'k', 1)\n"
        "        health = await storage.health_check()\n"
        "        await storage.verify_stores()\n"
        "        before = 'numpy' in sys.modules\n"
        "        await storage.vectors.list_collections()\n"
        "        print(json.dumps([health.vector_store.status.value, before, 'numpy' in sys.modules]))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "db.sqlite3")],
        capture_output=True, text=True, env=child_environment, timeout=60, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == ["healthy", False, True]


async def test_tenancy_holds(storage: Any, migrated_settings: Any, backend: str) -> None:
    await storage.vectors.create_collection("docs", 2, tenant_id="acme")
    with tenant_context("acme"):
        assert await storage.vectors.count("docs") == 0
    with pytest.raises(VectorNotFoundError):
        await storage.vectors.count("docs")
    await storage.shutdown()
    storage.configure(require_tenant_context=True)
    await storage.initialize()
    with pytest.raises(TenantContextError):
        await storage.vectors.list_collections()
    async with storage.unit_of_work() as uow:
        with pytest.raises(TenantContextError):
            await uow.vectors.list_collections()


# --- settings and errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"vectors": {"backend": "pgvector"}}, "vectors.backend"),
        ({"vectors": {"backend": "pinecone"}}, "vectors.pinecone_api_key"),
        ({"vectors": {"backend": "sqlite"}, "sql": {"url": "postgresql://u@localhost/x"}}, "vectors.backend"),
    ],
)
async def test_settings_that_contradict_each_other(
    tmp_path: Path, monkeypatch: Any, settings: Any, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    manager = StorageManager(settings)
    with pytest.raises(SettingsError, match=key) as caught:
        await manager.initialize()
    assert caught.value.key == key
    assert os.listdir(tmp_path) == [], "refused before anything was opened"


async def test_none_is_not_configured(tmp_path: Path) -> None:
    settings = {"sql": {"path": str(tmp_path / "x.db")}, "vectors": {"backend": "none"}}
    async with StorageManager(settings) as storage:
        with pytest.raises(NotConfiguredError, match=r"vectors\.backend"):
            _ = storage.vectors
        async with storage.unit_of_work() as uow:
            with pytest.raises(NotConfiguredError, match=r"vectors\.backend"):
                _ = uow.vectors
        assert storage.vector_registry.list_instances() == []
        assert (await storage.health_check()).vector_store is None
        assert "vector_store" not in await storage.verify_stores()
        made = storage.add_vector_store("in_memory", name="scratch")
        assert storage.vectors is made


async def test_in_memory(tmp_path: Path) -> None:
    settings = {"sql": {"path": str(tmp_path / "x.db")}, "vectors": {"backend": "in_memory"}}
    async with StorageManager(settings) as storage:
        health = (await storage.health_check()).vector_store
        assert health is not None
        assert (health.status, health.details["opened"]) == (HealthStatus.HEALTHY, False)
        await storage.vectors.create_collection("docs", 1)
        assert (await storage.verify_stores())["vector_store"] is True
        handed_out = storage.vectors
    with pytest.raises(NotInitializedError):
        await handed_out.list_collections()
    assert not handed_out.is_initialized, "nobody would close it"


@pytest.mark.parametrize("backend", ["pinecone", "chroma"])
async def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: Any, backend: str) -> None:
    package = {"pinecone": "pinecone", "chroma": "chromadb"}[backend]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    vectors = {
        "backend": backend,
        "pinecone_api_key": "k",
        "chroma_persist_directory": str(tmp_path / "chroma"),
    }
    async with StorageManager({"sql": {"path": str(tmp_path / "x.db")}, "vectors": vectors}) as storage:
        with pytest.raises(ImportError, match=rf"atlas-storage\[{backend}\]"):
            await storage.vectors.list_collections()
        health = (await storage.health_check()).vector_store
        assert health is not None
        assert health.status is HealthStatus.UNHEALTHY
        assert f"atlas-storage[{backend}]" in health.message
        assert (await storage.verify_stores())["vector_store"] is False
        await storage.kv.set("n", "k", 1)


async def test_others_are_made_beside_it(storage: Any, tmp_path: Path) -> None:
    with pytest.raises(NotConfiguredError, match="no vector provider 'nonsense'"):
        storage.add_vector_store("nonsense")
    with pytest.raises(InvalidValueError, match=r"no such option.*colour"):
        storage.add_vector_store("in_memory", options={"colour": "red"})
    made = storage.add_vector_store("in_memory", name="scratch")
    with pytest.raises(AlreadyExistsError):
        storage.add_vector_store("in_memory", name="scratch")
    assert storage.vector_registry.get("scratch") is made
    assert storage.vectors is not made
    assert len(storage.vector_registry.list_instances()) == 2
    await made.create_collection("docs", 1)
    await storage.shutdown()
    assert not made.is_initialized


async def test_a_third_partys_provider_makes_itself(storage: Any, monkeypatch: Any) -> None:
    from modules.storage.vectors import registry

    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    seen: Dict[str, Any] = {}

    @register_vector_provider("shelf")
    class Shelf(InMemoryProvider):
        name = "shelf"

        @classmethod
        def from_context(cls, context: VectorContext) -> VectorProvider:
            seen["context"] = context
            return cls(tenancy=context.tenancy)

    made = storage.add_vector_store("shelf", options={"boards": 3}, default=True)
    assert isinstance(made, Shelf)
    context = seen["context"]
    assert dict(context.options) == {"boards": 3}
    assert context.executor is storage.executor
    assert context.settings is storage.get_settings().vectors
    await storage.vectors.create_collection("docs", 1)

    @register_vector_provider("closed")
    class Closed(InMemoryProvider):
        name = "closed"

    with pytest.raises(NotConfiguredError, match="from_context"):
        storage.add_vector_store("closed")


async def test_errors_are_those_of_the_vector_stores(storage: Any) -> None:
    await storage.vectors.create_collection("docs", 2)
    with pytest.raises(VectorCollectionError, match="exists already"):
        await storage.vectors.create_collection("docs", 3)
    with pytest.raises(VectorNotFoundError):
        await storage.vectors.search("absent", [1.0])


# --- health -------------------------------------------------------------------------------------------------------


async def test_health_before_and_after_the_first_use(storage: Any, backend: str) -> None:
    for opened in (False, True):
        health = (await storage.health_check()).vector_store
        assert health.status is HealthStatus.HEALTHY, health
        assert health.details["backend"] == ("pgvector" if backend == "postgresql" else "sqlite")
        assert health.details["opened"] is opened
        json.dumps(health.to_dict())
        await storage.vectors.list_collections()
    assert (await storage.verify_stores())["vector_store"] is True


async def test_health_sees_a_missing_table(storage: Any, backend: str) -> None:
    table = "atlas_pgvector_collections" if backend == "postgresql" else "atlas_vectors"
    await storage.sql_backend.execute_sql(f"DROP TABLE {table}")
    health = await storage.health_check()
    assert health.unhealthy_components == ["vector_store"]
    assert table in health.vector_store.message
    assert (await storage.verify_stores())["vector_store"] is False


async def test_health_opens_a_remote_store_and_says_why_it_cannot(tmp_path: Path) -> None:
    pytest.importorskip("chromadb", minversion="1", reason="the package chromadb is not installed")
    from tests.support.cluster import free_port

    vectors = {"backend": "chroma", "chroma_host": "127.0.0.1", "chroma_port": free_port()}
    # loading Chroma's package takes seconds where the machine is busy
    settings = {
        "sql": {"path": str(tmp_path / "x.db")},
        "vectors": vectors,
        "health_check_timeout_seconds": 100,
    }
    async with StorageManager(settings) as storage:
        health = await storage.health_check()
        assert health.unhealthy_components == ["vector_store"]
        assert health.vector_store is not None
        assert "could not be reached" in health.vector_store.message
        with pytest.raises(VectorUnavailableError):
            await storage.vectors.list_collections()


@pytest.mark.postgresql
@pytest.mark.parametrize("asked_for", [False, True])
async def test_a_server_without_pgvector(databases: Any, postgres: Any, asked_for: bool) -> None:
    """The server here has it; a view in front of the catalogue's hides it."""
    url = databases.url("postgresql", migrated=True)
    name = urlsplit(url).path.lstrip("/")
    hidden = (
        "CREATE VIEW public.pg_available_extensions AS"
        " SELECT * FROM pg_catalog.pg_available_extensions WHERE name <> 'vector'"
    )
    async with StorageManager({"sql": {"url": url}}) as storage:
        await storage.sql_backend.execute_sql(hidden)
    postgres.admin(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
    vectors = {"backend": "pgvector"} if asked_for else {}
    async with StorageManager({"sql": {"url": url}, "vectors": vectors}) as storage:
        health = (await storage.health_check()).vector_store
        assert health is not None
        assert health.details["available_version"] is None
        assert health.status is (HealthStatus.UNHEALTHY if asked_for else HealthStatus.HEALTHY)
        assert ("install pgvector" in health.message) == asked_for
        with pytest.raises(NotConfiguredError, match="install pgvector"):
            await storage.vectors.list_collections()
        async with storage.unit_of_work() as uow:
            await uow.kv.set("n", "k", 1)
        assert await storage.kv.get("n", "k") == 1

"""`StorageManager` on every back end: life, settings, what it hands out and what it refuses."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest
from sqlalchemy import text

from modules.storage.manager import StorageManager
from modules.storage.migrations.comparison import differences
from modules.storage.settings import SettingsError, StorageSettings
from modules.store_common.errors import (
    NotConfiguredError,
    NotInitializedError,
    StorageError,
    UnavailableError,
    WrongProcessError,
)
from tests.support.postgres import ROOT

LATER = ("mongo_backend",)
OPEN_ONLY = (
    "conversations", "kv", "tasks", "jobs", "job_queue", "vectors", "vector_registry", "executor", "sql_pool", "sql_backend",
)  # fmt: skip


async def _refuses_everything(manager: StorageManager) -> None:
    assert not manager.is_initialized
    for name in OPEN_ONLY:
        with pytest.raises(RuntimeError, match="not initialized"):
            getattr(manager, name)
    for call in (manager.get_sql_engine, manager.get_session_factory, manager.unit_of_work):
        with pytest.raises(RuntimeError, match="not initialized"):
            call()
    for look in (manager.verify_stores, manager.ensure_schemas):
        with pytest.raises(RuntimeError, match="not initialized"):
            await look()
    health = await manager.health_check()
    assert health.overall.value == "unknown"
    assert health.components == {}


async def test_before_and_after_everything_is_not_initialized(migrated_settings: Any) -> None:
    manager = StorageManager(migrated_settings)
    await _refuses_everything(manager)
    await manager.shutdown()
    async with manager:
        assert manager.is_initialized
        kv = manager.kv
    await _refuses_everything(manager)
    with pytest.raises(NotInitializedError):
        await kv.get("n", "k")
    with pytest.raises(NotInitializedError):
        await kv.set("n", "k", 1)


async def test_idempotent_concurrent_and_reusable(migrated_settings: Any, leaks: Any) -> None:
    manager = StorageManager(migrated_settings)
    for number in range(3):
        await asyncio.gather(*(manager.initialize() for _ in range(20)))
        await manager.initialize()
        await manager.kv.set("n", "k", number)
        assert await manager.kv.get("n", "k") == number
        await asyncio.gather(*(manager.shutdown() for _ in range(20)))
        await manager.shutdown()
    assert not manager.is_initialized


async def test_settings_as_object_mapping_or_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert StorageManager().get_settings() == StorageSettings()
    assert StorageManager(StorageSettings()).get_settings() == StorageSettings()
    assert StorageManager({"sql": {"path": "x.db"}}).get_settings().sql.path == "x.db"
    with pytest.raises(SettingsError, match="not list"):
        StorageManager([])  # type: ignore[arg-type]
    with pytest.raises(SettingsError):
        StorageManager({"sqll": {}})
    assert os.listdir(tmp_path) == [], "constructing opens nothing"
    async with StorageManager() as manager:
        await manager.kv.set("n", "k", 1)
    assert (tmp_path / ".atlas" / "storage.sqlite3").exists()


async def test_stores_are_made_at_first_access(storage: Any) -> None:
    assert storage._stores == {}
    kv = storage.kv
    assert storage.kv is kv
    assert set(storage._stores) == {"kv"}
    assert storage.sql_backend is storage.sql_backend


async def test_stores_of_later_issues_are_not_configured(storage: Any) -> None:
    for name in LATER:
        with pytest.raises(NotConfiguredError, match="not configured"):
            getattr(storage, name)
    for call in (storage.get_mongo_client, storage.get_mongo_database):
        with pytest.raises(NotConfiguredError, match="not configured"):
            call()


async def test_schemas_and_stores(storage: Any) -> None:
    components = ("sql", "conversation_store", "kv_store", "task_store", "job_store", "vector_store")
    expected = dict.fromkeys(components, True)
    assert await storage.verify_stores() == expected
    assert await storage.ensure_schemas() == expected
    names = await storage.sql_backend.get_table_names()
    assert {"atlas_conversations", "atlas_kv_entries"} <= set(names)


async def test_a_missing_table_is_seen(storage: Any) -> None:
    await storage.sql_backend.execute_sql("DROP TABLE atlas_kv_entries")
    assert (await storage.verify_stores())["kv_store"] is False
    assert (await storage.verify_stores())["conversation_store"] is True


async def test_the_first_open_makes_the_schema(settings: Any) -> None:
    async with StorageManager(settings) as manager:
        assert all((await manager.verify_stores()).values())
        await manager.kv.set("n", "k", 1)


async def test_a_database_in_memory_is_a_copy_of_an_empty_one(leaks: Any, caplog: Any) -> None:
    """Only the first in a process is migrated; nothing of one is in another."""
    caplog.set_level("INFO", "modules.storage")
    settings = StorageSettings.from_dict({"sql": {"url": "sqlite:///:memory:"}})
    async with StorageManager(settings) as first:
        await first.kv.set("n", "k", 1)
        caplog.clear()
        async with StorageManager(settings) as second:
            assert await second.kv.get("n", "k") is None
            assert differences(second.sql_pool.engine) == []
            await second.kv.set("n", "k", 2)
        assert await first.kv.get("n", "k") == 1
    assert "storage.migrated" not in [record.getMessage() for record in caplog.records]


async def test_a_database_from_the_future_is_refused_and_left_alone(
    settings: Any, backend: str, leaks: Any
) -> None:
    if backend == "sqlite-memory":
        pytest.skip("a database in memory has no past")
    async with StorageManager(settings) as manager:
        await manager.sql_backend.execute_sql("UPDATE atlas_alembic_version SET version_num = '9999'")
    manager = StorageManager(settings)
    for _ in range(2):
        with pytest.raises(StorageError, match="newer"):
            await manager.initialize()
        assert not manager.is_initialized


async def test_without_auto_migrate_an_empty_database_is_refused(settings: Any, leaks: Any) -> None:
    manager = StorageManager(settings)
    manager.configure(sql={"auto_migrate": False})
    with pytest.raises(StorageError, match="migrate"):
        await manager.initialize()
    manager.configure(sql={"auto_migrate": True})
    async with manager:
        assert all((await manager.verify_stores()).values())


async def test_configure(migrated_settings: Any) -> None:
    manager = StorageManager(migrated_settings)
    before = manager.get_settings()
    after = manager.configure(default_tenant_id="acme", kv={"namespace_quota_bytes": 5})
    assert manager.get_settings() is after
    assert (after.default_tenant_id, after.kv.namespace_quota_bytes) == ("acme", 5)
    assert after.sql.get_url() == before.sql.get_url(), "what is not named stays"
    with pytest.raises(SettingsError):
        manager.configure(defualt_tenant_id="x")
    assert manager.get_settings() is after, "a refused change changes nothing"
    async with manager:
        with pytest.raises(StorageError, match="before initialize"):
            manager.configure(default_tenant_id="other")
        await manager.kv.delete("n", "k", tenant_id="acme")
    manager.configure(default_tenant_id="other")


async def test_configure_keeps_the_listeners(migrated_settings: Any) -> None:
    manager = StorageManager(migrated_settings)
    heard = asyncio.Event()
    manager.health_monitor.add_listener(lambda before, now: heard.set())
    manager.configure(default_tenant_id="acme")
    async with manager:
        await asyncio.wait_for(heard.wait(), 60)


async def test_a_failed_initialize_can_be_tried_again(tmp_path: Path, leaks: Any) -> None:
    blocked = tmp_path / "data"
    blocked.write_text("in the way")
    leaks.database(f"sqlite:///{tmp_path}")
    manager = StorageManager({"sql": {"path": str(blocked / "db.sqlite3")}})
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await manager.initialize()
        await _refuses_everything(manager)
    blocked.unlink()
    async with manager:
        await manager.kv.set("n", "k", 1)


async def test_the_engine_is_for_users_own_code(storage: Any) -> None:
    await storage.kv.set("n", "k", 1)

    def work() -> Any:
        with storage.get_sql_engine().connect() as connection:
            rows = connection.execute(text("SELECT count(*) FROM atlas_kv_entries")).scalar()
        with storage.get_session_factory()() as session:
            assert session.execute(text("SELECT count(*) FROM atlas_kv_entries")).scalar() == rows
        return rows

    assert await asyncio.to_thread(work) == 1


async def test_a_directory_without_permission(tmp_path: Path, child_environment: Dict[str, str]) -> None:
    """In a process that is nobody: root may write everywhere."""
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        os.chmod(parent, 0o755)
    script = (
        "import asyncio, os, sys\n"
        "from modules.storage.manager import StorageManager\n"
        "import modules.storage.backends.sqlite_executor, modules.storage.migrations\n"
        "from modules.store_common.errors import UnavailableError, PermissionDeniedError\n"
        "async def main():\n"
        # everything that is loaded at first use is loaded before root is given up: nobody may not read the packages
        "    async with StorageManager({'sql': {'path': ':memory:'}}): pass\n"
        "    if os.geteuid() == 0: os.setuid(65534)\n"
        "    for name in ('db.sqlite3', 'new/db.sqlite3'):\n"
        "        manager = StorageManager({'sql': {'path': os.path.join(sys.argv[1], name)}})\n"
        "        try:\n"
        "            await manager.initialize()\n"
        "        except (UnavailableError, PermissionDeniedError) as exc:\n"
        "            print('refused', exc)\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script, str(closed)],
        cwd=ROOT,
        env=child_environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.count("refused") == 2, done.stdout + done.stderr
    assert list(closed.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_use_after_fork_is_refused_and_the_parent_goes_on(storage: Any) -> None:
    await storage.kv.set("n", "k", 1)
    with storage.get_sql_engine().connect() as connection:
        connection.execute(text("SELECT 1"))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        report = []
        try:
            calls = {
                "kv.get": lambda: storage.kv.get("n", "k"),
                "kv.set": lambda: storage.kv.set("n", "k", 2),
                "engine": lambda: asyncio.sleep(0, storage.get_sql_engine()),
                "shutdown": storage.shutdown,
            }
            for name, call in calls.items():
                try:
                    asyncio.events._set_running_loop(None)
                    loop = asyncio.new_event_loop()
                    loop.run_until_complete(asyncio.wait_for(call(), 60))
                    report.append(f"{name}: nothing")
                except BaseException as exc:
                    report.append(f"{name}: {type(exc).__name__}")
            os.write(write, "\n".join(report).encode())
        finally:
            os._exit(0)
    os.close(write)
    await asyncio.to_thread(os.waitpid, pid, 0)
    told = os.read(read, 10_000).decode().splitlines()
    os.close(read)
    refused = WrongProcessError.__name__
    assert told == [f"kv.get: {refused}", f"kv.set: {refused}", f"engine: {refused}", "shutdown: nothing"]
    await storage.kv.set("n", "k", 3)
    assert await storage.kv.get("n", "k") == 3
    with storage.get_sql_engine().connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1

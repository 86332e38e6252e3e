"""The application's core: everything from one manager, a failed start leaves nothing open, accessors for older code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ATLAS.ATLAS import ATLAS, StartError
from modules.storage import StorageSettings, get_storage_manager
from modules.storage.settings import SettingsError
from tests.support.leaks import LeakWatch


async def test_the_stores_are_those_of_the_process_s_manager(
    migrated_settings: Any, leaks: LeakWatch
) -> None:
    async with ATLAS(settings=migrated_settings) as atlas:
        assert atlas.storage_manager is await get_storage_manager()
        assert atlas.conversations is atlas.storage_manager.conversations
        assert atlas.kv is atlas.storage_manager.kv
        await atlas.kv.set("atlas", "greeting", "hello")
        assert await atlas.kv.get("atlas", "greeting") == "hello"
        assert (await atlas.get_storage_health_async()).overall.value == "healthy"

    assert not atlas.is_initialized


async def test_nothing_is_handed_out_before_the_start_and_after_the_end(migrated_settings: Any) -> None:
    atlas = ATLAS(settings=migrated_settings)
    accessors = atlas.persistence
    uses = [
        lambda: atlas.storage_manager,
        lambda: atlas.conversations,
        lambda: atlas.tasks,
        lambda: atlas.jobs,
        lambda: atlas.kv,
        lambda: atlas.vectors,
        accessors.get_conversation_store_engine,
        accessors.get_conversation_store_session_factory,
        accessors.get_conversation_repository,
        accessors.get_task_repository,
        accessors.get_job_repository,
        accessors.get_kv_store,
        accessors.get_conversation_retention_policies,
        accessors.get_task_retention_policies,
        accessors.get_job_retention_policies,
        accessors.is_conversation_store_verified,
    ]
    async with atlas:
        pass
    for use in uses:
        with pytest.raises(RuntimeError, match="not initialized"):
            use()
    with pytest.raises(RuntimeError, match="not initialized"):
        await atlas.get_storage_health_async()


async def test_the_configuration_file_is_read(tmp_path: Path, leaks: LeakWatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"storage:\n  sql: {{path: {tmp_path / 'here.sqlite3'}}}\n  retention: {{conversation_days: 9}}\n",
        encoding="utf-8",
    )

    async with ATLAS(file) as atlas:
        assert atlas.persistence.get_conversation_retention_policies() == {"days": 9}
        assert atlas.persistence.get_task_retention_policies() == {}

    assert (tmp_path / "here.sqlite3").is_file()


async def test_settings_may_be_a_mapping(tmp_path: Path, leaks: LeakWatch) -> None:
    async with ATLAS(settings={"sql": {"path": str(tmp_path / "x.sqlite3")}}) as atlas:
        assert atlas.is_initialized
    with pytest.raises(SettingsError, match="did you mean path"):
        await ATLAS(settings={"sql": {"pth": "x"}}).initialize()


async def test_older_code_gets_its_stores_from_the_accessors(migrated_settings: Any) -> None:
    import anyio

    async with ATLAS(settings=migrated_settings) as atlas:
        accessors = atlas.persistence
        assert accessors.is_conversation_store_verified()

        def older() -> Any:
            repository = accessors.get_conversation_repository()
            made = repository.create_conversation(title="from older code")
            with accessors.get_conversation_store_session_factory()() as session:
                assert (
                    session.get_bind().dialect.name == accessors.get_conversation_store_engine().dialect.name
                )
            return made

        made = await anyio.to_thread.run_sync(older)
        found = await atlas.conversations.get_conversation(made.id)
        assert found is not None
        assert found.title == "from older code"


async def test_a_failed_start_says_why_leaves_nothing_open_and_can_be_tried_again(
    tmp_path: Path, leaks: LeakWatch
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("no directory", encoding="utf-8")
    settings = StorageSettings.from_dict({"sql": {"path": str(blocked / "storage.sqlite3")}})
    atlas = ATLAS(settings=settings)

    with pytest.raises(StartError) as caught:
        await atlas.initialize()
    assert caught.value.stores == ["sql"]
    assert not atlas.is_initialized

    blocked.unlink()
    async with atlas:
        assert atlas.is_initialized


async def test_a_store_that_does_not_answer_stops_the_start(
    migrated_settings: Any, leaks: LeakWatch, unused_tcp_port: int
) -> None:
    settings = migrated_settings.merged_with(
        {"vectors": {"backend": "chroma", "chroma_host": "127.0.0.1", "chroma_port": unused_tcp_port}}
    )
    atlas = ATLAS(settings=settings)

    with pytest.raises(StartError, match="vector_store"):
        await atlas.initialize()

    assert not atlas.is_initialized


async def test_a_wrong_setting_is_a_settings_error(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("storage: {sql: {port: 99999}}\n", encoding="utf-8")

    with pytest.raises(SettingsError, match=r"sql\.port"):
        await ATLAS(file).initialize()

"""MongoDB: the pool, the backend, the manager, and the target of units of work."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, AsyncIterator, Dict, List

import pytest

from modules.storage.backends.mongodb_abilities import abilities_of
from modules.storage.documents import DocumentForms
from modules.storage.manager import StorageManager
from modules.storage.mongo_pool import MongoPool
from modules.storage.settings import MongoBackendSettings, SettingsError, StorageSettings
from modules.storage.transfer import import_file
from modules.store_common.errors import (
    InvalidValueError,
    MissingDependencyError,
    NotConfiguredError,
    NotInitializedError,
    PermissionDeniedError,
    StatementError,
    StorageError,
    UnavailableError,
)
from modules.Tools.Base_Tools import kv_operations as op
from modules.Tools.Base_Tools.kv_mongo_many import _LOCK_US
from tests.support.cluster import free_port
from tests.support.timing import assert_in_time

pytestmark = [pytest.mark.mongodb, pytest.mark.usefixtures("mongodb")]
CANARY = "s3cr3t-canary"
LOCOMO = Path(__file__).resolve().parents[3] / "shared" / "data" / "locomo_conversations.jsonl"


@pytest.fixture
async def pool(mongo_settings: Any, leaks: Any) -> AsyncIterator[MongoPool]:
    made = MongoPool(mongo_settings.mongo)
    await made.initialize()
    yield made
    await made.shutdown()


@pytest.fixture
async def manager(mongo_settings: Any, leaks: Any) -> AsyncIterator[StorageManager]:
    async with StorageManager(mongo_settings) as made:
        yield made


class TestPool:
    async def test_life(self, mongo_settings: Any) -> None:
        pool = MongoPool(mongo_settings.mongo)
        assert not pool.is_initialized
        for use in (lambda: pool.client, lambda: pool.database, lambda: pool.get_collection("x")):
            with pytest.raises(RuntimeError, match="not initialized") as found:
                use()
            assert isinstance(found.value, NotInitializedError)
        assert await pool.health_check() is False
        await asyncio.gather(*[pool.initialize() for _ in range(5)])
        assert await pool.health_check(5) is True
        assert pool.client is pool.client
        assert pool.database.name == mongo_settings.mongo.database
        assert pool.client.options.write_concern.document == {"w": "majority"}
        await pool.shutdown()
        await pool.shutdown()
        assert not pool.is_initialized
        await pool.initialize()
        await pool.shutdown()

    async def test_instants_come_back_aware(self, pool: MongoPool) -> None:
        from datetime import datetime, timezone

        at = datetime(2020, 5, 17, 12, 30, 1, 123000, timezone.utc)
        await pool.get_collection("atlas_documents").insert_one({"_id": "t", "at": at})
        found = await pool.get_collection("atlas_documents").find_one({"_id": "t"})
        assert found is not None
        assert found["at"] == at

    async def test_the_servers_clock_is_carried_on(self, pool: MongoPool) -> None:
        first = await pool.server_time()
        assert abs(first / 1e6 - time.time()) < 5  # one machine in these tests
        assert await pool.server_time() > first

    async def test_an_unreachable_server_is_one_clear_error(self) -> None:
        url = f"mongodb://u:{CANARY}@127.0.0.1:{free_port()}/db"
        pool = MongoPool(
            MongoBackendSettings(url=url, server_selection_timeout_ms=300, connect_timeout_ms=300)
        )
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="cannot be reached") as found:
            await pool.initialize()
        assert_in_time(started, 5)
        assert CANARY not in str(found.value) + repr(found.value)
        assert found.value.retryable
        assert not pool.is_initialized

    def test_no_call_may_outlive_its_locks(self) -> None:
        """A quota's lock is taken over after a minute: by then its owner must be dead."""
        assert MongoBackendSettings(command_timeout_s=60).command_timeout_s * 1e6 <= _LOCK_US
        with pytest.raises(SettingsError, match="command_timeout_s"):
            MongoBackendSettings(command_timeout_s=60.1)

    async def test_shutdown_tells_calls_that_it_cuts_off(self, pool: MongoPool) -> None:
        """Nobody cancelled the callers: they get an error, those whose turn has not come, too."""
        forms = DocumentForms("test", 1, [], [])
        begun = asyncio.Event()

        async def endless(db: Any, *args: Any) -> None:
            begun.set()
            await asyncio.Event().wait()

        forms.form_of(op.get_value)(endless)
        forms.form_of(op.exists, turn=lambda *_: "one")(endless)
        executor = pool.executor(forms)
        operations: List[Any] = [op.get_value, op.exists, op.exists]
        calls = [asyncio.ensure_future(executor.run(operation)) for operation in operations]
        await begun.wait()
        await pool.shutdown()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 3

    async def test_a_missing_driver_names_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("modules.storage.backends.mongodb")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "pymongo", None)
        monkeypatch.setitem(sys.modules, "bson.errors", None)
        with pytest.raises(MissingDependencyError, match=r"atlas-storage\[mongo\]"):
            await MongoPool().initialize()

    async def test_the_manager_leaves_nothing_open(self, databases: Any, leaks: Any) -> None:
        settings = {
            "sql": {"url": databases.url("sqlite", migrated=True)},
            "mongo": {"port": free_port(), "server_selection_timeout_ms": 200},
            "kv": {"backend": "mongo"},
        }
        manager = StorageManager(settings)
        with pytest.raises(UnavailableError):
            await manager.initialize()
        assert not manager.is_initialized


class TestBackend:
    async def test_collections_and_indexes(self, manager: StorageManager) -> None:
        backend = manager.mongo_backend
        await backend.drop_collection("mine")
        assert await backend.ensure_collection("mine") is True
        assert await backend.ensure_collection("mine") is False
        assert await backend.verify_collections(["mine", "yours"]) == {"mine": True, "yours": False}
        name = await backend.create_index("mine", [("a", 1), ("b", -1)], name="ab", unique=True)
        assert await backend.create_index("mine", [("a", 1), ("b", -1)], name="ab", unique=True) == name
        assert (await backend.get_index_info("mine"))["ab"] == {
            "keys": [("a", 1), ("b", -1)],
            "unique": True,
        }
        await manager.get_mongo_database()["mine"].insert_many([{"a": n, "b": 1} for n in range(5)])
        assert (await backend.get_collection_stats("mine"))["documents"] == 5
        assert (await backend.get_database_stats())["collections"] >= 1
        assert await backend.get_database_size() > 0
        found = await backend.aggregate("mine", [{"$match": {"a": {"$gte": 3}}}, {"$sort": {"a": 1}}])
        assert [document["a"] for document in found] == [3, 4]
        assert await backend.drop_collection("mine") is True
        assert await backend.drop_collection("mine") is False
        assert "mine" not in await backend.list_collections()

    async def test_names_are_checked_and_errors_are_ours(self, manager: StorageManager) -> None:
        backend = manager.mongo_backend
        for name in ("", "$x", "a\x00b", "system.users", "a b", "x" * 200):
            with pytest.raises(InvalidValueError):
                await backend.ensure_collection(name)
        with pytest.raises(InvalidValueError):
            await backend.create_index("mine", [("$where", 1)])
        with pytest.raises(StatementError):
            await backend.aggregate("mine", [{"$noSuchStage": {}}])
        with pytest.raises(InvalidValueError):
            await backend.aggregate("mine", [], limit=0)


def test_abilities() -> None:
    single = abilities_of({}, {"version": "7.0.1"})
    assert (single.server, single.transactions, single.atomic_changes) == ("MongoDB 7.0.1", False, True)
    cluster = abilities_of({"setName": "rs0"}, {"version": "7.0.1"})
    assert (cluster.transactions, cluster.change_streams) == (True, True)
    assert not abilities_of({}, {"version": "7.0.42", "ferretdbVersion": "unknown"}).atomic_changes
    assert abilities_of({}, {"ferretdbVersion": "v2.1.0"}).atomic_changes


class TestManager:
    async def test_health_and_schemas(self, manager: StorageManager) -> None:
        health = await manager.health_check()
        assert health.mongo is not None
        details = health.mongo.details
        assert details["kv_index_version"] == 1
        assert details["conversations_index_version"] == 1
        assert details["jobs_index_version"] == 2
        assert health.job_store is not None
        assert health.job_store.details["backlog"] == 0
        assert health.mongo.status.value == ("healthy" if details["atomic_changes"] else "degraded")
        assert bool(health.mongo.message) is not details["atomic_changes"]
        found = await manager.ensure_schemas()
        assert found["mongo"]
        assert found["conversation_store"]
        assert found["kv_store"]
        assert found["job_store"]
        assert await manager.verify_stores() == found

    async def test_stores_write_where_they_are_told_to(self, manager: StorageManager) -> None:
        await manager.kv.set("n", "k", 1)
        await manager.conversations.create_conversation("c")
        job_id = await manager.jobs.enqueue("h")
        assert [claim.id for claim in await manager.job_queue.claim("w")] == [job_id]
        database = manager.get_mongo_database()
        assert await database["atlas_jobs"].count_documents({"st": "running"}) == 1
        assert await database["atlas_kv_entries"].count_documents({}) == 1
        assert await database["atlas_conversations"].count_documents({}) == 1
        assert manager.get_mongo_client() is manager.get_mongo_client()

    async def test_without_mongo_it_says_so(self, databases: Any) -> None:
        async with StorageManager({"sql": {"url": databases.url("sqlite", migrated=True)}}) as plain:
            for use in (plain.get_mongo_client, plain.get_mongo_database, lambda: plain.mongo_backend):
                with pytest.raises(NotConfiguredError, match="not configured"):
                    use()

    @pytest.mark.parametrize(
        ("asked", "error"),
        [
            ({"kv": {"backend": "redis"}}, NotConfiguredError),
            ({"use_mongo_for_conversations": True, "embedder": "hashing"}, SettingsError),
        ],
        ids=["kv", "embedder"],
    )
    async def test_what_it_does_not_hold_is_refused(
        self, databases: Any, asked: Dict[str, Any], error: Any
    ) -> None:
        manager = StorageManager({"sql": {"url": databases.url("sqlite", migrated=True)}, **asked})
        with pytest.raises(error):
            await manager.initialize()
        assert not manager.is_initialized

    async def test_indexes_of_a_newer_release_are_refused(self, mongo_settings: Any, pool: MongoPool) -> None:
        versions = pool.get_collection("atlas_schema")
        await versions.update_one({"_id": "kv"}, {"$set": {"version": 99}})
        try:
            with pytest.raises(StatementError, match="newer release"):
                await StorageManager(mongo_settings).initialize()
        finally:
            await versions.update_one({"_id": "kv"}, {"$set": {"version": 1}})


class TestUnitOfWork:
    async def test_documents_come_with_the_unit_or_not_at_all(self, manager: StorageManager) -> None:
        assert manager._mongo is not None
        there = manager._mongo.writer
        contents = {"a.b": {"$c": -0.0}, "big": 2**63 - 1, "nul": "\x00"}
        async with manager.unit_of_work() as uow:
            await uow.documents.put("orders", "7", contents)
        await uow.applied(60)
        assert await there.get("default", "orders", "7") == contents
        with pytest.raises(ZeroDivisionError):
            async with manager.unit_of_work() as uow:
                await uow.documents.put("orders", "8", {"x": 1})
                raise ZeroDivisionError
        async with manager.unit_of_work() as uow:
            await uow.documents.delete("orders", "7")
            await uow.documents.put("orders", "9", {"x": 1})
        await uow.applied(60)
        assert await there.get("default", "orders", "7") is None
        assert await there.get("default", "orders", "8") is None
        found = await there.scan("default", "orders", "documents", "", 10)
        assert [document.id for document in found] == ["9"]

    async def test_a_late_delivery_changes_nothing(self, manager: StorageManager) -> None:
        from modules.storage.staged_documents import StagedDocument
        from modules.store_common.clock import utc_now

        assert manager._mongo is not None
        there = manager._mongo.writer
        key = ("default", "mongo", "c", "documents", "x")

        def staged(version: int, body: Any) -> StagedDocument:
            return StagedDocument(key, version, utc_now(), body is None, "", body, None)

        for version, body in ((2, '{"v":2}'), (1, '{"v":1}'), (3, None), (2, '{"v":2}')):
            assert await there.put([staged(version, body)]) == [None]
        assert await there.get("default", "c", "x") is None

    async def test_stores_in_mongodb_take_no_part(self, manager: StorageManager) -> None:
        async with manager.unit_of_work() as uow:
            with pytest.raises(NotConfiguredError, match="takes no part in a unit of work"):
                await uow.kv.set("n", "k", 1)
            with pytest.raises(NotConfiguredError, match="takes no part in a unit of work"):
                await uow.jobs.enqueue("h")


@pytest.mark.timeout(240)
@pytest.mark.skipif(not LOCOMO.exists(), reason="the shared data is not on this machine")
async def test_the_long_conversations_import_twice_with_one_effect(manager: StorageManager) -> None:
    first = await import_file(manager, LOCOMO)
    again = await import_file(manager, LOCOMO)
    assert (first.conversations_added, first.messages_added) == (6, 3453)
    assert (again.conversations_added, again.messages_added) == (0, 0)
    assert again.messages_seen == 3453
    assert await manager.get_mongo_database()["atlas_messages"].count_documents({}) == 3453
    hits = await manager.conversations.search("When did Caroline go to the support group?")
    assert "D1:3" in [hit.message.id for hit in hits]


async def test_search_by_meaning_is_refused(manager: StorageManager) -> None:
    with pytest.raises(NotConfiguredError):
        await manager.conversations.search("x", mode="semantic")


async def test_wrong_credentials_say_so_without_telling_them(mongo_settings: Any) -> None:
    url = mongo_settings.mongo.get_url().replace("://", f"://nobody:{CANARY}@")
    settings = StorageSettings.from_dict({"mongo": {"url": url, "server_selection_timeout_ms": 2000}}).mongo
    pool = MongoPool(settings)
    with pytest.raises(StorageError) as found:
        await pool.initialize()
    assert isinstance(found.value, (PermissionDeniedError, StatementError, UnavailableError))
    assert CANARY not in f"{found.value!s} {found.value!r}"
    assert not pool.is_initialized

"""`retention.vector_days`: in the background, and by `prune`; vectors of messages go with their messages instead."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, List

import pytest

from modules.storage.manager import StorageManager
from modules.storage.vectors.base import VectorDocument
from modules.store_common.clock import utc_now


async def fill(storage: StorageManager, tenant: str) -> None:
    now = utc_now()
    for provider in (storage.vectors, storage.vector_registry.get("scratch")):
        await provider.create_collection("docs", 2, tenant_id=tenant)
        documents = [
            VectorDocument("old", [1, 0], created_at=now - timedelta(days=31)),
            VectorDocument("young", [1, 1], created_at=now - timedelta(days=29)),
        ]
        await provider.upsert("docs", documents, tenant_id=tenant)


async def ids(storage: StorageManager, tenant: str) -> List[str]:
    found = []
    for name in storage.vector_registry.list_instances():
        page = await storage.vector_registry.get(name).scroll("docs", tenant_id=tenant)
        found += [item.id for item in page.items]
    return sorted(set(found))


@pytest.fixture
def aged(migrated_settings: Any) -> Any:
    return migrated_settings.merged_with({"retention": {"vector_days": 30}, "embedder": "hashing"})


async def test_of_one_tenant_and_of_all(aged: Any) -> None:
    async with StorageManager(aged, background=False) as storage:
        storage.add_vector_store("in_memory", name="scratch")
        for tenant in ("a", "b"):
            await fill(storage, tenant)
        await storage.conversations.create_conversation("c")
        long_ago = utc_now() - timedelta(days=400)
        await storage.conversations.add_message("c", "user", "two kittens", created_at=long_ago)
        index = storage.semantic_index
        assert index is not None
        await index.embed_pending()

        assert (await storage.maintenance.retain("a"))["deleted_vectors"] == 2
        assert (await ids(storage, "a"), await ids(storage, "b")) == (["young"], ["old", "young"])
        assert (await storage.maintenance.retain())["deleted_vectors"] == 2
        assert (await ids(storage, "a"), await ids(storage, "b")) == (["young"], ["young"])
        hits = await storage.conversations.search("kittens", mode="semantic")
        assert (hits.complete, len(hits)) == (True, 1), "its message is still there"


async def test_nothing_is_deleted_unless_asked(migrated_settings: Any) -> None:
    async with StorageManager(migrated_settings, background=False) as storage:
        storage.add_vector_store("in_memory", name="scratch")
        await fill(storage, "a")
        assert "deleted_vectors" not in await storage.maintenance.retain()
        assert await ids(storage, "a") == ["old", "young"]

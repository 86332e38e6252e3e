"""What happens to the vectors of messages when the embedder or the vector store changes, or loses what it was given."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, AsyncIterator, List

import pytest

from modules.conversation_store.repository import ConversationStore
from modules.storage.embedders_hashing import HashingEmbedder
from modules.storage.manager import StorageManager
from modules.storage.semantic import SemanticIndex
from modules.storage.vectors.in_memory import InMemoryProvider
from modules.storage.vectors.models import Capabilities
from modules.store_common.tenancy import TenantPolicy
from tests.support.embedding import MeaningEmbedder

LOST = "not in the vector store"


class Shelf(InMemoryProvider):
    """Says that it keeps what it has, as a store on a disk that somebody may lose."""

    name = "shelf"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(True, True, False, True, persistent=True)


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    made = Shelf()
    await made.initialize()
    yield made
    await made.shutdown()


def made(storage: Any, provider: Any) -> SemanticIndex:
    return SemanticIndex(storage.executor, provider, MeaningEmbedder(), batch_size=3)


async def filled(storage: Any, index: SemanticIndex, *tenants: str) -> ConversationStore:
    await index.register()
    store = ConversationStore(storage.executor, TenantPolicy(), semantic=index)
    for tenant in tenants or ("default",):
        await store.create_conversation("c", tenant_id=tenant)
        for number in range(5):
            await store.add_message("c", "user", f"cat {number}", tenant_id=tenant)
    await index.embed_pending()
    return store


async def test_a_lost_collection_is_seen_at_start_and_made_anew(storage: Any, shelf: Shelf) -> None:
    index = made(storage, shelf)
    await filled(storage, index, "a", "b")
    await shelf.delete_collection(await index.collection(), tenant_id="b")

    again = made(storage, shelf)
    await again.register()
    hits = await ConversationStore(storage.executor, TenantPolicy(), semantic=again).search(
        "kitten", mode="semantic", tenant_id="b"
    )
    assert not hits.complete
    await again.embed_pending()
    assert await places(again, "b") == await places(again, "a") == list(range(1, 6))
    await made(storage, shelf).register()
    assert (await again.progress()).is_filled, "nothing is lost any more"


async def test_a_loss_while_it_runs_is_never_a_silent_answer(storage: Any, shelf: Shelf) -> None:
    index = made(storage, shelf)
    store = await filled(storage, index)
    await shelf.delete_collection(await index.collection())

    for mode in ("semantic", "hybrid"):
        hits = await store.search("kitten", mode=mode)
        assert (hits.complete, LOST in hits.reason) == (False, True)
    await index.embed_pending()
    assert await places(index) == list(range(1, 6))
    assert (await store.search("kitten", mode="semantic")).complete


async def test_a_loss_that_a_new_message_meets_first(storage: Any, shelf: Shelf) -> None:
    index = made(storage, shelf)
    store = await filled(storage, index)
    await store.add_message("c", "user", "a late cat")
    await shelf.delete_collection(await index.collection())
    await index.embed_pending()
    assert await places(index) == list(range(1, 7))

    await store.add_message("c", "user", "a later cat")
    await shelf.delete_collection(await index.collection())
    again = made(storage, shelf)
    await again.embed_pending()
    assert await places(again) == list(range(1, 8))


async def test_a_tenant_without_words_is_not_taken_for_a_loss(storage: Any, shelf: Shelf) -> None:
    index = made(storage, shelf)
    await index.register()
    store = ConversationStore(storage.executor, TenantPolicy(), semantic=index)
    await store.create_conversation("c")
    await store.add_message("c", "user", "  ")
    await index.embed_pending()
    assert (await store.search("kitten", mode="semantic")).complete
    await made(storage, shelf).register()
    assert (await index.progress()).is_filled
    assert (await store.search("kitten", mode="semantic", tenant_id="nobody")).complete


async def test_another_vector_store_is_filled_and_the_former_one_is_told(storage: Any, shelf: Shelf) -> None:
    await storage.vectors.initialize()
    before, after = made(storage, storage.vectors), made(storage, shelf)
    store = await filled(storage, before)
    assert await before.former() == []
    await after.register()
    assert not (await ConversationStore(storage.executor, TenantPolicy(), semantic=after).search(
        "cat", mode="semantic")).complete  # fmt: skip
    await after.embed_pending()
    await store.add_message("c", "user", "a sixth cat")
    await after.embed_pending()
    assert await places(after) == list(range(1, 7))

    assert await after.former() == [await before.registration()]
    assert not (await store.search("cat", mode="semantic")).complete, (
        "what went on meanwhile is not forgotten"
    )
    await before.embed_pending()
    assert await places(before) == list(range(1, 7))
    assert await after.forget_former() == [await before.registration()]
    assert await storage.vectors.get_collection(await before.collection()) is not None, "of another store"


async def test_a_former_embedder_is_told_and_forgotten(migrated_settings: Any) -> None:
    async with StorageManager(migrated_settings, background=False) as storage:
        await storage.vectors.initialize()
        index = made(storage, storage.vectors)
        await filled(storage, index, "default", "other")
        store = await storage.health_check()
        assert store.vector_store.details["former_embeddings"] == [await index.registration()]  # type: ignore[union-attr]
        await storage.shutdown()

        storage.configure(embedder="hashing")
        await storage.initialize()
        current = storage.semantic_index
        assert current is not None
        await current.embed_pending()
        health = (await storage.health_check()).vector_store
        if migrated_settings.sql.path == ":memory:":
            return
        assert health is not None
        assert health.details["embedder"] == "hashing"
        assert health.details["former_embeddings"] == [await index.registration()]
        assert (health.details["embedding_pending"], health.details["embedding_oldest_s"]) == (0, None)
        hits = await storage.conversations.search("cats 3", mode="semantic")
        assert hits.complete
        assert hits[0].message.content == "cat 3"

        assert await current.forget_former() == [await index.registration()]
        for tenant in ("default", "other"):
            assert [item.name for item in await storage.vectors.list_collections(tenant_id=tenant)] == [
                await current.collection()
            ]
        await storage.conversations.add_message("c", "user", "one more")
        health = (await storage.health_check()).vector_store
        assert health is not None
        assert (health.details["embedding_pending"], "former_embeddings" in health.details) == (1, False)
        assert 0 <= health.details["embedding_oldest_s"] < 60


async def test_health_says_when_nobody_embeds(storage: Any) -> None:
    index = SemanticIndex(storage.executor, storage.vectors, HashingEmbedder())
    storage._semantic = index
    await filled(storage, index)
    await storage.conversations.add_message("c", "user", "waits")
    long_ago = (
        "staged_at - 900000000" if storage.executor.dialect == "sqlite" else "staged_at - interval '15 min'"
    )
    await storage.sql_backend.execute_sql(f"UPDATE atlas_outbox SET staged_at = {long_ago}")
    await storage.conversations.record_edit("c", (await last_id(storage)), content="edited meanwhile")
    found = await storage.health_check()
    health, outbox = found.vector_store, found.outbox
    assert health.status.value == "degraded"
    assert "1 messages wait to be embedded, the oldest for 15 minutes" in health.message
    # told once: a row of the outbox, but no late delivery
    assert (outbox.status.value, outbox.details["pending"], outbox.details["lag_s"]) == ("healthy", 0, 0.0)
    ((target, waiting),) = outbox.details["targets"].items()
    assert target == f"embedding:{await index.registration()}"
    assert (waiting["pending"], waiting["parked"], waiting["lag_s"] > 800) == (1, 0, True)


async def test_a_lost_chroma_directory_is_filled_from_the_messages(tmp_path: Path) -> None:
    pytest.importorskip("chromadb", reason="the package chromadb is not installed")
    directory = tmp_path / "chroma"
    vectors = {"backend": "chroma", "chroma_persist_directory": str(directory)}
    settings = {"sql": {"path": str(tmp_path / "x.db")}, "vectors": vectors, "embedder": "hashing"}
    async with StorageManager(settings, background=False) as storage:
        assert storage.semantic_index is not None
        await filled(storage, storage.semantic_index)
        before = await places(storage.semantic_index)
    shutil.rmtree(directory)
    async with StorageManager(settings, background=False) as storage:
        hits = await storage.conversations.search("cat 3", mode="semantic")
        assert (list(hits), hits.complete) == ([], False), "never silently empty"
        assert storage.semantic_index is not None
        assert (await storage.semantic_index.embed_pending()).embedded == 5
        assert await places(storage.semantic_index) == before
        hits = await storage.conversations.search("cat 3", mode="semantic")
        assert (hits[0].message.content, hits.complete) == ("cat 3", True)


async def last_id(storage: Any) -> str:
    found = [item async for item in storage.conversations.stream_messages("c")]
    return str(found[-1].id)


async def places(index: SemanticIndex, tenant: str = "default") -> List[int]:
    nearest = await index.nearest("cat", tenant_id=tenant, limit=1000)
    assert nearest.is_complete, nearest.reason
    return sorted(sequence for _, sequence in nearest.scores)

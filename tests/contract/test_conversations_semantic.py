"""Contract of search by meaning and of the backlog behind it. Runs on every backend, with its own vector store."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any, List, Set

import pytest

from modules.conversation_store.meaning import fuse
from modules.conversation_store.repository import ConversationStore
from modules.storage.embedders_base import EmbedderUnavailableError
from modules.storage.embedders_hashing import HashingEmbedder
from modules.storage.semantic import SemanticIndex, vector_id
from modules.storage.vectors.in_memory import InMemoryProvider
from modules.store_common.errors import InvalidValueError, NotConfiguredError
from modules.store_common.tenancy import TenantPolicy
from tests.support.embedding import MeaningEmbedder

MODES = ["semantic", "hybrid"]


@pytest.fixture
def embedder() -> MeaningEmbedder:
    return MeaningEmbedder()


@pytest.fixture
async def index(storage: Any, embedder: MeaningEmbedder) -> SemanticIndex:
    await storage.vectors.initialize()
    return SemanticIndex(storage.executor, storage.vectors, embedder, batch_size=3)


@pytest.fixture
async def store(storage: Any, index: SemanticIndex) -> ConversationStore:
    await index.register()
    return ConversationStore(storage.executor, TenantPolicy(), semantic=index)


async def fill(store: ConversationStore) -> None:
    await store.create_conversation("c1")
    await store.add_message("c1", "user", "my cat sleeps", name="Ada", message_id="cat")
    await store.add_message("c1", "assistant", "the car is red", message_id="car")
    await store.add_message("c1", "user", "a storm is coming", message_id="storm")
    await store.create_conversation("c2")
    await store.add_message("c2", "user", "an automobile", message_id="auto")


async def found(store: ConversationStore, query: str, mode: str = "semantic", **filters: Any) -> List[str]:
    return [hit.message.id for hit in await store.search(query, mode=mode, **filters)]


class TestSearch:
    @pytest.mark.parametrize("mode", MODES)
    async def test_finds_other_words_of_the_same_meaning(
        self, store: ConversationStore, index: SemanticIndex, mode: str
    ) -> None:
        await fill(store)
        await index.embed_pending()

        assert await found(store, "kitten", mode, limit=1) == ["cat"]
        assert await found(store, "automobile", conversation_id="c1", limit=1) == ["car"]
        # the hybrid gives a share of a score to the neighbours
        assert {"car", "auto"} <= set(await found(store, "cars", mode, limit=2 if mode == "semantic" else 4))
        hits = await store.search("kitten", mode=mode)
        assert hits.complete
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert not await store.search("kitten")

    @pytest.mark.parametrize("mode", MODES)
    async def test_filters(self, store: ConversationStore, index: SemanticIndex, mode: str) -> None:
        await fill(store)
        old = datetime(2020, 1, 1, tzinfo=timezone.utc)
        await store.add_message("c2", "user", "kitten of old", message_id="old", created_at=old)
        await index.embed_pending()

        assert await found(store, "cat", mode, role="assistant") == ["car"]
        border = datetime(2021, 1, 1, tzinfo=timezone.utc)
        assert await found(store, "cat", mode, created_before=border) == ["old"]
        assert "old" not in await found(store, "cat", mode, created_after=border)
        assert set(await found(store, "cat", mode, conversation_id="c2")) == {"auto", "old"}
        assert len(await found(store, "cat", mode, limit=2)) == 2

    async def test_the_hybrid_prefers_what_both_find_and_its_neighbours(
        self, store: ConversationStore, index: SemanticIndex
    ) -> None:
        await fill(store)
        await store.add_message("c2", "user", "the kitten sleeps", message_id="both")
        await index.embed_pending()

        assert (await found(store, "kitten", "hybrid"))[0] == "both"
        assert (await store.search("the kitten", mode="hybrid"))[0].snippet == "the [kitten] sleeps"

    async def test_words_alone_are_enough_for_the_hybrid(
        self, store: ConversationStore, embedder: MeaningEmbedder
    ) -> None:
        await fill(store)
        hits = await store.search("storm", mode="hybrid")

        assert hits[0].message.id == "storm"
        assert not hits.complete
        assert "not embedded" in hits.reason

    async def test_arguments(self, store: ConversationStore, storage: Any) -> None:
        with pytest.raises(InvalidValueError, match="mode"):
            await store.search("x", mode="magic")
        plain = ConversationStore(storage.executor, TenantPolicy())
        with pytest.raises(NotConfiguredError, match="ATLAS_EMBEDDER"):
            await plain.search("x", mode="semantic")
        for mode in MODES:
            assert await store.search("  ", mode=mode) == []
            with pytest.raises(InvalidValueError):
                await store.search("x", mode=mode, limit=0)

    @pytest.mark.parametrize("mode", MODES)
    async def test_tenants_see_only_their_own(
        self, store: ConversationStore, index: SemanticIndex, mode: str
    ) -> None:
        for tenant in ("a", "b"):
            await store.create_conversation("c", tenant_id=tenant)
            await store.add_message("c", "user", "my cat", message_id=f"of {tenant}", tenant_id=tenant)
        await index.embed_pending()

        for tenant in ("a", "b"):
            assert await found(store, "kitten", mode, tenant_id=tenant) == [f"of {tenant}"]
            assert await found(store, "kitten", mode, tenant_id=tenant, conversation_id="c") == [
                f"of {tenant}"
            ]
        assert await found(store, "kitten", mode) == []
        assert await found(store, "kitten", mode, tenant_id="nobody") == []

    async def test_with_the_hashing_embedder(self, storage: Any) -> None:
        index = SemanticIndex(storage.executor, storage.vectors, HashingEmbedder())
        await storage.vectors.initialize()
        await index.register()
        store = ConversationStore(storage.executor, TenantPolicy(), semantic=index)
        await fill(store)
        await index.embed_pending()

        for mode in MODES:
            assert await found(store, "sleeping cats", mode, limit=1) == ["cat"]

    async def test_long_and_odd_conversation_ids(
        self, store: ConversationStore, index: SemanticIndex
    ) -> None:
        for name in ("x" * 255, "é" * 127, "a#1", "conversation:a", "default"):
            await store.create_conversation(name)
            await store.add_message(name, "user", "my cat", message_id="cat")
        await index.embed_pending()

        assert len(await found(store, "kitten")) == 5
        for name in ("x" * 255, "é" * 127, "a#1", "conversation:a", "default"):
            hits = await store.search("kitten", mode="semantic", conversation_id=name)
            assert [hit.message.conversation_id for hit in hits] == [name]


class TestBacklog:
    async def test_edits_and_deletions_follow(self, store: ConversationStore, index: SemanticIndex) -> None:
        await fill(store)
        await index.embed_pending()
        await store.record_edit("c1", "cat", content="a storm")
        assert not (await store.search("storm", mode="semantic", conversation_id="c1")).complete
        await index.embed_pending()
        assert set(await found(store, "storm", limit=2)) == {"cat", "storm"}

        await store.soft_delete_message("c1", "cat")
        result = await index.embed_pending()
        assert (result.embedded, result.removed) == (0, 1)
        assert await ids(index) == {("c1", 2), ("c1", 3), ("c2", 1)}

    async def test_hard_deletion_and_hidden_conversations(
        self, store: ConversationStore, index: SemanticIndex
    ) -> None:
        await fill(store)
        await index.embed_pending()
        await store.delete_conversation("c1")
        assert await found(store, "cat") == ["auto"]
        await store.hard_delete_conversation("c1")
        await index.embed_pending()
        assert await ids(index) == {("c2", 1)}

    async def test_nothing_is_lost_in_a_restart(
        self, storage: Any, store: ConversationStore, index: SemanticIndex, embedder: MeaningEmbedder
    ) -> None:
        await fill(store)
        embedder.is_down = True
        with pytest.raises(EmbedderUnavailableError):
            await index.embed_pending()
        embedder.is_down = False
        again = SemanticIndex(storage.executor, storage.vectors, embedder)
        await again.register()

        assert (await again.progress()).pending == 4
        assert (await again.embed_pending()).embedded == 4
        assert (await again.embed_pending()).total == 0

    async def test_what_was_there_before_is_embedded_too(
        self, storage: Any, index: SemanticIndex, embedder: MeaningEmbedder
    ) -> None:
        store = ConversationStore(storage.executor, TenantPolicy(), semantic=index)
        await fill(store)
        await index.register()
        assert not (await store.search("cat", mode="semantic")).complete
        seen: List[int] = []
        result = await index.embed_pending(progress=lambda sums: seen.append(sums.total))

        assert result.embedded == 4
        assert seen == sorted(seen)
        assert seen[-1] == 4
        assert (await store.search("cat", mode="semantic")).complete

    async def test_an_edit_while_its_message_is_embedded_is_not_lost(
        self, store: ConversationStore, index: SemanticIndex, embedder: MeaningEmbedder
    ) -> None:
        await store.create_conversation("c1")
        await store.add_message("c1", "user", "my cat", message_id="m")
        embedder.entered, embedder.gate = asyncio.Event(), asyncio.Event()
        work = asyncio.ensure_future(index.embed_pending(limit=1))
        await asyncio.wait_for(embedder.entered.wait(), 60)
        await store.record_edit("c1", "m", content="my car")
        embedder.gate.set()
        await work
        embedder.entered = embedder.gate = None

        assert not (await store.search("car", mode="semantic")).complete
        await index.embed_pending()
        assert (await store.search("automobile", mode="semantic"))[0].score > 0.9

    async def test_a_failed_transaction_leaves_nothing_to_do(
        self, storage: Any, store: ConversationStore, index: SemanticIndex
    ) -> None:
        await fill(store)
        await index.embed_pending()
        with pytest.raises(RuntimeError):
            async with storage.unit_of_work() as uow:
                await uow.conversations.add_message("c1", "user", "a kitten")
                raise RuntimeError("on purpose")
        assert (await index.progress()).pending == 0

    async def test_a_refused_message_does_not_hold_up_the_others(
        self, storage: Any, store: ConversationStore, index: SemanticIndex
    ) -> None:
        await fill(store)
        await store.add_message("c1", "user", "poison", message_id="poison")
        await store.add_message("c1", "user", "another cat", message_id="after")
        result = await index.embed_pending()

        assert (result.embedded, result.failed) == (5, 1)
        assert (await index.progress()).failed == 1
        hits = await store.search("kitten", mode="semantic")
        assert {"cat", "after"} <= {hit.message.id for hit in hits}
        assert not hits.complete
        (row,) = [item async for item in storage.outbox.stream("pending")]
        assert (row.kind, row.attempts, row.available_at > row.staged_at) == ("c1", 1, True)
        assert row.error is not None
        await store.record_edit("c1", "poison", content="a remedy")
        await index.reindex()

    async def test_a_change_given_up_is_made_good_by_a_reindex(
        self, storage: Any, store: ConversationStore, index: SemanticIndex
    ) -> None:
        await fill(store)
        await index.embed_pending()
        await store.record_edit("c1", "car", content="a kitten")
        waiting = [item.address async for item in storage.outbox.stream("pending")]
        assert await storage.outbox.discard(waiting) == 1
        assert (await index.embed_pending()).total == 0
        assert await found(store, "automobile", conversation_id="c1", limit=1) == ["car"], "as it was before"
        await index.reindex()
        assert (await index.embed_pending()).embedded == 4
        assert set(await found(store, "kitten", limit=2)) == {"car", "cat"}

    async def test_two_workers_share_the_work(
        self, storage: Any, store: ConversationStore, index: SemanticIndex
    ) -> None:
        await store.create_conversation("c")
        await store.add_messages("c", [{"role": "user", "content": f"cat {n}"} for n in range(40)])
        other = SemanticIndex(storage.executor, storage.vectors, MeaningEmbedder(), batch_size=3)
        results = await asyncio.gather(index.embed_pending(), other.embed_pending())

        assert sum(result.embedded for result in results) == 40
        assert len(await ids(index)) == 40

    async def test_unregistering_costs_nothing_afterwards(
        self, storage: Any, store: ConversationStore, index: SemanticIndex
    ) -> None:
        await fill(store)
        assert await index.unregister()
        assert not await index.unregister()
        await store.add_message("c1", "user", "a kitten")
        assert (await index.progress()).pending == 0
        await index.register()
        assert (await index.embed_pending()).embedded == 5

    async def test_two_embedders_have_a_backlog_each(
        self, storage: Any, store: ConversationStore, index: SemanticIndex
    ) -> None:
        other = SemanticIndex(storage.executor, storage.vectors, HashingEmbedder(32))
        await other.register()
        await fill(store)

        assert (await index.embed_pending()).embedded == 4
        assert (await other.embed_pending()).embedded == 4

    async def test_a_store_that_forgets_is_filled_anew(
        self, storage: Any, store: ConversationStore, embedder: MeaningEmbedder
    ) -> None:
        await fill(store)
        for _ in range(2):
            provider = InMemoryProvider()
            await provider.initialize()
            index = SemanticIndex(storage.executor, provider, embedder)
            await index.register()
            await index.embed_pending()
            assert len(await ids(index)) == 4
            await provider.shutdown()


async def ids(index: SemanticIndex) -> Set[Any]:
    nearest = await index.nearest("cat", tenant_id="default", limit=1000)
    within = [
        await index.nearest("cat", tenant_id="default", limit=1000, conversation_id=name)
        for name in {place[0] for place in nearest.scores}
    ]
    assert {place for one in within for place in one.scores} == set(nearest.scores)
    return set(nearest.scores)


class TestPure:
    def test_ids_never_collide(self) -> None:
        names = ["a", "a#1", "a#", "x" * 201, "x" * 202]
        assert len({vector_id(name, number) for name in names for number in (1, 11, 111)}) == 15

    def test_fusion(self) -> None:
        ranking = fuse({("c", 5): 2.0}, {("c", 1): 0.9, ("c", 5): 0.8, ("d", 5): 0.1})
        scores = dict(ranking)
        assert ranking[0][0] == ("c", 5)
        assert scores["c", 6] > scores["c", 4] > scores["c", 3] > 0
        assert scores["d", 5] == 0
        assert fuse({}, {}) == []
        assert [place for place, _ in fuse({("b", 1): 1.0, ("a", 1): 1.0}, {}, before=(), after=())] == [
            ("a", 1),
            ("b", 1),
        ]

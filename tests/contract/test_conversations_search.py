"""Contract of the conversation store: text search. Runs on every backend; the pure parts once."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.store_common.errors import InvalidValueError
from modules.store_common.text_query import STOP_WORDS, fts5_query, question_terms, snippet_of
from tests.support import backends

backend = backends.backend


@pytest.fixture
async def store(storage: Any) -> Any:
    store = storage.conversations
    await store.create_conversation("c1")
    await store.add_message("c1", "user", "I adopted two kittens yesterday", name="Ada", message_id="kittens")
    await store.add_message(
        "c1", "assistant", "What are the cats called? Kitten names are fun", message_id="names"
    )
    await store.add_message(
        "c1",
        "user",
        [{"type": "text", "text": "Painting the fence"}, {"type": "image_url"}],
        message_id="parts",
    )
    await store.create_conversation("c2")
    await store.add_message(
        "c2",
        "user",
        "The kitten sleeps",
        message_id="kittens",
        created_at=datetime(2020, 1, 1, tzinfo=timezone.utc),
    )
    return store


async def ids(store: Any, query: str, **filters: Any) -> Any:
    return {(hit.message.conversation_id, hit.message.id) for hit in await store.search(query, **filters)}


class TestSearch:
    async def test_stems_and_filters(self, store: Any) -> None:
        assert await ids(store, "Where are the kittens?") == {
            ("c1", "kittens"),
            ("c1", "names"),
            ("c2", "kittens"),
        }
        assert await ids(store, "kitten", conversation_id="c2") == {("c2", "kittens")}
        assert await ids(store, "kitten", role="assistant") == {("c1", "names")}
        assert await ids(store, "kitten", role=["assistant", "tool"]) == {("c1", "names")}
        assert await ids(store, "kitten", created_before=datetime(2021, 1, 1, tzinfo=timezone.utc)) == {
            ("c2", "kittens")
        }
        assert ("c2", "kittens") not in await ids(
            store, "kitten", created_after=datetime(2021, 1, 1, tzinfo=timezone.utc)
        )
        assert len(await store.search("kitten", limit=1)) == 1
        assert await ids(store, "painted fences") == {("c1", "parts")}
        assert await ids(store, "ADA") == {("c1", "kittens")}

    async def test_best_first_with_snippets(self, store: Any) -> None:
        await store.add_message(
            "c1", "user", "far " * 100 + "the kitten is lost " + "far " * 100, message_id="long"
        )
        hits = await store.search("kittens yesterday")
        assert hits[0].message.id == "kittens"
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert hits[0].snippet == "I adopted two [kittens] [yesterday]"
        long = next(hit for hit in hits if hit.message.id == "long")
        assert "[kitten]" in long.snippet
        assert len(long.snippet) < 200

    async def test_follows_edits_and_deletions(self, store: Any) -> None:
        await store.record_edit("c1", "names", content="An umbrella")
        assert await ids(store, "umbrella") == {("c1", "names")}
        assert ("c1", "names") not in await ids(store, "kitten")
        await store.soft_delete_message("c1", "names")
        assert await ids(store, "umbrella") == set()

    async def test_rebuild_finds_the_same(self, store: Any) -> None:
        await store.soft_delete_message("c1", "names")
        before = await ids(store, "kitten fence")
        await store.rebuild_search()
        assert await ids(store, "kitten fence") == before
        await store.add_message("c1", "user", "kitten again", message_id="again")
        assert await ids(store, "kitten fence") == before | {("c1", "again")}

    @pytest.mark.parametrize(
        "text",
        ["", "  ", "the of and", "🎉", "\x00", "'", '"', "a\"b", "NEAR(kitten", "kitten*", "-kitten", "kitten & | !", "body:",
         "scope : q", "^kitten", "(((", "kitten:*", "<->", "\\", "%", "kitten' OR 1=1", "é" * 5000, "kitten " * 5000],
    )  # fmt: skip
    async def test_any_text_is_a_query(self, store: Any, text: str) -> None:
        hits = await store.search(text)
        assert bool(hits) == ("kitten" in text)

    async def test_a_very_long_message_is_indexed_in_part(self, store: Any) -> None:
        words = " ".join(f"word{n}" for n in range(60_000))
        await store.add_message("c1", "user", words, message_id="huge")
        assert await ids(store, "word17") == {("c1", "huge")}

    async def test_bad_arguments(self, store: Any) -> None:
        for arguments in ({"limit": 0}, {"limit": 1001}, {"snippet_characters": 0}, {"conversation_id": ""}):
            with pytest.raises(InvalidValueError):
                await store.search("x", **arguments)
        with pytest.raises(InvalidValueError):
            await store.search(5)
        with pytest.raises(InvalidValueError):
            await store.search("\ud800")

    async def test_tenants_with_like_names_share_nothing(self, store: Any) -> None:
        for tenant in ("a", "aed", "A", "a ing"):
            await store.create_conversation("c", tenant_id=tenant)
            await store.add_message("c", "user", "kitten", message_id=f"of {tenant}", tenant_id=tenant)
        for tenant in ("a", "aed", "A", "a ing"):
            assert await ids(store, "kitten", tenant_id=tenant) == {("c", f"of {tenant}")}


class TestQueryText:
    @given(st.text())
    def test_terms_are_words(self, text: str) -> None:
        for term in question_terms(text, "english"):
            assert term.isalnum() or all(c.isalnum() for c in term) or '"' not in term
            assert term not in STOP_WORDS
            assert '"' not in term

    @given(st.text(max_size=400), st.lists(st.text(min_size=1, max_size=8), max_size=4), st.integers(1, 200))
    def test_a_snippet_is_a_part_of_the_text(self, text: str, terms: Any, width: int) -> None:
        snippet = snippet_of(text, terms, width)
        plain = snippet.replace("[", "").replace("]", "").replace("…", "").strip()
        assert plain in text.replace("[", "").replace("]", "").replace("…", "")

    def test_fts5_query(self) -> None:
        assert fts5_query(["a1", "b"], "q61x") == 'scope : "q61x" AND (body : "a1" OR body : "b")'


class TestPendingIndex:
    """SQLite puts words into its index later than the message (see search_ddl): nobody may notice."""

    async def _note(self, store: Any, text: str, **more: Any) -> Any:
        return await store.add_message("c", "user", text, **more)

    async def test_every_change_is_found_whether_the_message_was_indexed_or_not(self, store: Any) -> None:
        await store.create_conversation("c")
        for indexed in (False, True):
            kept, edited, deleted = [await self._note(store, f"walrus {n} {indexed}") for n in range(3)]
            if indexed:
                assert len(await store.search("walrus", limit=100)) >= 3
            await store.record_edit("c", edited.id, content=f"narwhal {indexed}")
            await store.soft_delete_message("c", deleted.id)
            found = {hit.message.id for hit in await store.search("walrus", limit=100)}
            assert kept.id in found
            assert not found & {edited.id, deleted.id}
            assert edited.id in {hit.message.id for hit in await store.search("narwhal", limit=100)}
        await store.reset_conversation("c")
        assert await store.search("walrus narwhal") == []
        again = await self._note(store, "walrus after the reset")
        assert [hit.message.id for hit in await store.search("walrus")] == [again.id]

    @pytest.mark.needs("sql")
    async def test_a_unit_of_work_finds_its_own_and_leaves_nothing(self, storage: Any) -> None:
        await storage.conversations.create_conversation("c")
        with pytest.raises(KeyError):
            async with storage.unit_of_work() as uow:
                await uow.conversations.add_message("c", "user", "a walrus that never was")
                assert len(await uow.conversations.search("walrus")) == 1
                raise KeyError
        assert await storage.conversations.search("walrus") == []

    @pytest.mark.needs("fast")
    async def test_many_messages_and_many_writers_meanwhile(self, store: Any) -> None:
        await store.create_conversation("c")
        await store.add_messages("c", [{"role": "user", "content": f"otter {n}"} for n in range(2500)])
        await asyncio.gather(*[self._note(store, f"otter beside {n}") for n in range(50)])
        hits = await asyncio.gather(*[store.search("beside", limit=100) for _ in range(5)])
        assert [len(found) for found in hits] == [50] * 5

    @pytest.mark.needs("sql")
    async def test_the_background_indexes_what_nobody_searched(self, storage: Any) -> None:
        await storage.conversations.create_conversation("c")
        for n in range(3):
            await storage.conversations.add_message("c", "user", f"otter {n}")
        first = await storage.maintenance.index_messages()
        assert first in ((0, 1, 2, 3) if storage.sql_pool.dialect == "sqlite" else (0,))
        assert await storage.maintenance.index_messages() == 0
        assert len(await storage.conversations.search("otter")) == 3

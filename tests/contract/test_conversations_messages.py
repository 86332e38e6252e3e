"""Contract of the conversation store: messages. Runs on every backend."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings

from modules.conversation_store.append_statements import FIND_CLIENT
from modules.conversation_store.errors import (
    ConversationLeaseHeldError,
    ConversationLeaseLostError,
    ConversationNotFoundError,
    MessageExistsError,
    MessageNotFoundError,
)
from modules.conversation_store.messages import GET_MESSAGE
from modules.conversation_store.reading import RECENT, _fetch_statement
from modules.conversation_store.records import NewMessage
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import ConcurrencyError, IdempotencyConflictError, InvalidValueError
from tests.support import backends
from tests.support.values import contract_values, same

backend = backends.backend

INJECTIONS = [
    "'; DROP TABLE atlas_messages; --",
    '" OR 1=1 --',
    "$.a[0]",
    "%",
    "\\",
    "{}",
    "$1",
    ":name",
    "NULL",
    "\u00e9'\U0001f600",
]


@pytest.fixture
async def store(storage: Any) -> Any:
    await storage.conversations.create_conversation("c1")
    return storage.conversations


class TestAppending:
    async def test_what_is_returned_is_what_is_stored(self, store: Any) -> None:
        at = datetime(2020, 5, 17, 12, 30, 1, 123456, timezone(timedelta(hours=2)))
        added = await store.add_message(
            "c1", "tool", {"a": [1, 2.5, None, True, "x\x00\ue000"]}, message_id="m1", name="n\x00", message_type="tool_call",
            metadata={"k": {"deep": []}}, author_id="bot", parent_id="p", client_message_id="k", created_at=at,
        )  # fmt: skip
        assert added == await store.get_message("c1", "m1")
        assert (added.sequence, added.version, added.created_at) == (1, 1, at)
        assert added.created_at.tzinfo is timezone.utc
        assert (await store.get_conversation("c1")).last_sequence == 1

    async def test_expect_names_both_sequences(self, store: Any) -> None:
        await store.add_message("c1", "user", "a", expect=0)
        with pytest.raises(ConcurrencyError) as caught:
            await store.add_message("c1", "user", "b", expect=0)
        assert (caught.value.expected, caught.value.actual) == (0, 1)
        with pytest.raises(ConcurrencyError):
            await store.add_messages("c1", [{"role": "user", "content": "b"}], expect=5)
        assert len(await store.add_messages("c1", [{"role": "user", "content": "b"}] * 2, expect=1)) == 2
        await store.add_message("c1", "user", "c", append="any")
        with pytest.raises(InvalidValueError):
            await store.add_message("c1", "user", "c", append="any", expect=4)
        with pytest.raises(InvalidValueError):
            await store.add_message("c1", "user", "c", append="maybe")

    async def test_an_idempotency_key_has_one_effect(self, store: Any) -> None:
        calls = [
            store.add_message("c1", "user", f"text {n % 5}", client_message_id=f"k{n % 5}") for n in range(50)
        ]
        added = await asyncio.gather(*calls)
        assert len({m.sequence for m in added}) == 5
        assert (await store.get_conversation("c1")).last_sequence == 5
        with pytest.raises(IdempotencyConflictError):
            await store.add_message("c1", "user", "another text", client_message_id="k0")
        many = await store.add_messages(
            "c1", [{"role": "user", "content": f"text {n}", "client_message_id": f"k{n}"} for n in (4, 5, 5)]
        )
        assert many[0].sequence <= 5
        assert [m.sequence for m in many[1:]] == [6, 6]

    async def test_a_conflict_leaves_no_gap(self, store: Any) -> None:
        await store.add_message("c1", "user", "a", message_id="same")
        outcomes = await asyncio.gather(
            *[
                store.add_message("c1", "user", "b", message_id="same" if n % 3 == 0 else None)
                for n in range(30)
            ],
            *[store.add_message("none", "user", "b") for _ in range(5)],
            return_exceptions=True,
        )
        assert sum(isinstance(o, MessageExistsError) for o in outcomes) == 10
        assert sum(isinstance(o, ConversationNotFoundError) for o in outcomes) == 5
        kept = [m.sequence for m in await store.load_recent_messages("c1", 100)]
        assert kept == list(range(1, 22))

    async def test_add_messages_is_all_or_none(self, store: Any) -> None:
        batch = [NewMessage("user", "a", id="m1"), {"role": "user", "content": "b", "id": "m1"}]
        with pytest.raises(MessageExistsError):
            await store.add_messages("c1", batch)
        assert await store.load_recent_messages("c1") == []
        with pytest.raises(InvalidValueError, match=r"messages\[1\]"):
            await store.add_messages(
                "c1", [{"role": "user", "content": "a"}, {"role": "user", "contents": "b"}]
            )
        assert await store.add_messages("c1", []) == []

    @pytest.mark.parametrize("each", [20, pytest.param(200, marks=pytest.mark.needs("fast"))])
    async def test_fifty_writers_lose_and_reorder_nothing(self, store: Any, each: int) -> None:
        """P19: 50 writers x 200 appends -> exactly 10,000 messages, gapless, each writer's own order kept."""

        async def write(writer: int) -> None:
            for n in range(each):
                await store.add_message("c1", "user", n, author_id=f"w{writer}")

        await asyncio.gather(*[write(writer) for writer in range(50)])
        seen = [(m.sequence, m.author_id, m.content) async for m in store.stream_messages("c1")]
        assert [sequence for sequence, _, _ in seen] == list(range(1, 50 * each + 1))
        for writer in range(50):
            assert [n for _, author, n in seen if author == f"w{writer}"] == list(range(each))

    async def test_messages_added_at_once_keep_the_order_of_the_calls(self, store: Any) -> None:
        await store.create_conversation("c2")
        await asyncio.gather(*[store.add_message(f"c{n % 2 + 1}", "user", n) for n in range(80)])
        for first, name in enumerate(("c1", "c2")):
            stored = await store.load_recent_messages(name, limit=100)
            assert [message.content for message in stored] == list(range(first, 80, 2))

    async def test_batches_over_many_conversations_do_not_block_each_other(self, store: Any) -> None:
        names = [f"b{n}" for n in range(8)]
        for name in names:
            await store.create_conversation(name)
        order = [names[(n * 5 + n // 8) % 8] for n in range(400)]
        await asyncio.gather(*[store.add_message(name, "user", "x") for name in order])
        assert [(await store.get_conversation(name)).last_sequence for name in names] == [50] * 8


class TestLease:
    async def test_only_the_holder_writes(self, store: Any) -> None:
        lease = await store.acquire_lease("c1", "one")
        with pytest.raises(ConversationLeaseHeldError):
            await store.acquire_lease("c1", "two")
        await store.add_message("c1", "assistant", "x", lease=lease)
        newer = await store.acquire_lease("c1", "one")
        assert newer.fence > lease.fence
        with pytest.raises(ConversationLeaseLostError):
            await store.add_message("c1", "assistant", "late", lease=lease)
        with pytest.raises(ConversationLeaseLostError):
            await store.renew_lease(lease)
        assert (await store.renew_lease(newer, ttl_seconds=120)).expires_at > newer.expires_at
        assert await store.release_lease(newer) is True
        assert await store.release_lease(newer) is False
        with pytest.raises(ConversationLeaseLostError):
            await store.add_messages("c1", [{"role": "assistant", "content": "late"}], lease=newer)
        assert len(await store.load_recent_messages("c1")) == 1
        assert (await store.acquire_lease("c1", "two")).owner == "two"

    async def test_one_of_many_gets_a_lease_that_ran_out(self, store: Any) -> None:
        await store.acquire_lease("c1", "dead", ttl_seconds=0.001)

        async def attempt(owner: str) -> Any:
            while True:
                try:
                    return await store.acquire_lease("c1", owner)
                except ConversationLeaseHeldError:
                    if (await store.add_message("c1", "user", "tick")).sequence > 60:
                        return None

        got = await asyncio.gather(*[attempt(f"o{n}") for n in range(4)])
        assert sum(lease is not None for lease in got) == 1


class TestReading:
    async def test_pages_forward_and_backward(self, store: Any) -> None:
        await store.add_messages("c1", [{"role": "user", "content": n} for n in range(10)])
        for backward in (False, True):
            seen, cursor = [], None
            while True:
                page = await store.fetch_messages("c1", limit=3, cursor=cursor, backward=backward)
                seen += [m.content for m in page]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert seen == sorted(range(10), reverse=backward)
        middle = await store.fetch_messages("c1", after_sequence=3, before_sequence=6)
        assert [m.sequence for m in middle] == [4, 5]
        assert [m.content for m in await store.load_recent_messages("c1", 3)] == [7, 8, 9]
        assert [m.content async for m in store.stream_messages("c1", after_sequence=8)] == [8, 9]

    async def test_filters(self, store: Any) -> None:
        await store.add_message("c1", "user", 1, metadata={"a": 1, "b": {"c": "x", "d": None}, "q\"'": True})
        await store.add_message("c1", "assistant", 2, metadata={"a": True, "b": "c"}, message_type="event")
        await store.add_message("c1", "tool", 3, metadata={"a": "1", "b": [{"c": "x"}]}, status="failed")

        async def found(**filters: Any) -> Any:
            return [m.content for m in await store.fetch_messages("c1", **filters)]

        assert await found(role="user") == [1]
        assert await found(role=["user", "tool"]) == [1, 3]
        assert await found(message_type="event") == [2]
        assert await found(status="failed", role="tool") == [3]
        assert await found(metadata={"a": 1}) == [1]
        assert await found(metadata={"a": 1.0}) == [1]
        assert await found(metadata={"a": True}) == [2]
        assert await found(metadata={"a": False}) == []
        assert await found(metadata={"a": "1"}) == [3]
        assert await found(metadata={"b.c": "x"}) == [1]
        assert await found(metadata={"b.d": None}) == [1]
        assert await found(metadata={"b.e": None}) == []
        assert await found(metadata={"q\"'": True, "a": 1}) == [1]
        with pytest.raises(InvalidValueError):
            await found(metadata={"a": [1]})
        with pytest.raises(InvalidValueError):
            await found(metadata={"a": 1, "a.b": 2})

    async def test_edit_keeps_the_former_version(self, store: Any) -> None:
        first = await store.add_message(
            "c1", "user", "old", metadata={"n": 1}, message_id="m1", author_id="me"
        )
        edited = await store.record_edit("c1", "m1", content=["new"], expected_version=1, actor_id="you")
        assert (edited.version, edited.content, edited.metadata) == (2, ["new"], {"n": 1})
        assert edited.created_at == first.created_at
        assert edited.edited_at is not None
        with pytest.raises(ConcurrencyError) as caught:
            await store.record_edit("c1", "m1", content="x", expected_version=1)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        deleted = await store.soft_delete_message("c1", "m1")
        assert deleted.deleted_at is not None
        events = list(await store.fetch_message_events("c1", message_id="m1"))
        assert [(e.type, e.version, e.actor_id) for e in events] == [
            ("created", 1, "me"), ("edited", 2, "you"), ("deleted", 3, None)
        ]  # fmt: skip
        assert events[1].former == {"content": "old", "metadata": {"n": 1}, "status": "complete"}
        assert await store.get_message("c1", "m1") is None
        assert await store.load_recent_messages("c1") == []
        assert [m.id for m in await store.fetch_messages("c1", include_deleted=True)] == ["m1"]
        for call in (store.record_edit("c1", "m1", content="x"), store.soft_delete_message("c1", "m1")):
            with pytest.raises(MessageNotFoundError):
                await call
        with pytest.raises(ConversationNotFoundError):
            await store.record_edit("none", "m1", content="x")

    async def test_events_by_pages(self, store: Any) -> None:
        for n in range(3):
            await store.add_message("c1", "user", n, message_id=f"m{n}")
        await store.record_edit("c1", "m1", status="failed")
        first = await store.fetch_message_events("c1", limit=2)
        rest = await store.fetch_message_events("c1", limit=2, cursor=first.next_cursor)
        assert [(e.sequence, e.version) for e in [*first, *rest]] == [(1, 1), (2, 1), (2, 2), (3, 1)]
        assert rest.next_cursor is None


class TestValues:
    @pytest.mark.needs("fast")
    @settings(max_examples=500)
    @given(content=contract_values(), extra=contract_values())
    async def test_values_come_back_identical(self, store: Any, content: Any, extra: Any) -> None:
        """P27: what is read is what was written, types and signs included."""
        await self._comes_back(store, content, extra)

    @settings(max_examples=40)
    @given(content=contract_values(), extra=contract_values())
    async def test_some_values_come_back_identical(self, store: Any, content: Any, extra: Any) -> None:
        await self._comes_back(store, content, extra)

    async def _comes_back(self, store: Any, content: Any, extra: Any) -> None:
        added = await store.add_message("c1", "user", content, metadata={"v": extra})
        back = await store.get_message("c1", added.id)
        assert same(back.content, content)
        assert same(back.metadata, {"v": extra})

    @pytest.mark.parametrize(
        "value",
        [float("nan"), float("inf"), 2**63, 10**5000, "\ud800", {1: 2}, (1,), b"x", object()],
        ids=[
            "nan",
            "infinity",
            "65 bits",
            "5,000 digits",
            "surrogate",
            "int key",
            "tuple",
            "bytes",
            "object",
        ],
    )
    async def test_others_are_refused_before_the_store(self, store: Any, value: Any) -> None:
        for call in (
            store.add_message("c1", "user", value),
            store.add_message("c1", "user", "x", metadata={"v": value}),
            store.add_messages(
                "c1", [{"role": "user", "content": "fine"}, {"role": "user", "content": value}]
            ),
        ):
            with pytest.raises(InvalidValueError):
                await call
        assert (await store.get_conversation("c1")).last_sequence == 0

    @pytest.mark.parametrize("text", INJECTIONS)
    async def test_text_is_never_sql(self, store: Any, text: str) -> None:
        """P33: every text argument, everywhere."""
        await store.ensure_user(text, name=text)
        await store.create_conversation(text, title=text, user_id=text, session_id=text)
        await store.add_message(
            text, text, text, message_id=text, name=text, message_type=text, metadata={text: text},
            author_id=text, parent_id=text, client_message_id=text,
        )  # fmt: skip
        assert [c.id for c in await store.list_conversations(user_id=text, session_id=text)] == [text]
        page = await store.fetch_messages(text, role=text, message_type=[text])
        assert [m.id for m in page] == [text]
        assert len(await store.fetch_messages(text, metadata={text.replace(".", "_"): text})) == (
            0 if "." in text else 1
        )
        assert len(await store.fetch_message_events(text, message_id=text)) == 1
        assert all(hit.message.conversation_id == text for hit in await store.search(text))
        await store.search("x", conversation_id=text, role=text)
        assert await store.load_recent_messages("c1") == []


async def plan_of(storage: Any, statement: Any, **params: Any) -> str:
    """Return the database's plan for a statement of ours."""
    compiled = statement.compiled(storage.executor.dialect)
    values = compiled.bind(params)
    if storage.executor.dialect == "sqlite":
        explain = "EXPLAIN QUERY PLAN " + compiled.sql
        rows = await storage.executor.call_bare(
            lambda connection: connection.execute(explain, values).fetchall()
        )
        return "\n".join(row[3] for row in rows)
    async with storage.executor.pool().connection(deadline_after(10)) as raw:
        await raw.execute("ANALYZE atlas_messages, atlas_conversations")
        return "\n".join(row[0] for row in await raw.fetch("EXPLAIN " + compiled.sql, *values))


class TestPlans:
    """Costs must not grow with the table: no scan of a table, no sort of a conversation."""

    async def _fill(self, store: Any) -> None:
        for name in ("c1", "c2", "c3"):
            await store.ensure_conversation(name)
            await store.add_messages(
                name,
                [
                    {"role": "user", "content": n, "id": f"m{n}", "client_message_id": f"k{n}"}
                    for n in range(1000)
                ],
            )

    @pytest.mark.needs("sql")
    async def test_no_statement_of_the_hot_path_scans_or_sorts(self, store: Any, storage: Any) -> None:
        await self._fill(store)
        key = {"tenant_id": "default", "conversation_id": "c2"}
        plans = [
            await plan_of(storage, RECENT, **key, limit=50),
            await plan_of(
                storage, _fetch_statement((), None, False, False), **key, after=500, before=2**62, limit=50
            ),
            await plan_of(
                storage, _fetch_statement((), None, True, False), **key, after=0, before=700, limit=50
            ),
            await plan_of(storage, GET_MESSAGE, **key, message_id="m5"),
            await plan_of(storage, FIND_CLIENT, **key, client_message_id="k5"),
        ]
        for plan in plans:
            assert "TEMP B-TREE" not in plan
            assert "Sort" not in plan
            assert "SCAN atlas_messages" not in plan
            assert "Seq Scan on atlas_messages" not in plan
        if storage.executor.dialect == "postgresql":
            assert "Index Scan Backward using pk_atlas_messages" in plans[0]
            assert "uq_atlas_messages_id" in plans[3]
            assert "uq_atlas_messages_client_message_id" in plans[4]
        else:
            assert "USING PRIMARY KEY" in plans[0]
            assert "uq_atlas_messages_client_message_id" in plans[4]

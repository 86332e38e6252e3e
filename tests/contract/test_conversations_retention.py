"""Contract of the conversation store: retention, export and import. Runs on every backend."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, AsyncIterator, List

import pytest

from modules.conversation_store.errors import ConversationArchivedError
from modules.conversation_store.maintenance import ConversationMaintenance
from modules.conversation_store.records import RetentionPolicy
from modules.store_common.errors import InvalidValueError
from tests.support import backends

backend = backends.backend


@pytest.fixture
def store(storage: Any) -> Any:
    return storage.conversations


async def old(store: Any, name: str, days: float, messages: int = 3, **more: Any) -> None:
    """Import a conversation that was last used `days` ago."""
    at = datetime.now(timezone.utc) - timedelta(days=days)
    given = [
        {"id": f"m{n}", "role": "user", "content": f"umbrella {n}", "created_at": at} for n in range(messages)
    ]
    await store.import_conversation({"id": name, "created_at": at, "updated_at": at}, given, **more)


class TestRetention:
    async def test_archive_delete_purge(self, store: Any) -> None:
        await old(store, "fresh", 0)
        await old(store, "idle", 10)
        await old(store, "ancient", 100)
        policy = RetentionPolicy(archive_after_days=7, delete_after_days=30, purge_after_days=5)
        result = await store.run_retention(policy)
        assert (result.archived, result.conversations_deleted, result.conversations_purged) == (2, 1, 0)
        assert [c.id for c in await store.list_conversations()] == ["fresh"]
        assert [c.id for c in await store.list_conversations(status="archived")] == ["idle"]
        assert [c.id for c in await store.list_conversations(status="deleted")] == ["ancient"]
        result = await store.run_retention(RetentionPolicy(purge_after_days=0))
        assert (result.conversations_purged, result.complete) == (1, True)
        assert await store.list_conversations(status="deleted") == await store.list_conversations(
            status="deleted", user_id="x"
        )
        assert len(await store.search("umbrella", limit=100)) == 6

    @pytest.mark.needs("fast")
    async def test_history_limit_is_bounded_and_resumes(self, store: Any) -> None:
        await old(store, "long", 0, messages=1200)
        policy = RetentionPolicy(history_limit=100, purge_after_days=0)
        first = await store.run_retention(policy, limit=600)
        assert (first.messages_deleted, first.complete) == (600, False)
        while not (await store.run_retention(policy)).complete:
            pass
        kept = [m.sequence async for m in store.stream_messages("long", include_deleted=True)]
        assert kept == list(range(1101, 1201))
        assert (await store.add_message("long", "user", "next")).sequence == 1201

    async def test_tenants_have_limits_of_their_own(self, store: Any, storage: Any) -> None:
        for tenant in ("a", "b"):
            for n in range(4):
                await old(store, f"c{n}", n, tenant_id=tenant)
        policy = RetentionPolicy(max_conversations=3, tenants={"b": RetentionPolicy(max_conversations=1)})
        maintenance = ConversationMaintenance(storage.conversations._executor)
        assert [tenant async for tenant in maintenance.list_tenants()] == ["a", "b"]
        assert (await maintenance.run_retention(policy)).conversations_deleted == 1 + 3
        assert [c.id for c in await store.list_conversations(tenant_id="a")] == ["c0", "c1", "c2"]
        assert [c.id for c in await store.list_conversations(tenant_id="b")] == ["c0"]
        assert (
            await store.run_retention(RetentionPolicy(max_conversations=1), tenant_id="a")
        ).conversations_deleted == 2
        assert len(await store.list_conversations(tenant_id="b", status="deleted")) == 3

    @pytest.mark.parametrize(
        "policy",
        [
            RetentionPolicy(archive_after_days=-1),
            RetentionPolicy(delete_after_days=float("nan")),
            RetentionPolicy(history_limit=-1),
            RetentionPolicy(max_conversations=True),
            RetentionPolicy(tenants={"a": RetentionPolicy(history_limit=-1)}),
        ],
    )
    async def test_a_policy_without_sense_changes_nothing(self, store: Any, policy: RetentionPolicy) -> None:
        with pytest.raises(InvalidValueError):
            await store.run_retention(policy)


class TestTransfer:
    async def test_importing_twice_adds_nothing_and_resumes(self, store: Any) -> None:
        messages = [
            {"id": f"m{n}", "role": "user", "content": n, "created_at": "2024-01-01T00:00:00Z"}
            for n in range(2500)
        ]

        def broken() -> Any:
            yield from messages[:2100]
            raise OSError

        with pytest.raises(OSError):
            await store.import_conversation({"id": "c1", "title": "T"}, broken())
        assert (await store.get_conversation("c1")).last_sequence == 2000
        result = await store.import_conversation({"id": "c1"}, messages)
        assert (result.created, result.added, result.skipped) == (False, 500, 2000)
        again = await store.import_conversation({"id": "c1"}, messages)
        assert (again.added, again.skipped) == (0, 2500)
        seen = [(m.sequence, m.content) async for m in store.stream_messages("c1")]
        assert seen == [(n + 1, n) for n in range(2500)]
        conversation = await store.get_conversation("c1")
        assert (conversation.title, conversation.updated_at.year, conversation.created_at.year) == (
            "T",
            2024,
            2024,
        )

    async def test_export_and_import_are_inverse(self, store: Any) -> None:
        await old(store, "c1", 3)
        await store.create_conversation("c2", title="two", user_id="u", metadata={"a": [1]})
        await store.add_message(
            "c2", "assistant", {"x": "\x00"}, name="n", metadata={"k": 1}, client_message_id="key"
        )
        await store.archive_conversation("c2")
        records = [record async for record in store.export_conversations()]

        async def given() -> AsyncIterator[Any]:
            for record in records:
                yield record

        for added in (3, 0):
            results = [r async for r in store.import_records(given(), tenant_id="other")]
            assert [r.conversation_id for r in results] == ["c1", "c2"]
            assert results[0].added == added
        assert [record async for record in store.export_conversations(tenant_id="other")] == records
        one = [record async for record in store.export_conversations("c2")]
        assert [list(record) for record in one] == [["conversation"], ["message"]]
        with pytest.raises(ConversationArchivedError):
            await store.import_conversation({"id": "c2"}, [{"id": "new", "role": "user", "content": "x"}])

    @pytest.mark.parametrize(
        ("header", "messages"),
        [
            ({"id": ""}, []),
            ({"id": "c", "owner": "x"}, []),
            ({"id": "c", "status": "deleted"}, []),
            ({"id": "c", "created_at": "yesterday"}, []),
            ({"id": "c", "created_at": "2024-01-01T00:00:00"}, []),
            ({"id": "c"}, [{"role": "user", "content": "no id"}]),
            ({"id": "c"}, [{"id": "m", "role": "user", "content": float("nan")}]),
        ],
    )
    async def test_bad_records(self, store: Any, header: Any, messages: List[Any]) -> None:
        with pytest.raises(InvalidValueError):
            await store.import_conversation(header, messages)

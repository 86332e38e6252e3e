"""Contract of the conversation store: users, sessions, conversations, forks, assets. Runs on every backend."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from modules.conversation_store.errors import (
    ConversationArchivedError,
    ConversationExistsError,
    ConversationNotFoundError,
    MessageNotFoundError,
)
from modules.store_common.errors import (
    AlreadyExistsError,
    ConcurrencyError,
    InvalidCursorError,
    InvalidValueError,
)
from tests.support import backends

backend = backends.backend


@pytest.fixture
def store(storage: Any) -> Any:
    return storage.conversations


class TestPeople:
    async def test_user_is_made_once_and_keeps_what_is_not_given(self, store: Any) -> None:
        made = await store.ensure_user("u1", name="Ada", metadata={"plan": "free"})
        again = await store.ensure_user("u1", metadata={"plan": "paid"})
        assert (again.name, again.metadata) == ("Ada", {"plan": "paid"})
        assert again.created_at == made.created_at

    async def test_session_gets_an_id(self, store: Any) -> None:
        session = await store.ensure_session(user_id="u1")
        assert (await store.ensure_session(session.id)).user_id == "u1"


class TestConversations:
    async def test_create_get_and_to_dict(self, store: Any) -> None:
        made = await store.create_conversation("c1", title="A\x00B", user_id="u", metadata={"n": -0.0})
        assert await store.get_conversation("c1") == made
        assert (made.last_sequence, made.version, made.status) == (0, 1, "active")
        assert made.to_dict()["created_at"].endswith("+00:00")
        with pytest.raises(ConversationExistsError):
            await store.create_conversation("c1")

    async def test_ensure_leaves_what_is_there(self, store: Any) -> None:
        await store.ensure_conversation("c1", title="first")
        assert (await store.ensure_conversation("c1", title="second")).title == "first"

    async def test_rename_checks_the_version(self, store: Any) -> None:
        await store.create_conversation("c1")
        assert (await store.rename_conversation("c1", "new", expected_version=1)).version == 2
        with pytest.raises(ConcurrencyError) as caught:
            await store.rename_conversation("c1", "newer", expected_version=1)
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        with pytest.raises(ConversationNotFoundError):
            await store.rename_conversation("none", "x")
        changed = await store.set_conversation_metadata("c1", {"a": 1})
        assert (changed.title, changed.metadata) == ("new", {"a": 1})

    async def test_archived_takes_no_messages_until_unarchived(self, store: Any) -> None:
        await store.create_conversation("c1")
        archived = await store.archive_conversation("c1")
        assert archived.status == "archived"
        assert archived.archived_at is not None
        with pytest.raises(ConversationArchivedError):
            await store.add_message("c1", "user", "hello")
        back = await store.unarchive_conversation("c1")
        assert (back.status, back.archived_at) == ("active", None)
        await store.add_message("c1", "user", "hello")

    async def test_soft_deleted_is_gone_for_every_call(self, store: Any) -> None:
        await store.create_conversation("c1")
        await store.add_message("c1", "user", "umbrella")
        assert await store.delete_conversation("c1") is True
        assert await store.delete_conversation("c1") is False
        assert await store.get_conversation("c1") is None
        assert await store.load_recent_messages("c1") == []
        assert await store.search("umbrella") == []
        assert [c.id for c in await store.list_conversations(status="deleted")] == ["c1"]
        with pytest.raises(ConversationNotFoundError):
            await store.add_message("c1", "user", "x")

    async def test_hard_delete_leaves_others_alone(self, store: Any) -> None:
        for name in ("c1", "c2"):
            await store.create_conversation(name)
            await store.add_message(name, "user", "umbrella", message_id="same")
        assert await store.hard_delete_conversation("c1") is True
        assert await store.hard_delete_conversation("c1") is False
        assert [hit.message.conversation_id for hit in await store.search("umbrella")] == ["c2"]
        assert (await store.create_conversation("c1")).last_sequence == 0

    async def test_reset_starts_again_at_one(self, store: Any) -> None:
        await store.create_conversation("c1", title="kept")
        await store.add_message("c1", "user", "umbrella", client_message_id="k")
        emptied = await store.reset_conversation("c1")
        assert (emptied.title, emptied.last_sequence) == ("kept", 0)
        assert await store.search("umbrella") == []
        assert (await store.add_message("c1", "user", "other", client_message_id="k")).sequence == 1

    async def test_fork_copies_up_to_a_message(self, store: Any) -> None:
        await store.create_conversation("c1", title="T", user_id="u", metadata={"a": 1})
        for n in range(5):
            await store.add_message(
                "c1", "user", f"umbrella {n}", message_id=f"m{n}", parent_id=f"m{n - 1}" if n else None
            )
        await store.soft_delete_message("c1", "m1")
        fork = await store.fork_conversation("c1", "m3", new_conversation_id="f")
        assert (fork.forked_from_id, fork.forked_from_sequence, fork.title, fork.user_id) == (
            "c1",
            4,
            "T",
            "u",
        )
        copied = await store.load_recent_messages("f")
        assert [(m.sequence, m.id) for m in copied] == [(1, "m0"), (2, "m2"), (3, "m3")]
        assert fork.last_sequence == 3
        assert (await store.add_message("f", "user", "next")).sequence == 4
        assert len(await store.load_recent_messages("c1")) == 4
        assert len(await store.search("umbrella", conversation_id="f")) == 3
        with pytest.raises(MessageNotFoundError):
            await store.fork_conversation("c1", "m1")
        with pytest.raises(ConversationExistsError):
            await store.fork_conversation("c1", new_conversation_id="f")

    async def test_assets(self, store: Any) -> None:
        await store.create_conversation("c1")
        for n in range(3):
            await store.add_asset("c1", f"file:///{n}", asset_id=f"a{n}", size_bytes=n, metadata={"n": n})
        first = await store.list_assets("c1", limit=2)
        rest = await store.list_assets("c1", limit=2, cursor=first.next_cursor)
        assert [a.uri for a in [*first, *rest]] == ["file:///0", "file:///1", "file:///2"]
        assert rest.next_cursor is None
        with pytest.raises(AlreadyExistsError):
            await store.add_asset("c1", "x", asset_id="a0")
        with pytest.raises(ConversationNotFoundError):
            await store.add_asset("none", "x")


class TestLists:
    async def test_pages_are_complete_newest_first(self, store: Any) -> None:
        for n in range(7):
            await store.create_conversation(f"c{n}", user_id="even" if n % 2 == 0 else "odd", session_id="s")
        await store.add_message("c0", "user", "now the latest")
        seen, cursor = [], None
        while True:
            page = await store.list_conversations(session_id="s", limit=3, cursor=cursor)
            seen += [(c.updated_at, c.id) for c in page]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == sorted(seen, reverse=True)
        assert sorted(name for _, name in seen) == [f"c{n}" for n in range(7)]
        made = (await store.get_conversation("c0")).created_at
        assert next(at for at, name in seen if name == "c0") >= made
        assert {c.id for c in await store.list_conversations(user_id="odd")} == {"c1", "c3", "c5"}

    async def test_filters_by_status_and_time(self, store: Any) -> None:
        made = await store.create_conversation("c1")
        await store.create_conversation("c2")
        await store.archive_conversation("c2")
        assert [c.id for c in await store.list_conversations()] == ["c1"]
        assert [c.id for c in await store.list_conversations(status="archived")] == ["c2"]
        later = made.updated_at + timedelta(days=1)
        assert len(await store.list_conversations(updated_after=later)) == 0
        assert len(await store.list_conversations(updated_before=later)) == 1
        assert len(await store.list_conversations(updated_after=made.updated_at)) == 1

    async def test_a_cursor_of_another_list_is_refused(self, store: Any) -> None:
        for n in range(3):
            await store.create_conversation(f"c{n}", user_id="u")
        cursor = (await store.list_conversations(limit=1)).next_cursor
        with pytest.raises(InvalidCursorError):
            await store.list_conversations(limit=1, cursor=cursor, user_id="u")
        with pytest.raises(InvalidCursorError):
            await store.fetch_messages("c0", cursor=cursor)

    @pytest.mark.parametrize(
        "arguments",
        [
            {"limit": 0},
            {"limit": 10_001},
            {"status": "open"},
            {"updated_after": datetime(2024, 1, 1)},  # noqa: DTZ001 - naive on purpose
            {"user_id": ""},
            {"cursor": "no cursor"},
        ],
    )
    async def test_bad_arguments(self, store: Any, arguments: Any) -> None:
        with pytest.raises(InvalidValueError):
            await store.list_conversations(**arguments)

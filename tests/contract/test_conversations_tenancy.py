"""No tenant sees, changes or counts another's conversations (P32). The list of methods is read from the store: a new
public method without a case here fails.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any, Awaitable, Callable, Dict

import pytest

from modules.conversation_store.errors import ConversationLeaseLostError
from modules.conversation_store.records import ConversationLease, RetentionPolicy
from modules.conversation_store.repository import ConversationStore
from modules.store_common.clock import utc_now
from modules.store_common.errors import InvalidCursorError, NotFoundError, TenantContextError
from modules.store_common.tenancy import TenantPolicy, tenant_context
from tests.support import backends

backend = backends.backend

_LEASE = ConversationLease("c1", "owner", 1, utc_now())


async def _all(items: Any) -> Any:
    return [item async for item in items]


async def _turn(store: Any, **tenant: Any) -> Any:
    async with store.turn("c1", user_message="x", **tenant):
        return None


async def _records() -> Any:
    yield {"conversation": {"id": "c1"}}
    yield {"message": {"id": "m1", "role": "user", "content": "intruder"}}


NOT_FOUND, NOTHING, OWN = "not found", "nothing", "works on the tenant's own"
Case = Callable[..., Awaitable[Any]]

#: Method -> what happens to tenant "b" when it names what only tenant "a" has, and the call.
CASES: Dict[str, Any] = {
    "ensure_user": (OWN, lambda s, **t: s.ensure_user("u", name="B", **t)),
    "ensure_session": (OWN, lambda s, **t: s.ensure_session("s", user_id="b", **t)),
    "create_conversation": (OWN, lambda s, **t: s.create_conversation("c1", title="B", **t)),
    "ensure_conversation": (OWN, lambda s, **t: s.ensure_conversation("c1", title="B", **t)),
    "import_conversation": (
        OWN,
        lambda s, **t: s.import_conversation({"id": "c1"}, [{"id": "m1", "role": "u", "content": 1}], **t),
    ),
    "import_records": (OWN, lambda s, **t: _all(s.import_records(_records(), **t))),
    "get_conversation": (NOTHING, lambda s, **t: s.get_conversation("c1", **t)),
    "list_conversations": (NOTHING, lambda s, **t: s.list_conversations(**t)),
    "get_message": (NOTHING, lambda s, **t: s.get_message("c1", "m1", **t)),
    "fetch_messages": (NOTHING, lambda s, **t: s.fetch_messages("c1", include_deleted=True, **t)),
    "load_recent_messages": (NOTHING, lambda s, **t: s.load_recent_messages("c1", **t)),
    "stream_messages": (NOTHING, lambda s, **t: _all(s.stream_messages("c1", **t))),
    "fetch_message_events": (NOTHING, lambda s, **t: s.fetch_message_events("c1", **t)),
    "search": (NOTHING, lambda s, **t: s.search("umbrella", **t)),
    "list_assets": (NOTHING, lambda s, **t: s.list_assets("c1", **t)),
    "export_conversations": (NOTHING, lambda s, **t: _all(s.export_conversations(**t))),
    "delete_conversation": (NOTHING, lambda s, **t: s.delete_conversation("c1", **t)),
    "hard_delete_conversation": (NOTHING, lambda s, **t: s.hard_delete_conversation("c1", **t)),
    "release_lease": (NOTHING, lambda s, **t: s.release_lease(_LEASE, **t)),
    "recover_turns": (NOTHING, lambda s, **t: s.recover_turns(**t)),
    "run_retention": (
        OWN,
        lambda s, **t: s.run_retention(RetentionPolicy(history_limit=1, purge_after_days=0), **t),
    ),
    "rename_conversation": (NOT_FOUND, lambda s, **t: s.rename_conversation("c1", "B", **t)),
    "set_conversation_metadata": (NOT_FOUND, lambda s, **t: s.set_conversation_metadata("c1", {"b": 1}, **t)),
    "archive_conversation": (NOT_FOUND, lambda s, **t: s.archive_conversation("c1", **t)),
    "unarchive_conversation": (NOT_FOUND, lambda s, **t: s.unarchive_conversation("c1", **t)),
    "reset_conversation": (NOT_FOUND, lambda s, **t: s.reset_conversation("c1", **t)),
    "fork_conversation": (NOT_FOUND, lambda s, **t: s.fork_conversation("c1", **t)),
    "add_asset": (NOT_FOUND, lambda s, **t: s.add_asset("c1", "x", **t)),
    "add_message": (NOT_FOUND, lambda s, **t: s.add_message("c1", "user", "x", **t)),
    "add_messages": (NOT_FOUND, lambda s, **t: s.add_messages("c1", [{"role": "user", "content": "x"}], **t)),
    "record_edit": (NOT_FOUND, lambda s, **t: s.record_edit("c1", "m1", content="x", **t)),
    "soft_delete_message": (NOT_FOUND, lambda s, **t: s.soft_delete_message("c1", "m1", **t)),
    "acquire_lease": (NOT_FOUND, lambda s, **t: s.acquire_lease("c1", "b", **t)),
    "renew_lease": (NOT_FOUND, lambda s, **t: s.renew_lease(_LEASE, **t)),
    "turn": (NOT_FOUND, _turn),
}
#: Administration of the whole database: takes no tenant and gives no content.
WITHOUT_TENANT = {"rebuild_search"}


@pytest.fixture
async def store(storage: Any) -> Any:
    """A store in which tenant "a" has something of everything."""
    store = storage.conversations
    with tenant_context("a"):
        await store.ensure_user("u", name="A")
        await store.ensure_session("s", user_id="a")
        await store.create_conversation("c1", title="A", user_id="u", session_id="s")
        for n in range(3):
            await store.add_message("c1", "user", f"umbrella {n}", message_id=f"m{n}")
        await store.record_edit("c1", "m0", content="umbrella again")
        await store.add_asset("c1", "file:///a", asset_id="x")
        await store.acquire_lease("c1", "owner")
        turn = store.turn("c1", lease_seconds=0.001, flush_seconds=600)
        await turn.__aenter__()
        turn._ticker.cancel()  # its process is gone
        await asyncio.wait([turn._ticker])
    return store


async def _everything(store: Any) -> Any:
    with tenant_context("a"):
        return (
            await store.get_conversation("c1"),
            [m async for m in store.stream_messages("c1", include_deleted=True)],
            await store.fetch_message_events("c1"),
            await store.list_assets("c1"),
            sorted(hit.message.id for hit in await store.search("umbrella")),
            await store.ensure_user("u"),
        )


def _public() -> Any:
    members = inspect.getmembers(ConversationStore, inspect.isfunction)
    return sorted(name for name, _ in members if not name.startswith("_"))


def test_every_public_method_has_a_case() -> None:
    assert sorted(CASES) + sorted(WITHOUT_TENANT) == sorted(set(_public()) - WITHOUT_TENANT) + sorted(
        WITHOUT_TENANT
    )
    for name in CASES:
        assert "tenant_id" in inspect.signature(getattr(ConversationStore, name)).parameters


@pytest.mark.parametrize("name", sorted(CASES))
async def test_another_tenants_things_do_not_exist(store: Any, name: str) -> None:
    outcome, call = CASES[name]
    before = await _everything(store)
    if outcome == NOT_FOUND:
        with pytest.raises(NotFoundError) as caught:
            await call(store, tenant_id="b")
        # the same as for a tenant in whose place nothing is anywhere
        with pytest.raises(type(caught.value)) as unknown:
            await call(store, tenant_id="nobody")
        assert str(unknown.value) == str(caught.value)
    else:
        result = await call(store, tenant_id="b")
        if outcome == NOTHING:
            assert not result
    after = await _everything(store)
    assert after[:5] == before[:5]
    assert (after[5].name, after[5].created_at) == (before[5].name, before[5].created_at)


@pytest.mark.parametrize("name", sorted(CASES))
async def test_without_a_tenant_where_one_is_required(storage: Any, name: str) -> None:
    strict = ConversationStore(storage.conversations._executor, TenantPolicy(required=True))
    with pytest.raises(TenantContextError):
        await CASES[name][1](strict)


async def test_cursors_are_bound_to_their_tenant(store: Any) -> None:
    messages = (await store.fetch_messages("c1", limit=1, tenant_id="a")).next_cursor
    events = (await store.fetch_message_events("c1", limit=1, tenant_id="a")).next_cursor
    for call in (
        store.fetch_messages("c1", limit=1, cursor=messages, tenant_id="b"),
        store.fetch_message_events("c1", limit=1, cursor=events, tenant_id="b"),
        store.fetch_message_events("c1", limit=1, cursor=messages, tenant_id="a"),
    ):
        with pytest.raises(InvalidCursorError):
            await call


async def test_a_lease_of_another_tenant_is_worth_nothing(store: Any) -> None:
    await store.create_conversation("c1", tenant_id="b")
    with pytest.raises(ConversationLeaseLostError):
        await store.add_message("c1", "user", "x", lease=_LEASE, tenant_id="b")

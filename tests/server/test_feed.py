"""Streams are woken by what comes in: here, and by the other servers on the same database."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator

import pytest

import modules.Server.feed as feed_module
from modules.access_store.tokens import key_of
from modules.Server.feed import Feed
from modules.Server.gate import Traffic
from modules.Server.sessions import COOKIE
from modules.storage.manager import StorageManager

PATIENCE_S = 60.0


async def always() -> bool:
    return True


@pytest.fixture
async def others(storage: Any, migrated_settings: Any) -> AsyncIterator[Any]:
    """The storage of another server where servers hear each other, else the same."""
    if storage.sql_pool.dialect == "postgresql":
        async with StorageManager(migrated_settings) as other:
            yield other
    else:
        yield storage


async def test_a_stream_is_woken_and_does_not_only_look(
    storage: Any, others: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_LOOK_EVERY_S", 3600.0)  # so that looking cannot be what finds it
    await storage.conversations.create_conversation("c", tenant_id="acme")
    here, there = Feed(storage, Traffic(), 10), Feed(others, Traffic(), 10)
    stream = here.messages("acme", "c", 0, always)
    assert await stream.__anext__() == b": open\n\n"
    assert here.open_streams == 1
    waiting = asyncio.ensure_future(stream.__anext__())

    await others.conversations.add_message("c", "user", "hello", tenant_id="acme")
    there.wake("acme", "c")
    told = await asyncio.wait_for(waiting, PATIENCE_S)

    assert told.startswith(b"id: 1\nevent: message\n")
    await stream.aclose()
    assert here.open_streams == 0


async def test_only_the_pages_of_the_tenant_are_woken(storage: Any) -> None:
    feed = Feed(storage, Traffic(), 10)
    async with feed.page("acme") as mine, feed.page("other") as foreign:
        feed.wake("acme", "c")

        assert await mine.wait(PATIENCE_S)
        assert mine.channels.isdisjoint(foreign.channels)
        assert not any("acme" in channel for channel in mine.channels)


async def test_all_are_woken_when_the_server_ends(storage: Any) -> None:
    traffic = Traffic()
    feed = Feed(storage, traffic, 10)
    await storage.conversations.create_conversation("c", tenant_id="acme")
    stream = feed.messages("acme", "c", 0, always)
    await stream.__anext__()
    waiting = asyncio.ensure_future(stream.__anext__())
    await asyncio.sleep(0)

    traffic.draining = True
    feed.wake_all()

    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(waiting, PATIENCE_S)


async def test_a_stream_ends_when_its_token_does(api: Any) -> None:
    """The pages of the dashboard and the messages of the API: what was revoked sees nothing more."""
    services = api.services
    made = await api.storage.access.create_token("short", scopes=["read"], tenant_id="acme")
    await api.storage.conversations.create_conversation("c", tenant_id="acme")
    token = key_of(made.text)
    stream = services.feed.messages("acme", "c", 0, lambda: services.authenticator.still_holds(token))
    assert await stream.__anext__() == b": open\n\n"
    assert await services.authenticator.still_holds(token)

    await api.storage.access.revoke_token(made.token.id, tenant_id="acme")
    services.authenticator.forget()  # as two seconds do

    with pytest.raises(StopAsyncIteration):
        await asyncio.wait_for(stream.__anext__(), PATIENCE_S)


async def test_open_conversations_share_what_is_known_of_forks(
    api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages of a tenant look for forks once in some seconds, whoever forks here sees it at once."""
    monkeypatch.setattr("modules.Server.dashboard.pages.thread._FORKS_KEPT_S", 3600.0)
    conversations, services = api.storage.conversations, api.services
    made = await api.storage.access.create_token("p", scopes=["write"], tenant_id="acme")
    cookie = services.sessions.open(made.text)
    csrf = services.sessions.get(cookie).csrf
    api.client.cookies.set(COOKIE, cookie)
    await conversations.create_conversation("c", tenant_id="acme")
    await conversations.fork_conversation("c", new_conversation_id="f", title="one end", tenant_id="acme")
    assert "one end" in (await api("GET", "/conversations/c", 200)).text

    await conversations.fork_conversation(
        "c", new_conversation_id="g", title="by a program", tenant_id="acme"
    )
    assert "by a program" not in (await api("GET", "/conversations/c", 200)).text, "it looked again"
    assert "by a program" in (await api("GET", "/conversations/g", 200)).text, "its own page knows it"

    form = {"what": "fork", "csrf": csrf}
    await api("POST", "/conversations/c/do", 303, data=form, headers={"Origin": "http://localhost"})
    assert "by a program" in (await api("GET", "/conversations/c", 200)).text

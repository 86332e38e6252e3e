"""MongoDB: what a dead process leaves behind is completed or removed by the next; a frozen server costs a deadline, no more."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any, AsyncIterator, Dict, List

import pytest

from modules.conversation_store.errors import ConversationNotFoundError
from modules.conversation_store.mongo_documents import ASSETS, GARBAGE, MESSAGES, range_of
from modules.storage.documents import key_of
from modules.storage.manager import StorageManager
from modules.storage.mongo_pool import MongoPool
from modules.storage.settings import MongoBackendSettings
from modules.store_common.errors import DeadlineExceededError, IdempotencyConflictError, UnavailableError
from modules.store_common.tenancy import TenantPolicy
from modules.Tools.Base_Tools.kv_mongo_documents import BATCH_PARTS, BATCHES, ENTRIES
from modules.Tools.Base_Tools.kv_mongo_repository import KEY_VALUE_FORMS
from modules.Tools.Base_Tools.kv_store import KeyValueMaintenance, KeyValueStore
from tests.support.mongo_server import NoServerError, temporary_server
from tests.support.timing import assert_in_time

pytestmark = [pytest.mark.mongodb, pytest.mark.usefixtures("mongodb")]

# Appends one message after the other and says each that was acknowledged.
_WRITER = """
import asyncio, sys
from modules.storage.manager import StorageManager

async def main():
    settings = {"sql": {"path": ":memory:"}, "mongo": {"url": sys.argv[1], "database": sys.argv[2]},
                "use_mongo_for_conversations": True, "vectors": {"backend": "none"}}
    async with StorageManager(settings) as manager:
        await manager.conversations.ensure_conversation("c")
        for n in range(10_000):
            message = await manager.conversations.add_message("c", "user", f"{sys.argv[3]}-{n}")
            print(message.sequence, message.content, flush=True)

asyncio.run(main())
"""


@pytest.fixture
async def manager(mongo_settings: Any, leaks: Any) -> AsyncIterator[StorageManager]:
    # what upkeep completes, tests complete by hand
    async with StorageManager(mongo_settings, background=False) as made:
        yield made


def _documents(manager: StorageManager, store: str) -> Any:
    assert manager._mongo is not None
    return manager._mongo.executor(store).documents


async def test_what_was_acknowledged_survives_kill_9(
    manager: StorageManager, mongo_settings: Any, child_environment: Dict[str, str]
) -> None:
    """P1: the client is killed in the middle of appends; nothing acknowledged is lost, no sequence is missing or double."""
    command = [sys.executable, "-c", _WRITER, mongo_settings.mongo.get_url(), mongo_settings.mongo.database]
    acknowledged: Dict[int, str] = {}
    for turn in range(40 if os.environ.get("ATLAS_TEST_FULL") == "1" else 3):
        child = await asyncio.create_subprocess_exec(
            *command, str(turn), stdout=asyncio.subprocess.PIPE, env=child_environment
        )
        assert child.stdout is not None
        lines = [await child.stdout.readline() for _ in range(3 + turn % 7)]
        child.kill()
        lines += (await child.stdout.read()).splitlines()
        await child.wait()
        for line in lines:
            sequence, _, content = line.decode().strip().partition(" ")
            if content.count("-") == 1 and not content.endswith("-"):
                acknowledged[int(sequence)] = content
    assert len(acknowledged) > 8
    last = await manager.conversations.add_message("c", "user", "after")
    kept = {m.sequence: m.content async for m in manager.conversations.stream_messages("c")}
    assert sorted(kept) == list(range(1, last.sequence + 1))
    assert acknowledged.items() <= kept.items()


async def test_messages_that_were_never_published_are_not_there(manager: StorageManager) -> None:
    store, db = manager.conversations, _documents(manager, "conversations")
    await store.create_conversation("c")
    first = await store.add_message("c", "user", "one")
    (document,) = await db.find(MESSAGES, {"n": 1})
    for number in (2, 3):
        place = range_of("default", document["g"], number)
        ghost = {
            **document,
            "_id": place,
            "n": number,
            "i": f"ghost{number}",
            "ck": key_of("default", document["g"], "k"),
        }
        await db.insert(MESSAGES, [{**ghost, "ck": f"{ghost['ck']}{number}", "wt": "dead"}])

    assert [m.content async for m in store.stream_messages("c")] == ["one"]
    assert await store.search("one", conversation_id="c") != []
    # the key of one that was never there is free, and its place is taken by the next
    second = await store.add_message("c", "user", "two", client_message_id="k2")
    assert (first.sequence, second.sequence) == (1, 2)
    third = await store.add_message("c", "user", "three", client_message_id="k3", message_id="ghost3")
    assert [m.content async for m in store.stream_messages("c")] == ["one", "two", "three"]
    assert (
        await store.add_message("c", "user", "three", client_message_id="k3", message_id="ghost3")
    ) == third


async def test_an_event_on_its_way_is_seen_and_arrives(manager: StorageManager) -> None:
    store, db = manager.conversations, _documents(manager, "conversations")
    await store.create_conversation("c")
    await store.add_message("c", "user", "one", message_id="m")
    await store.record_edit("c", "m", content="two")
    (event,) = await db.find("atlas_message_events", {})
    await db.delete("atlas_message_events", {"_id": event["_id"]})
    await db.update(MESSAGES, {"i": "m"}, {"$push": {"le": event}})

    async def kinds() -> List[str]:
        return [item.type for item in await store.fetch_message_events("c")]

    assert await kinds() == ["created", "edited"]
    await store.soft_delete_message("c", "m")
    assert await kinds() == ["created", "edited", "deleted"]
    assert await db.count("atlas_message_events", {}) == 2


async def test_what_a_dead_reset_left_is_removed_later(manager: StorageManager) -> None:
    store, db = manager.conversations, _documents(manager, "conversations")
    await store.create_conversation("c")
    await store.add_message("c", "user", "old")
    (document,) = await db.find(MESSAGES, {})
    await store.reset_conversation("c")
    # as if the process had died before it removed the messages
    await db.insert(MESSAGES, [document])
    noted = {
        "_id": key_of("default", document["g"]),
        "t": "default",
        "c": "c",
        "g": document["g"],
        "u": None,
        "at": 1,
    }
    await db.insert(GARBAGE, [noted])
    assert [m async for m in store.stream_messages("c")] == []
    await manager.maintenance.recover_turns()
    assert await db.count(MESSAGES, {}) == 0
    assert await db.count(GARBAGE, {}) == 0


async def test_a_fork_is_whole_though_its_source_is_emptied(manager: StorageManager) -> None:
    """The source is reset while its messages are copied: the copy is of before or of after, and not of both."""
    store = manager.conversations
    await store.create_conversation("c")
    await store.add_messages("c", [{"role": "user", "content": n} for n in range(3)])
    db = _documents(manager, "conversations")
    given = db.find

    async def overtaken(collection: str, where: Any, **more: Any) -> Any:
        if collection == MESSAGES:
            db.find = given
            await store.reset_conversation("c")
            await store.add_message("c", "user", "after")
        return await given(collection, where, **more)

    db.find = overtaken
    copy = await store.fork_conversation("c", new_conversation_id="f")
    assert [message.content async for message in store.stream_messages("f")] == ["after"]
    assert copy.last_sequence == 1
    assert await db.count(GARBAGE, {}) == 0


async def test_an_asset_that_comes_too_late_does_not_stay(manager: StorageManager) -> None:
    """Its conversation is removed just before it is there."""
    store = manager.conversations
    await store.create_conversation("c")
    db = _documents(manager, "conversations")
    given = db.insert

    async def late(collection: str, documents: Any) -> None:
        if collection == ASSETS:
            assert await store.hard_delete_conversation("c")
        await given(collection, documents)

    db.insert = late
    with pytest.raises(ConversationNotFoundError):
        await store.add_asset("c", "file:///a")
    assert await db.count(ASSETS, {}) == 0


async def test_what_a_dead_set_many_left_is_completed(manager: StorageManager) -> None:
    db = _documents(manager, "kv")
    await manager.kv.set_many("n", {"a": 1, "b": 2})
    (written, _) = await db.find(ENTRIES, {}, sort=[("_id", 1)])
    entry = {name: written[name] for name in ("j", "b", "z", "u", "e", "r")}
    items = [{"k": "a", **entry, "j": "10"}, {"k": "c", **entry, "j": "30"}]
    await db.insert(BATCH_PARTS, [{"_id": key_of("default", "dead", 0), "b": "dead", "n": 0, "i": items}])
    await db.insert(BATCHES, [{"_id": "dead", "t": "default", "s": "n", "c": 1}])
    # it had got as far as "a"
    await db.update(ENTRIES, {"k": "a"}, {"$set": {"o": "dead", "j": "11"}})
    await manager.maintenance.sweep()
    assert await manager.kv.get_many("n", ["a", "b", "c"]) == {"a": 11, "b": 2, "c": 30}
    assert await db.count(BATCHES, {}) == await db.count(BATCH_PARTS, {}) == 0


async def test_one_key_has_one_effect(manager: StorageManager) -> None:
    """P6: concurrent callers with the same idempotency keys."""
    store = manager.conversations
    await store.create_conversation("c")
    calls = [
        store.add_message("c", "user", f"t{key}", client_message_id=f"k{key}")
        for _ in range(20)
        for key in range(10)
    ]
    found = await asyncio.gather(*calls)
    assert len({(message.id, message.sequence) for message in found}) == 10
    assert (await store.get_conversation("c")).last_sequence == 10  # type: ignore[union-attr]
    with pytest.raises(IdempotencyConflictError):
        await store.add_message("c", "user", "other", client_message_id="k1")


async def test_two_pools_share_a_conversation(manager: StorageManager, mongo_settings: Any) -> None:
    """P19 over two clients: gapless, nothing lost, each writer's own order kept."""
    await manager.conversations.create_conversation("c")
    async with StorageManager(mongo_settings) as other:

        async def write(writer: int) -> None:
            store = (manager, other)[writer % 2].conversations
            for n in range(6):
                await store.add_message("c", "user", n, author_id=f"w{writer}")

        await asyncio.gather(*[write(writer) for writer in range(8)])
    seen = [(m.sequence, m.author_id, m.content) async for m in manager.conversations.stream_messages("c")]
    assert [sequence for sequence, _, _ in seen] == list(range(1, 49))
    for writer in range(8):
        assert [n for _, author, n in seen if author == f"w{writer}"] == list(range(6))


async def _answered(call: Any) -> Any:
    """Call until there is an answer: the second that a call may take here is short for a busy machine."""
    end = time.monotonic() + 60
    while True:
        try:
            return await call()
        except (DeadlineExceededError, UnavailableError):
            assert time.monotonic() < end, "the server does not answer"


async def test_a_frozen_server_costs_the_deadline_and_no_more(leaks: Any) -> None:
    """P11: every call ends by its deadline with a typed error, and works again afterwards."""
    try:
        with temporary_server() as server:
            settings = MongoBackendSettings(
                url=server.url, command_timeout_s=1.0, server_selection_timeout_ms=1000
            )
            pool = MongoPool(settings)
            await _answered(pool.initialize)
            kv = KeyValueStore(pool.executor(KEY_VALUE_FORMS), TenantPolicy())
            await _answered(lambda: kv.set("n", "k", 1))
            calls: Dict[str, Any] = {
                "get": lambda: kv.get("n", "k"),
                "set": lambda: kv.set("n", "k", 2),
                "increment": lambda: kv.increment("n", "k"),
                "list": lambda: kv.list("n"),
                "sweep": lambda: KeyValueMaintenance(pool.executor(KEY_VALUE_FORMS)).sweep_expired(),
            }
            server.freeze()
            for name, call in calls.items():
                started = time.monotonic()
                with pytest.raises((DeadlineExceededError, UnavailableError)):
                    await call()
                assert_in_time(started, 3, name)
            assert await pool.health_check(0.5) is False
            server.thaw()
            end = time.monotonic() + 60
            while not await pool.health_check(5):
                assert time.monotonic() < end
            assert await _answered(lambda: kv.get("n", "k")) in (1, 2, 3)
            await pool.shutdown()
    except NoServerError as exc:
        pytest.skip(str(exc))

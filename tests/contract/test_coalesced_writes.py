"""Writes that wait at the same time and become one statement: each caller still gets what it would have got alone."""

from __future__ import annotations

import asyncio
from typing import Any, Dict, List

import pytest

from modules.conversation_store.errors import ConversationNotFoundError, MessageExistsError
from modules.store_common.errors import IdempotencyConflictError
from modules.store_common.tenancy import tenant_context

CALLS = 120


async def _at_once(*calls: Any) -> List[Any]:
    """Start all calls in one turn of the loop: behind the first of them the others gather."""
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_sets_of_many_keys_and_tenants(storage: Any) -> None:
    async def put(number: int) -> Any:
        with tenant_context(f"t{number % 3}"):
            return await storage.kv.set(f"space{number % 2}", f"key{number % 30}", {"n": number})

    versions = await _at_once(*[put(number) for number in range(CALLS)])
    # 120 calls for 30 entries (30 is a multiple of 2 and 3): each entry has the versions 1 to 4
    assert sorted(versions) == sorted([1, 2, 3, 4] * 30)
    for number in range(30):
        with tenant_context(f"t{number % 3}"):
            entry = await storage.kv.get_entry(f"space{number % 2}", f"key{number}")
        assert entry.version == 4
        assert entry.value["n"] % 30 == number


async def test_sets_of_every_kind_of_value(storage: Any) -> None:
    values: Dict[str, Any] = {
        "text": "x\x00\ue000\u20ac'\"", "bytes": b"\x00\xff", "null": None, "zero": -0.0, "list": [1, [2, {"a": None}]],
    }  # fmt: skip
    wanted = {f"{name}{n}": value for n in range(20) for name, value in values.items()}
    assert set(await _at_once(*[storage.kv.set("s", key, value) for key, value in wanted.items()])) == {1}
    assert await storage.kv.get_many("s", list(wanted)) == wanted


async def test_a_set_that_lives_for_a_microsecond_gets_its_version(storage: Any) -> None:
    """It has expired before its version is looked up."""
    versions = await _at_once(*[storage.kv.set("s", f"k{n}", n, ttl_seconds=1e-6) for n in range(CALLS)])
    assert versions == [1] * CALLS


async def test_appends_to_many_conversations(storage: Any) -> None:
    """Gapless in each, in the order of the calls; what cannot be appended is refused to its own caller alone."""
    conversations = storage.conversations
    for name in ("a", "b", "closed"):
        await conversations.create_conversation(name)
    await conversations.archive_conversation("closed")
    first = await conversations.add_message("a", "user", "known", client_message_id="k")
    names = [("a", "b", "missing", "closed")[n % 4] for n in range(CALLS)]
    calls = [conversations.add_message(name, "user", f"{n}") for n, name in enumerate(names)]
    calls.append(conversations.add_message("a", "user", "known", client_message_id="k"))
    calls.append(conversations.add_message("a", "user", "other", client_message_id="k"))
    outcomes = await _at_once(*calls)
    assert outcomes[-2] == first
    assert isinstance(outcomes[-1], IdempotencyConflictError)
    for name, outcome in zip(names, outcomes):
        if name in ("a", "b"):
            assert outcome == await conversations.get_message(name, outcome.id)
        else:
            assert isinstance(outcome, Exception)
    assert {type(o) for n, o in zip(names, outcomes) if n == "missing"} == {ConversationNotFoundError}
    for name, before in (("a", 1), ("b", 0)):
        stored = await conversations.load_recent_messages(name, limit=1000)
        assert [m.sequence for m in stored] == list(range(1, CALLS // 4 + before + 1))
        assert [int(m.content) for m in stored[before:]] == [n for n in range(CALLS) if names[n] == name]


async def test_of_many_with_one_idempotency_key_one_is_stored(storage: Any) -> None:
    await storage.conversations.create_conversation("c")
    calls = [
        storage.conversations.add_message("c", "user", f"{n % 10}", client_message_id=f"k{n % 10}")
        for n in range(CALLS)
    ]
    stored = await _at_once(*calls)
    assert len({message.id for message in stored}) == 10
    assert (await storage.conversations.get_conversation("c")).last_sequence == 10


async def test_an_id_that_is_taken_fails_alone(storage: Any) -> None:
    """The rule is broken inside the common statement, so that all of it is undone and each call is run by itself."""
    conversations = storage.conversations
    await conversations.create_conversation("c")
    await conversations.add_message("c", "user", "first", message_id="taken")
    calls = [
        conversations.add_message("c", "user", f"{n}", message_id="taken" if n % 20 == 7 else f"m{n}")
        for n in range(CALLS)
    ]
    outcomes = await _at_once(*calls)
    assert [n for n, o in enumerate(outcomes) if isinstance(o, MessageExistsError)] == [
        7,
        27,
        47,
        67,
        87,
        107,
    ]
    stored = await conversations.load_recent_messages("c", limit=1000)
    assert [m.sequence for m in stored] == list(range(1, len(stored) + 1))
    assert len(stored) == CALLS - 6 + 1


async def test_what_was_appended_together_is_found_by_its_words(storage: Any) -> None:
    await storage.conversations.create_conversation("c")
    await _at_once(
        *[storage.conversations.add_message("c", "user", f"walnut number {n}") for n in range(CALLS)]
    )
    hits = await storage.conversations.search("walnut", limit=CALLS)
    assert len(hits) == CALLS


@pytest.mark.parametrize("kind", ["set", "append"])
async def test_some_are_cancelled_while_they_gather(storage: Any, kind: str) -> None:
    await storage.conversations.create_conversation("c")

    async def call(n: int) -> Any:
        if kind == "set":
            return await storage.kv.set("s", f"k{n}", n)
        return await storage.conversations.add_message("c", "user", f"{n}", message_id=f"k{n}")

    tasks = [asyncio.ensure_future(call(n)) for n in range(CALLS)]
    await asyncio.sleep(0)
    for task in tasks[1::2]:
        task.cancel()
    await asyncio.wait(tasks)
    for n, task in enumerate(tasks):
        assert task.cancelled() == bool(n % 2)
    for n in range(0, CALLS, 2):
        if kind == "set":
            assert await storage.kv.get("s", f"k{n}") == n
        else:
            assert (await storage.conversations.get_message("c", f"k{n}")).content == f"{n}"

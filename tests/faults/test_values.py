"""P27: a message's content comes back identical or is refused. P33: no caller's text becomes SQL, path or operator.

The key-value store has its own such tests in tests/contract; here are the conversations, and every text argument of both.
"""

from __future__ import annotations

import asyncio
from typing import Any, List

from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from modules.store_common.errors import InvalidValueError, StatementError, StorageError
from tests.support.arguments import (
    CONVERSATION_ARGUMENTS,
    JOB_ARGUMENTS,
    KV_ARGUMENTS,
    TASK_ARGUMENTS,
    seed_tasks,
)
from tests.support.calls import Fresh, public_calls
from tests.support.values import any_values, contract_values, same, texts

HOSTILE = [
    "'; DROP TABLE atlas_messages; --",
    '" OR 1=1 --',
    "%",
    "_",
    "\\",
    "$where",
    '{"$gt": ""}',
    "$.a.b[0]",
    "a' UNION SELECT 1,2,3 --",
    ":name ?1 $1 %s {x}",
    'NEAR("a" OR NOT *',
    "col:value AND (",
    "*",
    '"unbalanced',
    "\x00",
    "a\x00'b",
    "a:*&!|<->(",
    "🙂" * 20,
]


async def test_content_comes_back_identical_or_is_refused(storage: Any) -> None:
    await storage.conversations.create_conversation("c")
    taken: List[Any] = []
    refused = 0
    for value in _examples(500):
        try:
            message = await storage.conversations.add_message("c", "user", value)
        except InvalidValueError:
            refused += 1
            continue
        assert same(message.content, value)
        taken.append(value)
    assert len(taken) >= 150
    assert refused >= 20
    stored = [message.content async for message in storage.conversations.stream_messages("c")]
    assert len(stored) == len(taken)
    assert all(same(a, b) for a, b in zip(stored, taken))


def _examples(count: int) -> List[Any]:
    drawn: List[Any] = []

    @examples(max_examples=count, database=None)
    @given(st.one_of(contract_values(), any_values()))
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    return drawn


async def test_hostile_text_in_every_text_argument(storage: Any) -> None:
    """0 statements that the database could not read, and afterwards everything is where it was."""
    await storage.conversations.create_conversation("c")
    await storage.conversations.add_message("c", "user", "hello", message_id="m")
    await storage.kv.set("safe", "k", 1)
    await seed_tasks(storage)
    before = await storage.verify_stores()
    stores = (
        (storage.conversations, CONVERSATION_ARGUMENTS),
        (storage.kv, KV_ARGUMENTS),
        (storage.tasks, TASK_ARGUMENTS),
        (storage.jobs, JOB_ARGUMENTS),
    )
    made = 0
    for text in [*HOSTILE, *_texts(20)]:
        for store, table in stores:
            hostile = {k: v if isinstance(v, Fresh) else _poison(v, text) for k, v in table.items()}
            outcomes = await asyncio.gather(
                *(call() for _, call in public_calls(store, hostile)), return_exceptions=True
            )
            made += len(outcomes)
            wrong = [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, StorageError)]
            assert not wrong, (text, wrong[:2])
            assert not [o for o in outcomes if isinstance(o, StatementError)], (text, outcomes)
    assert made >= 1000
    assert await storage.verify_stores() == before
    assert await storage.kv.get("safe", "k") == 1
    message = await storage.conversations.get_message("c", "m")
    assert message is not None
    assert message.content == "hello"


def _poison(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return text
    if isinstance(value, list):
        return [_poison(item, text) for item in value]
    if isinstance(value, dict):
        return {(text if key == "colour" else key): _poison(item, text) for key, item in value.items()}
    return value


def _texts(count: int) -> List[str]:
    drawn: List[str] = []

    @examples(max_examples=count, database=None)
    @given(texts())
    def draw(value: str) -> None:
        drawn.append(value)

    draw()
    return drawn

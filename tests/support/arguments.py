"""Arguments for every public method of the stores; see `tests.support.calls`."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, AsyncIterator, Dict

from modules.conversation_store.records import ConversationLease
from tests.support.calls import Calls, Fresh, public_calls

__all__ = ["CONVERSATION_ARGUMENTS", "KV_ARGUMENTS", "store_calls"]


async def _records() -> AsyncIterator[Dict[str, Any]]:
    yield {"conversation": {"id": "record"}}
    yield {"message": {"id": "r1", "role": "user", "content": "hi"}}


CONVERSATION_ARGUMENTS: Dict[str, Any] = {
    "conversation_id": "c",
    "message_id": "m",
    "user_id": "u",
    "session_id": "s",
    "title": "a title",
    "role": "user",
    "content": {"text": "hello"},
    "metadata": {"colour": "blue"},
    "query": "hello",
    "messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}],
    "asset_id": "a",
    "uri": "file:///a.png",
    "media_type": "image/png",
    "sequence": 1,
    "owner": "worker",
    "lease": ConversationLease("c", "worker", 1, datetime(2999, 1, 1, tzinfo=timezone.utc)),
    "user_message": "hello",
    "import_conversation.conversation": {"id": "imported"},
    "import_conversation.messages": [{"id": "i1", "role": "user", "content": "hi"}],
    "import_records.records": Fresh(lambda: _records()),
    "record_edit.content": "edited",
}
KV_ARGUMENTS: Dict[str, Any] = {
    "namespace": "ns",
    "key": "k",
    "keys": ["k1", "k2"],
    "value": {"a": 1},
    "items": {"k5": 5, "k6": 6},
    "expected_version": None,
    "ttl_seconds": 60.0,
    "increment.key": "counter",
    "compare_and_set.expected": None,
    "compare_and_set.key": "absent",
    "clear.namespace": "empty",
}


def store_calls(manager: Any) -> Calls:
    """Return every public call of `manager.conversations` and `manager.kv`."""
    calls = [
        (f"conversations.{n}", c) for n, c in public_calls(manager.conversations, CONVERSATION_ARGUMENTS)
    ]
    return calls + [(f"kv.{n}", c) for n, c in public_calls(manager.kv, KV_ARGUMENTS)]

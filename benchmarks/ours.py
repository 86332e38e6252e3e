"""The contender that the others are measured against: this package through its public face."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict

from benchmarks.data import CONTENT, NAMESPACE, VALUE, conversation_id, key
from benchmarks.timing import Call

__all__ = ["calls", "open_storage", "operations"]


@asynccontextmanager
async def open_storage(url: str, **sql: Any) -> AsyncIterator[Any]:
    """Open the storage at `url` and make its tables."""
    from modules.storage.manager import StorageManager

    async with StorageManager({"sql": {"url": url, **sql}}) as storage:
        await storage.ensure_schemas()
        yield storage


def calls(storage: Any) -> Dict[str, Call]:
    """Return the operations that are measured, by name."""
    kv, conversations = storage.kv, storage.conversations

    async def kv_get(task: int, number: int) -> Any:
        return await kv.get(NAMESPACE, key(task, number))

    async def kv_set(task: int, number: int) -> Any:
        return await kv.set(NAMESPACE, key(task, number), VALUE)

    async def append(task: int, number: int) -> Any:
        return await conversations.add_message(conversation_id(task), "user", CONTENT)

    async def recent(task: int, number: int) -> Any:
        return await conversations.load_recent_messages(
            conversation_id((task + number * 7919) % 64), limit=50
        )

    return {"kv get": kv_get, "kv set": kv_set, "append": append, "recent 50": recent}


@asynccontextmanager
async def operations(url: str) -> AsyncIterator[Dict[str, Call]]:
    """Open a filled database and give the operations on it."""
    async with open_storage(url) as storage:
        yield calls(storage)

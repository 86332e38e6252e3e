"""The limit: the stores' own statements, written by hand on the driver, one call after the other."""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any, AsyncIterator, Dict

import orjson

from benchmarks.data import CONTENT, NAMESPACE, TENANT, VALUE, by_hand, conversation_id, key
from benchmarks.timing import Call
from modules.conversation_store import append_statements as messages
from modules.store_common.ids import new_id
from modules.Tools.Base_Tools import kv_statements as entries

__all__ = ["postgresql_operations", "sqlite_operations", "thread_hop"]

_GET = ("tenant", "space", "name")
_SET = (*_GET, "text", "data", "size", "ttl_us")
_BUMP = ("count", "tenant_id", "conversation_id")
_INSERT = messages.INSERTED
_APPEND = (*(name for name in _INSERT if name != "sequence"), "expect", "fence", "owner")


@asynccontextmanager
async def sqlite_operations(path: str) -> AsyncIterator[Dict[str, Call]]:
    """Give the operations on the loop's own thread, synchronous=FULL, a commit each; reads without a transaction."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA cache_size = -16384")
    execute = connection.execute
    get_sql, get_values = by_hand(entries.GET, "sqlite", _GET)
    set_sql, set_values = by_hand(entries.SET, "sqlite", _SET)
    bump_sql, bump_values = by_hand(messages.BUMP, "sqlite", _BUMP)
    insert_sql, insert_values = by_hand(messages.INSERT, "sqlite", _INSERT, ["created_at"])

    async def kv_get(task: int, number: int) -> Any:
        row = execute(get_sql, get_values(TENANT, NAMESPACE, key(task, number))).fetchone()
        return None if row is None else orjson.loads(row[0])

    async def kv_set(task: int, number: int) -> Any:
        name = key(task, number)
        text = orjson.dumps(VALUE).decode()
        execute("BEGIN IMMEDIATE")
        values = set_values(TENANT, NAMESPACE, name, text, None, len(text) + len(name), None)
        version = execute(set_sql, values).fetchone()[0]
        execute("COMMIT")
        return version

    async def append(task: int, number: int) -> Any:
        conversation = conversation_id(task)
        execute("BEGIN IMMEDIATE")
        sequence, now = execute(bump_sql, bump_values(1, TENANT, conversation)).fetchone()
        execute(
            insert_sql,
            insert_values(
                TENANT, conversation, sequence, new_id(), "user", None, "message", "complete",
                orjson.dumps(CONTENT).decode(), None, "{}", None, None, None, None, now,
            ),
        )  # fmt: skip
        execute("COMMIT")
        return sequence, datetime.fromtimestamp(now / 1e6, timezone.utc)

    try:
        yield {"kv get": kv_get, "kv set": kv_set, "append": append}
    finally:
        connection.close()


@asynccontextmanager
async def thread_hop() -> AsyncIterator[Dict[str, Call]]:
    """Give what a trip to a waiting thread and back to the loop costs, with nothing done there."""
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loop = asyncio.get_running_loop()

    def serve() -> None:
        for future in iter(waiting.get, None):
            loop.call_soon_threadsafe(future.set_result, None)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()

    async def hop(task: int, number: int) -> None:
        future = loop.create_future()
        waiting.put(future)
        await future

    try:
        yield {"kv get": hop}
    finally:
        waiting.put(None)
        thread.join()


@asynccontextmanager
async def postgresql_operations(url: str, *, reset: bool) -> AsyncIterator[Dict[str, Call]]:
    """Give the operations on asyncpg's own pool, with as many connections as ours may open.

    Args:
        url: The database.
        reset: asyncpg's default, a round trip at the end of each loan that undoes what the session may have changed; False
            leaves it out, which is right for statements that change nothing there and about a quarter faster.
    """
    import asyncpg

    async def no_reset(connection: Any) -> None:
        return None

    options: Dict[str, Any] = {} if reset else {"reset": no_reset}
    pool = await asyncpg.create_pool(url, min_size=15, max_size=15, **options)
    get_sql, get_values = by_hand(entries.GET, "postgresql", _GET)
    set_sql, set_values = by_hand(entries.SET, "postgresql", _SET)
    append_sql, append_values = by_hand(messages.APPEND, "postgresql", _APPEND, ["created_at"])

    async def kv_get(task: int, number: int) -> Any:
        row = await pool.fetchrow(get_sql, *get_values(TENANT, NAMESPACE, key(task, number)))
        return None if row is None else orjson.loads(row[0])

    async def kv_set(task: int, number: int) -> Any:
        name = key(task, number)
        text = orjson.dumps(VALUE).decode()
        values = set_values(TENANT, NAMESPACE, name, text, None, len(text) + len(name), None)
        return await pool.fetchval(set_sql, *values)

    async def append(task: int, number: int) -> Any:
        return await pool.fetchrow(
            append_sql,
            *append_values(
                TENANT, conversation_id(task), new_id(), "user", None, "message", "complete",
                orjson.dumps(CONTENT).decode(), None, "{}", None, None, None, None, None, None, None, None,
            ),
        )  # fmt: skip

    try:
        yield {"kv get": kv_get, "kv set": kv_set, "append": append}
    finally:
        await pool.close()

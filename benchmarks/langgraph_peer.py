"""LangGraph's stores, which gather concurrent calls into one statement. Set up as their documentation says.

They have gets and puts of JSON objects, and no conversations. Their SQLite store gets WAL, which its documentation leaves to
the connection's owner, and synchronous=FULL, as all contenders.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict

from benchmarks.data import KEYS, NAMESPACE, VALUE, key
from benchmarks.timing import Call

__all__ = ["postgresql_operations", "sqlite_operations"]


async def _fill(store: Any) -> None:
    from langgraph.store.base import PutOp

    names = [f"user-{number:07d}" for number in range(KEYS)]
    for start in range(0, KEYS, 500):
        await store.abatch([PutOp((NAMESPACE,), name, VALUE) for name in names[start : start + 500]])


def _calls(store: Any) -> Dict[str, Call]:
    async def kv_get(task: int, number: int) -> Any:
        item = await store.aget((NAMESPACE,), key(task, number))
        return item.value

    async def kv_set(task: int, number: int) -> Any:
        return await store.aput((NAMESPACE,), key(task, number), VALUE)

    return {"kv get": kv_get, "kv set": kv_set}


@asynccontextmanager
async def sqlite_operations(path: str) -> AsyncIterator[Dict[str, Call]]:
    """Give gets and puts of AsyncSqliteStore on a new file."""
    from langgraph.store.sqlite.aio import AsyncSqliteStore

    async with AsyncSqliteStore.from_conn_string(path) as store:
        await store.conn.execute("PRAGMA journal_mode = WAL")
        await store.conn.execute("PRAGMA synchronous = FULL")
        await store.setup()
        await _fill(store)
        yield _calls(store)


@asynccontextmanager
async def postgresql_operations(url: str, **options: Any) -> AsyncIterator[Dict[str, Call]]:
    """Give gets and puts of AsyncPostgresStore in an empty database."""
    from langgraph.store.postgres.aio import AsyncPostgresStore

    async with AsyncPostgresStore.from_conn_string(url, **options) as store:
        await store.setup()
        await _fill(store)
        yield _calls(store)

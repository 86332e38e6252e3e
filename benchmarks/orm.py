"""What most applications do: ORM sessions, in `asyncio.to_thread` on SQLite, an AsyncSession on PostgreSQL.

Written as SQLAlchemy's documentation shows it, on our own models, so that table and work are the same.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from typing import Any, AsyncIterator, Dict

from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from benchmarks.data import CONTENT, NAMESPACE, TENANT, VALUE, conversation_id, key
from benchmarks.timing import Call
from modules.conversation_store.models import ConversationRow, MessageRow
from modules.store_common.ids import new_id
from modules.Tools.Base_Tools.kv_models import KeyValueRow

__all__ = ["postgresql_operations", "sqlite_operations"]


def _message(conversation: ConversationRow) -> MessageRow:
    now = datetime.now(timezone.utc)
    conversation.last_sequence += 1
    conversation.updated_at = now
    return MessageRow(
        tenant_id=TENANT,
        conversation_id=conversation.id,
        sequence=conversation.last_sequence,
        id=new_id(),
        role="user",
        type="message",
        status="complete",
        content=CONTENT,
        metadata_={},
        version=1,
        created_at=now,
    )


def _write(entry: KeyValueRow) -> None:
    entry.value_json = dict(VALUE)
    entry.version += 1
    entry.updated_at = datetime.now(timezone.utc)


def _sqlite_sessions(path: str, begin: str) -> sessionmaker[Session]:
    engine = create_engine(f"sqlite:///{path}", pool_size=10, connect_args={"timeout": 60})

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _: Any) -> None:
        # SQLAlchemy's documentation, "Serializable isolation / Savepoints / Transactional DDL": the driver begins nothing
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def start(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return sessionmaker(engine)


@asynccontextmanager
async def sqlite_operations(path: str) -> AsyncIterator[Dict[str, Call]]:
    """Give the operations as ORM sessions in `asyncio.to_thread`."""
    reading = _sqlite_sessions(path, "BEGIN")
    # writers that begin by reading would end in "database is locked"
    writing = _sqlite_sessions(path, "BEGIN IMMEDIATE")

    def get(name: str) -> Any:
        with reading() as session:
            entry = session.get(KeyValueRow, (TENANT, NAMESPACE, name))
            return None if entry is None else entry.value_json

    def put(name: str) -> None:
        with writing.begin() as session:
            entry = session.get(KeyValueRow, (TENANT, NAMESPACE, name))
            assert entry is not None
            _write(entry)

    def add(conversation: str) -> None:
        with writing.begin() as session:
            row = session.get(ConversationRow, (TENANT, conversation))
            assert row is not None
            session.add(_message(row))

    async def kv_get(task: int, number: int) -> Any:
        return await asyncio.to_thread(get, key(task, number))

    async def kv_set(task: int, number: int) -> Any:
        return await asyncio.to_thread(put, key(task, number))

    async def append(task: int, number: int) -> Any:
        return await asyncio.to_thread(add, conversation_id(task))

    try:
        yield {"kv get": kv_get, "kv set": kv_set, "append": append}
    finally:
        reading.kw["bind"].dispose()
        writing.kw["bind"].dispose()


@asynccontextmanager
async def postgresql_operations(url: str) -> AsyncIterator[Dict[str, Call]]:
    """Give the operations as AsyncSession over asyncpg, with as many connections as ours may open."""
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://", 1), pool_size=15)
    sessions = async_sessionmaker(engine, class_=AsyncSession)

    async def kv_get(task: int, number: int) -> Any:
        async with sessions() as session:
            entry = await session.get(KeyValueRow, (TENANT, NAMESPACE, key(task, number)))
            return None if entry is None else entry.value_json

    async def kv_set(task: int, number: int) -> Any:
        async with sessions.begin() as session:
            entry = await session.get(
                KeyValueRow, (TENANT, NAMESPACE, key(task, number)), with_for_update=True
            )
            assert entry is not None
            _write(entry)

    async def append(task: int, number: int) -> Any:
        async with sessions.begin() as session:
            row = await session.get(ConversationRow, (TENANT, conversation_id(task)), with_for_update=True)
            assert row is not None
            session.add(_message(row))

    try:
        yield {"kv get": kv_get, "kv set": kv_set, "append": append}
    finally:
        await engine.dispose()

"""Fixtures and helpers of the key-value store's tests: a store on its own pool, without a manager's background work."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator, List, Tuple

import pytest
from sqlalchemy import BigInteger, Text, text

from modules.storage.documents import key_of
from modules.storage.operations import Transaction, read, write
from modules.storage.pool import SQLPool
from modules.storage.schema import Base
from modules.storage.statements import Statement
from modules.store_common.tenancy import TenantPolicy
from modules.Tools.Base_Tools.kv_models import DIALECT_DDL, KeyValueRow, KeyValueUsageRow
from modules.Tools.Base_Tools.kv_mongo_documents import ENTRIES
from modules.Tools.Base_Tools.kv_store import KeyValueStore
from tests.support.backends import backend, open_mongo

__all__ = ["backend", "count_rows", "create_tables", "expire", "kv", "kv_pool", "open_pool", "query", "usage"]


def create_tables(engine: Any) -> None:
    """Make the tables and triggers where migrations did not run (an in-memory database starts empty)."""
    tables = [KeyValueRow.__table__, KeyValueUsageRow.__table__]
    with engine.begin() as connection:
        if not engine.dialect.has_table(connection, "atlas_kv_entries"):
            Base.metadata.create_all(connection, tables=tables)
            for statement in DIALECT_DDL[engine.dialect.name]:
                connection.exec_driver_sql(statement)


async def open_pool(settings: Any) -> Any:
    """Return an open pool on a database with the key-value tables."""
    if settings.kv.backend == "mongo":
        return await open_mongo(settings.mongo, "kv")
    pool = SQLPool(settings.sql)
    await pool.initialize()
    if "memory" in settings.sql.get_url():
        await asyncio.get_running_loop().run_in_executor(None, create_tables, pool.engine)
    return pool


@pytest.fixture
async def kv_pool(migrated_settings: Any, leaks: Any) -> AsyncIterator[Any]:
    pool = await open_pool(migrated_settings)
    try:
        yield pool
    finally:
        await pool.shutdown()


@pytest.fixture
def kv(kv_pool: Any) -> KeyValueStore:
    return KeyValueStore(kv_pool.executor, TenantPolicy())


@write
async def _expire(tx: Transaction, tenant_id: str, namespace: str, key: str) -> int:
    return await tx.run(_EXPIRE, tenant=tenant_id, space=namespace, name=key)


_WHERE = " WHERE tenant_id = :tenant AND namespace = :space AND key = :name"
_EXPIRE = Statement(
    sqlite=text("UPDATE atlas_kv_entries SET expires_at = 1" + _WHERE),
    postgresql=text("UPDATE atlas_kv_entries SET expires_at = timestamptz '2000-01-01 00:00Z'" + _WHERE),
)


async def expire(store: KeyValueStore, namespace: str, key: str, *, tenant_id: str = "default") -> None:
    """Let an entry have expired long ago, without waiting."""
    if store._executor.dialect == "mongodb":
        where = {"_id": key_of(tenant_id, namespace, key)}
        assert await store._executor.documents.update(ENTRIES, where, {"$set": {"e": 1}}) == 1
        return
    assert await store._executor.run(_expire, tenant_id, namespace, key) == 1


@read
async def _query(tx: Transaction, statement: Statement) -> List[Tuple[Any, ...]]:
    return await tx.all(statement)


async def query(store: KeyValueStore, sql: str, **columns: Any) -> List[Tuple[Any, ...]]:
    """Return the rows of `sql`; `columns` are its columns and their types, in order."""
    return await store._executor.run(_query, Statement(text(sql).columns(**columns)))


async def count_rows(store: KeyValueStore) -> int:
    """Return how many entries there are of any tenant, expired ones too."""
    if store._executor.dialect == "mongodb":
        return await store._executor.documents.count(ENTRIES, {})
    return int((await query(store, "SELECT count(*) AS n FROM atlas_kv_entries", n=BigInteger))[0][0])


async def usage(store: KeyValueStore) -> None:
    """Fail unless every account equals the sum of what it counts (MongoDB keeps no accounts: it adds up each time)."""
    if store._executor.dialect == "mongodb":
        return
    kept = await query(
        store,
        "SELECT tenant_id, namespace, size_bytes, entries FROM atlas_kv_usage WHERE tenant_id <> ''",
        tenant_id=Text,
        namespace=Text,
        size_bytes=BigInteger,
        entries=BigInteger,
    )
    rows = await query(
        store,
        "SELECT tenant_id, namespace, size_bytes FROM atlas_kv_entries",
        tenant_id=Text,
        namespace=Text,
        size_bytes=BigInteger,
    )
    assert kept, "no account is open"
    for tenant_id, namespace, size_bytes, entries in kept:
        counted = [row[2] for row in rows if row[0] == tenant_id and namespace in ("", row[1])]
        assert (size_bytes, entries) == (sum(counted), len(counted)), (tenant_id, namespace)

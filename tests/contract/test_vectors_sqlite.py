"""The embedded vector store keeps the contract, on a file and in memory."""

from __future__ import annotations

import asyncio
from typing import Any, AsyncIterator

import pytest

from modules.storage.pool import SQLPool
from modules.storage.schema import Base
from modules.storage.settings import StorageSettings
from modules.storage.vectors.sqlite import SQLiteVectorProvider
from modules.storage.vectors.sqlite_models import TABLES
from modules.storage.vectors.testing import VectorProviderContract


@pytest.fixture(params=["sqlite", "sqlite-memory"])
async def vector_pool(request: pytest.FixtureRequest, databases: Any, leaks: Any) -> AsyncIterator[SQLPool]:
    settings = StorageSettings.from_dict({"sql": {"url": databases.url(request.param)}})
    pool = SQLPool(settings.sql)
    await pool.initialize()
    try:
        await asyncio.get_running_loop().run_in_executor(None, create_tables, pool.engine)
        yield pool
    finally:
        await pool.shutdown()


def create_tables(engine: Any) -> None:
    Base.metadata.create_all(engine, tables=TABLES)


class TestSQLite(VectorProviderContract):
    @pytest.fixture
    def make_provider(self, vector_pool: SQLPool) -> Any:
        return lambda tenancy=None: SQLiteVectorProvider(vector_pool.executor, tenancy=tenancy)


class TestSQLiteWithoutCache(VectorProviderContract):
    """Every search reads the file."""

    fuzz = 100

    @pytest.fixture
    def make_provider(self, vector_pool: SQLPool) -> Any:
        return lambda tenancy=None: SQLiteVectorProvider(vector_pool.executor, tenancy=tenancy, cache_bytes=0)

"""A pgvector provider on a database of its own, for tests that look at its index."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any, AsyncIterator


@asynccontextmanager
async def open_pgvector(url: str) -> AsyncIterator[Any]:
    """Give a provider that builds its indexes only when told to."""
    from modules.storage.pool import SQLPool
    from modules.storage.settings import StorageSettings
    from modules.storage.vectors.pgvector import PgvectorProvider

    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": url}}).sql)
    await pool.initialize()
    provider = PgvectorProvider(pool.executor, auto_build=False)
    await provider.initialize()
    try:
        yield provider
    finally:
        await provider.shutdown()
        await pool.shutdown()

"""The pool's size is checked against what the server really gives: connections that it reserves are not among them."""

from __future__ import annotations

from typing import Any

import pytest

from modules.storage.pool import SQLPool
from modules.storage.pool_errors import PoolError
from modules.storage.settings import StorageSettings

pytestmark = pytest.mark.postgresql


def _pool(url: str, size: int) -> SQLPool:
    return SQLPool(
        StorageSettings.from_dict({"sql": {"url": url, "pool": {"size": 1, "max_overflow": size - 1}}}).sql
    )


async def test_reserved_connections_are_not_counted(own_server: Any) -> None:
    """`reserved_connections` came with PostgreSQL 16; 250 - 3 for superusers - 7 = 240."""
    own_server.sql("ALTER SYSTEM SET reserved_connections = 7")
    own_server.cluster.restart()
    try:
        url = own_server.cluster.url(own_server.new_database())
        with pytest.raises(PoolError, match="at most 240 connections"):
            await _pool(url, 241).initialize()
        fits = _pool(url, 240)
        await fits.initialize()
        await fits.shutdown()
    finally:
        own_server.sql("ALTER SYSTEM RESET reserved_connections")
        own_server.cluster.restart()

"""An async SQLAlchemy engine over connections of our pool, which it must leave as it found them.

SQLAlchemy's own asyncpg dialect sets JSON codecs on every connection that it gets. On a connection that it only borrows,
these would stay, and every later read of a store would find decoded values where it expects text. So this dialect leaves
the connection's codecs alone and decodes JSON in the result columns instead.
"""

from __future__ import annotations

from typing import Any, Awaitable, Callable

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.types import JSON

__all__ = ["AdoptingDialect", "create_adopting_engine"]


def _text_json(special: Any) -> Any:
    """Return SQLAlchemy 2.0's JSON types for asyncpg, which rest on its codecs, as types that decode text."""
    if getattr(special, "__name__", "") not in ("AsyncpgJSON", "AsyncpgJSONB"):
        return special
    return type("Text" + special.__name__, (special,), {"result_processor": JSON.result_processor})


class AdoptingDialect(PGDialect_asyncpg):
    """PostgreSQL over asyncpg, on connections that belong to somebody else."""

    supports_statement_cache = True
    # SQLAlchemy 2.1 asks this flag, 2.0 has types of its own
    supports_native_json_deserialization = False
    colspecs = {  # noqa: RUF012 - the table that SQLAlchemy looks into
        generic: _text_json(special) for generic, special in PGDialect_asyncpg.colspecs.items()
    }

    def on_connect(self) -> Any:
        """Return nothing to do: the connection is set up already."""
        return None


registry.register("postgresql.atlas", __name__, "AdoptingDialect")


def create_adopting_engine(adopt: Callable[[], Awaitable[Any]]) -> AsyncEngine:
    """Return an engine whose connections are those that `adopt()` gives."""
    return create_async_engine("postgresql+atlas://", async_creator=adopt, poolclass=NullPool)

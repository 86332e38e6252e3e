"""The back ends that suites of MongoDB's stores run on, what each can do, and pools of MongoDB for them.

A test says what it needs by `@pytest.mark.needs("sql")`, and is skipped on a back end without that.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any, Dict, FrozenSet, Optional

import pytest

from modules.storage.mongo_pool import MongoPool

__all__ = ["ABILITIES", "MongoStorePool", "backend", "empty_database", "forms_of", "open_mongo", "sized"]

_SQL = frozenset({"sql", "semantic_search", "fast"})
_FULL = os.environ.get("ATLAS_TEST_FULL") == "1"
#: "sql": tables, statements and units of work; "reopen": what it holds outlives its pool; "fast": thousands of calls a
#: second. FerretDB reads the whole collection at most calls: it gets fewer examples, unless ATLAS_TEST_FULL=1.
ABILITIES: Dict[str, FrozenSet[str]] = {
    "sqlite": _SQL | {"reopen"},
    "sqlite-memory": _SQL,
    "postgresql": _SQL | {"reopen"},
    "mongodb": frozenset({"reopen", "fast"} if _FULL else {"reopen"}),
}


@pytest.fixture(
    params=[
        "sqlite",
        "sqlite-memory",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mongodb", marks=pytest.mark.mongodb),
    ]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Every back end; see the fixture of the same name in conftest.py for those of SQL."""
    for marker in request.node.iter_markers("needs"):
        missing = set(marker.args) - ABILITIES[request.param]
        if missing:
            pytest.skip(f"{request.param} has no {', '.join(sorted(missing))}")
    if request.param in ("postgresql", "mongodb"):
        request.getfixturevalue("postgres" if request.param == "postgresql" else "mongodb")
    return str(request.param)


def sized(backend: str, count: int, few: int) -> int:
    """Return how many of something a test makes: `count`, or `few` on a back end that is not fast."""
    return count if "fast" in ABILITIES[backend] or "sql" in ABILITIES[backend] else few


def forms_of(store: str) -> Any:
    """Return the forms of a store's operations by its name."""
    if store == "kv":
        from modules.Tools.Base_Tools.kv_mongo_repository import KEY_VALUE_FORMS

        return KEY_VALUE_FORMS
    if store == "jobs":
        from modules.job_store.mongo_repository import JOB_FORMS

        return JOB_FORMS
    from modules.conversation_store.mongo_repository import CONVERSATION_FORMS

    return CONVERSATION_FORMS


class MongoStorePool:
    """A `MongoPool` with the executor of one store, opened and closed like an `SQLPool`."""

    def __init__(self, settings: Any, store: str) -> None:
        self.pool = MongoPool(settings)
        self._forms = forms_of(store)
        self._executor: Optional[Any] = None

    async def initialize(self) -> None:
        await self.pool.initialize()
        self._executor = self.pool.executor(self._forms)

    async def shutdown(self) -> None:
        await self.pool.shutdown()

    @property
    def executor(self) -> Any:
        return self._executor


async def open_mongo(settings: Any, store: str) -> MongoStorePool:
    """Return an open pool for a store."""
    made = MongoStorePool(settings, store)
    await made.initialize()
    return made


_made = set()


def empty_database(settings: Any) -> None:
    """Make the collections and indexes of all stores once, and remove every document. Runs on a loop of its own."""
    from pymongo import MongoClient

    if settings.database not in _made:
        asyncio.run(_make(settings))
        _made.add(settings.database)
    with MongoClient(settings.get_url()) as client:
        database = client[settings.database]
        for name in database.list_collection_names():
            if name != "atlas_schema":
                database[name].delete_many({})


async def _make(settings: Any) -> None:
    from modules.storage.backends.mongodb_schema import ensure_store

    pool = MongoPool(settings)
    await pool.initialize()
    try:
        for store in ("kv", "conversations", "jobs"):
            await ensure_store(pool, forms_of(store))
    finally:
        await pool.shutdown()

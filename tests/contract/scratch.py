"""A small table of the tests' own and operations on it, for suites that test the ground under the stores.

`parent` is a deferred foreign key: a row that breaks it is found out by COMMIT, not by its INSERT.
"""

from __future__ import annotations

import threading
from typing import Any, Dict, List, Optional, Sequence, Tuple

from sqlalchemy import Float, Integer, String, bindparam, text

from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Statement

__all__ = [
    "FOREVER",
    "add",
    "add_and_fail",
    "add_many_ways",
    "broken_read",
    "count",
    "create_things",
    "hold",
    "names",
    "nothing",
    "slow",
    "wide_settings",
]

_CREATE = (
    "CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,"
    " parent INTEGER REFERENCES things (id) DEFERRABLE INITIALLY DEFERRED)"
)
_ADD = Statement(
    text("INSERT INTO things (id, name, parent) VALUES (:id, :name, :parent)").bindparams(
        bindparam("id", type_=Integer()),
        bindparam("name", type_=String()),
        bindparam("parent", type_=Integer()),
    )
)
_NAMES = Statement(text("SELECT name FROM things ORDER BY id").columns(name=String()))
_NOTHING = Statement(text("SELECT 1 AS n").columns(n=Integer()))
_COUNT = Statement(text("SELECT count(*) FROM things").columns(n=Integer()))
_BROKEN = Statement(
    postgresql=text("SELECT 1 / (count(*) - count(*)) FROM things").columns(n=Integer()),
    sqlite=text("SELECT abs(-9223372036854775807 - 1)").columns(n=Integer()),
)
#: Counts without end; only an interrupt stops it.
FOREVER = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) AS n FROM c"
_SLOW = Statement(
    postgresql=text("SELECT pg_sleep(:seconds)::text")
    .bindparams(bindparam("seconds", type_=Float()))
    .columns(n=String()),
    sqlite=text(
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c WHERE :seconds > 0"
    ).columns(n=Integer()),
)


async def create_things(pool: Any) -> None:
    """Make the table in an initialised pool's database."""
    await admin(pool).execute_sql(_CREATE)


def admin(pool: Any) -> Any:
    """Return the administration back end of a pool."""
    if pool.dialect == "sqlite":
        from modules.storage.backends.sqlite import SQLiteBackend

        return SQLiteBackend(pool)
    from modules.storage.backends.postgresql import PostgreSQLBackend

    return PostgreSQLBackend(pool)


@write
async def add(tx: Transaction, id: int, name: str, parent: Optional[int] = None) -> int:
    await tx.run(_ADD, id=id, name=name, parent=parent)
    return id


@write
async def add_and_fail(tx: Transaction, id: int, name: str) -> None:
    await tx.run(_ADD, id=id, name=name, parent=None)
    raise ValueError("on purpose")


async def _add_batch(tx: Transaction, calls: Sequence[Tuple[Any, ...]]) -> List[Any]:
    rows: List[Dict[str, Any]] = [{"id": number, "name": name, "parent": None} for number, name in calls]
    await tx.run_many(_ADD, rows)
    return [(number, len(calls)) for number, _ in calls]


@write(batch=_add_batch, conflict_key=lambda number, name: name)
async def add_many_ways(tx: Transaction, id: int, name: str) -> Tuple[int, int]:
    """Add a row; returns its id and how many calls shared the statement."""
    await tx.run(_ADD, id=id, name=name, parent=None)
    return id, 1


@read
async def names(tx: Transaction) -> List[str]:
    return [row[0] for row in await tx.all(_NAMES)]


@read
async def nothing(tx: Transaction) -> None:
    """A read that needs no table."""
    await tx.one(_NOTHING)


@read
async def count(tx: Transaction) -> int:
    return int((await tx.one(_COUNT))[0])


@read
async def broken_read(tx: Transaction) -> None:
    """A read that the database refuses (on PostgreSQL this spoils the transaction it is in)."""
    await tx.one(_BROKEN)


@write
async def slow(tx: Transaction, seconds: float) -> None:
    """On PostgreSQL `seconds` long, on SQLite without end."""
    await tx.all(_SLOW, seconds=seconds)


@write
async def hold(tx: Transaction, started: threading.Event, gate: threading.Event) -> None:
    """SQLite only: keep the writer thread busy until `gate` is set, so that later calls gather behind it."""
    started.set()
    gate.wait(60)


def wide_settings(url: str, **sql: Any) -> Any:
    """Return settings for `url` with further fields of the `sql` section."""
    from modules.storage.settings import StorageSettings

    return StorageSettings.from_dict({"sql": {"url": url, **sql}})

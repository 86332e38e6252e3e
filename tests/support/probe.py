"""A tiny table and operations on it, for tests of the engine without any store."""

from __future__ import annotations

from typing import Any, List

from sqlalchemy import column, insert, select, text
from sqlalchemy import table as light_table
from sqlalchemy.types import Integer, Text

from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Statement

__all__ = ["add_one", "add_pair", "create_probe", "probe_ids", "slow_read"]

_probe = light_table("probe", column("id", Text()), column("part", Integer()))
CREATE = Statement(
    text("CREATE TABLE probe (id TEXT NOT NULL, part INTEGER NOT NULL, PRIMARY KEY (id, part))")
)
INSERT = Statement(insert(_probe).values(id=text(":id"), part=text(":part")))
IDS = Statement(select(_probe.c.id, _probe.c.part).order_by(_probe.c.id, _probe.c.part))
SLOW = Statement(
    postgresql=text("SELECT 1 FROM pg_sleep(0.01)").columns(column("one", Integer())),
    sqlite=text(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) SELECT count(*) FROM n"
    ).columns(column("one", Integer())),
)


@write
async def create_probe(tx: Transaction) -> None:
    await tx.run(CREATE)


@write
async def add_pair(tx: Transaction, name: str) -> str:
    """Two rows, both or none."""
    await tx.run(INSERT, id=name, part=1)
    await tx.run(INSERT, id=name, part=2)
    return name


@write(atomic=False)
async def add_one(tx: Transaction, name: str) -> str:
    await tx.run(INSERT, id=name, part=1)
    return name


@read
async def probe_ids(tx: Transaction) -> List[Any]:
    return await tx.all(IDS)


@read
async def slow_read(tx: Transaction) -> Any:
    return await tx.first(SLOW)

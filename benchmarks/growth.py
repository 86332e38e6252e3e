"""Does a read cost the same in a large table? The same calls on 1,000 rows and on 1,000,000, in turns.

`load_recent_messages(50)` and `kv get` by one task, each call on another conversation or key, so that the large table's pages
are not all in the cache of SQLite (16 MiB here) or of PostgreSQL (256 MiB).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, AsyncContextManager, Callable, Dict

from benchmarks import ours
from benchmarks.contest import Contender, Plan, run_contest
from benchmarks.data import MESSAGES_EACH, NAMESPACE, conversation_id
from benchmarks.fill import fill_postgresql, fill_sqlite
from benchmarks.postgresql_contest import database
from benchmarks.report import Report
from benchmarks.timing import Call

__all__ = ["run_postgresql", "run_sqlite"]

SMALL = 1_000
LIMIT = 1.3
_STEP = 7_368_787  # a prime: the walk over the rows looks random and meets each one


class _Reads:
    """The two reads over a table of `rows` rows."""

    def __init__(self, url: str, rows: int) -> None:
        self._manager = ours.open_storage(url)
        self._rows = rows

    async def __aenter__(self) -> Dict[str, Call]:
        storage: Any = await self._manager.__aenter__()
        rows, conversations = self._rows, self._rows // MESSAGES_EACH

        async def recent(task: int, number: int) -> None:
            wanted = conversation_id(number * _STEP % conversations)
            messages = await storage.conversations.load_recent_messages(wanted, limit=50)
            assert len(messages) == 50

        async def kv_get(task: int, number: int) -> None:
            value = await storage.kv.get(NAMESPACE, f"user-{number * _STEP % rows:07d}")
            assert value is not None

        return {"recent 50": recent, "kv get": kv_get}

    async def __aexit__(self, *error: Any) -> None:
        await self._manager.__aexit__(*error)


async def run_sqlite(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure on SQLite and add the rows to `report`."""
    paths = {}
    for rows in (SMALL, plan.rows):
        paths[rows] = directory / f"growth-{rows}.sqlite3"
        async with ours.open_storage(f"sqlite:///{paths[rows]}"):
            pass
        say(f"filling {rows:,} rows")
        fill_sqlite(str(paths[rows]), rows // MESSAGES_EACH, rows)
    await _measure(report, plan, "SQLite", lambda rows: _Reads(f"sqlite:///{paths[rows]}", rows), say)


async def run_postgresql(report: Report, plan: Plan, url: str, say: Callable[[str], None]) -> None:
    """Measure on PostgreSQL and add the rows to `report`."""
    import asyncpg

    async with database(url, "small") as small, database(url, "large") as large:
        for name, rows in ((small, SMALL), (large, plan.rows)):
            async with ours.open_storage(name):
                pass
            say(f"filling {rows:,} rows")
            connection = await asyncpg.connect(name)
            await fill_postgresql(connection, rows // MESSAGES_EACH, rows, without_search=True)
            await connection.close()
        urls = {SMALL: small, plan.rows: large}
        await _measure(report, plan, "PostgreSQL", lambda rows: _Reads(urls[rows], rows), say)


async def _measure(
    report: Report,
    plan: Plan,
    dialect: str,
    reads: Callable[[int], AsyncContextManager[Dict[str, Call]]],
    say: Callable[[str], None],
) -> None:
    names = {rows: f"ours ({dialect}), {rows:,} rows" for rows in (SMALL, plan.rows)}
    contenders = [
        Contender(names[SMALL], lambda: reads(SMALL)),
        Contender(names[plan.rows], lambda: reads(plan.rows)),
    ]
    operations = ("recent 50", "kv get")
    results = await run_contest(report, plan, contenders, operations=operations, tasks=(1,), say=say)
    for operation in operations:
        report.compare(
            "Growth", f"{dialect}: {operation}, {plan.rows:,} to {SMALL:,} rows, latency",
            results[names[plan.rows], operation, 1], results[names[SMALL], operation, 1],
            target=LIMIT, sign="<=", by="mean_us",
        )  # fmt: skip

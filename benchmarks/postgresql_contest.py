"""PostgreSQL: this package beside hand-written asyncpg, AsyncSession and LangGraph's store, on one server."""

from __future__ import annotations

import contextlib
import os
from contextlib import asynccontextmanager
from typing import AsyncIterator, Callable, Dict, Iterator

from benchmarks import langgraph_peer, orm, ours, raw
from benchmarks.contest import Contender, Plan, Results, run_contest
from benchmarks.data import CONVERSATIONS
from benchmarks.fill import fill_postgresql
from benchmarks.report import Report
from benchmarks.timing import Call

__all__ = ["database", "run", "server"]

GROUP = "PostgreSQL, fsync on"
OURS, RAW, RAW_RESET, ORM, PEER = (
    "ours (PostgreSQL)",
    "raw asyncpg, pool without reset",
    "raw asyncpg, default pool",
    "AsyncSession over asyncpg",
    "LangGraph AsyncPostgresStore",
)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Give the URL of a server: `ATLAS_TEST_POSTGRES_URL`, else one of our own on a unix socket, fsync on."""
    given = os.environ.get("ATLAS_TEST_POSTGRES_URL")
    if given:
        yield given
        return
    from tests.support.cluster import temporary_cluster

    with temporary_cluster({"shared_buffers": "'256MB'", "max_wal_size": "'4GB'"}) as cluster:
        yield cluster.url()


@asynccontextmanager
async def database(url: str, name: str, *, template: str = "template0") -> AsyncIterator[str]:
    """Make a database for the time of the block and give its URL."""
    import asyncpg

    from tests.support.postgres import with_database

    full = f"atlas_bench_{name}"

    async def admin(sql: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    await admin(f"DROP DATABASE IF EXISTS {full} WITH (FORCE)")
    await admin(f"CREATE DATABASE {full} TEMPLATE {template}")
    try:
        yield with_database(url, full)
    finally:
        await admin(f"DROP DATABASE IF EXISTS {full} WITH (FORCE)")


async def run(report: Report, plan: Plan, url: str, say: Callable[[str], None]) -> None:
    """Measure on the server at `url` and add the rows to `report`."""
    import asyncpg

    async with database(url, "template") as template:
        async with ours.open_storage(template):
            pass
        connection = await asyncpg.connect(template)
        await fill_postgresql(connection, CONVERSATIONS)
        await connection.close()

        @asynccontextmanager
        async def on_copy(
            name: str, opened: Callable[..., contextlib.AbstractAsyncContextManager[Dict[str, Call]]]
        ) -> AsyncIterator[Dict[str, Call]]:
            async with database(url, name, template="atlas_bench_template") as own, opened(own) as calls:
                yield calls

        contenders = [
            Contender(OURS, lambda: on_copy("ours", ours.operations)),
            Contender(RAW, lambda: on_copy("raw", lambda own: raw.postgresql_operations(own, reset=False))),
            Contender(
                RAW_RESET, lambda: on_copy("reset", lambda own: raw.postgresql_operations(own, reset=True))
            ),
            Contender(ORM, lambda: on_copy("orm", orm.postgresql_operations)),
            Contender(
                PEER,
                lambda: on_copy("langgraph", langgraph_peer.postgresql_operations),
                "langgraph.store.postgres",
            ),
        ]
        results = await run_contest(
            report, plan, contenders, operations=("kv get", "kv set", "append"), tasks=(1, 64), say=say
        )
    _judge(report, results)


def _judge(report: Report, results: Results) -> None:
    company = {"kv get": 3.5, "kv set": 2.4, "append": 2.0}
    for operation, target in company.items():
        report.compare(
            GROUP, f"{operation}, 1 task, to raw asyncpg",
            results[OURS, operation, 1], results[RAW, operation, 1], target=0.75,
        )  # fmt: skip
        report.compare(
            GROUP, f"{operation}, 64 tasks, to raw asyncpg",
            results[OURS, operation, 64], results[RAW, operation, 64], target=target,
        )  # fmt: skip
        report.compare(
            GROUP, f"{operation}, 64 tasks, to raw asyncpg with the default pool",
            results[OURS, operation, 64], results[RAW_RESET, operation, 64], target=None,
        )  # fmt: skip
        report.compare(
            GROUP, f"{operation}, 64 tasks, p99 to raw asyncpg",
            results[OURS, operation, 64], results[RAW, operation, 64], target=1, sign="<=", by="p99_us",
        )  # fmt: skip
    for operation in ("kv get", "kv set"):
        report.compare(
            GROUP, f"{operation}, 64 tasks, to AsyncPostgresStore",
            results[OURS, operation, 64], results.get(PEER, operation, 64), target=1,
        )  # fmt: skip
    for tasks in (1, 64):
        for operation in company:
            report.compare(
                GROUP, f"{operation}, {tasks} task{'s' if tasks > 1 else ''}, to AsyncSession",
                results[OURS, operation, tasks], results[ORM, operation, tasks], target=3,
            )  # fmt: skip

"""SQLite: this package beside the raw driver, ORM sessions in threads and LangGraph's store."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from pathlib import Path
from typing import AsyncIterator, Callable, Dict

from benchmarks import langgraph_peer, orm, ours, raw
from benchmarks.contest import Contender, Plan, Results, run_contest
from benchmarks.data import CONVERSATIONS
from benchmarks.fill import fill_sqlite
from benchmarks.report import Report
from benchmarks.timing import Call

__all__ = ["run"]

GROUP = "SQLite, synchronous=FULL"
OURS, RAW, HOP, ORM, PEER = (
    "ours (SQLite)",
    "raw sqlite3, commit per operation",
    "thread hop alone",
    "ORM session in to_thread",
    "LangGraph AsyncSqliteStore",
)


async def run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure and add the rows to `report`; the files go into `directory`."""
    template = directory / "template.sqlite3"
    async with ours.open_storage(f"sqlite:///{template}"):
        pass
    fill_sqlite(str(template), CONVERSATIONS)

    def copy(name: str) -> str:
        return str(shutil.copyfile(template, directory / f"{name}.sqlite3"))

    contenders = [
        Contender(OURS, lambda: _own(copy("ours"))),
        Contender(RAW, lambda: raw.sqlite_operations(copy("raw"))),
        Contender(HOP, raw.thread_hop),
        Contender(ORM, lambda: orm.sqlite_operations(copy("orm"))),
        Contender(
            PEER,
            lambda: langgraph_peer.sqlite_operations(str(directory / "langgraph.sqlite3")),
            "langgraph.store.sqlite",
        ),
    ]
    results = await run_contest(
        report, plan, contenders, operations=("kv get", "kv set", "append"), tasks=(1, 64), say=say
    )
    _judge(report, results)


@asynccontextmanager
async def _own(path: str) -> AsyncIterator[Dict[str, Call]]:
    async with ours.operations(f"sqlite:///{path}") as calls:
        yield calls


def _judge(report: Report, results: Results) -> None:
    for operation in ("append", "kv set"):
        report.compare(
            GROUP, f"{operation}, 64 tasks, to raw commit per operation",
            results[OURS, operation, 64], results[RAW, operation, 64], target=5,
        )  # fmt: skip
        report.compare(
            GROUP, f"{operation}, 1 task, to raw commit per operation",
            results[OURS, operation, 1], results[RAW, operation, 1], target=None,
        )  # fmt: skip
    report.compare(
        GROUP, "kv get, 64 tasks, to AsyncSqliteStore",
        results[OURS, "kv get", 64], results.get(PEER, "kv get", 64), target=1,
    )  # fmt: skip
    report.compare(
        GROUP, "kv set, 64 tasks, to AsyncSqliteStore",
        results[OURS, "kv set", 64], results.get(PEER, "kv set", 64), target=None,
    )  # fmt: skip
    report.compare(
        GROUP, "kv get, 64 tasks, to raw on the same thread",
        results[OURS, "kv get", 64], results[RAW, "kv get", 64], target=None,
    )  # fmt: skip
    report.compare(
        GROUP, "kv get, 1 task, latency to one thread hop",
        results[OURS, "kv get", 1], results[HOP, "kv get", 1], target=2, sign="<=", by="mean_us",
    )  # fmt: skip
    # Alone, the trip to a thread is a fifth of such a session already: ten times less needs company.
    for tasks in (1, 64):
        for operation in ("kv get", "kv set", "append"):
            report.compare(
                GROUP, f"{operation}, {tasks} task{'s' if tasks > 1 else ''}, to ORM session in to_thread",
                results[OURS, operation, tasks], results[ORM, operation, tasks],
                target=10 if tasks > 1 else None,
            )  # fmt: skip

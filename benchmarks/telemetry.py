"""Telemetry: what it costs when it is off, counts, or makes spans; beside stores that know nothing of it."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict

from benchmarks import ours
from benchmarks.contest import Contender, Plan, run_contest
from benchmarks.data import CONVERSATIONS
from benchmarks.fill import fill_sqlite
from benchmarks.report import Report
from benchmarks.timing import Call

__all__ = ["run"]

GROUP = "Telemetry, SQLite"
BARE, OFF, METRICS, SPANS = "stores on the pool's executor", "off", "metrics", "opentelemetry"
_TASKS = 64
# The differences are small beside the noise of one measurement: many short ones, by turns.
_SHORTER = 5


def run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure and add the rows to `report`."""
    asyncio.run(_run(report, plan, directory, say))


async def _run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    template = directory / "template.sqlite3"
    async with ours.open_storage(f"sqlite:///{template}"):
        pass
    fill_sqlite(str(template), CONVERSATIONS)

    def contender(name: str, package: str = "") -> Contender:
        path = shutil.copyfile(template, directory / f"{name.replace(' ', '-')}.sqlite3")
        return Contender(name, lambda: _opened(f"sqlite:///{path}", name), package)

    results = await run_contest(
        report,
        replace(plan, seconds=plan.seconds / _SHORTER, repetitions=plan.repetitions * _SHORTER),
        [contender(BARE), contender(OFF), contender(METRICS), contender(SPANS, "opentelemetry")],
        operations=("kv get", "kv set"),
        tasks=(_TASKS,),
        say=say,
    )
    for operation in ("kv get", "kv set"):
        for name, other, target in ((OFF, BARE, 0.97), (METRICS, OFF, None), (SPANS, OFF, None)):
            found = results.get(name, operation, _TASKS)
            if found is not None:
                report.compare(
                    GROUP, f"{operation}, {_TASKS} tasks, {name} to {other}",
                    found, results.get(other, operation, _TASKS), target=target,
                )  # fmt: skip


@asynccontextmanager
async def _opened(url: str, name: str) -> AsyncIterator[Dict[str, Call]]:
    from modules.storage.manager import StorageManager

    async with StorageManager({"sql": {"url": url}, "telemetry": "off" if name == BARE else name}) as storage:
        yield ours.calls(_Bare(storage) if name == BARE else storage)


class _Bare:
    """The stores on the pool's own executor, as if there were no telemetry in the package."""

    def __init__(self, storage: Any) -> None:
        from modules.conversation_store.repository import ConversationStore
        from modules.store_common.tenancy import TenantPolicy
        from modules.Tools.Base_Tools.kv_store import KeyValueStore

        tenancy = TenantPolicy(False, "default")
        self.kv = KeyValueStore(storage.sql_pool.executor, tenancy)
        self.conversations = ConversationStore(storage.sql_pool.executor, tenancy)

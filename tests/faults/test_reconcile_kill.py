"""A comparison that repairs and is killed by SIGKILL after any page: the next one goes on there, and nothing is left wrong.

With ATLAS_TEST_FULL=1 it is killed after every page.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

from modules.storage.manager import StorageManager
from modules.storage.reconciliation import Reconciliation, Report
from modules.storage.vectors.base import VectorDocument

FULL = bool(os.environ.get("ATLAS_TEST_FULL"))
_COUNT = 60
_PAGE = 5

_CHILD = """
import asyncio, os, signal, sys
from modules.storage import reconciliation
from modules.storage.manager import StorageManager

home, second, pages, page = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
reconciliation._PAGE = page

async def main():
    sql = {"url": home, "auto_migrate": False}
    async with StorageManager({"sql": {"url": second, "auto_migrate": False}}) as other:
        async with StorageManager({"sql": sql, "outbox": {"relay": False}}) as storage:
            storage.add_vector_store("sqlite", name="second", options={"executor": other.executor})
            target = storage.outbox.targets.require("second")
            run = reconciliation.Reconciliation(storage.executor, target, repair=True)
            seen = 0

            def count(report):
                nonlocal seen
                seen += 1
                if seen == pages:
                    print(report.compared, flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)

            run.on_progress(count)
            await run.run()

asyncio.run(main())
"""


async def test_it_goes_on_where_it_was_killed(
    databases: Any, child_environment: Dict[str, str], tmp_path: Path
) -> None:
    home, second = databases.url("sqlite", migrated=True), databases.url("sqlite", migrated=True)
    program = tmp_path / "child.py"
    program.write_text(_CHILD, encoding="utf-8")
    settings: Any = [{"sql": {"url": url, "auto_migrate": False}} for url in (home, second)]
    async with StorageManager(settings[1]) as other, StorageManager(settings[0]) as storage:
        vectors = storage.add_vector_store(
            "sqlite", name="second", options={"executor": other.executor}, default=True
        )
        async with storage.unit_of_work() as uow:
            await uow.vectors.create_collection("docs", 2)
            documents = [VectorDocument(f"d{n:03}", [1.0, n], f"text {n}") for n in range(_COUNT)]
            await uow.vectors.upsert("docs", documents)
        await uow.applied(30)
        gone = [f"d{n:03}" for n in range(0, _COUNT, 3)]
        await vectors.delete("docs", gone)
        await storage.shutdown()

    compared = await _kill_after_pages(program, home, second, child_environment)
    assert compared[-1] > _PAGE, "each run goes on, none begins anew"
    assert compared == sorted(compared)

    async with StorageManager(settings[1]) as other, StorageManager(settings[0]) as storage:
        vectors = storage.add_vector_store(
            "sqlite", name="second", options={"executor": other.executor}, default=True
        )
        target = storage.outbox.targets.require("second")
        report = await Reconciliation(storage.executor, target, repair=True).run()
        assert report.done
        assert report.compared == _COUNT, "no page was counted twice or left out"
        await storage.outbox.drain(30)
        whole = await Reconciliation(storage.executor, target).run()
        assert whole == Report(compared=_COUNT, equal=_COUNT, done=True)
        found = await vectors.get("docs", gone)
        assert {document.id for document in found} == set(gone)
        print(f"{len(compared)} kills after {compared} documents, then {report}")
        await storage.shutdown()


async def _kill_after_pages(program: Path, home: str, second: str, environment: Dict[str, str]) -> List[int]:
    """Run the comparison again and again, killed each time; returns how far each one says that it had come."""
    compared = []
    for pages in [2] * (_COUNT // _PAGE - 1) if FULL else [2, 2, 3]:
        died = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, str(program), home, second, str(pages), str(_PAGE)],
            env=environment,
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
        compared.append(int(died.stdout))
    return compared

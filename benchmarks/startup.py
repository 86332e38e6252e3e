"""What it costs to begin: importing the package, and opening the embedded store, each in a fresh interpreter."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List

from benchmarks.contest import Plan
from benchmarks.report import Report, Row

__all__ = ["run"]

_GROUP = "Start"
_IMPORT = "import time\nstart = time.perf_counter()\nimport {}\nprint((time.perf_counter() - start) * 1000)"
_MANAGER = """
import time
begin = time.perf_counter()
import asyncio, json, sys
from modules.storage import StorageManager

async def main():
    imported = time.perf_counter()
    storage = StorageManager({"sql": {"path": sys.argv[1]}})
    await storage.initialize()
    opened = time.perf_counter()
    await storage.kv.set("bench", "key", 1)
    first = time.perf_counter()
    await storage.shutdown()
    print(json.dumps({"import": imported - begin, "open": opened - imported, "first call": first - opened,
                      "shutdown": time.perf_counter() - first}))

asyncio.run(main())
"""


def run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure and add the rows to `report`."""
    say("imports")
    repetitions = max(7, plan.repetitions)
    times: Dict[str, List[float]] = {"pydantic": [], "modules.storage": []}
    for _ in range(repetitions + 1):
        for name, values in times.items():
            values.append(float(_python(_IMPORT.format(name))))
    # the first of each filled the file cache
    ours, theirs = times["modules.storage"][1:], times["pydantic"][1:]
    values = [a / b for a, b in zip(ours, theirs)]
    detail = f"{statistics.median(ours):.0f} ms to {statistics.median(theirs):.0f} ms"
    report.rows.append(
        Row(_GROUP, "import modules.storage to import pydantic", "<=", 1.5, statistics.median(values), detail=detail,
            spread=(min(values), max(values)))
    )  # fmt: skip
    say("opening the embedded store")
    for what, fresh in (("new database", True), ("existing database", False)):
        steps = []
        for number in range(repetitions):
            path = directory / (f"start-{number}.sqlite3" if fresh else "start-0.sqlite3")
            steps.append(json.loads(_python(_MANAGER, str(path))))
        medians = {name: statistics.median(step[name] for step in steps) * 1000 for name in steps[0]}
        detail = ", ".join(f"{name} {value:.0f} ms" for name, value in medians.items())
        total = medians["import"] + medians["open"] + medians["first call"]
        report.rows.append(
            Row(_GROUP, f"interpreter to first write, {what}", "<=", None, total, "ms", detail=detail)
        )


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the child failed"
        )
    return done.stdout.strip()

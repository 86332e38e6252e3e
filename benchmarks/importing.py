"""Import of many messages into SQLite: how fast, and whether memory stays flat. Each size in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

from benchmarks.contest import Plan
from benchmarks.data import CONTENT
from benchmarks.report import Report, Row

__all__ = ["run"]

_SMALL, _LARGE = 10_000, 100_000
_MESSAGES_EACH = 100


def run(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    """Measure and add the rows to `report`."""
    results: Dict[int, List[Dict[str, Any]]] = {_SMALL: [], _LARGE: []}
    for size in results:
        _write(directory / f"{size}.jsonl", size)
    for number in range(3):
        for size, found in results.items():
            say(f"import of {size:,} messages")
            database = directory / f"import-{size}-{number}.sqlite3"
            found.append(_import(directory / f"{size}.jsonl", database, size))
            for file in directory.glob(f"{database.name}*"):
                file.unlink()
    rates = [size / one["seconds"] for size, ones in results.items() if size == _LARGE for one in ones]
    growth = [large["peak_mb"] - small["peak_mb"] for small, large in zip(results[_SMALL], results[_LARGE])]
    detail = f"{statistics.median(one['seconds'] for one in results[_LARGE]):.1f} s for {_LARGE:,}"
    group = "Import, SQLite"
    report.rows.append(
        Row(group, f"{_LARGE:,} messages", ">=", 20_000, statistics.median(rates), "messages/s", detail,
            (min(rates), max(rates)))
    )  # fmt: skip
    peak = statistics.median(one["peak_mb"] for one in results[_LARGE])
    report.rows.append(
        Row(group, f"peak memory, {_LARGE:,} over {_SMALL:,} messages", "<=", 50, statistics.median(growth), "MB",
            f"peak {peak:.0f} MB", (min(growth), max(growth)))
    )  # fmt: skip


def _write(path: Path, count: int) -> None:
    """Write a file of chat lines as `atlas-storage import` takes them."""
    with path.open("w") as file:
        for start in range(0, count, _MESSAGES_EACH):
            messages = [
                {
                    "id": f"D{number // 20}:{number}",
                    "role": "user" if number % 2 else "assistant",
                    "name": "Caroline" if number % 2 else "Melanie",
                    "content": f"{number} {CONTENT}",
                    "created_at": f"2026-05-08T{number // 60 % 24:02d}:{number % 60:02d}:00+00:00",
                }
                for number in range(_MESSAGES_EACH)
            ]
            record = {"id": f"chat-{start}", "title": f"Chat {start}", "messages": messages}
            file.write(json.dumps(record) + "\n")


def _import(source: Path, database: Path, size: int) -> Dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.import_child", str(source), str(database)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "the child failed").splitlines()[-1])
    result: Dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if result["messages"] != size:
        raise RuntimeError(f"{result['messages']} messages were imported instead of {size}")
    return result

"""`python -m benchmarks`: measures, prints the tables, writes JSON. Ends with 0 when it ran: figures are no test."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional

from rich.console import Console

from benchmarks import (
    growth,
    importing,
    jobs_contest,
    mongo_contest,
    outbox,
    postgresql_contest,
    sqlite_contest,
    startup,
    telemetry,
    vectors_peers,
)
from benchmarks.contest import Plan
from benchmarks.report import Report

RESULTS = Path(__file__).parent / "results"
Part = Callable[[Report, Plan, Path, Callable[[str], None]], None]


def _sqlite(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    asyncio.run(sqlite_contest.run(report, plan, directory, say))


def _postgresql(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    with postgresql_contest.server() as url:
        asyncio.run(postgresql_contest.run(report, plan, url, say))


def _growth_sqlite(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    asyncio.run(growth.run_sqlite(report, plan, directory, say))


def _growth_postgresql(report: Report, plan: Plan, directory: Path, say: Callable[[str], None]) -> None:
    with postgresql_contest.server() as url:
        asyncio.run(growth.run_postgresql(report, plan, url, say))


PARTS: Dict[str, Part] = {
    "sqlite": _sqlite,
    "postgresql": _postgresql,
    "growth-sqlite": _growth_sqlite,
    "growth-postgresql": _growth_postgresql,
    "jobs": jobs_contest.run,
    "mongo": mongo_contest.run,
    "import": importing.run,
    "outbox": outbox.run,
    "start": startup.run,
    "telemetry": telemetry.run,
    **vectors_peers.PARTS,
}


def main(arguments: Optional[List[str]] = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)
    plan = (
        Plan(seconds=0.4, repetitions=3, rows=100_000, quick=True)
        if options.quick
        else Plan(1.0, 5, 1_000_000, False)
    )
    console = Console(width=None if sys.stdout.isatty() else 170)
    report = Report(quick=plan.quick)
    for name in options.only or PARTS:
        with _workspace(options.directory) as directory, console.status(name) as status:

            def say(what: str, name: str = name, status: object = status) -> None:
                text = f"{name}: {what}"
                status.update(text) if console.is_terminal else console.print(text, style="dim")  # type: ignore[attr-defined]

            try:
                PARTS[name](report, plan, directory, say)
            except Exception as exc:  # noqa: BLE001 - the other parts still run, and the table says that this one did not
                report.failed(name, exc)
                if options.debug:
                    traceback.print_exc()
    report.show(console)
    report.write(options.json)
    if options.markdown is not None:
        options.markdown.write_text(report.markdown())
    console.print(f"Written to {options.json}")
    return 0


@contextlib.contextmanager
def _workspace(parent: Path) -> Iterator[Path]:
    """Give a directory on a real disk: /tmp may be memory, where fsync costs nothing."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=parent) as directory:
        yield Path(directory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure the storage beside its peers."
    )
    parser.add_argument(
        "--quick", action="store_true", help="shorter measurements, 100,000 rows for the growth test"
    )
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="this part alone; may be given again"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULTS / "latest.json", help="where to write (default %(default)s)"
    )
    parser.add_argument("--markdown", type=Path, help="write the table of targets there as Markdown, too")
    parser.add_argument(
        "--directory", type=Path, default=RESULTS, help="where the database files go (default %(default)s)"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a part that failed")
    return parser


if __name__ == "__main__":
    sys.exit(main())

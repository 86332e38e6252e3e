"""Rows of the result: what was promised, what was measured, and whether it was reached. Printed and written as JSON."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sys
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Series, median_ratio, ratios

__all__ = ["Report", "Row"]

_PACKAGES = (
    "sqlalchemy",
    "asyncpg",
    "psycopg",
    "aiosqlite",
    "langgraph-checkpoint-sqlite",
    "langgraph-checkpoint-postgres",
    "pgqueuer",
    "procrastinate",
    "pydantic",
    "orjson",
)
_STYLES = {
    "reached": "green",
    "below target": "bold red",
    "not installed": "yellow",
    "not measured": "yellow",
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: What it belongs to, for example "SQLite".
        what: What was compared.
        sign: ">=" or "<=".
        target: The promised bound; None: no promise, for information.
        measured: The value; None: it could not be measured, `detail` says why.
        unit: What the numbers are, "x" for a ratio.
        detail: The figures behind the value.
        spread: Smallest and largest value of the repetitions.
    """

    group: str
    what: str
    sign: str = ">="
    target: Optional[float] = None
    measured: Optional[float] = None
    unit: str = "x"
    detail: str = ""
    spread: Optional[Sequence[float]] = None

    @property
    def verdict(self) -> str:
        """Return "reached", "below target", "information", "not installed" or "not measured"."""
        if self.measured is None:
            return "not installed" if self.detail.startswith("not installed") else "not measured"
        if self.target is None:
            return "information"
        good = self.measured >= self.target if self.sign == ">=" else self.measured <= self.target
        return "reached" if good else "below target"


@dataclass
class Report:
    """Everything that one run found."""

    quick: bool
    rows: List[Row] = field(default_factory=list)
    #: contender -> "operation, N tasks" -> figures
    figures: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    started_at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    def record(self, contender: str, operation: str, series: Series) -> None:
        self.figures.setdefault(contender, {})[operation] = series.to_dict()

    def compare(
        self,
        group: str,
        what: str,
        ours: Series,
        theirs: Optional[Series],
        *,
        target: Optional[float],
        sign: str = ">=",
        by: str = "rate",
        missing: str = "not installed",
    ) -> None:
        """Add the row of a ratio, the median over the repetitions; `theirs` None: that peer did not run."""
        if theirs is None:
            self.rows.append(Row(group, what, sign, target, None, detail=missing))
            return
        values = ratios(ours, theirs, by)
        a, b = ours.median(by), theirs.median(by)
        detail = f"{a:,.0f}/s to {b:,.0f}/s" if by == "rate" else f"{a:,.0f} us to {b:,.0f} us"
        self.rows.append(
            Row(
                group,
                what,
                sign,
                target,
                median_ratio(values),
                detail=detail,
                spread=(min(values), max(values)),
            )
        )

    def failed(self, group: str, error: BaseException) -> None:
        """Say in the table that a part did not run; a missing figure must not look like a good one."""
        self.rows.append(Row(group, "(this part)", detail=f"failed: {type(error).__name__}: {error}"[:300]))

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(
                {
                    "started_at": self.started_at,
                    "quick": self.quick,
                    "machine": machine(),
                    "rows": [{**asdict(row), "verdict": row.verdict} for row in self.rows],
                    "figures": self.figures,
                },
                indent=1,
            )
            + "\n"
        )

    def markdown(self) -> str:
        """Return the targets as a Markdown table, for docs/benchmarks.md."""
        lines = ["| | what | target | measured | verdict | figures |", "|---|---|---|---|---|---|"]
        last = ""
        for row in self.rows:
            shown, last = ("" if row.group == last else row.group), row.group
            target = "" if row.target is None else f"{row.sign} {_number(row.target, row.unit)}"
            cells = (shown, row.what, target, _measured(row), row.verdict, row.detail)
            lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def show(self, console: Console) -> None:
        console.print(self._figures_table())
        console.print(self._targets_table())
        bad = sum(row.verdict == "below target" for row in self.rows)
        lost = sum(row.verdict in ("not installed", "not measured") for row in self.rows)
        good = sum(row.verdict == "reached" for row in self.rows)
        console.print(f"{good} targets reached, {bad} below target, {lost} not measured.")
        console.print(
            "Ratios are medians over the repetitions of this run (smallest to largest in brackets); a shared machine moves "
            "rates by half and more, so compare ratios of one run, not rates of two."
        )

    def _targets_table(self) -> Table:
        table = Table(title="Targets" + (" (quick run: shorter, smaller tables)" if self.quick else ""))
        for name in ("", "what", "target", "measured", "verdict", "figures"):
            table.add_column(name, justify="right" if name in ("target", "measured") else "left")
        last = ""
        for row in self.rows:
            if row.group != last and last:
                table.add_section()
            shown = "" if row.group == last else row.group
            last = row.group
            target = "" if row.target is None else f"{row.sign} {_number(row.target, row.unit)}"
            measured = _measured(row)
            verdict = row.verdict
            style = _STYLES.get(verdict, "dim")
            table.add_row(
                shown, row.what, target, measured.replace("[", "\\["), f"[{style}]{verdict}[/]", row.detail
            )
        return table

    def _figures_table(self) -> Table:
        table = Table(title="Medians, closed loop")
        for name in ("contender", "operation", "calls/s", "p50 us", "p99 us"):
            table.add_column(name, justify="left" if name in ("contender", "operation") else "right")
        for contender, operations in self.figures.items():
            shown = contender
            for operation, f in operations.items():
                table.add_row(
                    shown, operation, f"{f['rate']:,.0f}", f"{f['p50_us']:,.0f}", f"{f['p99_us']:,.0f}"
                )
                shown = ""
            table.add_section()
        return table


def _measured(row: Row) -> str:
    if row.measured is None:
        return ""
    text = _number(row.measured, row.unit)
    if row.spread is None:
        return text
    low, high = (f"{value:.2f}" if row.unit == "x" else f"{value:,.0f}" for value in row.spread)
    return f"{text} [{low} to {high}]"


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}x" if unit == "x" else f"{value:,.0f} {unit}"


def machine() -> Dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": sys.version.split()[0],
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "sqlite": sqlite3.sqlite_version,
        "packages": versions,
    }

"""Runs contenders side by side: every repetition measures all of them, one right after the other."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from dataclasses import dataclass
from typing import AsyncContextManager, Callable, Dict, List, Optional, Sequence, Tuple

from benchmarks.report import Report
from benchmarks.timing import Call, Series, closed_loop

__all__ = ["Contender", "Plan", "Results", "run_contest"]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        seconds: Of one measurement.
        repetitions: At least 3.
        rows: Of the large table in the growth test.
        quick: For the table's title.
    """

    seconds: float
    repetitions: int
    rows: int
    quick: bool


@dataclass(frozen=True)
class Contender:
    """Somebody who does the operations.

    Attributes:
        name: In the table.
        open: Gives the operations it has.
        package: What must be installed for it.
    """

    name: str
    open: Callable[[], AsyncContextManager[Dict[str, Call]]]
    package: str = ""

    @property
    def installed(self) -> bool:
        if not self.package:
            return True
        try:
            return importlib.util.find_spec(self.package) is not None
        except ModuleNotFoundError:
            return False


class Results:
    """What a contest gave."""

    def __init__(self) -> None:
        self._series: Dict[Tuple[str, str, int], Series] = {}

    def series(self, name: str, operation: str, tasks: int) -> Series:
        return self._series.setdefault((name, operation, tasks), Series())

    def get(self, name: str, operation: str, tasks: int) -> Optional[Series]:
        """Return the repetitions, None if that contender did not run."""
        return self._series.get((name, operation, tasks))

    def __getitem__(self, place: Tuple[str, str, int]) -> Series:
        return self._series[place]


async def run_contest(
    report: Report,
    plan: Plan,
    contenders: Sequence[Contender],
    *,
    operations: Sequence[str],
    tasks: Sequence[int],
    say: Callable[[str], None],
) -> Results:
    """Open all contenders, measure every operation they have, and record the figures in `report`."""
    results = Results()
    async with contextlib.AsyncExitStack() as stack:
        opened: List[Tuple[str, Dict[str, Call]]] = []
        for contender in contenders:
            if contender.installed:
                opened.append((contender.name, await stack.enter_async_context(contender.open())))
        # what the filling left to write must not be paid for by whoever comes first
        os.sync()
        for operation in operations:
            for count in tasks:
                say(f"{operation}, {count} task{'s' if count > 1 else ''}")
                for _ in range(plan.repetitions):
                    for name, calls in opened:
                        if operation in calls:
                            sample = await closed_loop(calls[operation], count, plan.seconds)
                            results.series(name, operation, count).samples.append(sample)
        for name, _ in opened:
            for operation in operations:
                for count in tasks:
                    series = results.get(name, operation, count)
                    if series is not None and series.samples:
                        report.record(name, f"{operation}, {count} task{'s' if count > 1 else ''}", series)
    return results

"""How a worker shows itself: a live table on a terminal, plain lines into a pipe or file, JSON lines for programs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, List, Optional, Tuple

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from modules.job_store.records import Outcome
    from modules.orchestration.context import JobContext
    from modules.orchestration.worker import Worker

__all__ = ["WorkerDisplay", "summary"]

_REFRESH_S = 0.25
_SUMMARY_EVERY_S = 10.0
_ROWS = 15
_TROUBLES = 5
_LONGEST = 100


def summary(worker: Worker) -> str:
    """Return what a worker has done, in one line."""
    counted = worker.statistics
    parts = [f"{counted.succeeded:,} succeeded"]
    for name in ("retried", "failed", "cancelled", "released", "lost", "abandoned"):
        count = getattr(counted, name)
        if count:
            parts.append(f"{count:,} {name}")
    parts.append(f"{counted.running:,} running")
    return ", ".join(parts)


class WorkerDisplay:
    """Shows a worker while it works.

    Args:
        worker: What to show.
        line: Prints a line for people.
        record: Prints a JSON line; None: nobody asked for JSON.
        console: A terminal for the live table; None: plain lines.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        line: Callable[[str], None],
        record: Optional[Callable[[Dict[str, Any]], None]] = None,
        console: Optional[Console] = None,
    ) -> None:
        self._worker = worker
        self._line = line
        self._record = record
        self._console = console
        self._troubles: Deque[str] = deque(maxlen=_TROUBLES)
        self._rates: Deque[Tuple[float, int]] = deque(maxlen=9)
        worker.on_ended = self._ended

    async def run(self) -> None:
        """Show until cancelled."""
        if self._record is not None:
            return
        if self._console is not None:
            await self._live(self._console)
            return
        shown = ""
        while True:
            await asyncio.sleep(_SUMMARY_EVERY_S)
            text = summary(self._worker)
            if text != shown:
                self._line(text)
                shown = text

    def _ended(self, outcome: Outcome, status: Optional[str]) -> None:
        claim = outcome.claim
        if self._record is not None:
            self._record(
                {
                    "event": "ended", "job": claim.id, "handler": claim.handler, "queue": claim.queue,
                    "tenant": claim.tenant_id, "attempt": claim.attempt, "outcome": outcome.kind, "status": status,
                    "error": outcome.error_type,
                }
            )  # fmt: skip
        if outcome.kind != "failed" and status is not None:
            return
        became = (
            "lost to another worker"
            if status is None
            else "to be tried again"
            if status == "scheduled"
            else status
        )
        text = f"{claim.handler} {claim.id} attempt {claim.attempt}: {became}"
        if outcome.error_type is not None:
            text += f": {outcome.error_type}: {outcome.error_message}"
        text = " ".join(text.split())[: 2 * _LONGEST]
        if self._console is not None:
            self._troubles.append(text)
        elif self._record is None:
            self._line(text)

    async def _live(self, console: Console) -> None:
        from rich.live import Live

        with Live(self._picture(), console=console, auto_refresh=False, transient=True) as live:
            while True:
                await asyncio.sleep(_REFRESH_S)
                live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("handler", "job", "attempt", "for", "progress"):
            table.add_column(column)
        running = self._worker.running
        for context in running[:_ROWS]:
            table.add_row(*_row(context))
        parts: List[Any] = [Text(f"{summary(self._worker)}, {self._rate():,.0f} a second", style="bold")]
        if running:
            parts.append(table)
        if len(running) > _ROWS:
            parts.append(Text(f"... and {len(running) - _ROWS} more", style="dim"))
        parts += [Text(text, style="yellow", overflow="ellipsis", no_wrap=True) for text in self._troubles]
        return Group(*parts)

    def _rate(self) -> float:
        now, ended = time.monotonic(), self._worker.statistics.ended
        self._rates.append((now, ended))
        since, before = self._rates[0]
        return (ended - before) / (now - since) if now > since else 0.0


def _row(context: JobContext) -> Tuple[Any, ...]:
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    seconds = context.elapsed_s
    shown: Any = Text("")
    value = context.last_progress
    if isinstance(value, float) and 0 <= value <= 1:
        shown = ProgressBar(total=1.0, completed=value, width=24)
    elif value is not None:
        shown = Text(" ".join(str(value).split())[:_LONGEST])
    return (
        Text(context.handler[:_LONGEST]),
        Text(context.id[-12:]),
        Text(f"{context.attempt}/{context.max_attempts}"),
        Text(f"{seconds:.0f} s"),
        shown,
    )

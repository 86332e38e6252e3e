"""What a command prints: tables and lines for people, one JSON document or JSON lines for programs (`--json`).

Stored text is shown without its control characters: a message must not be able to steer somebody's terminal.
"""

from __future__ import annotations

import base64
import re
import sys
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, List, Mapping, Optional, Sequence, Type

import orjson

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Output", "plain_text", "size_text"]

# C0 and C1 but tab and newline, and the marks that turn the direction of writing.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_WIDTH_OF_PIPES = 200


class Output:
    """The output of one command.

    Args:
        as_json: JSON on stdout and nothing else there.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._console: Optional[Console] = None

    @property
    def console(self) -> Console:
        """The terminal or pipe at stdout."""
        if self._console is None:
            width = None if sys.stdout.isatty() else _WIDTH_OF_PIPES
            self._console = _console_class()(highlight=False, markup=False, emoji=False, width=width)
        return self._console

    def document(self, value: Any) -> None:
        """Print one JSON document, where JSON was asked for."""
        if self.as_json:
            sys.stdout.write(_json(value) + "\n")

    def line(self, text: str = "", style: Optional[str] = None) -> None:
        """Print a line for people."""
        if not self.as_json:
            self.console.print(plain_text(text), style=style, soft_wrap=True)

    def raw(self, text: str) -> None:
        """Print a text of ours as it is, for people and for files."""
        if not self.as_json:
            sys.stdout.write(text)

    def warn(self, text: str) -> None:
        """Print a line about something that went wrong, in either case, on stderr."""
        sys.stderr.write(plain_text(text) + "\n")

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Any]], title: Optional[str] = None
    ) -> None:
        """Print a table for people."""
        if self.as_json:
            return
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(
                *[Text(plain_text(_cell(value)), style=_STYLES.get(_cell(value), "")) for value in row]
            )
        self.console.print(table)

    def records(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Print JSON lines."""
        for record in records:
            sys.stdout.write(_json(record) + "\n")

    @contextmanager
    def progress(
        self, title: str, total: Optional[int], *, is_bytes: bool = True
    ) -> Iterator[Callable[[int, str], None]]:
        """Show a bar on stderr where that is a terminal; gives the function to call with (what is done, remark).

        Args:
            title: What goes on.
            total: When it is done; None: not known.
            is_bytes: Count bytes, else things.
        """
        if self.as_json or not sys.stderr.isatty():
            yield lambda done, remark: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        counted = DownloadColumn() if is_bytes else MofNCompleteColumn()
        columns = [TextColumn("{task.description}"), BarColumn(), counted, TimeRemainingColumn()]
        with Progress(*columns, TextColumn("{task.fields[remark]}"), console=Console(stderr=True)) as bar:
            task = bar.add_task(plain_text(title), total=total, remark="")
            yield lambda done, remark: bar.update(task, completed=done, remark=remark)

    @contextmanager
    def counting(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a bar by count on stderr where that is a terminal; gives the function to call with how many are done."""
        if self.as_json or not sys.stderr.isatty():
            yield lambda done: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(plain_text(title), total=total)
            yield lambda done: bar.update(task, completed=done)


def _console_class() -> Type[Console]:
    from rich.console import Console

    class QuietConsole(Console):
        """Leaves a closed pipe to the caller; rich would exit with 1."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return QuietConsole


_STYLES = {
    "healthy": "green",
    "ok": "green",
    "degraded": "yellow",
    "warning": "yellow",
    "unhealthy": "red",
    "problem": "red",
    "unknown": "dim",
}


def plain_text(text: str) -> str:
    """Return `text` with every control character shown as a replacement character."""
    return _CONTROL.sub("\ufffd", text)


def size_text(size_bytes: float) -> str:
    """Return a size for people: "3.4 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (dict, list, tuple)):
        return _json(value)
    return str(value)


def _json(value: Any) -> str:
    return orjson.dumps(value, default=_other).decode()


def _other(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode()}
    to_dict = getattr(value, "to_dict", None)
    if to_dict is not None:
        return to_dict()
    if isinstance(value, (set, frozenset)):
        ordered: List[Any] = sorted(value)
        return ordered
    raise TypeError(type(value).__name__)

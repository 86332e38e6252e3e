"""`worker` on a terminal: the live table, drawn into a pseudo-terminal."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any, Iterator, List

import pytest

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals", allow_module_level=True)

import fcntl
import pty
import struct
import termios

from tests.e2e.test_cli_worker import enqueue

HANDLERS = """
import asyncio
from modules.orchestration import handler

@handler("halfway")
async def halfway(job):
    job.progress(0.5)
    await asyncio.sleep(600)

@handler("talks")
async def talks(job):
    job.progress("reading page 7")
    await asyncio.sleep(600)

@handler("fails")
async def fails(job):
    raise ValueError("password=hunter2 is wrong")
"""
ROWS, COLUMNS = 40, 120
_PATIENCE_S = 60.0


class Screen:
    """A worker on a terminal of its own, and everything that it has drawn."""

    def __init__(self, cli: Any, *arguments: str) -> None:
        self._side, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            cli.patient("worker", "--import", "shop", "--grace", "0.1", *arguments),
            cwd=cli.directory,
            env={**cli.environment, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.text = ""
        # a character may come in two parts
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def until(self, *parts: str) -> None:
        """Read until all of these were drawn."""
        end = time.monotonic() + _PATIENCE_S
        while not all(part in self.text for part in parts):
            assert time.monotonic() < end, f"not drawn: {parts!r} in {self.text!r}"
            assert self._read(0.2), f"it ended: {self.text!r}"

    def end(self) -> int:
        """Send SIGTERM, read to the end and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        while self._read(_PATIENCE_S):
            pass
        return self.process.wait(_PATIENCE_S)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        os.close(self._side)

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._side], [], [], seconds)
        if not ready:
            return self.process.poll() is None
        try:
            data = os.read(self._side, 65_536)
        except OSError:  # Linux says EIO when nobody has the other side open any more
            return False
        self.text += self._decoder.decode(data)
        return bool(data)


@pytest.fixture
def screen(cli: Any) -> Iterator[Any]:
    (cli.directory / "shop.py").write_text(HANDLERS)
    made: List[Screen] = []

    def start(*jobs: str) -> Screen:
        enqueue(cli, *((job, None) for job in jobs))
        made.append(Screen(cli))
        return made[0]

    yield start
    for one in made:
        one.close()


def test_running_jobs_and_their_progress_are_drawn(screen: Any) -> None:
    shown = screen("halfway", "talks")
    # a half of a bar of 24 places, then what is still missing in another colour
    shown.until("2 running", "halfway", "━" * 11, "talks", "reading page 7", "1/1")
    assert shown.end() == 0


def test_what_failed_is_drawn_without_secrets(screen: Any) -> None:
    shown = screen("fails")
    shown.until("1 failed", "ValueError: password=*** is wrong")
    assert shown.end() == 0
    assert "hunter2" not in shown.text


def test_the_table_is_taken_away_and_the_terminal_left_as_it_was(screen: Any) -> None:
    shown = screen("halfway")
    shown.until("1 running", "\x1b[?25l")  # the cursor is hidden while it draws
    assert shown.end() == 0
    last = shown.text.rindex("stopped:")
    assert "\x1b[?25h" in shown.text[:last]
    assert "1 released" in shown.text[last:]
    assert "halfway" not in shown.text[last:]

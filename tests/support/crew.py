"""Worker processes of the fault tests, and what they did: see `tests.faults.worker_child`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

from tests.support.postgres import ROOT

__all__ = ["CrewOfProcesses", "WorkerProcess"]


class WorkerProcess:
    """One worker process."""

    def __init__(self, command: List[str], environment: Dict[str, str]) -> None:
        self.ready = False
        self.process = subprocess.Popen(
            command, cwd=str(ROOT), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def wait_ready(self) -> None:
        """Wait until it listens to signals and works."""
        if self.ready:
            return
        self.ready = True
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.strip() == "ready", self.process.communicate()[1]

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def end(self, number: int = signal.SIGTERM, seconds: float = 90.0) -> Tuple[int, str, str]:
        """Send a signal, wait for the end, and return exit code, stdout and stderr."""
        if number != signal.SIGKILL:
            self.wait_ready()
        self.send(number)
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


class CrewOfProcesses:
    """Starts worker processes on one database, and ends those that the test has left."""

    def __init__(self, url: str, directory: Path, environment: Dict[str, str]) -> None:
        self.url = url
        self.effects = directory / "effects"
        self._environment = environment
        self._made: List[WorkerProcess] = []

    def start(
        self, environment: Optional[Dict[str, str]] = None, ready: bool = True, **options: Any
    ) -> WorkerProcess:
        words = [f"{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "tests.faults.worker_child", self.url, str(self.effects), *words]
        made = WorkerProcess(command, {**self._environment, **(environment or {})})
        self._made.append(made)
        if ready:
            made.wait_ready()
        return made

    def close(self) -> None:
        for made in self._made:
            if made.process.poll() is None:
                made.send(signal.SIGKILL)
                made.send(signal.SIGCONT)
            made.process.communicate()

    def lines(self, what: str) -> List[List[str]]:
        """Return what handlers noted: [job, fence, worker]."""
        if not self.effects.exists():
            return []
        return [
            line.split()[1:] for line in self.effects.read_text().splitlines() if line.startswith(what + " ")
        ]

    def runs(self, what: str = "end") -> Counter[str]:
        """Return how often each job's handler began or came to its end."""
        return Counter(words[0] for words in self.lines(what))

    def until(self, condition: Any, seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            time.sleep(0.01)

    def stored(self, sql: str) -> List[Tuple[Any, ...]]:
        """Return the rows of a query, by a driver of the test's own."""
        if self.url.startswith("sqlite"):
            import sqlite3

            with contextlib.closing(sqlite3.connect(self.url.partition(":///")[2], timeout=30)) as connection:
                return connection.execute(sql).fetchall()
        import psycopg

        with psycopg.connect(self.url) as session:
            return list(session.execute(sql).fetchall())  # type: ignore[call-overload]

    def statuses(self) -> Counter[str]:
        """Return how many jobs have each status."""
        return Counter(dict(self.stored("SELECT status, count(*) FROM atlas_jobs GROUP BY status")))

    def succeeded(self) -> Set[str]:
        return {row[0] for row in self.stored("SELECT id FROM atlas_jobs WHERE status = 'succeeded'")}

"""A Chroma server for tests: `chroma run` on a free loopback port, its files in a directory of the test's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import List, Optional

from tests.support.cluster import free_port
from tests.support.freezing import freeze

__all__ = ["ChromaServer"]

_START_SECONDS = 90.0


class ChromaServer:
    """Started by `start`; `kill` is the fault, `stop` the end."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: Optional[subprocess.Popen[bytes]] = None
        self.port = free_port()

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        command: List[str] = [
            sys.executable, "-c", "from chromadb.cli.cli import app; app()",
            "run", "--path", str(self._directory / "data"), "--host", "127.0.0.1", "--port", str(self.port),
        ]  # fmt: skip
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
            )
        end = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                text = (self._directory / "server.log").read_text(errors="replace")
                self.stop()
                raise AssertionError(f"chroma run did not start: {text[-2000:]}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}/api/v2/heartbeat", timeout=5
            ) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def make_database(self) -> str:
        """Make an empty database and return its name."""
        name = f"test-{uuid.uuid4().hex}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/v2/tenants/default_tenant/databases",
            data=f'{{"name": "{name}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30):
            return name

    def pause(self) -> None:
        """Freeze it: connections are accepted and nothing answers."""
        assert self._process is not None
        freeze([self._process.pid])

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

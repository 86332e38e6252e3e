"""Keeps the one PostgreSQL server of a test run: `python -m tests.support.keeper RUN_DIRECTORY OWNER_PID`.

The first test that wants the server starts this process; it ends, and ends the server, when the test run (the owner)
ends or is killed. So no worker of pytest-xdist has to outlive the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.support.cluster import Cluster


def _owner_lives(pid: int, born: str) -> bool:
    return process_birth(pid) == born


def process_birth(pid: int) -> str:
    """Return when the process was started (so that a reused pid is told apart), "" when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


class _EndedError(Exception):
    pass


def _end(*_: Any) -> None:
    raise _EndedError


def main() -> None:
    directory, owner = Path(sys.argv[1]), int(sys.argv[2])
    born = process_birth(owner)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the owner, and that ends us
    home = directory / "pg"
    home.mkdir()
    cluster = Cluster(home)
    report = {"error": "the keeper was ended"}
    try:
        try:
            cluster.create()
            cluster.start()
            report = {
                "socket_directory": str(home),
                "port": cluster.port,
                "url": cluster.url(),
                "tcp_url": cluster.url(tcp=True),
            }
        except (RuntimeError, OSError, ImportError) as exc:
            report = {"error": f"{type(exc).__name__}: {exc}"}
        _write(directory / "server.json", report)
        while "error" not in report and _owner_lives(owner, born) and (directory / "server.json").exists():
            time.sleep(0.2)
    except _EndedError:
        pass
    finally:
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _write(path: Path, report: Any) -> None:
    partial = path.with_suffix(".part")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(report))
        os.replace(partial, path)


if __name__ == "__main__":
    main()

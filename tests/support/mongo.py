"""The MongoDB-protocol server of the test run, and clean databases on it.

The server is `ATLAS_TEST_MONGO_URL`, else one that the first test to need it starts (see `mongo_server`) and all workers
of pytest-xdist share. As with PostgreSQL, a keeper holds it: `python -m tests.support.mongo RUN_DIRECTORY OWNER_PID`.

Making collections and indexes costs more than a test does, so each worker makes one database and empties it between tests.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from tests.support.keeper import _end, _EndedError, _owner_lives, _write, process_birth
from tests.support.mongo_server import NoServerError, Server, command_of_this_machine
from tests.support.postgres import ROOT, RUN_DIRECTORY, RUN_OWNER, _only_one

__all__ = ["MongoServer", "mongo_of_this_run", "stop_mongo_of_this_run"]

_REPORT = "mongo.json"
# a first build of FerretDB takes some 200 s of an idle core
_START_TIMEOUT_S = 900


def mongo_of_this_run() -> Tuple[Optional[MongoServer], str]:
    """Return the server, or None and why there is none."""
    if importlib.util.find_spec("pymongo") is None:
        return None, 'no MongoDB driver (pymongo is missing): pip install "atlas-storage[mongo]"'
    given = os.environ.get("ATLAS_TEST_MONGO_URL")
    if given:
        return MongoServer(given), ""
    with _only_one("mongo") as directory:
        report = directory / _REPORT
        if not report.exists():
            _start_keeper(directory, report)
        found: Dict[str, Any] = json.loads(report.read_text())
    if "error" in found:
        return None, found["error"]
    return MongoServer(found["url"]), ""


def _start_keeper(directory: Path, report: Path) -> None:
    with (directory / "mongo-keeper.log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.mongo", str(directory), os.environ[RUN_OWNER]],
            cwd=str(ROOT),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ).returncode = 0  # it outlives this worker on purpose: keep Popen from warning about it
    end = time.monotonic() + _START_TIMEOUT_S
    while not report.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"no MongoDB in time: {(directory / 'mongo-keeper.log').read_text()[-2000:]}")
        time.sleep(0.02)


def stop_mongo_of_this_run(directory: Path) -> None:
    """Tell the keeper to end, and wait until it has."""
    with contextlib.suppress(FileNotFoundError):
        (directory / _REPORT).unlink()
        end = time.monotonic() + 60
        while (directory / "mongo").exists() and time.monotonic() < end:
            time.sleep(0.02)


class MongoServer:
    """A server, and this worker's database on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        run = os.path.basename(os.environ.get(RUN_DIRECTORY, "")).replace("atlas-t-", "")
        self._run = "".join(c if c.isalnum() else "_" for c in run).lower() or str(os.getpid())
        self._worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        self._made: List[str] = []

    @property
    def database(self) -> str:
        """The name of this worker's database."""
        return f"atlas_{self._run}_{self._worker}"

    def settings(self, database: Optional[str] = None) -> Dict[str, Any]:
        """Return the `mongo` section of the settings for this worker's database, or for another."""
        name = database or self.database
        if name not in self._made:
            self._made.append(name)
        # the server takes one command at a time: more connections only cost handshakes
        return {"url": self.url, "database": name, "max_pool_size": 8}

    def close(self) -> None:
        """Drop what this worker made on a server that outlives the run."""
        if self._made and os.environ.get("ATLAS_TEST_MONGO_URL"):
            from pymongo import MongoClient

            with MongoClient(self.url) as client:
                for name in self._made:
                    client.drop_database(name)


def main() -> None:
    directory, owner = Path(sys.argv[1]), int(sys.argv[2])
    born = process_birth(owner)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the owner, and that ends us
    home = directory / "mongo"
    home.mkdir()
    server = Server(home)
    try:
        try:
            server.start(command_of_this_machine())
            report = {"url": server.url}
        except (NoServerError, OSError, subprocess.TimeoutExpired) as exc:
            report = {"error": str(exc)}
        _write(directory / _REPORT, report)
        while "error" not in report and _owner_lives(owner, born) and (directory / _REPORT).exists():
            time.sleep(0.2)
    except _EndedError:
        pass
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()

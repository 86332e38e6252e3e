"""A MongoDB-protocol server of our own: `mongod` from PATH, else FerretDB 1 built by Go (tests/support/ferretdb/main.go),
with one function laid over its own so that it need not read whole collections (tests/support/ferretdb/narrowing.go).

The built program is kept in ${XDG_CACHE_HOME:-~/.cache}/atlas-storage-tests under a name that changes with what it is made
of, so that a machine builds it once: about 200 s of one core with an empty Go cache, 8 s with a full one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Iterator, List, Optional

from tests.support.cluster import _die_with_parent, free_port
from tests.support.freezing import freeze

__all__ = ["NoServerError", "Server", "command_of_this_machine", "temporary_server"]

SOURCE = Path(__file__).with_name("ferretdb") / "main.go"
LAID_OVER = SOURCE.with_name("narrowing.go")
FERRETDB = "v1.24.2"
_PACKAGE = "internal/backends/sqlite"
# of `collection.Query`, the first of two places
_ITS_OWN = """	if params.Filter.Len() == 1 {
		v, _ := params.Filter.Get("_id")
		switch v.(type) {
		case string, types.ObjectID:
			whereClause = fmt.Sprintf(` WHERE %s = ?`, metadata.IDColumn)
			args = []any{string(must.NotFail(sjson.MarshalSingleValue(v)))}
		}
	}
"""
_OURS = "	whereClause, args = narrowed(params.Filter)\n"
_FERRETDB_MODULE = "github.com/FerretDB/FerretDB"
_MODULE = f"module atlas-mongo-server\n\ngo 1.24\n\nrequire github.com/FerretDB/FerretDB {FERRETDB}\n"
_BUILD_TIMEOUT_S = 900


class NoServerError(Exception):
    """There is no way to a server on this machine; the text says why."""


def command_of_this_machine() -> List[str]:
    """Return the program that serves the protocol, built if need be.

    Raises:
        NoServerError: there is neither mongod nor Go, or the build failed.
    """
    mongod = shutil.which("mongod")
    if mongod is not None:
        return [mongod]
    return [str(_built())]


def _go() -> str:
    found = shutil.which("go", path=os.environ.get("PATH", "") + ":/usr/local/go/bin:/usr/lib/go/bin")
    if found is None:
        raise NoServerError(
            "no MongoDB: ATLAS_TEST_MONGO_URL is not set, there is no mongod on PATH, and no Go to build FerretDB with"
        )
    return found


def _built() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atlas-storage-tests"
    parts = (SOURCE.read_bytes(), LAID_OVER.read_bytes(), (_MODULE + _OURS).encode())
    made_of = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    program = cache / f"mongo-server-{made_of}"
    if program.exists():
        return program
    go = _go()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(go, program)
    return program


def _build(go: str, program: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "go.mod").write_text(_MODULE)
        shutil.copy(SOURCE, directory)
        partial = program.with_suffix(".partial")
        _run_go(go, directory, "mod", "download", _FERRETDB_MODULE)
        found = _run_go(go, directory, "list", "-m", "-f", "{{.Dir}}", _FERRETDB_MODULE)
        _lay_over(Path(directory) / "FerretDB", Path(found))
        _run_go(go, directory, "mod", "edit", "-replace", f"{_FERRETDB_MODULE}=./FerretDB")
        _run_go(go, directory, "build", "-tags", "ferretdb_no_postgresql", "-o", str(partial), ".")
        os.replace(partial, program)


def _run_go(go: str, directory: str, *arguments: str) -> str:
    done = subprocess.run(
        [go, *arguments],
        cwd=directory,
        env={**os.environ, "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=_BUILD_TIMEOUT_S,
    )
    if done.returncode:
        raise NoServerError(f"FerretDB {FERRETDB} could not be built: {done.stderr.strip()[-500:]}")
    return done.stdout.strip()


def _lay_over(copy: Path, module: Path) -> None:
    """Make a copy of FerretDB's module that calls our function where it had a condition of its own."""
    shutil.copytree(module, copy, copy_function=shutil.copyfile)
    package = copy / _PACKAGE
    for place in (copy, *copy.rglob("*")):
        if place.is_dir():
            place.chmod(0o755)
    its_own = (package / "collection.go").read_text()
    if _ITS_OWN not in its_own:
        raise NoServerError(f"FerretDB {FERRETDB} is not the one that narrowing.go is laid over")
    (package / "collection.go").write_text(its_own.replace(_ITS_OWN, _OURS, 1))
    shutil.copy(LAID_OVER, package)


class Server:
    """One server.

    Args:
        directory: An existing empty directory for its data.
        free: FerretDB without the turnstile, to show what the turnstile is for.
    """

    def __init__(self, directory: Path, *, free: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self.free = free
        self.process: Optional[subprocess.Popen[bytes]] = None

    @property
    def url(self) -> str:
        return f"mongodb://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def start(self, command: List[str]) -> None:
        """Start it and return once it accepts connections. It ends when the thread that started it does."""
        if command[0].endswith("mongod"):
            arguments = ["--port", str(self.port), "--dbpath", str(self.directory), "--bind_ip", "127.0.0.1"]
        else:
            arguments = [str(self.port), str(self.directory), *(["free"] if self.free else [])]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise NoServerError(f"the server did not start: {self.log.read_text()[-500:]}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def freeze(self) -> None:
        """SIGSTOP: sockets stay open, nothing answers."""
        assert self.process is not None
        freeze([self.process.pid])

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


@contextlib.contextmanager
def temporary_server(*, free: bool = False) -> Iterator[Server]:
    """Run a server of one's own for the time of the block."""
    directory = Path(tempfile.mkdtemp(prefix="atlas-mongo-", dir="/tmp"))
    server = Server(directory, free=free)
    try:
        server.start(command_of_this_machine())
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    """Build the server now, so that no test has to wait for it; say where it is, or why there is none."""
    try:
        print(f"MongoDB-protocol server: {command_of_this_machine()[0]}", flush=True)
    except (NoServerError, subprocess.TimeoutExpired) as exc:
        print(f"No MongoDB-protocol server: {exc}", flush=True)


if __name__ == "__main__":
    main()

"""The installed `atlas-storage` as a user has it: a process in an empty directory with an empty home."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from tests.support.postgres import ROOT

# Variables that Python or the package read before they run: such a run is a process of its own.
_READ_AT_IMPORT = {"PYTHONPATH", "ATLAS_TEST_FAILPOINTS"}

PROGRAM = Path(sys.executable).with_name("atlas-storage")


class Result:
    """What a run gave."""

    def __init__(self, code: int, stdout: bytes, stderr: bytes) -> None:
        self.code = code
        self.stdout = stdout.decode()
        self.stderr = stderr.decode()

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.stdout)

    @property
    def lines(self) -> List[Any]:
        """The JSON lines on stdout."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    def __repr__(self) -> str:
        return f"exit {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


_PATIENT = """
import sys
from modules.orchestration import crew, signals
from modules.storage.cli import main
crew._STORE_S, signals._OVERTIME_S = 30.0, 60.0
sys.argv[0] = "atlas-storage"
sys.exit(main())
"""


class WarmProgram:
    """The process of `warm_program`, started by the first run."""

    def __init__(self) -> None:
        self._process: Optional[subprocess.Popen[bytes]] = None

    def run(self, directory: Path, arguments: List[str], stdin: bytes, environment: Dict[str, str]) -> Result:
        """Run the program with its files in `directory`."""
        files = {name: str(directory / name) for name in ("stdin", "stdout", "stderr")}
        for name, path in files.items():
            Path(path).write_bytes(stdin if name == "stdin" else b"")
        request = {"arguments": arguments, "environment": environment, **files}
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps({**request, "directory": str(directory / "work")}).encode() + b"\n")
        process.stdin.flush()
        code = int(self._answer(90))
        return Result(code, Path(files["stdout"]).read_bytes(), Path(files["stderr"]).read_bytes())

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": "error",
            "PYTHONPATH": str(ROOT),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.warm_program"],
            cwd="/", env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self._answer(60) == b"ready"
        return self._process

    def _answer(self, seconds: float) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if not ready:
            self.close()
            pytest.fail(f"the program did not end within {seconds} s")
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        """End the process and what it has forked."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


class Cli:
    """Runs the program."""

    def __init__(self, directory: Path, warm: Optional[WarmProgram] = None) -> None:
        self._directory = directory
        self._warm = warm
        self.directory = directory / "work"
        home = directory / "home"
        self.directory.mkdir()
        home.mkdir()
        self.environment: Dict[str, str] = {
            "HOME": str(home),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "PYTHONWARNINGS": "error",
        }
        self.url: Optional[str] = None

    def __call__(
        self, *arguments: Any, code: Optional[int] = 0, stdin: bytes = b"", **environment: str
    ) -> Result:
        command, given = self.command(*arguments), {**self.environment, **environment}
        if self._warm is not None and not _READ_AT_IMPORT & given.keys():
            result = self._warm.run(self._directory, command, stdin, given)
        else:
            done = subprocess.run(
                command,
                input=stdin,
                capture_output=True,
                cwd=self.directory,
                env=given,
                timeout=90,
                check=False,
            )
            result = Result(done.returncode, done.stdout, done.stderr)
        assert code is None or result.code == code, result
        assert "Traceback" not in result.stderr or "--debug" in arguments, result
        return result

    def command(self, *arguments: Any) -> List[str]:
        """The words of the command."""
        url = [] if self.url is None else ["--url", self.url]
        return [str(PROGRAM), *url, *map(str, arguments)]

    def patient(self, *arguments: Any) -> List[str]:
        """The same for a worker that has its time to give back what it holds, beyond what is promised, on a slow disk."""
        return [sys.executable, "-c", _PATIENT, *self.command(*arguments)[1:]]

    def write(self, name: str, *records: Any) -> Path:
        """Write JSON lines to a file in the working directory; a text is written as it is."""
        path = self.directory / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


@pytest.fixture(scope="session")
def _warm_program() -> Iterator[WarmProgram]:
    program = WarmProgram()
    yield program
    program.close()


@pytest.fixture
def warm(_warm_program: WarmProgram) -> Optional[WarmProgram]:
    """What runs the program without importing it anew; None: each run is a new process."""
    return _warm_program


@pytest.fixture
def cli(tmp_path: Path, warm: Optional[WarmProgram]) -> Cli:
    return Cli(tmp_path, warm)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def cli_on(request: pytest.FixtureRequest, cli: Cli, databases: Any) -> Cli:
    """The program on a database of each kind that outlives a process."""
    cli.url = databases.url(request.param, migrated=True)
    return cli

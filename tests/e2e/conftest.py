"""The installed `atlas-storage` as a user has it: a process in an empty directory with an empty home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

PROGRAM = Path(sys.executable).with_name("atlas-storage")


class Result:
    """What a run gave."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.stdout = done.stdout.decode()
        self.stderr = done.stderr.decode()

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


class Cli:
    """Runs the program."""

    def __init__(self, directory: Path) -> None:
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
        done = subprocess.run(
            self.command(*arguments),
            input=stdin,
            capture_output=True,
            cwd=self.directory,
            env={**self.environment, **environment},
            timeout=90,
            check=False,
        )
        result = Result(done)
        assert code is None or result.code == code, result
        assert "Traceback" not in result.stderr or "--debug" in arguments, result
        return result

    def command(self, *arguments: Any) -> List[str]:
        """The words of the command."""
        url = [] if self.url is None else ["--url", self.url]
        return [str(PROGRAM), *url, *map(str, arguments)]

    def write(self, name: str, *records: Any) -> Path:
        """Write JSON lines to a file in the working directory; a text is written as it is."""
        path = self.directory / name
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def cli_on(request: pytest.FixtureRequest, cli: Cli, databases: Any) -> Cli:
    """The program on a database of each kind that outlives a process."""
    cli.url = databases.url(request.param)
    return cli

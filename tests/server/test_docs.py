"""docs/http-api.md: its examples run, its table of errors is the code's."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, List, Set, Type

import pytest

import modules.Server.problems as problems
from modules.store_common.errors import StorageError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "http-api.md"
ROOMS = (
    "store_common",
    "access_store",
    "conversation_store",
    "task_store",
    "job_store",
    "Tools",
    "storage.vectors",
)


def errors() -> List[Type[StorageError]]:
    """Return the public error classes of the stores, but those that only tell of a failed installation."""
    root = PAGE.parents[1] / "modules"
    for room in ROOMS:
        for found in pkgutil.walk_packages([str(root / room.replace(".", "/"))], f"modules.{room}."):
            if found.name.endswith("errors"):
                importlib.import_module(found.name)
    seen: Set[Type[StorageError]] = set()
    waiting: List[Type[StorageError]] = [StorageError]
    while waiting:
        kind = waiting.pop()
        if kind not in seen and kind.__module__.startswith("modules."):
            seen.add(kind)
            waiting.extend(kind.__subclasses__())
    shown = (
        k
        for k in seen
        if k.__module__.startswith(tuple(f"modules.{r}" for r in ROOMS)) and k.__name__[0] != "_"
    )
    return sorted(
        (k for k in shown if k.__module__.endswith("errors") and problems.status_of(k) != 500),
        key=lambda k: (problems.status_of(k), problems.code_of(k)),
    )


def table() -> List[str]:
    lines = ["| status | code | meaning |", "|---|---|---|"]
    for kind in errors():
        meaning = " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())
        lines.append(f"| {problems.status_of(kind)} | `{problems.code_of(kind)}` | {meaning} |")
    return lines


def test_the_table_of_errors_is_the_code_s() -> None:
    written = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| \d{3} \| `", line)
    ]
    codes = {line.split("`")[1] for line in written}

    assert len(codes) > 40
    missing = [line for line in table()[2:] if line not in written]
    assert not missing, (
        "docs/http-api.md lacks these; print the table with python -m tests.server.test_docs:\n"
        + "\n".join(missing)
    )


def examples() -> Iterator[str]:
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        yield from (part.strip() for part in block.split("\n\n") if part.lstrip().startswith("curl"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_example_works(live: Any) -> None:
    environment = {**os.environ, "API": live.url, "TOKEN": live.token("admin"), "NO_PROXY": "*"}
    ran = 0
    for example in examples():
        is_stream = "--max-time" in example
        for _ in range(10):  # a stream has begun within its time, unless the machine stood
            done = subprocess.run(
                ["sh", "-c", example],
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if done.stdout or not is_stream:
                break
        assert done.returncode in ((0, 28) if is_stream else (0,)), (example, done.stderr)
        assert done.stdout.strip() or "-X DELETE" in example, example
        assert "urn:atlas-storage:problem" not in done.stdout, (example, done.stdout)
        ran += 1

    assert ran > 15


if __name__ == "__main__":
    print("\n".join(table()))

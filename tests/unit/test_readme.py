"""The README: its example runs, is the one in examples/, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _examples() -> List[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def _run(example: str, directory: Path) -> List[str]:
    (directory / "example.py").write_text(example, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
    run = subprocess.run(
        [sys.executable, "example.py"],
        cwd=directory,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_the_examples_are_the_files_in_examples() -> None:
    files = [(ROOT / "examples" / name).read_text(encoding="utf-8") for name in ("quickstart.py", "jobs.py")]

    assert len(_examples()) == len(files)
    for example, file in zip(_examples(), files):
        assert example.strip() in file


def test_the_first_example_runs_in_an_empty_directory(tmp_path: Path) -> None:
    lines = _run(_examples()[0], tmp_path)

    assert lines[:2] == ["user - Find me a quiet hotel.", "assistant - How about Alfama?"]
    assert lines[2].startswith("found: ")
    assert "hotel" in lines[2]
    assert lines[-1] == "{'hotel': 'Alfama', 'nights': 3}"
    assert (tmp_path / ".atlas" / "storage.sqlite3").exists()


def test_the_job_of_the_second_example_is_run(tmp_path: Path) -> None:
    assert _run(_examples()[1], tmp_path) == ["to ada@example.org attempt 1"]


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing, f"the README links to files that do not exist: {missing}"

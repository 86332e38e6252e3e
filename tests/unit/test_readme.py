"""The README: its example runs, is the one in examples/, and its links lead somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _example() -> str:
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None, "the README has no Python example"
    return found.group(1)


def test_the_example_is_the_file_in_examples() -> None:
    assert _example().strip() in (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")


def test_the_example_runs_in_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(_example(), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ATLAS_")}
    run = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[:2] == ["user - Find me a quiet hotel.", "assistant - How about Alfama?"]
    assert lines[2].startswith("found: ")
    assert "hotel" in lines[2]
    assert lines[-1] == "{'hotel': 'Alfama', 'nights': 3}"
    assert (tmp_path / ".atlas" / "storage.sqlite3").exists()


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert not missing, f"the README links to files that do not exist: {missing}"

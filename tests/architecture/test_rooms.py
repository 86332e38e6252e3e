"""Who may import whom: the contracts hold, every file has a row in them, and they can fail."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest

from . import sources
from .sources import ROOT, product

trees_are_let_go = sources.trees_are_let_go

pytest.importorskip("importlinter", reason="import-linter is not installed (it needs Python 3.10+)")

# Files that stand in no row, each with the reason.
OUTSIDE_THE_ROWS = {
    "modules.storage": "the public face: loads every room at first use; nothing below the callers may import it",
}

# The rows that may import the face `modules.storage`: callers, and what the face itself hands out.
MAY_USE_THE_FACE = re.compile(
    r"(ATLAS|modules\.Server|modules\.orchestration|modules\.storage\.(cli|commands))(\..*)?$"
)


def _contracts() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read_string((ROOT / ".importlinter").read_text(encoding="utf-8"))
    return config


def _rows() -> List[str]:
    return re.findall(r"[\w.]+", _contracts()["importlinter:contract:rows"]["layers"])


def _lint(directory: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", ".importlinter"]
    environment = {**os.environ, "PYTHONPATH": str(directory)}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_import_contracts_hold() -> None:
    result = _lint(ROOT)

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_file_has_a_row() -> None:
    rows = _rows()
    homeless = [
        source.module
        for source in product()
        if source.module not in OUTSIDE_THE_ROWS
        and not any(source.module == row or source.module.startswith(f"{row}.") for row in rows)
    ]

    assert not homeless, f"give these a row in .importlinter, contract 'rows': {homeless}"


def test_every_top_level_package_is_analysed() -> None:
    roots = _contracts()["importlinter"]["root_packages"].split()
    present = [name for name in ("modules", "ATLAS") if list((ROOT / name).rglob("*.py"))]

    assert sorted(present) == sorted(roots), "keep root_packages in .importlinter equal to what exists"


def test_lower_rooms_do_not_import_the_public_face() -> None:
    users = [
        f"{source.path}:{node.lineno}"
        for source in product()
        if source.module not in OUTSIDE_THE_ROWS and not MAY_USE_THE_FACE.match(source.module)
        for node in ast.walk(source.tree)
        if _imports_the_face(node)
    ]

    assert not users, f"import the room itself, not modules.storage: {users}"


def _imports_the_face(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name == "modules.storage" for alias in node.names)
    if isinstance(node, ast.ImportFrom) and node.module == "modules.storage" and not node.level:
        rooms = {p.stem for p in (ROOT / "modules" / "storage").iterdir()}
        return any(alias.name not in rooms for alias in node.names)
    return False


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("store_common/ids.py", "import sandbox.storage.statements"),
        ("store_common/ids.py", "import sqlalchemy"),
        ("storage/statements.py", "from sandbox.storage.backends import sqlite"),
        ("storage/pool.py", "import sandbox.conversation_store.models"),
        ("storage/pool.py", "import sandbox.storage.manager"),
        ("conversation_store/models.py", "def late():\n    import sandbox.storage.backends.sqlite"),
        ("conversation_store/models.py", "import sandbox.task_store.models"),
        ("conversation_store/models.py", "import asyncpg"),
        ("storage/manager.py", "import sandbox.Server.app"),
        ("storage/cli.py", "import sandbox.storage.pool"),
        ("Server/app.py", "import sandbox.storage.backends.sqlite"),
    ],
)
def test_a_forbidden_import_is_seen(tmp_path: Path, room: str, line: str) -> None:
    tree = tmp_path / "sandbox"
    for name in (
        "store_common/ids.py",
        "storage/statements.py",
        "storage/settings.py",
        "storage/pool.py",
        "storage/manager.py",
        "storage/cli.py",
        "storage/backends/sqlite.py",
        "conversation_store/models.py",
        "task_store/models.py",
        "Server/app.py",
    ):
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.touch()
    (tree / room).write_text(line + "\n", encoding="utf-8")
    rules = (ROOT / ".importlinter").read_text(encoding="utf-8")
    rules = rules.replace("modules", "sandbox").replace("source_sandbox", "source_modules")
    rules = rules.replace("forbidden_sandbox", "forbidden_modules").replace("    ATLAS\n", "")
    (tmp_path / ".importlinter").write_text(rules, encoding="utf-8")

    result = _lint(tmp_path)

    assert result.returncode == 1, result.stdout + result.stderr
    assert "BROKEN" in result.stdout

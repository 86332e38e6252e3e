"""What ``import modules.storage`` costs: no driver, no SQLAlchemy, and little time."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import List

import pytest

import modules.storage

from .sources import ROOT

HEAVY = [
    "sqlalchemy",
    "alembic",
    "asyncpg",
    "psycopg",
    "pymongo",
    "chromadb",
    "pinecone",
    "fastapi",
    "typer",
    "rich",
]

TIMED = "import sys, time; s = time.perf_counter(); import {name}; print(time.perf_counter() - s)"


def _python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("name", ["modules.storage", "modules.store_common"])
def test_importing_loads_no_driver(name: str) -> None:
    loaded = json.loads(_python(f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"))

    assert name in loaded
    assert not sorted(set(HEAVY) & set(loaded))


def test_importing_costs_at_most_one_and_a_half_pydantics() -> None:
    _python("import pydantic, modules.storage")  # both have their bytecode now
    ours: List[float] = []
    theirs: List[float] = []
    for _ in range(7):  # taken in turns, so that a busy moment hits both
        ours.append(float(_python(TIMED.format(name="modules.storage"))))
        theirs.append(float(_python(TIMED.format(name="pydantic"))))

    assert statistics.median(ours) <= 1.5 * statistics.median(theirs)


def test_every_public_name_can_be_loaded() -> None:
    missing = [name for name in modules.storage.__all__ if not hasattr(modules.storage, name)]

    assert not missing
    assert set(modules.storage.__all__) <= set(dir(modules.storage))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        modules.storage.no_such_name  # noqa: B018

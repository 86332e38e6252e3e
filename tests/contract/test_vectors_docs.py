"""The examples of docs/vectors.md run, and the provider that it shows keeps the contract."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any, List

import pytest

from modules.storage.vectors import registry
from modules.storage.vectors.testing import VectorProviderContract

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vectors.md"


def blocks() -> List[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def run(text: str) -> types.ModuleType:
    made = types.ModuleType("docs_vectors")
    exec(compile(text, str(PAGE), "exec"), made.__dict__)
    return made


@pytest.fixture(scope="module")
def shelf() -> Any:
    (text,) = [block for block in blocks() if "class ShelfProvider" in block]
    yield run(text).ShelfProvider
    registry._registered.pop("shelf", None)


def test_the_first_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = [block for block in blocks() if "asyncio.run" in block]
    run(text)
    assert capsys.readouterr().out == "[('a', 0.976)]\n"
    assert sys.modules.get("docs_vectors") is None


def test_every_block_is_looked_at() -> None:
    assert len(blocks()) == 3


class TestShelf(VectorProviderContract):
    fuzz = 100
    odd_names = 80

    @pytest.fixture
    def make_provider(self, shelf: Any) -> Any:
        return lambda tenancy=None: shelf(tenancy=tenancy)

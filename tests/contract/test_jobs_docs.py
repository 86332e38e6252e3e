"""The examples of docs/jobs.md run and print what the page says."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import List

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jobs.md"
PRINTS = [
    "['mail.send', 'thumb.make', 'thumb.make', 'thumb.make']\n[] succeeded\n1 succeeded {'sent': True}\n",
    "frozenset({'jobs:default'})\n",
]


def blocks() -> List[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(PRINTS)))
def test_the_example_runs(capsys: pytest.CaptureFixture[str], number: int) -> None:
    exec(compile(blocks()[number], str(PAGE), "exec"), types.ModuleType("docs_jobs").__dict__)

    assert capsys.readouterr().out == PRINTS[number]


def test_every_block_is_looked_at() -> None:
    assert len(blocks()) == len(PRINTS)

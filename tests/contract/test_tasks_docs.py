"""The examples of docs/tasks.md run and print what they must, and its table names every public method."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import List

import pytest

from modules.task_store.models import EVENT_TYPES
from modules.task_store.repository import TaskStore

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tasks.md"
TEXT = PAGE.read_text(encoding="utf-8")
PRINTED = [
    [
        "waits for 1 task",
        "['Review the report']",
        "{'draft': 0, 'ready': 1, 'in_progress': 0, 'review': 0, 'done': 1, 'cancelled': 0}",
    ],
    ["call 1 created", "call 2 status_changed"],
]


def blocks() -> List[str]:
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("number", range(len(PRINTED)))
def test_the_example_prints(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(blocks()[number], str(PAGE), "exec"), types.ModuleType("docs_tasks").__dict__)
    assert capsys.readouterr().out.splitlines() == PRINTED[number]


def test_every_block_is_looked_at() -> None:
    assert len(blocks()) == len(PRINTED)


def test_every_method_and_event_is_named() -> None:
    methods = {name for name, _ in inspect.getmembers(TaskStore, inspect.isfunction) if name[0] != "_"}
    assert {name for name in methods - {"rebuild_search"} if f"`{name}(" not in TEXT} == set()
    assert {name for name in EVENT_TYPES if f"| `{name}` |" not in TEXT} == set()

"""`atlas-storage tasks`: what people type, right and wrong.

One test starts processes, as every command does in `test_cli`; the others call the program's entry in this process.
"""

from __future__ import annotations

import json
import signal
from typing import Any, List

import pytest

from modules.storage.cli import main


class Here:
    """The program without a process of its own; answers as `tests.e2e.conftest.Cli` does."""

    def __init__(self, url: str, capsys: Any) -> None:
        self._url = url
        self._capsys = capsys

    def __call__(self, *arguments: Any, code: int = 0) -> Here:
        handler = signal.getsignal(signal.SIGINT)
        try:
            self.code = main(["--url", self._url, *map(str, arguments)])
        finally:
            signal.signal(signal.SIGINT, handler)
        self.stdout, self.stderr = self._capsys.readouterr()
        assert self.code == code, (self.code, self.stdout, self.stderr)
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)

    @property
    def lines(self) -> List[Any]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def test_in_processes(cli: Any) -> None:
    made = cli("tasks", "create", "Write it", "--id", "w").stdout
    assert made == "w\n"
    assert "'draft' to 'done'" in cli("tasks", "move", "w", "done", code=1).stderr
    assert cli("tasks", "move", "w", "ready").stdout == "w is ready, version 2.\n"
    assert "Write it" in cli("tasks", "ready").stdout


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def on_both(request: Any, databases: Any, capsys: Any) -> Here:
    return Here(databases.url(request.param, migrated=True), capsys)


def test_a_task_from_beginning_to_end(on_both: Here) -> None:
    cli = on_both
    first = cli(
        "tasks", "create", "Write it", "--priority", 3, "--tag", "doc", "--due", "2030-01-31"
    ).stdout.strip()
    cli("tasks", "create", "Read it", "--id", "r", "--after", first, "--owner", "ann")

    listed = cli("tasks", "list", "--json").lines
    assert [(item["title"], item["open_dependencies"]) for item in listed] == [
        ("Write it", 0),
        ("Read it", 1),
    ]
    assert [item["id"] for item in cli("tasks", "list", "--tag", "doc", "--json").lines] == [first]
    assert [
        item["id"] for item in cli("tasks", "list", "--due-before", "2031-01-01T00:00:00Z", "--json").lines
    ] == [first]

    refused = cli("tasks", "move", "r", "ready", code=1)
    assert "depends on" in refused.stderr
    assert first in refused.stderr
    assert "Traceback" not in refused.stderr
    for status in ("ready", "in_progress", "review", "done"):
        moved = cli("tasks", "move", first, status, "--by", "bob", "--json").json
        assert moved["status"] == status
    assert "'done' to 'draft'" in cli("tasks", "move", first, "draft", code=1).stderr
    cli("tasks", "move", "r", "ready", "--reason", "it is written")
    assert [item["id"] for item in cli("tasks", "ready", "--json").lines] == ["r"]
    cli("tasks", "comment", "r", "looks", "good", "--by", "ann")

    shown = cli("tasks", "show", "r", "--json").json
    assert shown["task"]["status"] == "ready"
    assert [event["type"] for event in shown["events"]] == ["created", "status_changed", "comment"]
    assert shown["dependencies"][0]["is_met"] is True
    text = cli("tasks", "show", "r").stdout
    assert "Read it" in text
    assert "looks good" in text
    assert [hit["task"]["id"] for hit in cli("tasks", "search", "reading", "--json").lines] == ["r"]
    assert "Write it" in cli("tasks", "list", "--status", "all").stdout
    assert "Write it" not in cli("tasks", "list").stdout
    assert cli("health", "--json").json["components"]["task_store"]["details"]["by_status"]["done"] == 1


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["show", "nothing"], 1, "no task 'nothing'"),
        (["move", "nothing", "ready"], 1, "no task 'nothing'"),
        (["move", "a", "finished"], 2, "status must be one of draft, ready"),
        (["move", "a"], 2, "STATUS"),
        (["move", "a", "done"], 1, "'draft' to 'done'"),
        (["list", "--status", "gone"], 2, "status must be one of"),
        (["list", "--order", "size"], 2, "order must be one of"),
        (["list", "--due-before", "tomorrow"], 2, "--due-before must be a time"),
        (["list", "--limit", "0"], 2, "limit"),
        (["create", " "], 2, "must not be blank"),
        (["create", "x", "--status", "done"], 2, "must be draft or ready"),
        (["create", "x", "--id", "a"], 1, "exists already"),
        (["create", "x", "--after", "nothing"], 1, "no task 'nothing'"),
        (["create", "x", "--due", "2030-02-31"], 2, "--due must be a time"),
        (["create", "x", "--priority", "high"], 2, "priority"),
        (["comment", "a", " "], 2, "must not be blank"),
        (["depend", "a", "a"], 1, "cannot depend on itself"),
        (["depend", "a", "b", "--remove"], 1, "does not depend on"),
        (["search", "x", "--status", "gone"], 2, "status must be one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_told_in_a_line(tasks_cli: Here, words: Any, code: int, says: str) -> None:
    result = tasks_cli("tasks", *words, code=code)
    assert says in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert result.stdout == ""


@pytest.fixture
def tasks_cli(databases: Any, capsys: Any) -> Here:
    """A database with the tasks a and b."""
    cli = Here(databases.url("sqlite", migrated=True), capsys)
    for name in ("a", "b"):
        cli("tasks", "create", name, "--id", name)
    return cli


def test_links(tasks_cli: Here) -> None:
    assert tasks_cli("tasks", "depend", "b", "a", "--json").json["changed"] is True
    assert "circle" in tasks_cli("tasks", "depend", "a", "b", code=1).stderr
    assert "waits for a" in tasks_cli("tasks", "depend", "b", "a").stdout
    assert "no longer waits" in tasks_cli("tasks", "depend", "b", "a", "--remove").stdout
    once = [tasks_cli("tasks", "create", "once", "--key", "k", "--json").json["id"] for _ in range(2)]
    assert once[0] == once[1]
    assert "Nothing found" in tasks_cli("tasks", "search", "zebra").stdout


def test_tenants_see_their_own(tasks_cli: Here) -> None:
    assert tasks_cli("--tenant", "other", "tasks", "list", "--status", "all", "--json").lines == []
    tasks_cli("--tenant", "other", "tasks", "show", "a", code=1)

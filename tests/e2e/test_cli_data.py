"""Data in and out on the command line: every format, resuming, bad lines, round trips, back-ups, pruning."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path
from typing import Any, Dict, List

import pytest

LOCOMO = Path(__file__).resolve().parents[3] / "shared" / "data" / "locomo_conversations.jsonl"
OURS = {
    "id": "c1",
    "title": "First",
    "created_at": "2024-05-01T10:00:00Z",
    "messages": [
        {
            "id": "m1",
            "role": "user",
            "name": "Ada",
            "content": "The lighthouse is dark",
            "created_at": "2024-05-01T10:00:00Z",
        },
        {
            "id": "m2",
            "role": "assistant",
            "content": "Since when?",
            "parent_id": "m1",
            "metadata": {"model": "x"},
        },
    ],
}
CHAT = {
    "messages": [{"role": "user", "content": "What is a WAL?"}, {"role": "assistant", "content": "A log."}]
}
SHAREGPT = {
    "id": "s1",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}
CHATGPT = {
    "conversation_id": "g1",
    "title": "Branches",
    "create_time": 1700000000.0,
    "current_node": "b",
    "mapping": {
        "root": {"id": "root", "message": None, "parent": None, "children": ["a", "b"]},
        "a": {
            "id": "a",
            "parent": "root",
            "message": {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["one"]}, "create_time": 1.0},
        },
        "b": {
            "id": "b",
            "parent": "a",
            "message": {"author": {"role": "assistant"}, "content": {"content_type": "text", "parts": ["two"]}},
        },
    },
}  # fmt: skip


@pytest.mark.skipif(not LOCOMO.exists(), reason="the shared data is not on this machine")
def test_the_long_conversations_import_twice_with_one_effect(cli_on: Any) -> None:
    first = cli_on("import", LOCOMO, "--json").json
    again = cli_on("import", LOCOMO, "--json").json

    assert (first["conversations_added"], first["messages_added"]) == (6, 3453)
    assert (again["conversations_added"], again["messages_added"]) == (0, 0)
    assert again["messages_seen"] == 3453
    listed = cli_on("conversations", "list", "--json").lines
    assert sum(item["last_sequence"] for item in listed) == 3453
    hits = cli_on("search", "When did Caroline go to the support group?", "--json").lines
    assert "D1:3" in [hit["message"]["id"] for hit in hits]


@pytest.mark.parametrize(
    ("content", "formats", "messages"),
    [
        (json.dumps(OURS), ["messages"], 2),
        (json.dumps(CHAT), ["messages"], 2),
        (json.dumps(SHAREGPT), ["sharegpt"], 2),
        (json.dumps([SHAREGPT], indent=2), ["sharegpt"], 2),
        (json.dumps([CHATGPT]), ["chatgpt"], 2),
        ("\n".join(map(json.dumps, [OURS, CHAT, SHAREGPT, CHATGPT])), ["chatgpt", "messages", "sharegpt"], 8),
    ],
    ids=["ours", "openai", "sharegpt", "sharegpt-array", "chatgpt", "mixed"],
)
def test_formats_are_found_by_looking(cli: Any, content: str, formats: List[str], messages: int) -> None:
    cli.write("data.bin", content)
    report = cli("import", "data.bin", "--json").json

    assert (report["formats"], report["messages_added"], report["bad"]) == (formats, messages, [])
    assert cli("import", "data.bin", "--json").json["messages_added"] == 0


def test_what_was_imported_can_be_read(cli_on: Any) -> None:
    cli_on.write("x.json", json.dumps([OURS, CHATGPT]))
    cli_on("import", "x.json")
    head, *messages = cli_on("conversations", "show", "c1", "--json").lines
    branch = cli_on("conversations", "show", "g1", "--json").lines

    assert (head["kind"], head["title"], head["created_at"]) == (
        "conversation",
        "First",
        "2024-05-01T10:00:00+00:00",
    )
    assert [(item["id"], item["parent_id"], item["name"]) for item in messages] == [
        ("m1", None, "Ada"),
        ("m2", "m1", None),
    ]
    assert messages[1]["metadata"] == {"model": "x"}
    assert messages[0]["created_at"] == "2024-05-01T10:00:00+00:00"
    assert [(item["id"], item["parent_id"]) for item in branch[1:]] == [("a", None), ("b", "a")]
    assert branch[0]["metadata"]["current_message_id"] == "b"
    assert [hit["message"]["id"] for hit in cli_on("search", "lighthouse", "--json").lines] == ["m1"]
    shown = cli_on("conversations", "show", "c1", "--last", "1").stdout
    assert "Since when?" in shown
    assert "lighthouse" not in shown


def test_bad_lines_are_told_and_the_rest_goes_on(cli: Any) -> None:
    too_big = {"id": "big", "messages": [{"id": "m", "role": "user", "content": 2**64 - 1}]}
    cli.write("x.jsonl", OURS, "{broken", {"messages": [{"role": "robot", "content": ""}]}, too_big, CHAT)
    told = cli("import", "x.jsonl", code=1)
    report = cli("import", "x.jsonl", "--json", code=1)

    assert [line.split(": ")[1] for line in told.stderr.splitlines()] == ["line 2", "line 3", "line 4"]
    assert "64 signed bits" in told.stderr.splitlines()[2]
    assert "added 2 conversations and 4 messages; left out 3 bad records" in told.stdout
    assert (report.json["bad_count"], report.json["messages_added"]) == (3, 0)
    assert [item["line"] for item in report.json["bad"]] == [2, 3, 4]


def test_a_file_that_grew_adds_only_the_new(cli: Any) -> None:
    cli.write("x.jsonl", OURS)
    cli("import", "x.jsonl")
    longer = {**OURS, "messages": [*OURS["messages"], {"id": "m3", "role": "user", "content": "more"}]}  # type: ignore[misc]
    cli.write("x.jsonl", CHAT, longer)
    report = cli("import", "x.jsonl", "--json").json

    assert (report["conversations_added"], report["messages_added"]) == (1, 3)


def test_an_import_that_was_killed_is_finished_by_running_it_again(cli: Any) -> None:
    content = [{"id": f"m{n}", "role": "user", "content": f"message {n} " + "x" * 1000} for n in range(3000)]
    path = cli.write("x.jsonl", *[{"id": f"c{n}", "messages": content} for n in range(3)])
    pipe = cli.directory / "pipe"
    os.mkfifo(pipe)
    data = path.read_bytes()
    child = subprocess.Popen(cli.command("import", "pipe"), cwd=cli.directory, env=cli.environment)
    with child, pipe.open("wb", buffering=0) as writer:
        # More than the pipe and the reader's buffer hold: when it is taken, the first conversation is stored.
        writer.write(data[: len(data) // 3 + 2 * 1024 * 1024])
        child.kill()
        child.wait()
    left = cli("conversations", "list", "--json").lines
    assert [(item["id"], item["last_sequence"]) for item in left] == [("c0", 3000)]
    report = cli("import", "x.jsonl", "--json").json

    assert report["messages_seen"] == 9000
    assert (report["bad_count"], report["messages_added"]) == (0, 6000)
    listed = cli("conversations", "list", "--json").lines
    assert sorted((item["id"], item["last_sequence"]) for item in listed) == [
        ("c0", 3000),
        ("c1", 3000),
        ("c2", 3000),
    ]
    with sqlite3.connect(cli.directory / ".atlas" / "storage.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def _body(path: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def test_an_export_comes_back_identical(cli_on: Any) -> None:
    cli = cli_on
    cli.write("x.json", json.dumps([OURS, CHATGPT, SHAREGPT]))
    cli("import", "x.json")
    cli("kv", "set", "n", "doc", '{"a": [1, 2.5, null, "\\u0000"]}')
    cli("kv", "set", "other", "text", "words")
    first = cli("export", "one.jsonl", "--json").json
    assert (first["conversations"], first["messages"], first["keys"]) == (3, 6, 2)

    into = ["--url", "sqlite:///copy.sqlite3"]
    back = cli("import", "one.jsonl", *into, "--json").json
    cli("export", "two.jsonl", *into)

    assert (back["formats"], back["messages_added"], back["keys_added"], back["bad_count"]) == (
        ["atlas"],
        6,
        2,
        0,
    )
    assert _body(cli.directory / "one.jsonl") == _body(cli.directory / "two.jsonl")
    assert cli("import", "one.jsonl", *into, "--json").json["messages_added"] == 0
    assert (cli.directory / "one.jsonl").stat().st_mode & 0o077 == 0


def test_an_export_belongs_to_one_tenant(cli: Any) -> None:
    cli.write("x.jsonl", OURS)
    cli("import", "x.jsonl", "--tenant", "acme")
    cli("kv", "set", "n", "k", "1", "--tenant", "acme")

    assert cli("export", "none.jsonl", "--json").json["messages"] == 0
    assert cli("export", "acme.jsonl", "--tenant", "acme", "--json").json["keys"] == 1
    header = json.loads((cli.directory / "acme.jsonl").read_text().splitlines()[0])
    assert (header["atlas_export"], header["tenant_id"]) == (1, "acme")


def test_an_export_that_was_cut_short_is_noticed(cli: Any) -> None:
    cli.write("x.jsonl", OURS)
    cli("import", "x.jsonl")
    cli("export", "whole.jsonl")
    lines = (cli.directory / "whole.jsonl").read_text().splitlines()
    cli.write("cut.jsonl", *lines[:-1])
    cli.write("newer.jsonl", '{"atlas_export": 2}')
    cli.write("mangled.jsonl", lines[0], '{"message": {}}', '{"key": 3}', *lines[1:])

    assert "ends without its footer" in cli("import", "cut.jsonl", code=1).stderr
    assert "newer release" in cli("import", "newer.jsonl", code=2).stderr
    result = cli("import", "mangled.jsonl", "--url", "sqlite:///m.sqlite3", code=1)
    assert ["line 2" in result.stderr, "line 3" in result.stderr] == [True, True]
    assert "added 1 conversations and 2 messages" in result.stdout


def test_a_failed_export_leaves_the_old_file(cli: Any) -> None:
    cli("init")
    target = cli.directory / "out.jsonl"
    target.write_text("old")
    result = cli("export", "/dev/full", code=2)
    missing = cli("export", "no/such/place.jsonl", code=1)

    assert "no regular file" in result.stderr
    assert "cannot be written" in missing.stderr
    assert target.read_text() == "old"
    assert [path.name for path in cli.directory.iterdir() if path.name != ".atlas"] == ["out.jsonl"]


def test_a_backup_is_a_whole_database(cli: Any) -> None:
    cli.write("x.jsonl", OURS)
    cli("import", "x.jsonl")
    report = cli("backup", "copy.sqlite3", "--json").json
    cli("backup", "copy.sqlite3")

    assert report["size_bytes"] == (cli.directory / "copy.sqlite3").stat().st_size
    listed = cli("conversations", "list", "--json", "--url", "sqlite:///copy.sqlite3").lines
    assert [item["id"] for item in listed] == ["c1"]
    assert "is the database itself" in cli("backup", ".atlas/storage.sqlite3", code=2).stderr


def test_prune_applies_the_configured_rules(cli_on: Any) -> None:
    content = [{"id": f"m{n}", "role": "user", "content": "x"} for n in range(10)]
    cli_on.write("x.jsonl", {"id": "c", "messages": content})
    cli_on("import", "x.jsonl")
    cli_on("import", "x.jsonl", "--tenant", "other")

    assert not any(cli_on("prune", "--json").json.values())
    rules = {"ATLAS_RETENTION_CONVERSATION_HISTORY_LIMIT": "4"}
    assert cli_on("prune", "--json", "--tenant", "other", **rules).json["messages_deleted"] in (0, 6)
    cli_on("prune", **rules)
    for tenant in ("default", "other"):
        shown = cli_on("conversations", "show", "c", "--json", "--tenant", tenant).lines
        assert [item["id"] for item in shown[1:]] == ["m6", "m7", "m8", "m9"]

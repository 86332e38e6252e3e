"""`atlas-storage jobs ...` as a user has it, with wrong input too."""

from __future__ import annotations

from typing import Any

import pytest


def test_jobs_are_enqueued_and_shown(cli_on: Any) -> None:
    cli = cli_on
    made = cli(
        "jobs", "enqueue", "mail.send", '{"to": "ada"}', "--name", "welcome", "--priority", "3", "--json"
    ).json
    again = cli("jobs", "enqueue", "h", "-", "--key", "k", stdin=b'{"n": 1}').stdout.strip()
    assert "another body" in cli("jobs", "enqueue", "h", "2", "--key", "k", code=1).stderr

    assert [job["id"] for job in cli("jobs", "list", "--json").lines] == [again, made["id"]]
    shown = cli("jobs", "show", "welcome", "--json").json
    assert (shown["payload"], shown["priority"], shown["status"]) == ({"to": "ada"}, 3, "scheduled")
    assert [event["type"] for event in shown["events"]] == ["created"]
    assert "created" in cli("jobs", "show", made["id"]).stdout


def test_jobs_are_cancelled_and_run_again(cli: Any) -> None:
    cli("jobs", "enqueue", "h", "--name", "n")
    assert cli("jobs", "cancel", "n", "--reason", "no need", "--json").json["status"] == "cancelled"
    assert "is cancelled and cannot become cancelled" in cli("jobs", "cancel", "n", code=1).stderr
    assert cli("jobs", "retry", "n", "--json").json == {"retried": 1}
    assert cli("jobs", "retry", "--all-dead", "--json").json == {"retried": 0}
    assert cli("jobs", "dead", "--json").lines == []
    stats = cli("jobs", "stats", "--json").json
    assert (stats["jobs"]["scheduled"], stats["queues"][0]["queue"]) == (1, "default")
    assert "default" in cli("jobs", "stats").stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["show", "nope"], 1, "there is no job 'nope'"),
        (["cancel", "nope"], 1, "there is no job 'nope'"),
        (["list", "--status", "dead"], 2, "a status is one of"),
        (["list", "--limit", "0"], 2, "--limit"),
        (["enqueue", "h", "--priority", "1000"], 2, "priority"),
        (["enqueue", "h", "--at", "tomorrow"], 2, "--at"),
        (["enqueue", "h", "--at", "2030-01-01T00:00:00"], 2, "time zone"),
        (["enqueue", " "], 2, "handler"),
        (["retry"], 2, "--all-dead"),
        (["retry", "x", "--all-dead"], 2, "--all-dead"),
        (["retry", "x", "--queue", "q"], 2, "--all-dead"),
    ],
)
def test_wrong_input_is_one_line(cli: Any, words: Any, code: int, said: str) -> None:
    result = cli("jobs", *words, code=code)

    assert said in result.stderr
    assert result.stderr.startswith("error:")
    assert result.stderr.count("\n") == 1

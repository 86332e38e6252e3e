"""`health` and `doctor` with a database that is there, behind, from the future, damaged and away; `demo`."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, Dict, List

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "modules" / "storage" / "data" / "sample_conversations.jsonl"
AWAY = "postgresql://somebody:hunter2@127.0.0.1:1/nowhere"


def sample() -> List[Dict[str, Any]]:
    return [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("command", ["health", "doctor"])
def test_a_database_that_is_away_is_told(cli: Any, command: str) -> None:
    pytest.importorskip("asyncpg")
    people = cli("--url", AWAY, command, code=1)
    programs = cli("--url", AWAY, command, "--json", code=1)

    assert people.stderr == programs.stderr == ""
    assert "unhealthy" in people.stdout or "problem" in people.stdout
    assert "hunter2" not in people.stdout + programs.stdout
    json.loads(programs.stdout)


def test_health_of_a_good_database(cli: Any) -> None:
    cli("init")
    found = cli("health", "--json").json

    assert found["overall"] == "healthy"
    assert set(found["components"]) >= {"sql", "conversation_store", "kv_store"}
    assert "healthy" in cli("health").stdout


def test_health_of_a_database_that_is_behind_or_ahead(cli: Any) -> None:
    path = cli.directory / "x.sqlite3"
    cli.url = f"sqlite:///{path}"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (id INTEGER)")
    connection.close()
    assert "atlas-storage migrate" in cli("health", code=1).stdout

    cli("migrate")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE atlas_alembic_version SET version_num = '9999'")
    connection.close()
    for command in (["health"], ["doctor"], ["current"]):
        assert "newer release" in cli(*command, code=1).stdout
    for command in (["migrate"], ["kv", "list"]):
        assert "newer release" in cli(*command, code=1).stderr
    assert cli("current", "--json", code=1).json["from_future"]


def test_doctor_says_where_each_setting_comes_from(cli: Any) -> None:
    cli.write("config.yaml", "storage:\n  kv:\n    default_ttl_seconds: 60\n  default_tenant_id: acme")
    cli("init")
    found = cli("doctor", "--json", ATLAS_SQL_COMMAND_TIMEOUT_S="7").json

    assert found["ok"]
    assert found["settings"]["kv.default_ttl_seconds"]["source"].startswith("config.yaml")
    assert found["settings"]["sql.command_timeout_s"] == {
        "value": 7.0,
        "source": "environment ATLAS_SQL_COMMAND_TIMEOUT_S",
    }
    assert found["settings"]["sql.pool.size"]["source"] == "default"
    shown = cli("doctor", "--url", "sqlite:///other.sqlite3", code=1, ATLAS_SQL_PORT="5999").stdout
    assert "--url" in shown
    assert "5999" in shown
    assert "run: atlas-storage init" in shown


def test_doctor_keeps_secrets(cli: Any) -> None:
    secrets = {
        "ATLAS_MONGO_PASSWORD": "canary-one",
        "ATLAS_VECTOR_PINECONE_API_KEY": "canary-two",
        "ATLAS_SQL_URL": "postgresql://u:canary-three@127.0.0.1:1/x",
    }
    for flags in ([], ["--json"], ["--debug"]):
        result = cli("doctor", *flags, code=1, **secrets)
        assert "canary" not in result.stdout + result.stderr


def test_the_demo_shows_all_and_may_run_again(cli: Any) -> None:
    first = cli("demo").stdout
    again = cli("demo").stdout

    for words in (
        "sqlite:///.atlas/storage.sqlite3",
        "6 conversations",
        "[backup]",
        "read back equal",
        "nothing is left of it",
    ):
        assert words in first, words
    assert "importing twice adds nothing" in again
    assert "What to try next" in again
    for line in again.split("What to try next:")[1].strip().splitlines():
        words = line.split()
        if words[:2] == ["make", "serve"]:
            continue  # it serves until it is stopped; tests/server does that
        assert words[0] == "atlas-storage"
        if words[1] != "import":
            cli(*words[1:])
    assert cli("conversations", "list", "--json").lines == [], "the demo keeps to its own tenant"


def test_the_demo_in_numbers(cli_on: Any) -> None:
    found = cli_on("demo", "--json").json
    assert (found["job"]["status"], found["job"]["result"]["attempt"]) == ("succeeded", 1)

    assert found["import"]["messages_added"] == sum(len(record["messages"]) for record in sample())
    assert found["left_behind"] is False
    assert found["search"]["hits"][0]["message"]["conversation_id"] == "sample-backup"
    assert found["keys"]["runs"] == 1
    assert found["health"]["overall"] == "healthy"
    assert found["seconds"] < 60
    assert cli_on("demo", "--json").json["keys"]["runs"] == 2


def test_the_demo_takes_another_file(cli: Any) -> None:
    cli.write(
        "mine.jsonl", {"messages": [{"role": "user", "content": "Where does the ferry to the island leave?"}]}
    )

    by_option = cli("demo", "--data", "mine.jsonl", "--json").json
    by_variable = cli("demo", "--json", DEMO_DATA="mine.jsonl").json
    by_query = cli("demo", "--data", "mine.jsonl", "--query", "ferries", "--json").json

    assert by_option["import"]["messages_added"] == 1
    assert by_variable["import"]["messages_seen"] == 1
    for found in (by_option, by_query):
        assert "ferry" in found["search"]["hits"][0]["message"]["content"]
    assert cli("demo", "--json", DEMO_DATA="").json["import"]["messages_seen"] > 100
    assert cli("demo", "--data", "absent.jsonl", code=2).stderr == "error: absent.jsonl does not exist\n"


def test_the_sample_is_what_it_says() -> None:
    records = sample()
    messages = [message for record in records for message in record["messages"]]

    assert len(records) == 6
    assert 100 <= len(messages) <= 140
    assert len({message["id"] for message in messages}) == len(messages)

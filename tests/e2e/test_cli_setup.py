"""`atlas-storage setup`: asked and not asked, places that cannot be used, files that are there."""

from __future__ import annotations

from typing import Any

import pytest

from modules.storage.migrations import HEAD


def test_without_questions(cli: Any) -> None:
    found = cli(
        "setup", "--non-interactive", "--sqlite-path", "data.sqlite3", "--set", "sql.pool.size=3", "--json"
    ).json

    assert found["applied"][-1] == HEAD
    assert [item["ok"] for item in found["checks"]] == [True]
    assert "path: data.sqlite3" in (cli.directory / "config.yaml").read_text(encoding="utf-8")
    assert cli("health", "--json").json["components"]["sql"]["details"]["path"].endswith("data.sqlite3")


def test_with_questions(cli: Any) -> None:
    answers = "sqlite\nasked.sqlite3\nsql\n\nnowhere\nsql\nin_memory\nhashing\ny\n"

    told = cli("setup", stdin=answers.encode())

    text = (cli.directory / "config.yaml").read_text(encoding="utf-8")
    assert "asked.sqlite3" in text
    assert "in_memory" in text
    assert "hashing" in text
    assert "Please answer one of" in told.stderr
    assert (cli.directory / "asked.sqlite3").exists()


def test_an_end_of_the_answers_writes_nothing(cli: Any) -> None:
    told = cli("setup", stdin=b"sqlite\n", code=1)

    assert "aborted" in told.stderr
    assert not (cli.directory / "config.yaml").exists()


@pytest.mark.postgresql
def test_a_secret_is_left_to_the_environment(cli: Any, databases: Any) -> None:
    url = databases.url("postgresql")
    secret = url.replace("postgresql://", "postgresql://").replace("@", ":hunter2@", 1)
    assert secret != url, "the test server's URL names a user"

    told = cli("--url", secret, "setup", "--non-interactive", "--vectors", "none")

    text = (cli.directory / "config.yaml").read_text(encoding="utf-8")
    assert "hunter2" not in text + told.stdout + told.stderr
    assert "${ATLAS_SQL_URL}" in text
    assert "ATLAS_SQL_URL" in told.stdout
    assert "ATLAS_SQL_URL" in cli("current", code=2).stderr
    assert cli("current", "--json", ATLAS_SQL_URL=secret).json["up_to_date"]


def test_a_place_that_cannot_be_used_is_told_and_nothing_is_written(cli: Any) -> None:
    away = "postgresql://somebody:hunter2@127.0.0.1:1/nowhere"
    told = cli("--url", away, "setup", "--non-interactive", code=1)

    assert "nothing was written: postgresql" in told.stderr
    assert "127.0.0.1:1/nowhere: PostgreSQL cannot be reached" in told.stderr
    assert "hunter2" not in told.stdout + told.stderr
    assert not (cli.directory / "config.yaml").exists()

    cli("--url", away, "setup", "--non-interactive", "--skip-checks", "--no-migrate")
    assert (cli.directory / "config.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--conversations", "mars"], 2, "--conversations must be sql or mongo"),
        (["--vectors", "pinecon"], 1, "did you mean pinecone"),
        (["--vectors", "pgvector"], 1, "pgvector needs PostgreSQL"),
        (["--embedder", "magic"], 1, "the embedder must be hashing, openai:MODEL"),
        (["--embedder", "openai:m", "--set", "embedder_base_url=http://127.0.0.1:1/v1"], 1, "did not answer"),
        (["--set", "sql.pool.sizes=3"], 2, "error: setting sql.pool.sizes: there is no"),
        (["--set", "nonsense"], 2, "NAME=VALUE"),
        (["--url", "sqlite:///a", "--sqlite-path", "b"], 2, "not both"),
        (["--config", "no/such/directory/config.yaml"], 1, "no directory"),
        (["--sqlite-path", "/dev/null/x.sqlite3"], 1, "sqlite"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(cli: Any, arguments: Any, code: int, words: str) -> None:
    told = cli("setup", "--non-interactive", *arguments, code=code)

    assert words in told.stderr
    assert told.stderr.count("\n") == 1
    assert not list(cli.directory.glob("*.yaml"))


def test_a_block_that_is_there_is_replaced_only_when_told(cli: Any) -> None:
    file = cli.directory / "config.yaml"
    file.write_text("# mine\nname: x\nstorage: {sql: {path: old.sqlite3}}\n", encoding="utf-8")

    assert "--replace" in cli("setup", "--non-interactive", code=1).stderr
    cli("setup", "--non-interactive", "--replace", "--sqlite-path", "new.sqlite3", "--no-migrate")

    text = file.read_text(encoding="utf-8")
    assert text.startswith("# mine\nname: x\n")
    assert "old.sqlite3" not in text

"""`atlas-storage embed` and `search --mode` on SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest

HASHING = {"ATLAS_EMBEDDER": "hashing"}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def filled_on(request: Any, cli: Any, databases: Any) -> Any:
    cli.url = databases.url(request.param, migrated=True)
    return fill(cli)


@pytest.fixture
def filled(cli: Any, databases: Any) -> Any:
    cli.url = databases.url("sqlite", migrated=True)
    return fill(cli)


def fill(cli: Any) -> Any:
    texts = ("my cat sleeps", "the car is red", "a storm is coming")
    cli("import", cli.write("chat.jsonl", {"messages": [{"role": "user", "content": t} for t in texts]}))
    return cli


def test_the_backlog_is_worked_off_and_found(filled_on: Any) -> None:
    filled = filled_on
    before = filled("search", "--mode", "semantic", "cats", "sleeping", **HASHING)
    assert "messages may be missing" in before.stderr
    first = filled("--json", "embed", "--limit", "2", **HASHING).json
    assert (first["embedder"], first["embedded"], first["failed"], first["former"]) == ("hashing", 2, 0, [])
    rest = filled("embed", **HASHING)
    assert "Embedded 1 messages with hashing, removed 0; 0 wait." in rest.stdout
    found = filled("--json", "search", "--mode", "hybrid", "cats", "sleeping", **HASHING)
    assert found.lines[0]["message"]["content"] == "my cat sleeps"
    assert found.stderr == ""
    assert filled("--json", "embed", "--anew", **HASHING).json["embedded"] == 3


def test_a_former_embedder_is_reported_and_forgotten(filled: Any) -> None:
    filled("embed", **HASHING)
    other = {**HASHING, "ATLAS_EMBEDDER_DIMENSION": "64"}
    changed = filled("embed", **other)
    assert "Embedded 3 messages" in changed.stdout
    assert "--forget-former ends that" in changed.stderr
    told = [item for item in filled("--json", "doctor", **other).json["checks"] if item["what"] == "embedder"]
    assert [item["status"] for item in told] == ["warning"]
    health = filled("--json", "health", **other).json["components"]["vector_store"]["details"]
    assert (health["embedder"], health["embedding_pending"], health["embedding_failed"]) == ("hashing", 0, 0)
    assert len(health["former_embeddings"]) == 1
    forgotten = filled("--json", "embed", "--forget-former", **other).json
    assert forgotten["forgotten"] == health["former_embeddings"]
    assert len(filled("--json", "vectors", "list").lines) == 1

    assert "no embedder is configured" in filled("embed", code=2).stderr
    assert len(filled("--json", "embed", "--forget-former").json["forgotten"]) == 1
    assert filled("--json", "vectors", "list").stdout == ""


def test_a_relay_embeds_too(filled: Any) -> None:
    waiting = filled("--json", "outbox", "stats").json
    assert (waiting["pending"], waiting["targets"]) == (0, {})
    done = filled("relay", "--once", **HASHING)
    assert "Relaying to hashing (embedding)." in done.stdout
    found = filled("--json", "search", "--mode", "semantic", "cats", "sleeping", **HASHING)
    assert (found.lines[0]["message"]["content"], found.stderr) == ("my cat sleeps", "")


def test_what_is_refused(cli: Any) -> None:
    cli("init")
    assert "ATLAS_EMBEDDER" in cli("search", "--mode", "hybrid", "x", code=2).stderr
    assert "text, semantic, hybrid" in cli("search", "--mode", "magic", "x", code=2).stderr
    assert "forgets everything" in cli("embed", code=2, ATLAS_VECTOR_BACKEND="in_memory", **HASHING).stderr


def test_an_embedder_that_is_away_or_refuses(filled: Any) -> None:
    nobody = {"ATLAS_EMBEDDER": "openai:m", "ATLAS_EMBEDDER_BASE_URL": "http://127.0.0.1:9/v1"}
    assert filled("embed", code=1, **nobody).stderr.startswith("error: ")
    picky = filled.directory / "picky.py"
    picky.write_text(
        "def embed(texts):\n"
        "    if any('storm' in text for text in texts):\n"
        "        raise ValueError('no weather')\n"
        "    return [[1.0, float(len(text))] for text in texts]\n"
    )
    there = {"ATLAS_EMBEDDER": "picky:embed", "PYTHONPATH": str(filled.directory)}
    refused = filled("--json", "embed", code=1, **there)
    assert (refused.json["embedded"], refused.json["failed"], refused.json["pending"]) == (2, 1, 1)
    assert "the embedder refused 1 messages" in refused.stderr

"""The questions of `atlas-storage setup`; what an option has answered already is not asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Optional
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from modules.storage.commands.output import Output

__all__ = ["ask"]

_Answers = Dict[str, Optional[str]]
_VECTORS = ("sqlite", "pgvector", "chroma", "pinecone", "in_memory", "none")


def ask(out: Output, given: _Answers) -> _Answers:
    """Return `given` with the answers of a person for what is missing."""
    answers = dict(given)
    out.line("Where should ATLAS keep its data? Enter takes what stands in brackets.", style="bold")
    if not answers["url"] and not answers["sqlite_path"]:
        _ask_database(answers)
    for name, what in (("conversations", "Conversations"), ("jobs", "Jobs"), ("kv", "Key-value data")):
        if not answers[name]:
            answers[name] = _choose(f"{what} in sql or mongo?", ("sql", "mongo"), "sql")
    if "mongo" in (answers["conversations"], answers["jobs"], answers["kv"]) and not answers["mongo_url"]:
        answers["mongo_url"] = typer.prompt("URL of MongoDB", default="mongodb://localhost:27017/atlas")
    if not answers["vectors"]:
        usual = "pgvector" if answers["url"] else "sqlite"
        answers["vectors"] = _choose("Vectors in", _VECTORS, usual)
    if not answers["embedder"]:
        answers["embedder"] = typer.prompt(
            "What makes vectors of messages, so that they can be searched by meaning? "
            "(none, hashing, openai:MODEL, sentence-transformers:MODEL)",
            default="none",
        )
    return answers


def _ask_database(answers: _Answers) -> None:
    kind = _choose(
        "The SQL database: sqlite (nothing to install) or postgresql?", ("sqlite", "postgresql"), "sqlite"
    )
    if kind == "sqlite":
        answers["sqlite_path"] = typer.prompt("Its file", default=".atlas/storage.sqlite3")
        return
    host = typer.prompt("Host", default="localhost")
    port = typer.prompt("Port", default=5432, type=int)
    database = typer.prompt("Database", default="atlas")
    user = typer.prompt("User", default="atlas")
    password = typer.prompt("Password (empty for none)", default="", hide_input=True, show_default=False)
    secret = f":{quote(password, safe='')}" if password else ""
    answers["url"] = f"postgresql://{quote(user, safe='')}{secret}@{host}:{port}/{quote(database, safe='')}"


def _choose(question: str, choices: tuple[str, ...], default: str) -> str:
    while True:
        answer = str(typer.prompt(f"{question} ({', '.join(choices)})", default=default)).strip().lower()
        if answer in choices:
            return answer
        typer.echo(f"Please answer one of: {', '.join(choices)}.", err=True)

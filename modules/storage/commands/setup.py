"""`setup`: choose the back ends, test them, write the `storage:` block, bring the schema up to date."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

import typer

from modules.storage.commands.errors import CommandFailedError, CommandUsageError
from modules.storage.commands.invocation import Invocation, command
from modules.storage.commands.setup_checks import as_answered, check_places
from modules.storage.commands.setup_questions import ask

__all__ = ["register", "setup"]

_CHOICES = {"database": ("sqlite", "postgresql"), "home": ("sql", "mongo")}


async def setup(
    call: Invocation,
    non_interactive: bool = typer.Option(False, "--non-interactive", help="Ask nothing: take the options."),
    sqlite_path: Optional[str] = typer.Option(
        None, "--sqlite-path", help="SQLite: the database file.", metavar="FILE"
    ),
    mongo_url: Optional[str] = typer.Option(
        None, "--mongo-url", help="MongoDB, for what is kept there.", metavar="URL"
    ),
    conversations: Optional[str] = typer.Option(
        None, "--conversations", help="Where conversations are kept: sql (default) or mongo.", metavar="PLACE"
    ),
    jobs: Optional[str] = typer.Option(
        None, "--jobs", help="Where jobs are kept: sql (default) or mongo.", metavar="PLACE"
    ),
    keys: Optional[str] = typer.Option(
        None, "--kv", help="Where key-value data is kept: sql (default) or mongo.", metavar="PLACE"
    ),
    vectors: Optional[str] = typer.Option(
        None, "--vectors", help="Where vectors are kept (default: with the SQL database).", metavar="BACKEND"
    ),
    embedder: Optional[str] = typer.Option(
        None, "--embedder", help="What makes vectors of messages, for example hashing.", metavar="NAME"
    ),
    setting: Optional[list[str]] = typer.Option(
        None,
        "--set",
        help="Any other setting, for example sql.pool.size=10; may be repeated.",
        metavar="NAME=VALUE",
    ),
    plain_secrets: bool = typer.Option(
        False, "--plain-secrets", help="Write secrets into the file instead of references to variables."
    ),
    replace: bool = typer.Option(False, "--replace", help="Replace the storage: block that is there."),
    skip_checks: bool = typer.Option(False, "--skip-checks", help="Write without testing the connections."),
    migrate: bool = typer.Option(
        True, "--migrate/--no-migrate", help="Bring the schema up to date afterwards."
    ),
) -> None:
    """Choose the back ends, test each, and write the storage: block of config.yaml (or of --config FILE)."""
    from modules.storage.settings import DEFAULT_CONFIG_FILE, SettingsError, StorageSettings
    from modules.storage.settings_file import has_block, render_block, write_block

    file = Path(call.options.config or DEFAULT_CONFIG_FILE)
    if not file.parent.is_dir():
        raise CommandFailedError(f"there is no directory {file.parent}; make it first")
    answers = {
        "url": call.options.url,
        "sqlite_path": sqlite_path,
        "mongo_url": mongo_url,
        "conversations": conversations,
        "jobs": jobs,
        "kv": keys,
        "vectors": vectors,
        "embedder": embedder,
    }
    if has_block(file) and not replace:
        if non_interactive or not typer.confirm(f"{file} has a storage: block already. Replace it?"):
            raise CommandFailedError(f"{file} has a storage: block already; give --replace to replace it")
    if not non_interactive:
        answers = ask(call.out, answers)
    try:
        settings = StorageSettings.from_dict(_values(answers, setting or []))
    except SettingsError as exc:
        raise as_answered(exc) from exc
    checks = [] if skip_checks else await check_places(call.out, settings)
    wrong = [item for item in checks if not item["ok"]]
    if wrong and (non_interactive or not typer.confirm("Write the file all the same?", default=False)):
        names = ", ".join(item["what"] for item in wrong)
        raise CommandFailedError(f"nothing was written: {names} cannot be used ({wrong[0]['detail']})")
    block = render_block(settings, plain_secrets=plain_secrets)
    write_block(file, block)
    call.out.line(f"Wrote the storage: block of {file}.")
    for variable in block.variables:
        call.out.line(
            f"   It refers to the environment variable {variable}: set it where the application runs."
        )
    applied = await _migrate(call, settings, migrate and not wrong, non_interactive)
    call.out.document(
        {"file": str(file), "variables": list(block.variables), "checks": checks, "applied": applied}
    )


def _values(answers: Dict[str, Optional[str]], further: list[str]) -> Dict[str, Any]:
    """Return the answers as nested settings."""
    values: Dict[str, Any] = {}
    sql: Dict[str, Any] = {}
    if answers["url"]:
        sql["url"] = answers["url"]
    if answers["sqlite_path"]:
        if answers["url"]:
            raise CommandUsageError("give --url or --sqlite-path, not both")
        sql["path"] = answers["sqlite_path"]
    values["sql"] = sql
    if answers["mongo_url"]:
        values["mongo"] = {"url": answers["mongo_url"]}
    places = {name: answers[name] or "sql" for name in ("conversations", "jobs", "kv")}
    for name, place in places.items():
        if place not in _CHOICES["home"]:
            raise CommandUsageError(f"--{name} must be sql or mongo, not {place!r}")
    values["use_mongo_for_conversations"] = places["conversations"] == "mongo"
    values["use_mongo_for_jobs"] = places["jobs"] == "mongo"
    values["kv"] = {"backend": places["kv"]}
    postgres = str(answers["url"] or "").startswith("postgres")
    values["vectors"] = {"backend": answers["vectors"] or ("pgvector" if postgres else "sqlite")}
    if answers["embedder"] and answers["embedder"] != "none":
        values["embedder"] = answers["embedder"]
    for item in further:
        _put(values, item)
    return values


def _put(values: Dict[str, Any], item: str) -> None:
    name, equals, value = item.partition("=")
    if not equals or not name.strip():
        raise CommandUsageError("--set takes NAME=VALUE, for example sql.pool.size=10")
    *sections, last = name.strip().split(".")
    target = values
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            raise CommandUsageError(f"--set: {section} is a setting, not a section")
        target = inner
    target[last] = value


async def _migrate(call: Invocation, settings: Any, wanted: bool, non_interactive: bool) -> list[str]:
    from modules.storage.migrations.administration import migrate as apply

    if not wanted or not (non_interactive or typer.confirm("Bring the schema up to date now?", default=True)):
        call.out.line("The schema was left as it is: run `atlas-storage migrate`.")
        return []
    applied = await apply(settings)
    call.out.line(f"Schema: {'applied ' + ', '.join(applied) if applied else 'up to date already'}.")
    return applied


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    command(app, "setup")(setup)

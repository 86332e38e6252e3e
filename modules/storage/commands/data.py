"""`import`, `export`, `prune`, `backup`: data in, out, and thrown away by rule."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional

import typer

from modules.storage.commands.errors import FAILED, CommandFailedError, CommandUsageError
from modules.storage.commands.invocation import Invocation, command
from modules.storage.commands.output import size_text
from modules.storage.transfer import ImportReport, export_tenant, import_file

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["backup", "bring_in", "export", "import_command", "prune", "register"]


async def import_command(
    call: Invocation,
    file: Path = typer.Argument(
        ..., help="The file; its format is found by looking.", metavar="FILE", show_default=False
    ),
) -> Optional[int]:
    """Import conversations: chat lines, ShareGPT, a ChatGPT export, or what `export` wrote. Again adds nothing."""
    async with call.storage(background=True) as storage:
        report = await bring_in(call, storage, file)
    call.out.document(report.to_dict())
    call.out.line(report.summary)
    return FAILED if report.bad_count else None


async def bring_in(call: Invocation, storage: StorageManager, file: Path) -> ImportReport:
    """Import `file` with a progress bar; bad records are told on stderr as they are met."""
    size = _size_of(file)
    with call.out.progress(f"Importing {file.name}", size) as show:
        return await import_file(
            storage,
            file,
            on_progress=lambda done, report: show(done, f"{report.messages_seen:,} messages"),
            on_bad=lambda bad: call.out.warn(f"{file.name}: {bad}"),
        )


async def export(
    call: Invocation,
    file: Path = typer.Argument(
        ..., help="The file to write; an existing one is replaced.", metavar="FILE", show_default=False
    ),
) -> None:
    """Write everything of the tenant (conversations, keys) to a file of JSON lines that `import` reads."""
    _refuse_directory(file)
    async with call.storage() as storage:
        with call.out.progress(f"Exporting to {file.name}", None) as show:
            report = await export_tenant(storage, file, on_progress=lambda done: show(done, ""))
    call.out.document(report.to_dict())
    call.out.line(report.summary)


async def prune(call: Invocation) -> None:
    """Remove expired keys and apply the configured retention: to all tenants, or to that of --tenant."""
    async with call.storage() as storage:
        result = await _prune(call, storage)
    call.out.document(result)
    call.out.table(["what", "rows"], [(name.replace("_", " "), count) for name, count in result.items()])


async def _prune(call: Invocation, storage: StorageManager) -> Dict[str, int]:
    maintenance = storage.maintenance
    return {
        "expired_keys": await maintenance.sweep(),
        **await maintenance.retain(call.options.tenant),
        "results_forgotten": await maintenance.sweep_jobs(),
        "jobs_deleted": await maintenance.purge_jobs(call.options.tenant),
    }


async def backup(
    call: Invocation,
    file: Path = typer.Argument(
        ..., help="The copy to make; an existing one is replaced.", metavar="FILE", show_default=False
    ),
) -> None:
    """Copy a SQLite database while it is in use; the copy appears whole or not at all."""
    sql = call.settings.sql
    if sql.dialect.value == "postgresql":
        raise CommandUsageError(f"PostgreSQL has its own tool for back-ups; run: {_pg_dump(sql, file)}")
    if sql.path == ":memory:":
        raise CommandUsageError("a database in memory ends with its process; there is nothing to back up")
    _refuse_targets(sql.path, file)
    async with call.storage() as storage:
        target = await storage.sql_backend.backup(file)  # type: ignore[union-attr]
    size = target.stat().st_size
    call.out.document({"file": str(target), "size_bytes": size})
    call.out.line(f"Copied to {target} ({size_text(size)}). To use it: --url sqlite:///{target}")


def _size_of(file: Path) -> Optional[int]:
    return file.stat().st_size if file.is_file() else None


def _refuse_directory(file: Path) -> None:
    if file.is_dir():
        raise CommandUsageError(f"{file} is a directory; name a file in it")


def _refuse_targets(path: str, file: Path) -> None:
    database = Path(path).expanduser()
    if not database.exists():
        raise CommandFailedError(f"there is no database at {database}")
    _refuse_directory(file)
    if file.exists() and file.samefile(database):
        raise CommandUsageError(f"{file} is the database itself; name another file")


def _pg_dump(sql: object, file: Path) -> str:
    """Return the command; the password, if any, is asked for or comes from ~/.pgpass."""
    import shlex

    words = ["pg_dump", "--format=custom", f"--file={file}"]
    for option in ("host", "port", "username"):
        value = getattr(sql, option)
        if value:
            words.append(f"--{option}={value}")
    words.append(f"--dbname={getattr(sql, 'database')}")  # noqa: B009
    return " ".join(shlex.quote(word) for word in words)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    command(app, "import")(import_command)
    command(app, "export")(export)
    command(app, "prune")(prune)
    command(app, "backup")(backup)

"""`kv get`, `kv set`, `kv delete`, `kv list`, `kv incr`."""

from __future__ import annotations

import sys
from typing import Any, Dict, List, Optional

import orjson
import typer

from modules.storage.commands.errors import CommandFailedError, CommandUsageError
from modules.storage.commands.invocation import Invocation, command, group

__all__ = [
    "delete",
    "get",
    "incr",
    "list_keys",
    "register",
    "set_value",
]

_NAMESPACE = typer.Argument(..., help="Namespace.", metavar="NAMESPACE", show_default=False)
_KEY = typer.Argument(..., help="Key.", metavar="KEY", show_default=False)
_TTL = typer.Option(None, "--ttl", help="Seconds to live; 0 for ever.", metavar="SECONDS", show_default=False)


async def get(call: Invocation, namespace: str = _NAMESPACE, key: str = _KEY) -> None:
    """Print the value under a key; exit 1 when there is none. Bytes are printed as they are."""
    async with call.storage() as storage:
        entry = await storage.kv.get_entry(namespace, key)
    if entry is None:
        raise CommandFailedError(f"there is no key {key!r} in namespace {namespace!r}")
    call.out.document(entry.to_dict())
    if isinstance(entry.value, bytes) and not call.out.as_json:
        sys.stdout.flush()
        sys.stdout.buffer.write(entry.value)
    else:
        call.out.raw(_text(entry.value) + "\n")


async def set_value(
    call: Invocation,
    namespace: str = _NAMESPACE,
    key: str = _KEY,
    value: str = typer.Argument(..., help="JSON, else taken as text; - reads stdin.", metavar="VALUE"),
    text: bool = typer.Option(False, "--text", help="Take VALUE as text even where it is JSON."),
    if_absent: bool = typer.Option(False, "--if-absent", help="Write nothing if there is an entry (exit 1)."),
    ttl: Optional[float] = _TTL,
) -> None:
    """Store a value under a key."""
    given = sys.stdin.read() if value == "-" else value
    stored = given if text else _parsed(given)
    async with call.storage() as storage:
        version = await storage.kv.set(namespace, key, stored, ttl_seconds=ttl, only_if_absent=if_absent)
    if not version:
        raise CommandFailedError(
            f"there is a key {key!r} in namespace {namespace!r} already; nothing was written"
        )
    call.out.document({"namespace": namespace, "key": key, "version": version})
    call.out.line(f"Stored {namespace}/{key}, version {version}.")


async def delete(call: Invocation, namespace: str = _NAMESPACE, key: str = _KEY) -> None:
    """Remove a key; exit 1 when there is none."""
    async with call.storage() as storage:
        was_there = await storage.kv.delete(namespace, key)
    if not was_there:
        raise CommandFailedError(f"there is no key {key!r} in namespace {namespace!r}")
    call.out.document({"namespace": namespace, "key": key, "deleted": True})
    call.out.line(f"Deleted {namespace}/{key}.")


async def list_keys(
    call: Invocation,
    namespace: Optional[str] = typer.Argument(
        None, help="Namespace; none: the namespaces.", metavar="[NAMESPACE]"
    ),
    prefix: str = typer.Option("", "--prefix", help="Only keys that begin with this.", metavar="TEXT"),
    limit: int = typer.Option(100, "--limit", min=1, help="At most so many."),
) -> None:
    """List the keys of a namespace with their values, or the namespaces."""
    if namespace is None:
        if prefix:
            raise CommandUsageError("--prefix needs a namespace")
        await _list_namespaces(call, limit)
        return
    found: List[Any] = []
    cursor: Optional[str] = None
    async with call.storage() as storage:
        while len(found) < limit:
            page = await storage.kv.list(
                namespace, prefix, limit=min(1000, limit - len(found)), cursor=cursor
            )
            found.extend(page.entries)
            cursor = page.next_cursor
            if cursor is None:
                break
    if call.out.as_json:
        call.out.records(entry.to_dict() for entry in found)
    rows = [
        (entry.key, _short(entry.value), entry.version, entry.updated_at, entry.expires_at) for entry in found
    ]
    call.out.table(["key", "value", "version", "updated", "expires"], rows)
    if cursor is not None:
        call.out.warn(f"there are more; give --limit {limit * 10} or --prefix")


async def _list_namespaces(call: Invocation, limit: int) -> None:
    async with call.storage() as storage:
        page = await storage.kv.list_namespaces(limit=min(limit, 1000))
    if call.out.as_json:
        call.out.records({"namespace": name} for name in page.namespaces)
    call.out.table(["namespace"], [(name,) for name in page.namespaces])


async def incr(
    call: Invocation,
    namespace: str = _NAMESPACE,
    key: str = _KEY,
    by: int = typer.Option(1, "--by", help="How much to add; may be negative."),
    ttl: Optional[float] = _TTL,
) -> None:
    """Add to the integer under a key, which starts at 0, and print the sum."""
    async with call.storage() as storage:
        value = await storage.kv.increment(namespace, key, by, ttl_seconds=ttl)
    call.out.document({"namespace": namespace, "key": key, "value": value})
    call.out.raw(f"{value}\n")


def _parsed(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= 60 else text[:59] + "…"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    own = typer.Typer(help="Read and write single keys.", no_args_is_help=True, rich_markup_mode=None)
    group(own)
    names: Dict[str, Any] = {"get": get, "set": set_value, "delete": delete, "list": list_keys, "incr": incr}
    for name, function in names.items():
        command(own, name)(function)
    app.add_typer(own, name="kv")

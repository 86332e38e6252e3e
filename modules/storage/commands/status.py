"""`health` (how are the stores now?) and `doctor` (what is configured, from where, what is reachable, what to fix)."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import typer

from modules.storage.commands.errors import FAILED
from modules.storage.commands.invocation import Invocation, command
from modules.storage.commands.output import Output, size_text
from modules.storage.health import HealthStatus, StorageHealthStatus, StoreHealth
from modules.store_common.errors import StorageError

__all__ = [
    "doctor",
    "health",
    "print_health",
    "register",
]

# Details that `--json` shows and a table for people does not.
_FOR_PROGRAMS = ("path", "schema_", "writer_", "reader_", "batches", "calls")


async def health(call: Invocation) -> Optional[int]:
    """Check every store now; exit 1 when one is unhealthy. Changes nothing, works with a database that is away."""
    found = await _check(call)
    call.out.document(found.to_dict())
    print_health(call.out, found)
    return FAILED if found.overall in (HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN) else None


async def _check(call: Invocation) -> StorageHealthStatus:
    from modules.storage.manager import StorageManager
    from modules.storage.migrations.administration import database_exists

    if not database_exists(call.settings):
        return _down(
            f"there is no database at {call.settings.sql.get_safe_url()} yet; run: atlas-storage init"
        )
    try:
        async with StorageManager(
            call.settings.merged_with({"sql": {"auto_migrate": False}}), background=False
        ) as storage:
            return await storage.health_check()
    except StorageError as exc:
        return _down(str(exc))


def _down(message: str) -> StorageHealthStatus:
    sql = StoreHealth("sql", HealthStatus.UNHEALTHY, message=message)
    return StorageHealthStatus(overall=HealthStatus.UNHEALTHY, sql=sql)


def print_health(out: Output, found: StorageHealthStatus) -> None:
    """Print health as a table."""
    rows: List[Tuple[Any, ...]] = []
    for name, component in found.components.items():
        latency = "" if component.latency_ms is None else f"{component.latency_ms:.1f} ms"
        rows.append((name, component.status.value, latency, _details(component)))
    rows.append(("overall", found.overall.value, "", ""))
    out.table(["store", "status", "latency", "details"], rows)


def _details(component: StoreHealth) -> str:
    if component.message:
        return component.message
    shown = {name: value for name, value in component.details.items() if not name.startswith(_FOR_PROGRAMS)}
    return ", ".join(f"{name}: {_detail(name, value)}" for name, value in shown.items())


def _detail(name: str, value: Any) -> str:
    return size_text(value) if name.endswith("_bytes") and isinstance(value, (int, float)) else str(value)


# --- doctor


async def doctor(call: Invocation) -> Optional[int]:
    """Say what is configured and from where, what is reachable, and what to fix; exit 1 when something is wrong."""
    settings = _settings_table(call)
    found = await _check(call)
    checks = [*_environment(call), *_stores(found)]
    wrong = [item for item in checks if item["status"] == "problem"]
    call.out.document({"settings": settings, "checks": checks, "ok": not wrong})
    call.out.line("Configured (the rest are defaults; docs/configuration.md lists all)")
    rows = [
        (name, _as_written(item["value"]), item["source"])
        for name, item in settings.items()
        if _worth_showing(name, item)
    ]
    call.out.table(["setting", "value", "from"], rows)
    call.out.line("Found")
    call.out.table(
        ["what", "status", "details"], [(item["what"], item["status"], item["detail"]) for item in checks]
    )
    for item in wrong:
        call.out.line(f"To fix: {item['what']}: {item['fix'] or item['detail']}")
    if not wrong:
        call.out.line("Nothing to fix.")
    return FAILED if wrong else None


def _settings_table(call: Invocation) -> Dict[str, Dict[str, Any]]:
    """Return every setting by dotted path with its value (secrets masked) and where it came from."""
    settings = call.settings
    values = _flat(settings.to_dict())
    sources = {name: _source(call, source) for name, source in settings.sources.items()}
    table = {name: {"value": values.get(name), "source": sources[name]} for name in sources}
    table["sql.url"] = {
        "value": settings.sql.get_safe_url(),
        "source": table.get("sql.url", {}).get("source", "default"),
    }
    return dict(sorted(table.items()))


def _source(call: Invocation, source: str) -> str:
    return "--url" if source.startswith("overrides") and call.options.url is not None else source


def _flat(values: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _as_written(value: Any) -> Any:
    """Return a number as a setting gives it: a port has no thousands separator."""
    return str(value) if isinstance(value, (int, float)) else value


def _worth_showing(name: str, item: Dict[str, Any]) -> bool:
    return item["source"] != "default" or name in (
        "sql.dialect",
        "sql.url",
        "kv.backend",
        "default_tenant_id",
    )


def _item(what: str, status: str, detail: str, fix: str = "") -> Dict[str, str]:
    return {"what": what, "status": status, "detail": detail, "fix": fix}


def _environment(call: Invocation) -> List[Dict[str, str]]:
    items = [_item("python", "ok", f"{platform.python_version()} at {sys.executable}")]
    if call.settings.sql.dialect.value == "postgresql":
        for package in ("asyncpg", "psycopg"):
            there = find_spec(package) is not None
            fix = "" if there else 'pip install "atlas-storage[postgres]"'
            items.append(
                _item(package, "ok" if there else "problem", "installed" if there else "not installed", fix)
            )
    elif call.settings.sql.path != ":memory:":
        items.append(_directory(Path(call.settings.sql.path).expanduser().absolute().parent))
    return items


def _directory(wanted: Path) -> Dict[str, str]:
    existing = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not os.access(existing, os.W_OK):
        fix = f"make {existing} writable for this user, or choose another place with --url sqlite:///path"
        return _item("directory", "problem", f"{existing} is not writable", fix)
    free = size_text(shutil.disk_usage(existing).free)
    return _item(
        "directory", "ok", f"{wanted}: {free} free" + ("" if existing == wanted else " (will be made)")
    )


def _stores(found: StorageHealthStatus) -> List[Dict[str, str]]:
    words = {HealthStatus.HEALTHY: "ok", HealthStatus.DEGRADED: "warning"}
    items = [
        _item(name, words.get(component.status, "problem"), _details(component), component.message)
        for name, component in found.components.items()
    ]
    store = found.vector_store
    former = [] if store is None else store.details.get("former_embeddings", [])
    return [
        *items,
        *[
            _item(
                "embedder",
                "warning",
                f"changes of messages are still noted for {name}, which is configured no more; its vectors and backlog "
                "stay until `atlas-storage embed --forget-former`",
            )
            for name in former
        ],
    ]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for function in (health, doctor):
        command(app, function.__name__)(function)

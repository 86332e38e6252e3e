"""Can the places that `atlas-storage setup` was told be used? Each is tried while the person waits."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Tuple

from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.storage.commands.output import Output
    from modules.storage.settings import StorageSettings

__all__ = ["check_places"]

_Check = Tuple[str, Callable[[], Awaitable[str]]]
# Vectors that lie in the SQL database or in memory have no place of their own to try.
_AT_HOME = frozenset({"sqlite", "pgvector", "in_memory", "none"})


class _NotUsableError(StorageError):
    """A place answered, and cannot be used."""


async def check_places(out: Output, settings: StorageSettings) -> List[Dict[str, Any]]:
    """Try every place of `settings`, print how each went, and return that: what, ok, detail, latency_ms."""
    results: List[Dict[str, Any]] = []
    for what, check in _checks(settings):
        started = perf_counter()
        try:
            detail, ok = await check(), True
        except StorageError as exc:
            detail, ok = str(exc), False
        latency_ms = round((perf_counter() - started) * 1000, 1)
        results.append({"what": what, "ok": ok, "detail": detail, "latency_ms": latency_ms})
        out.line(f"   {'ok     ' if ok else 'FAILED '} {what}: {detail} ({latency_ms:.0f} ms)")
    return results


def _checks(settings: StorageSettings) -> List[_Check]:
    checks: List[_Check] = [(settings.sql.dialect.value, lambda: _sql(settings))]
    if settings.use_mongo_for_conversations or settings.use_mongo_for_jobs or settings.kv.backend == "mongo":
        checks.append(("mongodb", lambda: _component(settings, "mongo")))
    backend = str(settings.vectors.backend)
    if backend not in _AT_HOME:
        checks.append((backend, lambda: _component(settings, "vector_store")))
    return checks


async def _sql(settings: StorageSettings) -> str:
    from modules.storage.migrations.administration import schema_state

    state = await schema_state(settings)
    if not state.exists:
        _require_writable(settings.sql.path)
    return f"{settings.sql.get_safe_url()}: {state.summary}"


def _require_writable(path: str) -> None:
    file = Path(path).expanduser().absolute()
    existing = next(path for path in file.parents if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise _NotUsableError(f"{file} cannot be made: {existing} is no directory that can be written to")


async def _component(settings: StorageSettings, name: str) -> str:
    """Look at a place that is not the SQL database, through a manager whose SQL database is in memory."""
    from modules.storage.health import HealthStatus
    from modules.storage.manager import StorageManager

    alone = settings.to_dict(reveal_secrets=True)
    alone["sql"] = {"path": ":memory:"}
    alone["embedder"] = None
    async with StorageManager(alone, background=False) as storage:
        component = (await storage.health_check()).components.get(name)
    if component is None or component.status in (HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN):
        raise _NotUsableError((component.message if component is not None else "") or "it did not answer")
    return "it answers"

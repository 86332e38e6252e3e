"""Can the places that `atlas-storage setup` was told be used? Each is tried while the person waits."""

from __future__ import annotations

import os
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Tuple

from modules.store_common.errors import StorageError, UnavailableError

if TYPE_CHECKING:
    from modules.storage.commands.output import Output
    from modules.storage.migrations.administration import SchemaState
    from modules.storage.settings import SettingsError, StorageSettings

__all__ = ["as_answered", "check_places"]

_Check = Tuple[str, Callable[[], Awaitable[str]]]
# How those begin whose names can be judged here; the first is tried.
_EMBEDDERS = ("openai:", "sentence-transformers:")
_EMBEDDER_TIMEOUT_S = 10.0
# Vectors that lie in the SQL database or in memory have no place of their own to try.
_AT_HOME = frozenset({"sqlite", "pgvector", "in_memory", "none"})


class _NotUsableError(StorageError):
    """A place answered, and cannot be used."""


async def check_places(out: Output, settings: StorageSettings) -> List[Dict[str, Any]]:
    """Try every place of `settings`, print how each went, and return that: what, ok, detail, latency_ms.

    Settings that cannot work together are the one result: their places are not tried.
    """
    try:
        _require_fitting(settings)
    except StorageError as exc:
        return [_told(out, "what was chosen", False, str(exc), 0.0)]
    results = []
    for what, check in _checks(settings):
        started = perf_counter()
        try:
            detail, ok = await check(), True
        except StorageError as exc:
            detail, ok = str(exc), False
        results.append(_told(out, what, ok, detail, round((perf_counter() - started) * 1000, 1)))
    return results


def _told(out: Output, what: str, ok: bool, detail: str, latency_ms: float) -> Dict[str, Any]:
    out.line(f"   {'ok     ' if ok else 'FAILED '} {what}: {detail} ({latency_ms:.0f} ms)")
    return {"what": what, "ok": ok, "detail": detail, "latency_ms": latency_ms}


def as_answered(error: SettingsError) -> SettingsError:
    """Return `error` without where the setting came from: it was answered or given just now."""
    from modules.storage.settings import SettingsError

    return SettingsError(error.reason, error.key, None, error.suggestion)


def _checks(settings: StorageSettings) -> List[_Check]:
    checks: List[_Check] = [(settings.sql.dialect.value, lambda: _sql(settings))]
    if settings.use_mongo_for_conversations or settings.use_mongo_for_jobs or settings.kv.backend == "mongo":
        checks.append(("mongodb", lambda: _component(settings, "mongo")))
    backend = str(settings.vectors.backend)
    if backend not in _AT_HOME:
        checks.append((backend, lambda: _component(settings, "vector_store")))
    if (settings.embedder or "").startswith(_EMBEDDERS[0]):
        checks.append(("embedder", lambda: _embedder(settings)))
    return checks


def _require_fitting(settings: StorageSettings) -> None:
    """Refuse what the application would refuse when it starts, whatever answers."""
    from modules.storage.embedders import configured_embedder
    from modules.storage.manager_mongo import check_mongo_settings
    from modules.storage.manager_vectors import check_vector_settings
    from modules.storage.settings import SettingsError

    try:
        check_vector_settings(settings)
        check_mongo_settings(settings)
    except SettingsError as exc:
        raise as_answered(exc) from exc
    embedder = settings.embedder
    if embedder is not None and (":" not in embedder or embedder.startswith(_EMBEDDERS)):
        # one of the application's own ("module:callable") is loaded by the application
        configured_embedder(settings)


async def _embedder(settings: StorageSettings) -> str:
    """Have an embedder behind HTTP make a vector of one word."""
    from modules.storage.embedders import close_embedder, configured_embedder

    made = configured_embedder(settings, timeout_s=_EMBEDDER_TIMEOUT_S)
    try:
        matrix = await made.embed(["hello"])
    finally:
        await close_embedder(made)
    return f"it answers with vectors of {matrix.shape[1]} numbers"


async def _sql(settings: StorageSettings) -> str:
    from modules.storage.migrations.administration import schema_state

    place = settings.sql.get_safe_url()
    try:
        state = await schema_state(settings)
    except UnavailableError as exc:
        raise _NotUsableError(f"{place}: {exc}") from exc
    if not state.exists:
        _require_writable(settings.sql.path)
    return f"{place}: {_standing(state)}"


def _standing(state: SchemaState) -> str:
    """Say where a schema stands; what to do comes after the checks."""
    if state.is_current or state.from_future:
        return state.summary
    if not state.exists:
        return "no database yet, it can be made"
    if state.current is None:
        return "it answers, and has no schema yet"
    return f"it answers, and its schema is {len(state.pending)} migrations behind"


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

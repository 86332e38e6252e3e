"""Pieces of SQL text that the job store's statements share: the clock of each dialect, and many values as one parameter."""

from __future__ import annotations

from typing import Any, Dict, Tuple

from sqlalchemy import BigInteger, Boolean, Double, Integer, String, Text, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

from modules.storage.columns import FreeText, JsonValue, UtcDateTime, utc_now

__all__ = ["ARRAYS", "NOW", "PARAMETERS", "binds", "columns"]

#: The database's clock.
NOW: Dict[str, str] = {
    "sqlite": str(utc_now().compile(dialect=sqlite.dialect())),
    "postgresql": str(utc_now().compile(dialect=postgresql.dialect())),  # type: ignore[no-untyped-call]
}

#: Types of parameters and result columns, by name.
PARAMETERS: Dict[str, Any] = {
    **dict.fromkeys(
        (
            "assignee", "concurrency_key", "digest", "event_id", "handler", "id", "job_id", "key", "kind", "level", "name",
            "queue", "run_status", "schedule_id", "status", "task_id", "tenant_id", "type", "worker",
        ),
        String(),
    ),
    **dict.fromkeys(("fence", "max_attempts", "priority", "attempts", "attempt", "version", "number", "run", "parked",
                     "cancel_requested", "concurrency_limit", "enabled", "paused"), Integer()),
    **dict.fromkeys(("limit", "n", "delay_us", "lease_us", "delta", "keep_us", "running", "count"), BigInteger()),
    **dict.fromkeys(("run_at", "scheduled_for", "until", "next_at", "last_at", "started_at", "finished_at", "created_at",
                     "updated_at", "lease_until", "now", "result_until", "seen_at"), UtcDateTime()),
    **dict.fromkeys(("payload", "options", "error", "result", "data", "progress"), JsonValue()),
    "with_limits": Boolean(),
    **dict.fromkeys(("reason", "message"), FreeText()),
}  # fmt: skip

#: Arrays of parameters on PostgreSQL, by name: what a batch gives for each of its members.
ARRAYS: Dict[str, Any] = {
    name: ARRAY(
        TIMESTAMP(timezone=True)
        if isinstance(kind, UtcDateTime)
        else (Text() if isinstance(kind, (String, JsonValue, FreeText)) else kind)
    )
    for name, kind in {**PARAMETERS, "rate": Double()}.items()
}


def binds(*names: str, arrays: bool = False) -> Tuple[Any, ...]:
    """Return bind parameters of these names with their types; `arrays`: each an array (PostgreSQL)."""
    types = ARRAYS if arrays else PARAMETERS
    return tuple(bindparam(name, type_=types[name]) for name in names)


def columns(*names: str) -> Dict[str, Any]:
    """Return the types of result columns by their names."""
    return {name: PARAMETERS[name] for name in names}

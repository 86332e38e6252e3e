"""How everything is, at one look."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from fastapi import APIRouter, Request

from modules.Server.dashboard.rendering import page
from modules.Server.dashboard.visitors import Visitor
from modules.Server.history import History
from modules.storage.health import StorageHealthStatus

__all__ = ["overview", "router"]

router = APIRouter(include_in_schema=False)
_RECENT = 6
_NAMES = {
    "sql": "SQL database",
    "mongo": "MongoDB",
    "conversation_store": "Conversations",
    "kv_store": "Key-value store",
    "vector_store": "Vectors",
    "task_store": "Tasks",
    "job_store": "Jobs",
    "outbox": "Outbox",
}
# What the check of the job store tells, and which state it is of.
_JOBS = (
    ("running", "running", "running"),
    ("scheduled", "backlog", "waiting"),
    ("failed", "dead", "dead letters"),
)
# The check counts no further.
_COUNTED = 10_000


@page(router, "/", "overview.html")
async def overview(visitor: Visitor, request: Request) -> Dict[str, Any]:
    """Load health, load and what was touched last."""
    history = visitor.services.history
    sample = await history.latest()
    components = [
        {
            "name": _NAMES.get(name, name),
            "status": component.status.value,
            "latency_ms": component.latency_ms,
            "message": component.message if visitor.may("monitor") else "",
            "latencies": history.latencies(name),
        }
        for name, component in sample.health.components.items()
    ]
    recent = await visitor.storage.conversations.list_conversations(
        limit=_RECENT, tenant_id=visitor.tenant_id
    )
    details = {} if sample.health.sql is None else dict(sample.health.sql.details)
    return {
        "overall": sample.health.overall.value,
        "components": components,
        "details": details if visitor.may("monitor") else {},
        "pool": _pool(sample.pool) if visitor.may("monitor") else [],
        "batch": _batch(sample.pool),
        "rates": history.rates(),
        "traffic": visitor.services.traffic,
        "streams": visitor.services.feed.open_streams,
        "outbox": _outbox(sample.health) if visitor.may("monitor") else None,
        "jobs": _jobs(history) if visitor.may("monitor") else [],
        "recent": recent.items,
    }


def _pool(numbers: Dict[str, int]) -> List[Dict[str, Any]]:
    """Return what of the pool is shown: connections on PostgreSQL, queues on SQLite."""
    if "limit" in numbers:
        used, limit = numbers.get("in_use", 0), numbers["limit"]
        free = max(0, limit - used - numbers.get("idle", 0))
        parts = [("used", used), ("idle", numbers.get("idle", 0)), ("free", free)]
        return [
            {
                "label": "Connections in use",
                "value": f"{used} of {limit}",
                "note": f"{numbers.get('waiting', 0)} waiting",
                "parts": parts,
            }
        ]
    return [
        {
            "label": label,
            "value": str(numbers.get(f"{name}_waiting", 0)),
            "note": _mean_wait(numbers, name),
            "parts": [],
        }
        for label, name in (("Waiting to write", "writer"), ("Waiting to read", "reader"))
    ]


def _mean_wait(numbers: Dict[str, int], name: str) -> str:
    """Say how long a call has waited for a thread of SQLite so far; "" when there was none."""
    served = numbers.get(f"{name}_calls", 0) + numbers.get(f"{name}_turns", 0)
    mean_ms = numbers.get(f"{name}_wait_ms", 0) / served if served else 0.0
    return f"calls in the queue; {mean_ms:.1f} ms each so far" if served else ""


def _jobs(history: History) -> List[Dict[str, Any]]:
    """Return the jobs of all tenants by state over the last minutes; nothing where there were none."""
    found = []
    for state, name, label in _JOBS:
        values = history.numbers("job_store", name)
        now = int(values[-1] or 0) if values else 0
        number = f"{now:,}" + ("+" if now >= _COUNTED else "")
        found.append({"state": state, "label": label, "now": number, "series": (state, values)})
    return found if any(any(one["series"][1]) for one in found) else []


def _outbox(health: StorageHealthStatus) -> Optional[Dict[str, Any]]:
    """Return what the last health check said of the outbox."""
    found = health.components.get("outbox")
    if found is None or "pending" not in found.details:
        return None
    return {name: found.details.get(name, 0) for name in ("pending", "parked", "lag_s")}


def _batch(numbers: Dict[str, int]) -> float:
    """Return how many writes share a commit on average; 0 where that is not known."""
    batches = numbers.get("writer_batches", 0)
    return round(numbers.get("writer_calls", 0) / batches, 1) if batches else 0.0

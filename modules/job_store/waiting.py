"""How long a worker may sleep: until the next job of its queues is due, or a lease runs out and its job must be rescued."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from sqlalchemy import Double, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.job_store.claim_statements import TOP, TOP_TENANT
from modules.job_store.sql import NOW, binds
from modules.storage.operations import Transaction, read
from modules.storage.statements import Statement

__all__ = ["next_due_in"]

_ABOVE_EVERY_PRIORITY = 32_767
_OPEN = "j.status = 'scheduled' AND j.parked = 0"
_PAUSED_SQL = "SELECT b.name FROM atlas_job_queues b WHERE b.tenant_id = '' AND b.paused = 1"

# The index is (queue, priority, run_at): the first of each priority is found by descending, as in a claim.
_NEXT_SQL = """
WITH RECURSIVE levels (queue, priority) AS (
    SELECT a.queue, (SELECT j.priority FROM atlas_jobs j WHERE {tenant} j.queue = a.queue AND {open}
        ORDER BY j.priority DESC LIMIT 1)
    FROM unnest(:queues) AS a (queue) WHERE a.queue NOT IN ({paused})
  UNION ALL
    SELECT l.queue, (SELECT j.priority FROM atlas_jobs j WHERE {tenant} j.queue = l.queue AND {open}
        AND j.priority < l.priority ORDER BY j.priority DESC LIMIT 1) FROM levels l WHERE l.priority IS NOT NULL
)
SELECT extract(epoch FROM least(
    (SELECT min(first.run_at) FROM levels l CROSS JOIN LATERAL (
        SELECT j.run_at FROM atlas_jobs j WHERE {tenant} j.queue = l.queue AND {open} AND j.priority = l.priority
        ORDER BY j.run_at LIMIT 1) AS first),
    (SELECT min(j.lease_until) FROM atlas_jobs j WHERE j.status = 'running')
) - statement_timestamp())::float8 AS seconds
"""
_ONE_TENANT = "j.tenant_id = :tenant_id AND "
_QUEUES = bindparam("queues", type_=ARRAY(Text()))


_PARTS = {"open": _OPEN, "paused": _PAUSED_SQL}
_IN_SECONDS = f"({{what}} - {NOW['sqlite']}) / 1000000.0 AS seconds"
_FIRST_SQL = (
    f"SELECT {_IN_SECONDS.format(what='min(j.run_at)')} FROM atlas_jobs j"
    f" WHERE {{tenant}} j.queue = :queue AND {_OPEN} AND j.priority = :priority"
)

_NEXT = Statement(
    postgresql=text(_NEXT_SQL.format(tenant="", **_PARTS)).bindparams(_QUEUES).columns(seconds=Double())
)
_NEXT_TENANT = Statement(
    postgresql=text(_NEXT_SQL.format(tenant=_ONE_TENANT, **_PARTS))
    .bindparams(_QUEUES, *binds("tenant_id"))
    .columns(seconds=Double())
)
_FIRST = Statement(
    sqlite=text(_FIRST_SQL.format(tenant=""))
    .bindparams(*binds("queue", "priority"))
    .columns(seconds=Double())
)
_FIRST_TENANT = Statement(
    sqlite=text(_FIRST_SQL.format(tenant=_ONE_TENANT))
    .bindparams(*binds("queue", "priority", "tenant_id"))
    .columns(seconds=Double())
)
_LEASES = Statement(
    sqlite=text(
        f"SELECT {_IN_SECONDS.format(what='min(j.lease_until)')} FROM atlas_jobs j WHERE j.status = 'running'"
    ).columns(seconds=Double())
)
_PAUSED = Statement(sqlite=text(_PAUSED_SQL).columns(name=Text()))


@read(snapshot=True)
async def next_due_in(tx: Transaction, queues: Tuple[str, ...], tenant_id: Optional[str]) -> Optional[float]:
    """Return seconds until a job of these queues is due or a lease runs out, by the database's clock; None: neither.

    0 and less: something is due now. Jobs of paused queues and parked ones do not count.
    """
    scope: Dict[str, Any] = {} if tenant_id is None else {"tenant_id": tenant_id}
    if tx.dialect == "postgresql":
        row = await tx.one(_NEXT if tenant_id is None else _NEXT_TENANT, queues=list(queues), **scope)
        return None if row[0] is None else float(row[0])
    paused = {row[0] for row in await tx.all(_PAUSED)}
    found: List[float] = []
    top, first = (TOP, _FIRST) if tenant_id is None else (TOP_TENANT, _FIRST_TENANT)
    for queue in queues:
        level = _ABOVE_EVERY_PRIORITY
        while queue not in paused:
            row = await tx.one(top, queue=queue, priority=level, **scope)
            if row[0] is None:
                break
            level = row[0]
            row = await tx.one(first, queue=queue, priority=level, **scope)
            found += [] if row[0] is None else [row[0]]
    row = await tx.one(_LEASES)
    found += [] if row[0] is None else [row[0]]
    return min(found) if found else None

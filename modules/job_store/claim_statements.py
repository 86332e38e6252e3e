"""The SQL of claiming.

The index (queue, priority, run_at) holds scheduled jobs only. A claim walks it from the highest priority down, in each
from the oldest due time on, and never meets a job that is not due: the priorities of a queue are found by descending from
each to the next lower one, not by reading their jobs. So it costs the same with a thousand jobs queued as with a million,
due or not.

PostgreSQL: one statement. `heads` looks without locks at what is first over all queues; `picked` then locks as many of each
queue and priority, and skips what another worker holds. What needs a look at other rows first (a concurrency key, a queue
with a limit) is not claimed there but told, and `claims` goes on with it.
SQLite: a handful of small statements in the writer's turn, see `claims`.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Double, String, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.job_store.sql import NOW, binds, columns
from modules.storage.columns import UtcDateTime
from modules.storage.statements import Statement

__all__ = [
    "CLAIM",
    "CLAIM_ROWS",
    "CLAIM_TENANT",
    "HEADS",
    "HEADS_TENANT",
    "KEYED",
    "KEYED_TENANT",
    "LIMITED",
    "LOCK_KEYS",
    "PARK",
    "RUNNING_OF_KEY",
    "TAKE_TOKENS",
    "TOP",
    "TOP_TENANT",
]

_ANY_TENANT = ""
_ONE_TENANT = "j.tenant_id = :tenant_id AND "
_OPEN = "j.status = 'scheduled' AND j.parked = 0"

# --- PostgreSQL ---------------------------------------------------------------------------------------------------

_PICK = """
WITH RECURSIVE asked (queue) AS (
    SELECT a.queue FROM unnest(:queues) AS a (queue)
    WHERE {limits} NOT EXISTS (SELECT 1 FROM atlas_job_queues b WHERE b.tenant_id = '' AND b.name = a.queue)
), levels (queue, priority) AS (
    SELECT a.queue, (SELECT j.priority FROM atlas_jobs j WHERE {tenant} j.queue = a.queue AND {open}
        ORDER BY j.priority DESC LIMIT 1) FROM asked a
  UNION ALL
    SELECT l.queue, (SELECT j.priority FROM atlas_jobs j WHERE {tenant} j.queue = l.queue AND {open}
        AND j.priority < l.priority ORDER BY j.priority DESC LIMIT 1) FROM levels l WHERE l.priority IS NOT NULL
), heads AS (
    SELECT l.queue, l.priority FROM levels l CROSS JOIN LATERAL (
        SELECT j.run_at FROM atlas_jobs j WHERE {tenant} j.queue = l.queue AND {open} AND j.priority = l.priority
            AND j.run_at <= statement_timestamp() ORDER BY j.run_at LIMIT :limit) AS first
    ORDER BY l.priority DESC, first.run_at LIMIT :limit
), shares AS (
    SELECT queue, priority, count(*) AS n FROM heads GROUP BY queue, priority
), picked AS MATERIALIZED (
    SELECT job.* FROM shares s CROSS JOIN LATERAL (
        SELECT j.ctid AS place, 1 AS a, 1 AS b, 1 AS c, j.tenant_id, j.id, j.concurrency_key, j.concurrency_limit,
            j.priority, j.run_at FROM atlas_jobs j WHERE {tenant} j.queue = s.queue AND {open} AND j.priority = s.priority
            AND j.run_at <= statement_timestamp() ORDER BY j.run_at LIMIT s.n FOR UPDATE SKIP LOCKED) AS job
)"""

# The planner cannot know how few rows were picked, and for many it would rather read the whole table than go to each place;
# a worker that prepares its claim while the table is small would keep that plan when it is large. It takes an equality
# for rare, so these, which always hold, tell it "one row". tests/contract/test_jobs_plans.py looks at the plans.
_FEW = "p.a = 1 AND p.b = 1 AND p.c = 1"
_TAKE = """
    status = 'running', fence = fence + 1, attempts = attempts + 1, version = version + 1, worker = :worker,
    started_at = {now}, updated_at = {now}, lease_until = {until}, finished_at = NULL, progress = NULL,
    cancel_requested = 0, reason = NULL
"""
_TAKE_POSTGRESQL = _TAKE.format(
    now=NOW["postgresql"], until="statement_timestamp() + :lease_us * interval '1 microsecond'"
)
_TAKE_SQLITE = _TAKE.format(now=NOW["sqlite"], until=NOW["sqlite"] + " + :lease_us")

#: What a claim gives of each job; `decode` of `claims` knows the order.
_GIVEN_NAMES = (
    "tenant_id", "id", "fence", "handler", "payload", "name", "queue", "priority", "attempts", "max_attempts", "options",
    "run_at", "started_at", "lease_until", "concurrency_key", "schedule_id", "scheduled_for",
)  # fmt: skip
_GIVEN = ", ".join(_GIVEN_NAMES)
_GIVEN_OF_J = ", ".join(f"j.{name}" for name in _GIVEN_NAMES)
# the options stay text: they repeat, and `limits.decode_options` remembers them
_COLUMNS = {**columns(*_GIVEN_NAMES), "options": Text()}
# what was not claimed: a row with the queue's name for each queue with a limit, and one without for keyed jobs
_TOLD = ", ".join("NULL" if name != "queue" else "t.queue" for name in _GIVEN_NAMES)

_CLAIM = (
    _PICK
    + """, claimed AS (
    UPDATE atlas_jobs j SET {take}
    FROM picked p WHERE j.ctid = p.place AND p.concurrency_key IS NULL AND {few}
    RETURNING {given}
)
SELECT {names} FROM claimed
UNION ALL
SELECT {told} FROM (
    SELECT NULL::text AS queue WHERE EXISTS (SELECT 1 FROM picked WHERE concurrency_key IS NOT NULL)
    UNION ALL
    SELECT b.name FROM atlas_job_queues b WHERE b.tenant_id = '' AND b.name = ANY (:queues)
) AS t
"""
)
_QUEUES = bindparam("queues", type_=ARRAY(Text()))

_CLAIM_PARTS = {
    "open": _OPEN, "limits": "", "take": _TAKE_POSTGRESQL, "told": _TOLD, "given": _GIVEN_OF_J, "names": _GIVEN,
    "few": _FEW,
}  # fmt: skip
_CLAIM_BINDS = (*binds("limit", "lease_us", "worker"), _QUEUES)
CLAIM = Statement(
    postgresql=text(_CLAIM.format(tenant=_ANY_TENANT, **_CLAIM_PARTS))
    .bindparams(*_CLAIM_BINDS)
    .columns(**_COLUMNS)
)
CLAIM_TENANT = Statement(
    postgresql=text(_CLAIM.format(tenant=_ONE_TENANT, **_CLAIM_PARTS))
    .bindparams(*_CLAIM_BINDS, *binds("tenant_id"))
    .columns(**_COLUMNS)
)

# the first of a key takes its place, so the order matters
_KEYED = _PICK + (
    " SELECT p.tenant_id, p.id, p.concurrency_key, p.concurrency_limit FROM picked p"
    " ORDER BY p.priority DESC, p.run_at, p.id"
)
# a queue with a limit is asked for by itself, once its limit is known: `with_limits` lets it in
_KEYED_PARTS = {"open": _OPEN, "limits": ":with_limits OR"}
_KEYED_BINDS = (*binds("limit", "with_limits"), _QUEUES)
_KEYED_COLUMNS = columns("tenant_id", "id", "concurrency_key", "concurrency_limit")
#: Locks the first jobs, whether they have a key or not, and gives their keys and limits; claims nothing.
KEYED = Statement(
    postgresql=text(_KEYED.format(tenant=_ANY_TENANT, **_KEYED_PARTS))
    .bindparams(*_KEYED_BINDS)
    .columns(**_KEYED_COLUMNS)
)
KEYED_TENANT = Statement(
    postgresql=text(_KEYED.format(tenant=_ONE_TENANT, **_KEYED_PARTS))
    .bindparams(*_KEYED_BINDS, *binds("tenant_id"))
    .columns(**_KEYED_COLUMNS)
)

#: Holds the keys until the transaction ends, always in the same order.
LOCK_KEYS = Statement(
    postgresql=text(
        "SELECT count(pg_advisory_xact_lock(hashtextextended(k.name, 7068))) AS count"
        " FROM (SELECT DISTINCT name FROM unnest(:names) AS given (name) ORDER BY name) AS k"
    )
    .bindparams(bindparam("names", type_=ARRAY(Text())))
    .columns(**columns("count"))
)

# --- both ---------------------------------------------------------------------------------------------------------

RUNNING_OF_KEY = Statement(
    text(
        "SELECT count(*) AS count FROM atlas_jobs WHERE tenant_id = :tenant_id AND concurrency_key = :concurrency_key"
        " AND status = 'running'"
    )
    .bindparams(*binds("tenant_id", "concurrency_key"))
    .columns(**columns("count"))
)
#: Claims jobs that the transaction has locked.
CLAIM_ROWS = Statement(
    postgresql=text(
        "WITH p AS MATERIALIZED (SELECT g.*, 1 AS a, 1 AS b, 1 AS c FROM unnest(:tenants, :ids) AS g (tenant_id, id))"
        f" UPDATE atlas_jobs j SET {_TAKE_POSTGRESQL} FROM p"
        f" WHERE j.tenant_id = p.tenant_id AND j.id = p.id AND {_FEW} RETURNING {_GIVEN_OF_J}"
    )
    .bindparams(
        *binds("lease_us", "worker"),
        bindparam("tenants", type_=ARRAY(Text())),
        bindparam("ids", type_=ARRAY(Text())),
    )
    .columns(**_COLUMNS),
    sqlite=text(
        f"UPDATE atlas_jobs SET {_TAKE_SQLITE} WHERE rowid IN (SELECT value FROM json_each(:places)) RETURNING {_GIVEN}"
    )
    .bindparams(*binds("lease_us", "worker"), bindparam("places", type_=Text()))
    .columns(**_COLUMNS),
)
#: Keeps a job out of claims until a running one of its key ends.
PARK = Statement(
    text("UPDATE atlas_jobs SET parked = 1 WHERE tenant_id = :tenant_id AND id = :id").bindparams(
        *binds("tenant_id", "id")
    )
)
#: Queues of those asked for that have a limit, with the whole jobs that may start now; held until the transaction ends.
_TOKENS = "least(b.burst, b.tokens + b.rate * extract(epoch FROM (clock_timestamp() - b.filled_at)))"
_TOKENS_SQLITE = f"min(b.burst, b.tokens + b.rate * ({NOW['sqlite']} - b.filled_at) / 1000000.0)"
LIMITED = Statement(
    postgresql=text(
        f"SELECT b.name, CASE WHEN b.paused = 1 THEN 0 ELSE {_TOKENS} END AS tokens FROM atlas_job_queues b"
        " WHERE b.tenant_id = '' AND b.name = ANY (:queues) ORDER BY b.name FOR UPDATE"
    )
    .bindparams(_QUEUES)
    .columns(name=String(), tokens=Double()),
    sqlite=text(
        f"SELECT b.name, CASE WHEN b.paused = 1 THEN 0 ELSE {_TOKENS_SQLITE} END AS tokens FROM atlas_job_queues b"
        " WHERE b.tenant_id = '' AND b.name IN (SELECT value FROM json_each(:queues))"
    )
    .bindparams(bindparam("queues", type_=Text()))
    .columns(name=String(), tokens=Double()),
)
_TAKE_TOKENS = (
    "UPDATE atlas_job_queues AS b SET tokens = {tokens} - :count, filled_at = {now}"
    " WHERE b.tenant_id = '' AND b.name = :name AND b.rate IS NOT NULL"
)
TAKE_TOKENS = Statement(
    postgresql=text(
        _TAKE_TOKENS.replace("{tokens}", _TOKENS).replace("{now}", "clock_timestamp()")
    ).bindparams(*binds("count", "name")),
    sqlite=text(_TAKE_TOKENS.replace("{tokens}", _TOKENS_SQLITE).replace("{now}", NOW["sqlite"])).bindparams(
        *binds("count", "name")
    ),
)

# --- SQLite -------------------------------------------------------------------------------------------------------

_TOP = (
    "SELECT max(j.priority) AS priority FROM atlas_jobs j WHERE {tenant} j.queue = :queue AND {open}"
    " AND j.priority < :priority"
)
#: The highest priority of a queue below the one given.
TOP = Statement(
    sqlite=text(_TOP.format(tenant=_ANY_TENANT, open=_OPEN))
    .bindparams(*binds("queue", "priority"))
    .columns(**columns("priority"))
)
TOP_TENANT = Statement(
    sqlite=text(_TOP.format(tenant=_ONE_TENANT, open=_OPEN))
    .bindparams(*binds("queue", "priority", "tenant_id"))
    .columns(**columns("priority"))
)

_HEADS = (
    "SELECT j.run_at, j.rowid AS place, j.tenant_id, j.id, j.concurrency_key, j.concurrency_limit"
    " FROM atlas_jobs j WHERE {tenant} j.queue = :queue AND {open} AND j.priority = :priority"
    " AND j.run_at <= {now} ORDER BY j.run_at, j.rowid LIMIT :limit"
)
_HEADS_PARTS = {"open": _OPEN, "now": NOW["sqlite"]}
_HEADS_COLUMNS = {"run_at": UtcDateTime(), "place": BigInteger(), **_KEYED_COLUMNS}
#: The first due jobs of a queue and priority.
HEADS = Statement(
    sqlite=text(_HEADS.format(tenant=_ANY_TENANT, **_HEADS_PARTS))
    .bindparams(*binds("queue", "priority", "limit"))
    .columns(**_HEADS_COLUMNS)
)
HEADS_TENANT = Statement(
    sqlite=text(_HEADS.format(tenant=_ONE_TENANT, **_HEADS_PARTS))
    .bindparams(*binds("queue", "priority", "limit", "tenant_id"))
    .columns(**_HEADS_COLUMNS)
)

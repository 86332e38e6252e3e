"""The SQL of ending runs, of heartbeats and of rescuing jobs whose worker is gone.

Every one of them names the claim by its fence, so a worker that lost a job changes nothing. A batch is one statement on
PostgreSQL; on SQLite two small ones for each job, in one transaction.

Batches on PostgreSQL say `lease_until IS NOT NULL` where they mean `status = 'running'` (a job has a lease while it runs, and
only then): the planner would else go through the index of running jobs for each job of the batch. For a, b and c see
`claim_statements`.
"""

from __future__ import annotations

from typing import Any, Dict, List

from sqlalchemy import BigInteger, Integer, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.job_store.sql import NOW, binds, columns
from modules.storage.statements import Statement

__all__ = [
    "BEAT",
    "CANCEL_REQUESTED",
    "EXPIRED",
    "KEEP_RUNS",
    "PARKED_KEYS",
    "PROGRESS",
    "SETTLE",
    "SETTLE_ROWS",
    "UNPARK",
]

_SETTLED = """
    status = CASE WHEN {j}cancel_requested = 1 AND {g}status <> 'succeeded' THEN 'cancelled' ELSE {g}status END,
    run_at = CASE WHEN {g}delay_us > 0 THEN {later} ELSE {j}run_at END,
    attempts = {j}attempts + {g}delta, version = {j}version + 1, updated_at = {now},
    finished_at = CASE WHEN {g}status <> 'scheduled' OR {j}cancel_requested = 1 THEN {now} END,
    lease_until = NULL, reason = {g}reason
"""
_ARRAY_NAMES = (
    "tenant_ids", "ids", "fences", "statuses", "delays", "deltas", "reasons", "run_statuses", "errors", "results", "keeps",
)  # fmt: skip
_ARRAY_TYPES: Dict[str, Any] = {
    **dict.fromkeys(
        ("tenant_ids", "ids", "statuses", "reasons", "run_statuses", "errors", "results"), ARRAY(Text())
    ),
    **dict.fromkeys(("fences", "deltas"), ARRAY(Integer())),
    **dict.fromkeys(("delays", "keeps"), ARRAY(BigInteger())),
}
_ARRAY_BINDS: List[Any] = [bindparam(name, type_=kind) for name, kind in _ARRAY_TYPES.items()]

_SETTLE_SQL = (
    """
WITH g AS MATERIALIZED (
    SELECT g.*, 1 AS a, 1 AS b, 1 AS c FROM unnest(:tenant_ids, :ids, :fences, :statuses, :delays, :deltas, :reasons,
        :run_statuses, :errors, :results, :keeps) WITH ORDINALITY
      AS g (tenant_id, id, fence, status, delay_us, delta, reason, run_status, error, result, keep_us, n)
), done AS (
    UPDATE atlas_jobs j SET"""
    + _SETTLED.format(
        j="j.",
        g="g.",
        now=NOW["postgresql"],
        later="statement_timestamp() + g.delay_us * interval '1 microsecond'",
    )
    + """
    FROM g WHERE j.tenant_id = g.tenant_id AND j.id = g.id AND j.fence = g.fence AND j.lease_until IS NOT NULL
        AND g.a = 1 AND g.b = 1 AND g.c = 1
    RETURNING g.n, j.tenant_id, j.id, j.fence, j.attempts - g.delta AS attempt, j.status, j.worker, j.started_at,
        g.run_status, g.error, g.result, g.keep_us
), kept AS (
    INSERT INTO atlas_job_runs
        (tenant_id, job_id, number, attempt, status, started_at, finished_at, result_until, worker, error, result)
    SELECT tenant_id, id, fence, attempt, CASE WHEN status = 'cancelled' THEN status ELSE run_status END, started_at,
        statement_timestamp(), statement_timestamp() + keep_us * interval '1 microsecond', worker, error::json, result::json
    FROM done
)
SELECT n, status FROM done
"""
)
SETTLE = Statement(postgresql=text(_SETTLE_SQL).bindparams(*_ARRAY_BINDS).columns(**columns("n", "status")))

_ONE = binds("tenant_id", "id", "fence")
# On SQLite a batch is an array of arrays in JSON: first the runs are kept, then the jobs are changed, each in one statement.
_ROW_NAMES = (
    "tenant_id", "id", "fence", "status", "delay_us", "delta", "reason", "run_status", "error", "result", "keep_us",
)  # fmt: skip
_ROWS = (
    "(SELECT "
    + ", ".join(f"json_extract(value, '$[{n}]') AS {name}" for n, name in enumerate(_ROW_NAMES))
    + " FROM json_each(:rows))"
)
_IS_CLAIMED = "j.tenant_id = g.tenant_id AND j.id = g.id AND j.fence = g.fence AND j.status = 'running'"
SETTLE_ROWS = Statement(
    sqlite=text(
        "UPDATE atlas_jobs AS j SET"
        + _SETTLED.format(j="j.", g="g.", now=NOW["sqlite"], later=NOW["sqlite"] + " + g.delay_us")
        + f" FROM {_ROWS} AS g WHERE {_IS_CLAIMED} RETURNING tenant_id, id, status"
    )
    .bindparams(bindparam("rows", type_=Text()))
    .columns(**columns("tenant_id", "id", "status"))
)
KEEP_RUNS = Statement(
    sqlite=text(
        "INSERT INTO atlas_job_runs"
        " (tenant_id, job_id, number, attempt, status, started_at, finished_at, result_until, worker, error, result)"
        " SELECT j.tenant_id, j.id, j.fence, j.attempts, CASE WHEN j.cancel_requested = 1 AND g.status <> 'succeeded'"
        f" THEN 'cancelled' ELSE g.run_status END, j.started_at, {NOW['sqlite']}, {NOW['sqlite']} + g.keep_us, j.worker,"
        f" g.error, g.result FROM {_ROWS} AS g CROSS JOIN atlas_jobs AS j WHERE {_IS_CLAIMED}"
    ).bindparams(bindparam("rows", type_=Text()))
)

_GIVEN = (
    "WITH g AS MATERIALIZED (SELECT g.*, 1 AS a, 1 AS b, 1 AS c FROM unnest(:tenant_ids, :ids, :fences)"
    " WITH ORDINALITY AS g (tenant_id, id, fence, n))"
)
_CURRENT = (
    "j.tenant_id = g.tenant_id AND j.id = g.id AND j.fence = g.fence AND j.lease_until IS NOT NULL"
    " AND g.a = 1 AND g.b = 1 AND g.c = 1"
)
_BEAT_BINDS = [_b for _b in _ARRAY_BINDS if _b.key in ("tenant_ids", "ids", "fences")]
BEAT = Statement(
    postgresql=text(
        _GIVEN
        + " UPDATE atlas_jobs j SET lease_until = statement_timestamp() + :lease_us * interval '1 microsecond'"
        " FROM g WHERE " + _CURRENT + " RETURNING g.n, j.cancel_requested, j.lease_until"
    )
    .bindparams(*_BEAT_BINDS, *binds("lease_us"))
    .columns(**columns("n", "cancel_requested", "lease_until")),
    sqlite=text(
        f"UPDATE atlas_jobs SET lease_until = {NOW['sqlite']} + :lease_us"
        " WHERE tenant_id = :tenant_id AND id = :id AND fence = :fence AND status = 'running'"
        " RETURNING 1 AS n, cancel_requested, lease_until"
    )
    .bindparams(*_ONE, *binds("lease_us"))
    .columns(**columns("n", "cancel_requested", "lease_until")),
)
#: Which of these claims are to be cancelled, and which are current; changes nothing.
CANCEL_REQUESTED = Statement(
    postgresql=text(_GIVEN + " SELECT g.n, j.cancel_requested FROM g, atlas_jobs j WHERE " + _CURRENT)
    .bindparams(*_BEAT_BINDS)
    .columns(**columns("n", "cancel_requested")),
    sqlite=text(
        "SELECT 1 AS n, cancel_requested FROM atlas_jobs"
        " WHERE tenant_id = :tenant_id AND id = :id AND fence = :fence AND status = 'running'"
    )
    .bindparams(*_ONE)
    .columns(**columns("n", "cancel_requested")),
)
PROGRESS = Statement(
    text(
        "UPDATE atlas_jobs SET progress = :progress"
        " WHERE tenant_id = :tenant_id AND id = :id AND fence = :fence AND status = 'running'"
    ).bindparams(*_ONE, *binds("progress"))
)

_EXPIRED = (
    "SELECT tenant_id, id, fence, attempts, max_attempts, options, concurrency_key, queue FROM atlas_jobs"
    " WHERE status = 'running' AND lease_until <= {now} ORDER BY lease_until LIMIT :limit"
)
_EXPIRED_COLUMNS = {
    **columns("tenant_id", "id", "fence", "attempts", "max_attempts"),
    "options": Text(),
    **columns("concurrency_key", "queue"),
}
#: Running jobs whose lease ran out; locked.
EXPIRED = Statement(
    postgresql=text(_EXPIRED.format(now=NOW["postgresql"]) + " FOR UPDATE SKIP LOCKED")
    .bindparams(*binds("limit"))
    .columns(**_EXPIRED_COLUMNS),
    sqlite=text(_EXPIRED.format(now=NOW["sqlite"])).bindparams(*binds("limit")).columns(**_EXPIRED_COLUMNS),
)

_UNPARK = (
    "UPDATE atlas_jobs SET parked = 0 WHERE tenant_id = :tenant_id AND id = (SELECT j.id FROM atlas_jobs j"
    " WHERE j.tenant_id = :tenant_id AND j.concurrency_key = :concurrency_key AND j.parked = 1"
    " AND j.priority = (SELECT max(p.priority) FROM atlas_jobs p WHERE p.tenant_id = :tenant_id"
    " AND p.concurrency_key = :concurrency_key AND p.parked = 1) ORDER BY {order} LIMIT 1) RETURNING queue"
)
_UNPARK_BINDS = binds("tenant_id", "concurrency_key")
#: Lets the first parked job of a key be claimed.
UNPARK = Statement(
    sqlite=text(_UNPARK.format(order="j.run_at, j.rowid"))
    .bindparams(*_UNPARK_BINDS)
    .columns(**columns("queue")),
    postgresql=text(_UNPARK.format(order="j.run_at")).bindparams(*_UNPARK_BINDS).columns(**columns("queue")),
)
_PARKED = (
    "SELECT DISTINCT p.tenant_id, p.concurrency_key FROM (SELECT tenant_id, concurrency_key FROM atlas_jobs"
    " WHERE parked = 1 AND (tenant_id, concurrency_key) > (:tenant_id, :concurrency_key)"
    " ORDER BY tenant_id, concurrency_key LIMIT 1) AS p"
)
#: The next key after the one given that has parked jobs.
PARKED_KEYS = Statement(
    text(_PARKED)
    .bindparams(*binds("tenant_id", "concurrency_key"))
    .columns(**columns("tenant_id", "concurrency_key"))
)

"""The SQL of enqueueing: one job, many jobs in one statement, and the keys that allow one job only."""

from __future__ import annotations

from sqlalchemy import bindparam, text

from modules.job_store.sql import NOW, PARAMETERS, binds, columns
from modules.storage.statements import Statement

__all__ = ["ADD_KEY", "ENQUEUE", "ENQUEUE_BATCH", "ENQUEUE_QUIETLY", "FIELDS", "FIND_KEY", "LINK", "MOVE_KEY"]

#: The values of a new job, in the order of the inserts below; `delay_us` counts from now where `run_at` is not given.
FIELDS = (
    "tenant_id", "id", "name", "handler", "queue", "status", "priority", "max_attempts", "concurrency_key",
    "concurrency_limit", "run_at", "delay_us", "options", "payload", "schedule_id", "scheduled_for",
)  # fmt: skip
_STORED = ", ".join(name for name in FIELDS if name != "delay_us")
_CONSTANT = "parked, attempts, fence, version, cancel_requested, created_at, updated_at"
_COLUMNS = f"INSERT INTO atlas_jobs ({_STORED}, {_CONSTANT})"


def _values(run_at: str) -> str:
    return ", ".join(run_at if name == "run_at" else f":{name}" for name in FIELDS if name != "delay_us")


_ONE = {
    "sqlite": f"coalesce(:run_at, {NOW['sqlite']} + :delay_us)",
    "postgresql": "coalesce(:run_at, statement_timestamp() + :delay_us * interval '1 microsecond')",
}
_ENQUEUE_SQLITE = (
    f"{_COLUMNS} VALUES ({_values(_ONE['sqlite'])}, 0, 0, 0, 1, 0, {NOW['sqlite']}, {NOW['sqlite']})"
    " RETURNING run_at, created_at"
)
_ENQUEUE_POSTGRESQL = (
    f"{_COLUMNS} VALUES ({_values(_ONE['postgresql'])}, 0, 0, 0, 1, 0, statement_timestamp(), statement_timestamp())"
    " RETURNING run_at, created_at"
)
#: The same without a result, for many at once.
_ENQUEUE_QUIETLY = _ENQUEUE_SQLITE.replace(" RETURNING run_at, created_at", "")
ENQUEUE_QUIETLY = Statement(sqlite=text(_ENQUEUE_QUIETLY).bindparams(*binds(*FIELDS)))
ENQUEUE = Statement(
    sqlite=text(_ENQUEUE_SQLITE).bindparams(*binds(*FIELDS)).columns(**columns("run_at", "created_at")),
    postgresql=text(_ENQUEUE_POSTGRESQL)
    .bindparams(*binds(*FIELDS))
    .columns(**columns("run_at", "created_at")),
)

# Jobs that go in together are due one microsecond after the other, the last of them now: so they keep their order
# although the claim's index ends with the time.
_BATCH_SQL = f"""
{_COLUMNS}
SELECT g.tenant_id, g.id, g.name, g.handler, g.queue, g.status, g.priority, g.max_attempts, g.concurrency_key,
    g.concurrency_limit,
    coalesce(g.run_at, statement_timestamp() + (g.delay_us + g.n - :count) * interval '1 microsecond'),
    g.options::json, g.payload::json, g.schedule_id, g.scheduled_for, 0, 0, 0, 1, 0, statement_timestamp(),
    statement_timestamp()
FROM unnest(:tenant_id, :id, :name, :handler, :queue, :status, :priority, :max_attempts, :concurrency_key,
    :concurrency_limit, :run_at, :delay_us, :options, :payload, :schedule_id, :scheduled_for) WITH ORDINALITY
  AS g (tenant_id, id, name, handler, queue, status, priority, max_attempts, concurrency_key, concurrency_limit, run_at,
    delay_us, options, payload, schedule_id, scheduled_for, n)
RETURNING id, run_at, created_at
"""
ENQUEUE_BATCH = Statement(
    postgresql=text(_BATCH_SQL)
    .bindparams(*binds(*FIELDS, arrays=True), bindparam("count", type_=PARAMETERS["count"]))
    .columns(**columns("id", "run_at", "created_at"))
)

_KEY = "tenant_id = :tenant_id AND kind = :kind AND key = :key"
_KEY_BINDS = binds("tenant_id", "kind", "key")
_ADD_KEY = (
    "INSERT INTO atlas_job_keys (tenant_id, kind, key, job_id, digest, created_at, until)"
    " VALUES (:tenant_id, :kind, :key, :job_id, :digest, {now}, {until})"
    " ON CONFLICT (tenant_id, kind, key) DO NOTHING RETURNING job_id"
)
_UNTIL = {
    "sqlite": f"{NOW['sqlite']} + :keep_us",
    "postgresql": "statement_timestamp() + :keep_us * interval '1 microsecond'",
}
_ADD_BINDS = (*_KEY_BINDS, *binds("job_id", "digest", "keep_us"))
#: Takes a key for a job; no row: it is taken. On PostgreSQL it waits for another transaction that is taking it.
ADD_KEY = Statement(
    sqlite=text(_ADD_KEY.format(now=NOW["sqlite"], until=_UNTIL["sqlite"]))
    .bindparams(*_ADD_BINDS)
    .columns(**columns("job_id")),
    postgresql=text(_ADD_KEY.format(now=NOW["postgresql"], until=_UNTIL["postgresql"]))
    .bindparams(*_ADD_BINDS)
    .columns(**columns("job_id")),
)
_FIND_KEY = (
    "SELECT k.job_id, k.digest, k.until IS NOT NULL AND k.until > {now} AS in_window, j.status, j.run_at, j.created_at"
    " FROM atlas_job_keys k LEFT JOIN atlas_jobs j ON j.tenant_id = k.tenant_id AND j.id = k.job_id"
    " WHERE k.tenant_id = :tenant_id AND k.kind = :kind AND k.key = :key"
)
_FOUND = {
    **columns("job_id", "digest"),
    "in_window": PARAMETERS["with_limits"],
    **columns("status", "run_at", "created_at"),
}
#: The job of a key, whether its window is still open, and what became of it (no status: it was deleted).
FIND_KEY = Statement(
    sqlite=text(_FIND_KEY.format(now=NOW["sqlite"])).bindparams(*_KEY_BINDS).columns(**_FOUND),
    postgresql=text(_FIND_KEY.format(now=NOW["postgresql"]) + " FOR UPDATE OF k")
    .bindparams(*_KEY_BINDS)
    .columns(**_FOUND),
)
_MOVE_KEY = f"UPDATE atlas_job_keys SET job_id = :job_id, digest = :digest, created_at = {{now}}, until = {{until}} WHERE {_KEY}"
#: Gives a key to another job, when the one that had it is over.
MOVE_KEY = Statement(
    sqlite=text(_MOVE_KEY.format(now=NOW["sqlite"], until=_UNTIL["sqlite"])).bindparams(*_ADD_BINDS),
    postgresql=text(_MOVE_KEY.format(now=NOW["postgresql"], until=_UNTIL["postgresql"])).bindparams(
        *_ADD_BINDS
    ),
)
_LINK = (
    "INSERT INTO atlas_job_tasks (tenant_id, job_id, task_id, created_at) VALUES (:tenant_id, :job_id, :task_id, {now})"
    " ON CONFLICT (tenant_id, job_id, task_id) DO NOTHING"
)
#: Links a job to a task; harmless when it is linked.
LINK = Statement(
    sqlite=text(_LINK.format(now=NOW["sqlite"])).bindparams(*binds("tenant_id", "job_id", "task_id")),
    postgresql=text(_LINK.format(now=NOW["postgresql"])).bindparams(*binds("tenant_id", "job_id", "task_id")),
)

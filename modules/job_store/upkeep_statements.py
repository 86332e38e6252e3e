"""The SQL of what workers and schedulers tell and ask besides jobs: log lines, workers, limits of queues, due schedules."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.job_store.sql import NOW, binds, columns
from modules.storage.columns import JsonValue
from modules.storage.statements import Statement

__all__ = [
    "ADD_LOG",
    "ADD_LOGS",
    "ADVANCE",
    "CURRENT",
    "DROP_LIMIT",
    "DUE",
    "FORGET_WORKER",
    "LIMITS",
    "NEXT_SCHEDULE",
    "NOW_IS",
    "SCHEDULE_COLUMNS",
    "SCHEDULE_NAMES",
    "SET_LIMIT",
    "SWEEP_WORKERS",
    "WORKERS",
    "WORKER_SEEN",
]


NOW_IS = Statement(
    sqlite=text(f"SELECT {NOW['sqlite']} AS now").columns(**columns("now")),
    postgresql=text("SELECT statement_timestamp() AS now").columns(**columns("now")),
)

# --- log lines ----------------------------------------------------------------------------------------------------

_CLAIM = binds("tenant_id", "id", "fence")
_CURRENT = "SELECT fence FROM atlas_jobs WHERE tenant_id = :tenant_id AND id = :id AND fence = :fence AND status = 'running'"
#: A row while the claim is the current one; it stays so until the transaction ends.
CURRENT = Statement(
    sqlite=text(_CURRENT).bindparams(*_CLAIM).columns(**columns("fence")),
    postgresql=text(_CURRENT + " FOR SHARE").bindparams(*_CLAIM).columns(**columns("fence")),
)
ADD_LOG = Statement(
    sqlite=text(
        "INSERT INTO atlas_job_logs (tenant_id, job_id, id, run, level, message, created_at)"
        f" VALUES (:tenant_id, :job_id, :id, :run, :level, :message, {NOW['sqlite']})"
    ).bindparams(*binds("tenant_id", "job_id", "id", "run", "level", "message"))
)
ADD_LOGS = Statement(
    postgresql=text(
        "INSERT INTO atlas_job_logs (tenant_id, job_id, id, run, level, message, created_at)"
        " SELECT :tenant_id, :job_id, g.id, :run, g.level, g.message, statement_timestamp()"
        " FROM unnest(:ids, :levels, :messages) AS g (id, level, message)"
    ).bindparams(
        *binds("tenant_id", "job_id", "run"),
        *[bindparam(name, type_=ARRAY(Text())) for name in ("ids", "levels", "messages")],
    )
)

# --- workers ------------------------------------------------------------------------------------------------------

_SEEN = (
    "INSERT INTO atlas_job_workers (tenant_id, id, queues, info, running, started_at, seen_at)"
    " VALUES ('', :id, :queues, :info, :running, {now}, {now})"
    " ON CONFLICT (tenant_id, id) DO UPDATE SET queues = excluded.queues, info = excluded.info,"
    " running = excluded.running, seen_at = excluded.seen_at"
)
_SEEN_BINDS: Any = (
    *binds("id", "running"),
    bindparam("queues", type_=JsonValue()),
    bindparam("info", type_=JsonValue()),
)
WORKER_SEEN = Statement(
    sqlite=text(_SEEN.format(now=NOW["sqlite"])).bindparams(*_SEEN_BINDS),
    postgresql=text(_SEEN.format(now=NOW["postgresql"])).bindparams(*_SEEN_BINDS),
)
FORGET_WORKER = Statement(
    text("DELETE FROM atlas_job_workers WHERE tenant_id = '' AND id = :id").bindparams(*binds("id"))
)
_WORKERS = (
    "SELECT id, queues, running, info, started_at, seen_at FROM atlas_job_workers"
    " WHERE tenant_id = '' AND seen_at >= {since} ORDER BY id LIMIT 1000"
)
_WORKER_COLUMNS = {
    **columns("id"),
    "queues": JsonValue(),
    **columns("running"),
    "info": JsonValue(),
    **columns("started_at", "seen_at"),
}
#: Workers that told of themselves since so many microseconds ago.
WORKERS = Statement(
    sqlite=text(_WORKERS.format(since=f"{NOW['sqlite']} - :lease_us"))
    .bindparams(*binds("lease_us"))
    .columns(**_WORKER_COLUMNS),
    postgresql=text(_WORKERS.format(since="statement_timestamp() - :lease_us * interval '1 microsecond'"))
    .bindparams(*binds("lease_us"))
    .columns(**_WORKER_COLUMNS),
)
_SWEEP = "DELETE FROM atlas_job_workers WHERE tenant_id = '' AND seen_at < {before}"
#: Forgets workers that have been silent for so many microseconds.
SWEEP_WORKERS = Statement(
    sqlite=text(_SWEEP.format(before=f"{NOW['sqlite']} - :lease_us")).bindparams(*binds("lease_us")),
    postgresql=text(
        _SWEEP.format(before="statement_timestamp() - :lease_us * interval '1 microsecond'")
    ).bindparams(*binds("lease_us")),
)

# --- limits of queues ---------------------------------------------------------------------------------------------

_LIMIT = (
    "INSERT INTO atlas_job_queues (tenant_id, name, paused, rate, burst, tokens, filled_at)"
    " VALUES ('', :name, :paused, :rate, :burst, :burst, {now})"
    " ON CONFLICT (tenant_id, name) DO UPDATE SET paused = excluded.paused, rate = excluded.rate, burst = excluded.burst,"
    " tokens = CASE WHEN atlas_job_queues.tokens < excluded.burst THEN atlas_job_queues.tokens ELSE excluded.burst END,"
    " filled_at = excluded.filled_at"
)
_LIMIT_BINDS = (
    *binds("name", "paused"),
    bindparam("rate", type_=Double()),
    bindparam("burst", type_=Double()),
)
SET_LIMIT = Statement(
    sqlite=text(_LIMIT.format(now=NOW["sqlite"])).bindparams(*_LIMIT_BINDS),
    postgresql=text(_LIMIT.format(now=NOW["postgresql"])).bindparams(*_LIMIT_BINDS),
)
DROP_LIMIT = Statement(
    text("DELETE FROM atlas_job_queues WHERE tenant_id = '' AND name = :name").bindparams(*binds("name"))
)
LIMITS = Statement(
    text(
        "SELECT name, paused, rate, burst FROM atlas_job_queues WHERE tenant_id = '' ORDER BY name LIMIT 1000"
    ).columns(**columns("name", "paused"), rate=Double(), burst=Double())
)

# --- schedules ----------------------------------------------------------------------------------------------------

#: What is read of a schedule, in order.
SCHEDULE_NAMES = (
    "tenant_id", "id", "name", "enabled", "recurrence", "job", "next_at", "last_at", "version", "created_at", "updated_at",
)  # fmt: skip
SCHEDULE_COLUMNS = {
    **columns("tenant_id", "id", "name", "enabled"),
    "recurrence": JsonValue(),
    "job": JsonValue(),
    **columns("next_at", "last_at", "version", "created_at", "updated_at"),
}
_DUE = (
    f"SELECT {{now}} AS now, {', '.join(SCHEDULE_NAMES)} FROM atlas_job_schedules"
    " WHERE next_at IS NOT NULL AND enabled = 1 AND next_at <= {now} ORDER BY next_at LIMIT :limit"
)
#: Schedules whose time has come, with the database's time.
DUE = Statement(
    sqlite=text(_DUE.format(now=NOW["sqlite"]))
    .bindparams(*binds("limit"))
    .columns(**columns("now"), **SCHEDULE_COLUMNS),
    postgresql=text(_DUE.format(now=NOW["postgresql"]))
    .bindparams(*binds("limit"))
    .columns(**columns("now"), **SCHEDULE_COLUMNS),
)
#: When the next schedule is due.
NEXT_SCHEDULE = Statement(
    text(
        "SELECT min(next_at) AS next_at FROM atlas_job_schedules WHERE next_at IS NOT NULL AND enabled = 1"
    ).columns(**columns("next_at"))
)
#: Moves a schedule on from the time that its caller saw; no row: somebody else did, or it was changed.
ADVANCE = Statement(
    text(
        "UPDATE atlas_job_schedules SET next_at = :next_at, last_at = coalesce(:last_at, last_at)"
        " WHERE tenant_id = :tenant_id AND id = :id AND next_at = :until AND version = :version AND enabled = 1"
        " RETURNING id"
    )
    .bindparams(*binds("next_at", "last_at", "tenant_id", "id", "until", "version"))
    .columns(**columns("id"))
)

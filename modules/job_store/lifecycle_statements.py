"""The SQL of changing jobs by hand: update, cancel, run again, delete, purge."""

from __future__ import annotations

from sqlalchemy import String, Text, bindparam, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.job_store.sql import NOW, binds, columns
from modules.storage.statements import Statement

__all__ = [
    "ADD_EVENT",
    "CANCEL_RUNNING",
    "CHANGE",
    "DELETE_ALL_OF",
    "FORGET_RESULTS",
    "MOVE",
    "NEXT_TENANT",
    "OLD",
]

_KEY = binds("tenant_id", "id")

_CHANGE = (
    "UPDATE atlas_jobs SET name = :name, queue = :queue, priority = :priority, payload = :payload,"
    " max_attempts = :max_attempts, options = :options, run_at = coalesce(:run_at, {later}, run_at), parked = 0,"
    " version = version + 1, updated_at = {now} WHERE tenant_id = :tenant_id AND id = :id RETURNING version"
)
_CHANGE_BINDS = (
    *_KEY,
    *binds("name", "queue", "priority", "payload", "max_attempts", "options", "run_at", "delay_us"),
)
_CHANGE_SQLITE = _CHANGE.replace("{now}", NOW["sqlite"]).replace("{later}", NOW["sqlite"] + " + :delay_us")
_CHANGE_POSTGRESQL = _CHANGE.replace("{now}", NOW["postgresql"]).replace(
    "{later}", "statement_timestamp() + :delay_us * interval '1 microsecond'"
)
#: Sets what may be changed of a job that is not running; the transaction holds it.
CHANGE = Statement(
    sqlite=text(_CHANGE_SQLITE).bindparams(*_CHANGE_BINDS).columns(**columns("version")),
    postgresql=text(_CHANGE_POSTGRESQL).bindparams(*_CHANGE_BINDS).columns(**columns("version")),
)
# draft, scheduled and cancelled: out of the claims, or due again from the start
_MOVE = (
    "UPDATE atlas_jobs SET status = :status, reason = :reason, parked = 0, cancel_requested = 0, progress = NULL,"
    " attempts = CASE WHEN :attempts IS NULL THEN attempts ELSE :attempts END,"
    " finished_at = CASE WHEN :status = 'cancelled' THEN {now} END,"
    " run_at = coalesce(:run_at, {later}, run_at), version = version + 1, updated_at = {now}"
    " WHERE tenant_id = :tenant_id AND id = :id RETURNING version"
)
_MOVE_BINDS = (*_KEY, *binds("status", "reason", "attempts", "run_at", "delay_us"))
_MOVE_SQLITE = _MOVE.replace("{now}", NOW["sqlite"]).replace("{later}", NOW["sqlite"] + " + :delay_us")
_MOVE_POSTGRESQL = _MOVE.replace("{now}", NOW["postgresql"]).replace(
    "{later}", "statement_timestamp() + :delay_us * interval '1 microsecond'"
)
#: Moves a job that is not running; the transaction holds it.
MOVE = Statement(
    sqlite=text(_MOVE_SQLITE).bindparams(*_MOVE_BINDS).columns(**columns("version")),
    postgresql=text(_MOVE_POSTGRESQL).bindparams(*_MOVE_BINDS).columns(**columns("version")),
)
_CANCEL = (
    "UPDATE atlas_jobs SET cancel_requested = 1, reason = :reason, version = version + 1, updated_at = {now}"
    " WHERE tenant_id = :tenant_id AND id = :id"
)
_CANCEL_SQLITE = _CANCEL.replace("{now}", NOW["sqlite"])
_CANCEL_POSTGRESQL = _CANCEL.replace("{now}", NOW["postgresql"])
#: Has the worker of a running job told to stop.
CANCEL_RUNNING = Statement(
    sqlite=text(_CANCEL_SQLITE).bindparams(*_KEY, *binds("reason")),
    postgresql=text(_CANCEL_POSTGRESQL).bindparams(*_KEY, *binds("reason")),
)
_EVENT = (
    "INSERT INTO atlas_job_events (tenant_id, job_id, id, place, type, data, created_at)"
    " SELECT tenant_id, id, :event_id, {fence} || CASE status WHEN 'running' THEN 'm' ELSE 'zz' END, :type, :data, {now}"
    " FROM atlas_jobs WHERE tenant_id = :tenant_id AND id = :id"
)
_EVENT_SQLITE = _EVENT.format(now=NOW["sqlite"], fence="printf('%010d', fence)")
_EVENT_POSTGRESQL = _EVENT.format(now=NOW["postgresql"], fence="lpad(CAST(fence AS TEXT), 10, '0')")
_EVENT_BINDS = (*_KEY, *binds("event_id", "type", "data"))
#: Notes what was done to a job, and where that stands among its runs: while one ran, or after the newest.
ADD_EVENT = Statement(
    sqlite=text(_EVENT_SQLITE).bindparams(*_EVENT_BINDS),
    postgresql=text(_EVENT_POSTGRESQL).bindparams(*_EVENT_BINDS),
)

# --- delete and purge -----------------------------------------------------------------------------------------------

_TABLES = (
    ("atlas_job_runs", "job_id"),
    ("atlas_job_logs", "job_id"),
    ("atlas_job_events", "job_id"),
    ("atlas_job_keys", "job_id"),
    ("atlas_job_tasks", "job_id"),
    ("atlas_job_assignments", "job_id"),
    ("atlas_jobs", "id"),
)
#: Removes jobs of a tenant with everything of theirs, the jobs themselves last.
DELETE_ALL_OF = [
    Statement(
        sqlite=text(
            f"DELETE FROM {table} WHERE tenant_id = :tenant_id AND {column} IN (SELECT value FROM json_each(:ids))"
        ).bindparams(*binds("tenant_id"), bindparam("ids", type_=Text())),
        postgresql=text(
            f"DELETE FROM {table} WHERE tenant_id = :tenant_id AND {column} = ANY (:ids)"
        ).bindparams(*binds("tenant_id"), bindparam("ids", type_=ARRAY(Text()))),
    )
    for table, column in _TABLES
]
_OLD = (
    "SELECT id FROM atlas_jobs WHERE tenant_id = :tenant_id AND status = :status AND version > 0 AND id < :before"
    " AND finished_at < {cutoff} ORDER BY id LIMIT :limit"
)
_OLD_BINDS = (*binds("tenant_id", "status", "limit", "delay_us"), bindparam("before", type_=String()))
_OLD_SQLITE = _OLD.replace("{cutoff}", NOW["sqlite"] + " - :delay_us")
_OLD_POSTGRESQL = _OLD.replace("{cutoff}", "statement_timestamp() - :delay_us * interval '1 microsecond'")
#: Jobs of a status that ended longer than so many microseconds ago. Ids made before `before` are looked at only: they
#: begin with the time, so the walk ends where the younger jobs begin.
OLD = Statement(
    sqlite=text(_OLD_SQLITE).bindparams(*_OLD_BINDS).columns(**columns("id")),
    postgresql=text(_OLD_POSTGRESQL + " FOR UPDATE SKIP LOCKED")
    .bindparams(*_OLD_BINDS)
    .columns(**columns("id")),
)
#: The tenant with jobs that comes after the one given.
NEXT_TENANT = Statement(
    text("SELECT min(tenant_id) AS tenant_id FROM atlas_jobs WHERE tenant_id > :tenant_id")
    .bindparams(*binds("tenant_id"))
    .columns(**columns("tenant_id"))
)
#: Forgets results whose time is over.
FORGET_RESULTS = Statement(
    sqlite=text(
        "UPDATE atlas_job_runs SET result = NULL, result_until = NULL WHERE rowid IN (SELECT rowid FROM atlas_job_runs"
        f" WHERE result_until <= {NOW['sqlite']} LIMIT :limit)"
    ).bindparams(*binds("limit")),
    postgresql=text(
        "UPDATE atlas_job_runs SET result = NULL, result_until = NULL WHERE ctid = ANY (ARRAY(SELECT ctid"
        " FROM atlas_job_runs WHERE result_until <= statement_timestamp() LIMIT :limit FOR UPDATE SKIP LOCKED))"
    ).bindparams(*binds("limit")),
)

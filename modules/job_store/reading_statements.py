"""The SQL of reading jobs, their runs, log lines and events."""

from __future__ import annotations

from typing import Any, Dict

from sqlalchemy import BigInteger, String, Text, bindparam, text

from modules.job_store.encoding import JOB_NAMES
from modules.job_store.sql import NOW, binds, columns
from modules.storage.columns import JsonValue, UtcDateTime
from modules.storage.statements import Statement

__all__ = [
    "BACKLOG",
    "BY_NAME",
    "COUNTS",
    "DEAD",
    "EVENTS",
    "FIRST_DUE",
    "GET",
    "LIST",
    "LIST_FILTERED",
    "LIST_STATUS",
    "LIST_STATUS_FILTERED",
    "LOCK",
    "LOGS",
    "NEXT_DUE",
    "NEXT_QUEUE",
    "NEXT_QUEUE_TENANT",
    "QUEUES",
    "RUNNING",
    "RUNNING_BY_QUEUE",
    "RUNS",
    "TOP_OF_QUEUE",
    "TOP_OF_QUEUE_TENANT",
]

_JOB = ", ".join(JOB_NAMES)
_JOB_COLUMNS = {**columns(*JOB_NAMES), "options": Text()}
_KEY = binds("tenant_id", "id")

_GET = f"SELECT {_JOB} FROM atlas_jobs WHERE tenant_id = :tenant_id AND id = :id"
GET = Statement(text(_GET).bindparams(*_KEY).columns(**_JOB_COLUMNS))
#: The same, held until the transaction ends.
LOCK = Statement(
    sqlite=text(_GET).bindparams(*_KEY).columns(**_JOB_COLUMNS),
    postgresql=text(_GET + " FOR UPDATE").bindparams(*_KEY).columns(**_JOB_COLUMNS),
)
BY_NAME = Statement(
    text(
        f"SELECT {_JOB} FROM atlas_jobs WHERE tenant_id = :tenant_id AND name = :name ORDER BY id DESC LIMIT 1"
    )
    .bindparams(*binds("tenant_id", "name"))
    .columns(**_JOB_COLUMNS)
)
_LIST = f"SELECT {_JOB} FROM atlas_jobs WHERE tenant_id = :tenant_id AND id < :before {{which}} ORDER BY id DESC LIMIT :limit"
_OF_STATUS = "AND status = :status AND version > 0"
# apart, because conditions that may be left out make the planner expect so few rows that it sorts them all
_FILTERED = (
    " AND (:queue IS NULL OR queue = :queue) AND (:handler IS NULL OR handler = :handler)"
    " AND (:schedule_id IS NULL OR schedule_id = :schedule_id)"
)
_LIST_BINDS = (*binds("tenant_id", "limit"), bindparam("before", type_=String()))
_FILTERS = binds("queue", "handler", "schedule_id")
LIST = Statement(text(_LIST.format(which="")).bindparams(*_LIST_BINDS).columns(**_JOB_COLUMNS))
LIST_STATUS = Statement(
    text(_LIST.format(which=_OF_STATUS)).bindparams(*_LIST_BINDS, *binds("status")).columns(**_JOB_COLUMNS)
)
LIST_FILTERED = Statement(
    text(_LIST.format(which=_FILTERED)).bindparams(*_LIST_BINDS, *_FILTERS).columns(**_JOB_COLUMNS)
)
LIST_STATUS_FILTERED = Statement(
    text(_LIST.format(which=_OF_STATUS + _FILTERED))
    .bindparams(*_LIST_BINDS, *_FILTERS, *binds("status"))
    .columns(**_JOB_COLUMNS)
)

# the run under way stands in the job's row
_RUNS = (
    "SELECT number, attempt, status, worker, started_at, finished_at, error, result FROM ("
    " SELECT number, attempt, status, worker, started_at, finished_at, error, result FROM atlas_job_runs"
    " WHERE tenant_id = :tenant_id AND job_id = :id"
    " UNION ALL SELECT fence, attempts, status, worker, started_at, NULL, NULL, NULL FROM atlas_jobs"
    " WHERE tenant_id = :tenant_id AND id = :id AND status = 'running'"
    ") AS r WHERE number < :number ORDER BY number DESC LIMIT :limit"
)
RUNS = Statement(
    text(_RUNS)
    .bindparams(*_KEY, *binds("number", "limit"))
    .columns(
        **columns("number", "attempt", "status", "worker", "started_at", "finished_at", "error", "result")
    )
)
LOGS = Statement(
    text(
        "SELECT id, run, level, message, created_at FROM atlas_job_logs"
        " WHERE tenant_id = :tenant_id AND job_id = :job_id AND id > :after AND (:run IS NULL OR run = :run)"
        " ORDER BY id LIMIT :limit"
    )
    .bindparams(*binds("tenant_id", "job_id", "run", "limit"), bindparam("after", type_=String()))
    .columns(**columns("id", "run", "level", "message", "created_at"))
)

_EVENTS = """
SELECT at, place, type, number, status, worker, data FROM (
    SELECT created_at AS at, '0' AS place, 'created' AS type, CAST(NULL AS INTEGER) AS number, CAST(NULL AS TEXT) AS status,
        CAST(NULL AS TEXT) AS worker, CAST(NULL AS TEXT) AS data
    FROM atlas_jobs WHERE tenant_id = :tenant_id AND id = :id
  UNION ALL
    SELECT started_at, {number} || 'a', 'run_started', number, NULL, worker, NULL FROM atlas_job_runs
    WHERE tenant_id = :tenant_id AND job_id = :id
  UNION ALL
    SELECT finished_at, {number} || 'z', 'run_finished', number, status, worker, NULL FROM atlas_job_runs
    WHERE tenant_id = :tenant_id AND job_id = :id
  UNION ALL
    SELECT started_at, {fence} || 'a', 'run_started', fence, NULL, worker, NULL FROM atlas_jobs
    WHERE tenant_id = :tenant_id AND id = :id AND status = 'running'
  UNION ALL
    SELECT created_at, place || id, type, NULL, NULL, NULL, CAST(data AS TEXT) FROM atlas_job_events
    WHERE tenant_id = :tenant_id AND job_id = :id
) AS e WHERE at > :at OR (at = :at AND {place} > :place) ORDER BY at, {place} LIMIT :limit
"""
_EVENT_BINDS = (
    *_KEY,
    *binds("limit"),
    bindparam("at", type_=UtcDateTime()),
    bindparam("place", type_=String()),
)
_EVENT_COLUMNS: Dict[str, Any] = {
    "at": UtcDateTime(), "place": String(), "type": String(), "number": BigInteger(), "status": String(),
    "worker": String(), "data": JsonValue(),
}  # fmt: skip
_PADDED = {
    "number": "lpad(CAST(number AS TEXT), 10, '0')",
    "fence": "lpad(CAST(fence AS TEXT), 10, '0')",
    "place": 'place COLLATE "C"',
}
_PADDED_SQLITE = {
    "number": "printf('%010d', number)",
    "fence": "printf('%010d', fence)",
    "place": "place",
}
#: What happened to a job, oldest first, after a place: its creation, its runs, and what was done by hand.
EVENTS = Statement(
    sqlite=text(_EVENTS.format(**_PADDED_SQLITE)).bindparams(*_EVENT_BINDS).columns(**_EVENT_COLUMNS),
    postgresql=text(_EVENTS.format(**_PADDED)).bindparams(*_EVENT_BINDS).columns(**_EVENT_COLUMNS),
)

COUNTS = Statement(
    text(
        "SELECT status, count(*) AS count FROM atlas_jobs WHERE tenant_id = :tenant_id AND version > 0 GROUP BY status"
    )
    .bindparams(*binds("tenant_id"))
    .columns(**columns("status", "count"))
)
_QUEUES = (
    "SELECT queue, count(*) AS count, sum(CASE WHEN run_at <= {now} THEN 1 ELSE 0 END) AS n,"
    " min(CASE WHEN run_at <= {now} THEN run_at END) AS run_at FROM atlas_jobs"
    " WHERE tenant_id = :tenant_id AND status = 'scheduled' GROUP BY queue ORDER BY queue"
)
QUEUES = Statement(
    sqlite=text(_QUEUES.format(now=NOW["sqlite"]))
    .bindparams(*binds("tenant_id"))
    .columns(**columns("queue", "count", "n", "run_at")),
    postgresql=text(_QUEUES.format(now=NOW["postgresql"]))
    .bindparams(*binds("tenant_id"))
    .columns(**columns("queue", "count", "n", "run_at")),
)
RUNNING_BY_QUEUE = Statement(
    text(
        "SELECT queue, count(*) AS count FROM atlas_jobs WHERE tenant_id = :tenant_id AND status = 'running'"
        " GROUP BY queue"
    )
    .bindparams(*binds("tenant_id"))
    .columns(**columns("queue", "count"))
)

# --- what is due next: index probes, one for each queue and priority ------------------------------------------------

_OPEN = "status = 'scheduled' AND parked = 0"
#: The queue of claimable jobs that comes after the one given.
NEXT_QUEUE = Statement(
    text(f"SELECT min(queue) AS queue FROM atlas_jobs WHERE {_OPEN} AND queue > :queue")
    .bindparams(*binds("queue"))
    .columns(**columns("queue"))
)
TOP_OF_QUEUE = Statement(
    text(
        f"SELECT max(priority) AS priority FROM atlas_jobs WHERE queue = :queue AND {_OPEN} AND priority < :priority"
    )
    .bindparams(*binds("queue", "priority"))
    .columns(**columns("priority"))
)
FIRST_DUE = Statement(
    text(
        f"SELECT min(run_at) AS run_at FROM atlas_jobs WHERE queue = :queue AND {_OPEN} AND priority = :priority"
    )
    .bindparams(*binds("queue", "priority"))
    .columns(**columns("run_at"))
)
#: A tenant's jobs of one queue and priority, by time.
NEXT_DUE = Statement(
    text(
        f"SELECT id, name, handler, queue, priority, run_at FROM atlas_jobs WHERE tenant_id = :tenant_id"
        f" AND queue = :queue AND {_OPEN} AND priority = :priority ORDER BY run_at LIMIT :limit"
    )
    .bindparams(*binds("tenant_id", "queue", "priority", "limit"))
    .columns(**columns("id", "name", "handler", "queue", "priority", "run_at"))
)
NEXT_QUEUE_TENANT = Statement(
    text(
        f"SELECT min(queue) AS queue FROM atlas_jobs WHERE tenant_id = :tenant_id AND {_OPEN} AND queue > :queue"
    )
    .bindparams(*binds("tenant_id", "queue"))
    .columns(**columns("queue"))
)
TOP_OF_QUEUE_TENANT = Statement(
    text(
        "SELECT max(priority) AS priority FROM atlas_jobs WHERE tenant_id = :tenant_id AND queue = :queue"
        f" AND {_OPEN} AND priority < :priority"
    )
    .bindparams(*binds("tenant_id", "queue", "priority"))
    .columns(**columns("priority"))
)
_COUNT_SOME = "SELECT count(*) AS count FROM (SELECT 1 FROM atlas_jobs WHERE {which} LIMIT :limit) AS counted"
# the order names the index that holds nothing but these
#: Dead jobs, claimable jobs, running jobs of all tenants; counted up to a limit.
DEAD = Statement(
    text(_COUNT_SOME.format(which="status = 'failed' ORDER BY finished_at"))
    .bindparams(*binds("limit"))
    .columns(**columns("count"))
)
BACKLOG = Statement(
    text(_COUNT_SOME.format(which=_OPEN + " ORDER BY queue, priority, run_at"))
    .bindparams(*binds("limit"))
    .columns(**columns("count"))
)
RUNNING = Statement(
    text(_COUNT_SOME.format(which="status = 'running' ORDER BY lease_until"))
    .bindparams(*binds("limit"))
    .columns(**columns("count"))
)

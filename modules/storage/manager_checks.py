"""The manager's health checks: what each one looks at, and the tables that each store needs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Sequence, Tuple

from modules.storage.health import HealthCheck, HealthStatus
from modules.storage.manager_schema import schema_revision
from modules.storage.manager_vectors import VECTOR_TABLES, VectorStores
from modules.storage.migrations import HEAD
from modules.storage.settings import SQLDialect

if TYPE_CHECKING:
    from modules.storage.manager_mongo import MongoStores
    from modules.storage.pool import SQLPool
    from modules.storage.semantic import SemanticIndex

__all__ = ["TABLES", "HealthResult", "health_checks", "verify_tables"]

#: Tables without which a store cannot work, by the name of its health component.
TABLES: Dict[str, Tuple[str, ...]] = {
    "conversation_store": ("atlas_conversations", "atlas_messages", "atlas_users", "atlas_sessions"),
    "job_store": ("atlas_jobs", "atlas_job_runs", "atlas_job_schedules", "atlas_job_queues"),
    "kv_store": ("atlas_kv_entries",),
    "task_store": ("atlas_tasks", "atlas_task_events", "atlas_task_dependencies"),
}
# Below this much free space the database is reported as degraded, in bytes.
_LOW_DISK_BYTES = 256 * 1024 * 1024
# A write-ahead log this large means that a reader keeps it from being emptied, in bytes.
_LARGE_WAL_BYTES = 512 * 1024 * 1024
# A job that has been due for longer is told as a degraded store, in seconds.
_LONG_OVERDUE_S = 900.0
# Messages that wait longer than this to be embedded are a sign that nobody embeds them, in seconds.
_LATE_S = 600.0
#: Status, what is wrong ("" when nothing is), details.
HealthResult = Tuple[HealthStatus, str, Dict[str, Any]]


def health_checks(
    pool: SQLPool,
    vectors: VectorStores,
    semantic: Callable[[], Optional[SemanticIndex]],
    mongo: Optional[MongoStores] = None,
) -> Dict[str, HealthCheck]:
    """Return the checks of an open pool and its vector stores by the name of the component.

    Args:
        pool: Of the SQL database.
        vectors: The vector stores.
        semantic: Gives what embeds messages; None: nothing does.
        mongo: MongoDB, where it is configured.
    """
    checks: Dict[str, HealthCheck] = {"sql": lambda: _check_sql(pool)}
    if mongo is not None:
        checks["mongo"] = mongo.check
    for store, tables in TABLES.items():
        checks[store] = lambda tables=tables: _check_tables(pool, tables)  # type: ignore[misc]
    checks["job_store"] = lambda: _check_jobs(pool, mongo)
    checks["task_store"] = lambda: _check_tasks(pool)
    if vectors.backend != "none":
        checks["vector_store"] = lambda: _check_vectors(pool, vectors, semantic)
    return checks


async def verify_tables(
    pool: SQLPool, vectors: VectorStores, mongo: Optional[MongoStores] = None
) -> Dict[str, bool]:
    """Return for each store whether its tables are there; "sql" whether the database answers, a remote store whether it does."""
    backend = _backend(pool)
    present = set(await backend.get_table_names())
    found = {store: present.issuperset(tables) for store, tables in TABLES.items()}
    if vectors.backend in VECTOR_TABLES:
        found["vector_store"] = present.issuperset(VECTOR_TABLES[vectors.backend])
    elif vectors.backend != "none":
        found["vector_store"] = await vectors.answers()
    if mongo is not None:
        found.update(await mongo.verify())
    return {"sql": await pool.health_check(), **found}


async def _check_tasks(pool: SQLPool) -> HealthResult:
    status, message, details = await _check_tables(pool, TABLES["task_store"])
    if message:
        return status, message, details
    from modules.task_store.maintenance import TaskMaintenance

    return status, message, {**details, **await TaskMaintenance(pool.executor).figures()}


async def _check_vectors(
    pool: SQLPool, vectors: VectorStores, semantic: Callable[[], Optional[SemanticIndex]]
) -> HealthResult:
    tables = VECTOR_TABLES.get(vectors.backend, ())
    if tables:
        status, message, details = await _check_tables(pool, tables)
        if message:
            return status, message, details
    status, message, details = await vectors.check()
    late = await _look_at_embedding(pool, semantic(), details)
    if status is HealthStatus.HEALTHY and late:
        return HealthStatus.DEGRADED, late, details
    return status, message, details


async def _look_at_embedding(pool: SQLPool, index: Optional[SemanticIndex], details: Dict[str, Any]) -> str:
    """Add the backlog of messages to embed to `details`; return what is wrong with it."""
    from modules.conversation_store import backlog

    states = {state.collection: state.progress for state in await pool.executor.run(backlog.indexes)}
    known = None if index is None else index.known_registration()
    progress = states.pop(known or "", None)
    if states and (known is not None or index is None):
        details["former_embeddings"] = sorted(states)
    if index is None:
        return ""
    details["embedder"] = index.embedder.name
    if progress is None:
        return ""
    details["embedding_pending"] = progress.pending
    details["embedding_failed"] = progress.failed
    details["embedding_oldest_s"] = None if progress.oldest_s is None else round(progress.oldest_s, 1)
    if progress.oldest_s is None or progress.oldest_s < _LATE_S:
        return ""
    return (
        f"{progress.pending} messages wait to be embedded, the oldest for {progress.oldest_s / 60:.0f} minutes, "
        f"{progress.failed} of them were refused: is the embedder reachable? `atlas-storage embed` tries now and says why"
    )


async def _check_tables(pool: SQLPool, tables: Sequence[str]) -> HealthResult:
    there = await _backend(pool).verify_tables(tables)
    missing = sorted(table for table, found in there.items() if not found)
    if missing:
        return (
            HealthStatus.UNHEALTHY,
            f"tables are missing ({', '.join(missing)}); run `atlas-storage migrate`",
            {},
        )
    return HealthStatus.HEALTHY, "", {"tables": len(there)}


async def _check_jobs(pool: SQLPool, mongo: Optional[MongoStores]) -> HealthResult:
    from modules.job_store.maintenance import JobMaintenance

    details: Dict[str, Any] = {}
    executor: Any = pool.executor
    if mongo is not None and mongo.holds("jobs"):
        # their collections are looked at by the check of MongoDB
        executor = mongo.executor("jobs")
    else:
        status, message, details = await _check_tables(pool, TABLES["job_store"])
        if message:
            return status, message, details
    numbers = await JobMaintenance(executor).numbers()
    details.update(
        backlog=numbers.backlog,
        running=numbers.running,
        dead=numbers.dead,
        oldest_due_at=None if numbers.oldest_due_at is None else numbers.oldest_due_at.isoformat(),
        overdue_s=round(numbers.overdue_s, 3),
        workers=numbers.workers,
    )
    if numbers.overdue_s > _LONG_OVERDUE_S:
        who = "no worker is there" if not numbers.workers else f"{numbers.workers} workers are there"
        return (
            HealthStatus.DEGRADED,
            f"a job has been due for {numbers.overdue_s / 60:.0f} min and {who}; start `atlas-storage worker`",
            details,
        )
    return HealthStatus.HEALTHY, "", details


async def _check_sql(pool: SQLPool) -> HealthResult:
    revision = await schema_revision(pool)
    details: Dict[str, Any] = {
        "dialect": pool.dialect,
        "schema_revision": revision,
        "schema_head": HEAD,
        "schema_behind": revision != HEAD,
        "database_bytes": await _backend(pool).get_database_size(),
        **pool.statistics(),
    }
    problems = []
    if revision != HEAD:
        problems.append("the schema is not that of this release; run `atlas-storage migrate`")
    if pool.settings.dialect is SQLDialect.SQLITE:
        problems.extend(_look_at_files(pool, details))
    elif details.get("waiting"):
        problems.append(
            f"{details['waiting']} calls wait for a connection; all {details['limit']} are in use"
        )
    return (HealthStatus.DEGRADED if problems else HealthStatus.HEALTHY), "; ".join(problems), details


def _look_at_files(pool: SQLPool, details: Dict[str, Any]) -> list[str]:
    if pool.settings.path == ":memory:":
        return []
    problems = []
    path = Path(pool.settings.path).expanduser().absolute()
    details["path"] = str(path)
    details["disk_free_bytes"] = shutil.disk_usage(path.parent).free
    details["wal_bytes"] = _backend(pool).get_wal_size()
    if details["disk_free_bytes"] < _LOW_DISK_BYTES:
        problems.append("less than 256 MiB of disk space is free; make room before writes fail")
    if details["wal_bytes"] > _LARGE_WAL_BYTES:
        problems.append(
            "the write-ahead log is over 512 MiB: a long reader keeps it from being emptied; end that process"
        )
    return problems


def _backend(pool: SQLPool) -> Any:
    if pool.settings.dialect is SQLDialect.SQLITE:
        from modules.storage.backends.sqlite import SQLiteBackend

        return SQLiteBackend(pool)
    from modules.storage.backends.postgresql import PostgreSQLBackend

    return PostgreSQLBackend(pool)

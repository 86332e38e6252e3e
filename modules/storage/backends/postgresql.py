"""Administration of a PostgreSQL database: tables, size, extensions, connections, replication."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional

from modules.storage.backends.postgresql_errors import DRIVER_ERRORS, translate
from modules.storage.backends.rows import compile_free_sql
from modules.storage.statements import quote_identifier
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import NotConfiguredError, PermissionDeniedError

if TYPE_CHECKING:
    from modules.storage.backends.postgresql_executor import PostgresExecutor
    from modules.storage.pool import SQLPool

__all__ = ["PostgreSQLBackend"]


class PostgreSQLBackend:
    """What an operator does with a PostgreSQL database, through an initialised pool."""

    def __init__(self, pool: SQLPool) -> None:
        self._pool = pool

    async def get_table_names(self) -> List[str]:
        """Return the names of the tables in the current schema, sorted."""
        rows = await self.execute_sql(
            "SELECT table_name::text AS name FROM information_schema.tables "
            "WHERE table_schema = current_schema() AND table_type = 'BASE TABLE' ORDER BY 1"
        )
        return [row["name"] for row in rows]

    async def verify_tables(self, required: Iterable[str]) -> Dict[str, bool]:
        """Return for each of the `required` tables whether it exists."""
        present = set(await self.get_table_names())
        return {name: name in present for name in required}

    async def execute_sql(self, sql: str, params: Optional[Mapping[str, Any]] = None) -> List[Dict[str, Any]]:
        """Run one SQL statement in a transaction of its own.

        Args:
            sql: The text; parameters as `:name`.
            params: Their values, of types that asyncpg knows.

        Returns:
            The rows as mappings of column name to value; empty for a statement without rows.
        """
        text, values = compile_free_sql(sql, params, "postgresql")
        timeout = self._pool.settings.command_timeout_s
        async with self._executor.pool().connection(deadline_after(timeout)) as connection:
            try:
                rows = await connection.fetch(text, *values, timeout=timeout)
            except DRIVER_ERRORS as exc:
                raise translate(exc) from exc
        return [dict(row) for row in rows]

    async def get_database_size(self) -> int:
        """Return the size of the database in bytes."""
        rows = await self.execute_sql("SELECT pg_database_size(current_database()) AS size")
        return int(rows[0]["size"])

    async def get_connection_count(self) -> int:
        """Return how many client connections the server has to this database, ours included."""
        rows = await self.execute_sql(
            "SELECT count(*) AS count FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend'"
        )
        return int(rows[0]["count"])

    async def get_replication_lag(self) -> Optional[float]:
        """Return how many seconds this server lags behind its primary; None when it is the primary.

        Source: PostgreSQL documentation, "Recovery Information Functions"; 0 when everything received was replayed.
        """
        rows = await self.execute_sql(
            "SELECT CASE WHEN NOT pg_is_in_recovery() THEN NULL"
            " WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0.0::float8"
            " ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 END AS lag"
        )
        lag = rows[0]["lag"]
        return None if lag is None else float(lag)

    async def ensure_extensions(self, names: Iterable[str]) -> Dict[str, str]:
        """Create the extensions that are not there yet.

        Returns:
            The version of each.

        Raises:
            NotConfiguredError: the server does not have one of them; names the package to install.
            PermissionDeniedError: the role may not create it.
        """
        return {name: await self._ensure_extension(name) for name in sorted(set(names))}

    async def ensure_pgvector(self) -> str:
        """Create the extension `vector` if needed and return its version."""
        return await self._ensure_extension("vector")

    async def _ensure_extension(self, name: str) -> str:
        create = f"CREATE EXTENSION IF NOT EXISTS {quote_identifier(name)}"
        look = "SELECT default_version, installed_version FROM pg_available_extensions WHERE name = :name"
        rows = await self.execute_sql(look, {"name": name})
        if not rows:
            raise NotConfiguredError(
                f"the PostgreSQL server has no extension {name}; install its package on the server"
            )
        if rows[0]["installed_version"] is None:
            try:
                await self.execute_sql(create)
            except PermissionDeniedError as exc:
                raise PermissionDeniedError(
                    f"the PostgreSQL role may not create the extension {name}; let a superuser run CREATE EXTENSION"
                ) from exc
            rows = await self.execute_sql(look, {"name": name})
        return str(rows[0]["installed_version"])

    @property
    def _executor(self) -> PostgresExecutor:
        executor: Any = self._pool.executor
        return executor  # type: ignore[no-any-return]

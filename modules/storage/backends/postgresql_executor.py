"""The executor of a PostgreSQL database: pools, transactions, coalescing, retries behind `await executor.run(...)`."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, Tuple, TypeVar

from typing_extensions import ParamSpec

from modules.storage.backends.coalescing import Coalescer
from modules.storage.backends.postgresql_budget import ConnectionBudget
from modules.storage.backends.postgresql_connection import PostgresOptions, PostgresTransaction
from modules.storage.backends.postgresql_errors import DRIVER_ERRORS, translate
from modules.storage.backends.postgresql_pool import PooledConnection, PostgresPool
from modules.storage.backends.postgresql_unit import PostgresUnit, create_unit_engine
from modules.storage.pool_errors import PoolError
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import (
    BusyError,
    DeadlineExceededError,
    NotInitializedError,
    OverloadedError,
    StatementError,
    UnavailableError,
    WrongProcessError,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from modules.storage.operations import Operation

__all__ = ["PoolLimits", "PostgresExecutor", "ServerFacts"]

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

# Statements of one coalesced operation under way at once; see benchmarks/, kv get and set at 64 tasks.
_COALESCING_PLACES = 2
# SQLSTATE of "unsupported startup parameter", which PostgreSQL itself never says to us.
_PROTOCOL_VIOLATION = "08P01"
# A read, or a write that cannot have begun, is tried again on a fresh connection this often when one broke.
_ATTEMPTS = 3


@dataclass(frozen=True)
class PoolLimits:
    """How many connections, and how patient; the units are those of `SQLBackendSettings`."""

    size: int = 5
    max_overflow: int = 10
    timeout_s: float = 30.0
    max_waiters: int = 1000
    max_lifetime_s: float = 1800.0
    max_idle_s: float = 300.0
    ping: bool = True


@dataclass(frozen=True)
class ServerFacts:
    """What the server said of itself when the executor was opened."""

    version: str
    connections_available: int
    behind_pooler: bool


class _ConnectionLostError(Exception):
    """Internal: the connection broke before anything of a write was sent; carries the error for the caller."""


class PostgresExecutor:
    """Runs operations on one PostgreSQL database. Each event loop that uses it gets a pool of its own.

    Args:
        options: How connections are opened.
        limits: Size and patience of the pool.
        pooler: "auto" (find out), "transaction", "session" or "none": what is in front of the server.
    """

    dialect = "postgresql"

    def __init__(self, options: PostgresOptions, limits: PoolLimits, *, pooler: str = "auto") -> None:
        self.options = replace(
            options,
            transaction_pooling=pooler == "transaction",
            startup_settings=pooler in ("auto", "none"),
        )
        self._limits = limits
        self._pooler = pooler
        self._budget = ConnectionBudget(limits.size + limits.max_overflow)
        self._pools: Dict[asyncio.AbstractEventLoop, Tuple[PostgresPool, Coalescer]] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._is_open = False
        self._orm_engine: Optional[AsyncEngine] = None
        self.facts: Optional[ServerFacts] = None

    @property
    def is_open(self) -> bool:
        """Whether `open` succeeded and `close` was not called since."""
        return self._is_open

    @property
    def budget(self) -> ConnectionBudget:
        """How many connections this process may hold, pools and listening connections together."""
        return self._budget

    async def open(self) -> None:
        """Connect once, find out what is in front, and check the connection budget against the server's limit.

        Raises:
            UnavailableError, PermissionDeniedError: the server cannot be used.
            PoolError: the pool may open more connections than the server has.
        """
        if self._is_open:
            return
        self._process = os.getpid()
        self._is_open = True
        try:
            self.facts = await self._look_at_server()
            if self._budget.limit > self.facts.connections_available and not self.facts.behind_pooler:
                raise PoolError(
                    f"sql.pool.size + sql.pool.max_overflow is {self._budget.limit}, but the server gives at most "
                    f"{self.facts.connections_available} connections; lower them or raise max_connections"
                )
        except BaseException:
            await self.close(timeout_s=1.0)
            raise

    async def close(self, timeout_s: float = 10.0) -> bool:
        """Close every pool; True when all ended in time."""
        self._is_open = False
        with self._lock:
            pools, self._pools = self._pools, {}
        if os.getpid() != self._process:
            return True
        here = asyncio.get_running_loop()
        ended = True
        for loop, (pool, coalescer) in pools.items():
            if loop is here:
                await _close_pool(pool, coalescer, timeout_s)
            elif loop.is_running():
                other = asyncio.run_coroutine_threadsafe(_close_pool(pool, coalescer, timeout_s), loop)
                try:
                    await asyncio.wait_for(asyncio.wrap_future(other), timeout_s + 1.0)
                except asyncio.TimeoutError:
                    ended = False
            else:
                pool.abandon()
        return ended

    async def run(self, operation: Operation[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `operation`; a write is durable when this returns."""
        pool, coalescer = self._here()
        deadline = deadline_after(self.options.command_timeout_s)
        if operation.batch is not None and not kwargs:
            result: R = await coalescer.call(operation, args, deadline)
            return result
        alone: R = await self._run(pool, operation.function, operation, args, kwargs, deadline)
        return alone

    def unit(self, deadline: float, owner: Any = None) -> PostgresUnit:
        """Return a new transaction for a unit of work, not yet begun.

        Args:
            deadline: Monotonic time in seconds.
            owner: The task that the unit belongs to; of no use here, where each unit has a connection of its own.
        """
        self._here()
        return PostgresUnit(self, deadline)

    def orm_engine(self) -> AsyncEngine:
        """Return the async SQLAlchemy engine for sessions inside units of work."""
        if self._orm_engine is None:
            self._orm_engine = create_unit_engine()
        return self._orm_engine

    def pool(self) -> PostgresPool:
        """Return the pool of the running event loop (for units of work and administration)."""
        return self._here()[0]

    def statistics(self) -> Dict[str, int]:
        """Return the running loop's pool in numbers; zeros when it has none."""
        found = self._pools.get(asyncio.get_running_loop())
        if found is None:
            return {
                "size": 0,
                "in_use": 0,
                "idle": 0,
                "closing": 0,
                "waiting": 0,
                "limit": self._budget.limit,
                "waits": 0,
                "wait_ms": 0,
            }
        return found[0].statistics

    def _here(self) -> Tuple[PostgresPool, Coalescer]:
        loop = asyncio.get_running_loop()
        found = self._pools.get(loop)
        if found is not None and os.getpid() == self._process:
            return found
        if not self._is_open:
            raise NotInitializedError("the PostgreSQL database")
        if os.getpid() != self._process:
            raise WrongProcessError(
                "this PostgreSQL pool was opened before a fork; open a new StorageManager in the child process"
            )
        return self._open_here(loop)

    def _open_here(self, loop: asyncio.AbstractEventLoop) -> Tuple[PostgresPool, Coalescer]:
        limits = self._limits
        pool = PostgresPool(
            self.options,
            self._budget,
            keep=limits.size,
            timeout_s=limits.timeout_s,
            max_waiters=limits.max_waiters,
            max_lifetime_s=limits.max_lifetime_s,
            max_idle_s=limits.max_idle_s,
            ping=limits.ping,
        )

        async def run_one(operation: Operation[Any, Any], args: Tuple[Any, ...], deadline: float) -> Any:
            return await self._run(pool, operation.function, operation, args, {}, deadline)

        async def run_batch(
            operation: Operation[Any, Any], calls: Sequence[Tuple[Any, ...]], deadline: float
        ) -> Sequence[Any]:
            outcomes: Sequence[Any] = await self._run(
                pool, operation.batch, operation, (calls,), {}, deadline
            )
            return outcomes

        coalescer = Coalescer(run_one, run_batch, places=_COALESCING_PLACES, max_waiting=limits.max_waiters)
        with self._lock:
            for dead in [other for other in self._pools if other.is_closed()]:
                self._pools.pop(dead)[0].abandon()
            self._pools[loop] = (pool, coalescer)
        return pool, coalescer

    async def _run(
        self,
        pool: PostgresPool,
        function: Any,
        operation: Operation[Any, Any],
        args: Sequence[Any],
        kwargs: Dict[str, Any],
        deadline: float,
    ) -> Any:
        for attempt in range(1, _ATTEMPTS + 1):
            pooled = await pool.acquire(deadline)
            healthy = False
            try:
                tx = PostgresTransaction(pooled.raw, deadline)
                if operation.atomic:
                    begin = "BEGIN" if operation.writes else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
                    result = await _in_transaction(tx, pooled, begin, function, args, kwargs)
                else:
                    result = await function(tx, *args, **kwargs)
                healthy = True
                return result
            except _ConnectionLostError as lost:
                pool.suspect()
                if attempt == _ATTEMPTS:
                    raise lost.args[0] from lost.args[0].__cause__
            except (BusyError, OverloadedError):
                healthy = True
                raise
            except UnavailableError as exc:
                pool.suspect()
                if operation.writes or attempt == _ATTEMPTS:
                    raise
                logger.info(
                    "storage.postgresql.read_retried",
                    extra={
                        "backend": "postgresql",
                        "operation": operation.name,
                        "error_type": type(exc).__name__,
                    },
                )
            except DeadlineExceededError:
                raise
            except Exception:
                healthy = True
                raise
            finally:
                pool.release(pooled, healthy)
        raise AssertionError("unreachable")

    async def _look_at_server(self) -> ServerFacts:
        try:
            return await self._ask_server(self.pool())
        except UnavailableError as exc:
            refused = getattr(exc.__cause__, "sqlstate", None) == _PROTOCOL_VIOLATION
            if not refused or self._pooler != "auto" or self.options.transaction_pooling:
                raise
        # a pooler that refuses our start-up parameters
        await self._reopen_for_pooler(self.pool())
        return await self._ask_server(self.pool())

    async def _ask_server(self, pool: PostgresPool) -> ServerFacts:
        async with pool.connection(deadline_after(self.options.connect_timeout_s)) as raw:
            try:
                row = await raw.fetchrow(
                    "SELECT current_setting('server_version'), current_setting('max_connections')::int"
                    " - current_setting('superuser_reserved_connections')::int"
                    # since PostgreSQL 16; NULL before
                    " - coalesce(current_setting('reserved_connections', true)::int, 0), pg_backend_pid()",
                    timeout=self.options.connect_timeout_s,
                )
            except DRIVER_ERRORS as exc:
                raise translate(exc) from exc
            if row is None:
                raise StatementError("PostgreSQL answered a question about its settings with nothing")
            # a pooler answers with a key of its own where the server gives the process id
            behind_pooler = self._pooler in ("transaction", "session") or (
                self._pooler == "auto"
                and (row[2] != raw.get_server_pid() or self.options.transaction_pooling)
            )
        if behind_pooler and self._pooler == "auto" and not self.options.transaction_pooling:
            await self._reopen_for_pooler(pool)
        return ServerFacts(str(row[0]), int(row[1]), behind_pooler)

    async def _reopen_for_pooler(self, pool: PostgresPool) -> None:
        logger.info("storage.postgresql.pooler_detected", extra={"backend": "postgresql"})
        self.options = replace(self.options, transaction_pooling=True, startup_settings=False)
        await pool.close(timeout_s=1.0)
        with self._lock:
            self._pools.pop(asyncio.get_running_loop(), None)


async def _in_transaction(
    tx: PostgresTransaction,
    pooled: PooledConnection,
    begin: str,
    function: Any,
    args: Sequence[Any],
    kwargs: Dict[str, Any],
) -> Any:
    try:
        await tx.control(begin)
    except UnavailableError as exc:
        raise _ConnectionLostError(exc) from exc
    try:
        result = await function(tx, *args, **kwargs)
    except (UnavailableError, DeadlineExceededError) as exc:
        if isinstance(exc, (BusyError, OverloadedError)):
            await tx.control("ROLLBACK")
        raise
    except Exception:
        # a connection that cannot roll back is closed by the pool: it is still in a transaction
        if not pooled.raw.is_closed():
            await tx.control("ROLLBACK")
        raise
    await tx.control("COMMIT")
    return result


async def _close_pool(pool: PostgresPool, coalescer: Coalescer, timeout_s: float) -> None:
    await pool.close(timeout_s)
    try:
        await asyncio.wait_for(coalescer.drain(), timeout_s)
    except asyncio.TimeoutError:
        logger.warning("storage.postgresql.close_timed_out", extra={"backend": "postgresql"})
    # the batches under way have given their connections back meanwhile
    await pool.wait_closed()

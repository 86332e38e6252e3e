"""What only PostgreSQL's pool has: a budget, waiters, replacement of connections, poolers, TLS modes."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any, AsyncIterator, Callable

import pytest
from sqlalchemy import text

from modules.storage.pool import PoolError, PoolTimeoutError, SQLPool
from modules.storage.unit_of_work import UnitOfWork
from modules.store_common.errors import NotInitializedError, StorageError, UnavailableError
from tests.support.leaks import wait_until
from tests.support.timing import assert_in_time

from . import scratch

pytestmark = pytest.mark.postgresql


@pytest.fixture
async def make(postgres: Any, databases: Any, leaks: Any) -> AsyncIterator[Callable[..., Any]]:
    """Make pools on one new database; `make(size=1, overflow=0, pooler=...)`."""
    url = databases.url("postgresql")
    leaks.database(url, postgres)
    made = []

    async def open_pool(size: int = 1, overflow: int = 0, timeout: float = 60.0, **sql: Any) -> Any:
        limits = {"size": size, "max_overflow": overflow, "timeout": timeout, **sql.pop("pool", {})}
        pool = SQLPool(scratch.wide_settings(sql.pop("url", url), pool=limits, **sql).sql)
        made.append(pool)
        await pool.initialize()
        return pool

    yield open_pool
    for pool in made:
        await pool.shutdown()


def _pid(pool: Any) -> Any:
    return scratch.admin(pool).execute_sql("SELECT pg_backend_pid() AS pid")


async def test_overflow_is_used_and_the_limit_holds(make: Any, postgres: Any) -> None:
    pool = await make(2, 2)
    calls = [asyncio.create_task(pool.executor.run(scratch.slow, 0.6)) for _ in range(8)]
    await wait_until(lambda: pool.statistics()["waiting"] == 4, 30)
    assert pool.statistics()["size"] == 4
    assert pool.statistics()["limit"] == 4
    await asyncio.gather(*calls)
    assert pool.statistics()["size"] <= 4
    assert pool.statistics()["in_use"] == 0
    assert pool.statistics()["waits"] == 4
    assert pool.statistics()["wait_ms"] >= 50  # each waited for a call of 200 ms


async def test_waiters_are_bounded(make: Any) -> None:
    pool = await make(1, 0, max_waiters=2)
    holder = asyncio.create_task(pool.executor.run(scratch.slow, 600.0))
    await wait_until(lambda: pool.statistics()["in_use"] == 1, 30)
    waiting = [asyncio.create_task(pool.executor.run(scratch.slow, 0.0)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(PoolTimeoutError, match="2 calls wait"):
        await pool.executor.run(scratch.slow, 0.0)
    assert not holder.done(), "fails at once"
    holder.cancel()
    await asyncio.wait([holder])
    await asyncio.gather(*waiting)


async def test_a_nested_acquire_is_seen_at_once(make: Any) -> None:
    pool = await make(1, 0)
    await scratch.create_things(pool)
    started = time.monotonic()
    with pytest.raises(PoolError, match="wait for itself"):
        async with UnitOfWork(pool.executor, lambda name, executor: executor) as uow:
            await uow.kv.run(scratch.add, 1, "one")
            await pool.executor.run(scratch.names)
    assert_in_time(started, 10.0)  # a minute if it waited
    assert await pool.executor.run(scratch.names) == []


async def test_a_cancelled_waiter_does_not_swallow_the_connection(make: Any) -> None:
    pool = await make(1, 0)
    for _ in range(20):
        holder = asyncio.create_task(pool.executor.run(scratch.slow, 0.002))
        await asyncio.sleep(0.001)
        waiters = [asyncio.create_task(pool.executor.run(scratch.slow, 0.0)) for _ in range(3)]
        await asyncio.sleep(0.002)
        waiters[0].cancel()
        await asyncio.wait_for(asyncio.gather(holder, *waiters, return_exceptions=True), 60)
    assert pool.statistics()["in_use"] == 0
    await asyncio.wait_for(pool.executor.run(scratch.slow, 0.0), 60)


async def test_a_cancelled_statement_ends_on_the_server_too(make: Any, postgres: Any) -> None:
    pool = await make(1, 0)
    asleep = (
        "SELECT count(*) AS n FROM pg_stat_activity WHERE query LIKE '%%pg_sleep%%' AND state = 'active'"
        " AND pid <> pg_backend_pid() AND datname = %s"
    )

    def sleeping() -> int:
        return int(postgres.admin(asleep, pool.settings.database)[0][0])

    task = asyncio.create_task(pool.executor.run(scratch.slow, 600.0))
    await wait_until(sleeping, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(pool.executor.run(scratch.slow, 0.0), 60)
    await wait_until(lambda: not sleeping(), 60)


async def test_old_and_long_idle_connections_are_replaced(make: Any) -> None:
    pool = await make(1, 0, pool={"recycle": 100}, max_idle_s=100)
    first = await _pid(pool)
    assert await _pid(pool) == first
    (pooled,) = pool.executor.pool()._idle
    pooled.opened_at -= 101
    second = await _pid(pool)
    assert second != first
    (pooled,) = pool.executor.pool()._idle
    pooled.idle_since -= 101
    third = await _pid(pool)
    assert third != second
    assert pool.statistics()["size"] == 1


async def test_recycle_minus_one_means_never(make: Any) -> None:
    pool = await make(1, 0, pool={"recycle": -1})
    first = await _pid(pool)
    (pooled,) = pool.executor.pool()._idle
    pooled.opened_at -= 1e9
    assert await _pid(pool) == first


async def test_a_connection_that_died_while_idle_costs_no_operation(make: Any, postgres: Any) -> None:
    pool = await make(2, 0)
    await scratch.create_things(pool)
    for number in range(3):
        await asyncio.gather(*(pool.executor.run(scratch.slow, 0.02) for _ in range(2)))
        for pid in postgres.connections(pool.settings.database):
            postgres.admin("SELECT pg_terminate_backend(%s)", pid)
        # the server ends them, and says so, when it gets a processor
        await wait_until(lambda: all(idle.raw.is_closed() for idle in pool.executor.pool()._idle), 60)
        await pool.executor.run(scratch.add, number, str(number))
    assert len(await pool.executor.run(scratch.names)) == 3


async def test_a_budget_of_one_serves_two_event_loops_in_turn(make: Any) -> None:
    """The idle connection of one loop must not lock the other out."""
    pool = await make(1, 0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def there() -> Any:
        await pool.executor.run(scratch.slow, 0.0)

    try:
        for _ in range(4):
            await pool.executor.run(scratch.slow, 0.0)
            await asyncio.wait_for(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(there(), loop)), 60)
        # both at once, many times
        many = [asyncio.run_coroutine_threadsafe(there(), loop) for _ in range(20)]
        here = [pool.executor.run(scratch.slow, 0.001) for _ in range(20)]
        await asyncio.wait_for(asyncio.gather(*here, *map(asyncio.wrap_future, many)), 60)
        await pool.shutdown()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_loop_that_ended_gives_its_share_back(make: Any) -> None:
    pool = await make(1, 0)
    await asyncio.to_thread(asyncio.run, pool.executor.run(scratch.slow, 0.0))
    await asyncio.wait_for(pool.executor.run(scratch.slow, 0.0), 60)
    await pool.shutdown()
    del pool
    gc.collect()  # asyncio warns of the transport of the loop that was thrown away; here, not in a later test


async def test_waiters_are_told_when_the_pool_closes(make: Any) -> None:
    pool = await make(1, 0)
    holder = asyncio.create_task(pool.executor.run(scratch.slow, 600.0))
    await wait_until(lambda: pool.statistics()["in_use"] == 1, 30)
    waiter = asyncio.create_task(pool.executor.run(scratch.slow, 0.0))
    await wait_until(lambda: pool.statistics()["waiting"] == 1, 30)
    await pool.shutdown()
    with pytest.raises(NotInitializedError):
        await asyncio.wait_for(waiter, 60)
    holder.cancel()
    await asyncio.wait([holder])


async def test_closing_leaves_other_clients_alone(make: Any, postgres: Any) -> None:
    import psycopg

    pool = await make(1, 0)
    with psycopg.connect(pool.settings.get_driver_url()) as mine:
        pool.engine.connect().close()
        await pool.shutdown()
        assert mine.execute("SELECT 1").fetchone() == (1,)


async def test_statements_are_watched_by_the_server_too(make: Any) -> None:
    pool = await make(1, 0, command_timeout_s=12.0)
    rows = await scratch.admin(pool).execute_sql("SELECT current_setting('statement_timeout') AS t")
    assert rows == [{"t": "12s"}]
    rows = await scratch.admin(pool).execute_sql("SELECT current_setting('application_name') AS a")
    assert rows == [{"a": "atlas-storage"}]


# --- TLS: the test server has none --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["disable", "prefer"])
async def test_tls_modes_that_a_plain_server_serves(make: Any, databases: Any, mode: str) -> None:
    pool = await make(url=databases.url("postgresql", tcp=True), tls_mode=mode)
    assert await pool.health_check()
    with pool.engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_tls_modes_that_a_plain_server_must_not_get(make: Any, databases: Any, mode: str) -> None:
    with pytest.raises(UnavailableError, match="TLS"):
        await make(url=databases.url("postgresql", tcp=True), tls_mode=mode)


async def test_a_missing_authority_file_is_named(make: Any, databases: Any) -> None:
    with pytest.raises(StorageError, match="tls_ca_file"):
        await make(
            url=databases.url("postgresql", tcp=True), tls_mode="verify-full", tls_ca_file="/no/such/ca.pem"
        )


# --- poolers ------------------------------------------------------------------------------------------------------


async def test_told_of_a_transaction_pooler_no_session_state_is_used(make: Any, postgres: Any) -> None:
    pool = await make(pooler="transaction")
    await scratch.create_things(pool)
    assert pool.executor.options.transaction_pooling
    await asyncio.gather(*(pool.executor.run(scratch.add_many_ways, n, str(n)) for n in range(20)))
    found = await scratch.admin(pool).execute_sql("SELECT name FROM pg_prepared_statements")
    assert found == []
    rows = await scratch.admin(pool).execute_sql("SELECT current_setting('statement_timeout') AS t")
    assert rows == [{"t": "0"}]


async def test_without_a_pooler_statements_are_prepared_once(make: Any) -> None:
    pool = await make(pooler="none")
    await scratch.create_things(pool)
    await pool.executor.run(scratch.names)
    found = await scratch.admin(pool).execute_sql("SELECT name FROM pg_prepared_statements")
    assert found
    assert not pool.executor.options.transaction_pooling

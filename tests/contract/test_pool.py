"""`SQLPool` on every back end: its life, its two doors, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from modules.storage.pool import PoolError, PoolTimeoutError, SQLPool
from modules.store_common.deadlines import deadline
from modules.store_common.errors import (
    ConstraintError,
    CorruptionError,
    DeadlineExceededError,
    NotInitializedError,
    PermissionDeniedError,
    StorageError,
    UnavailableError,
)
from tests.support.leaks import wait_until

from . import scratch


def _doors(pool: Any) -> Any:
    return [
        lambda: pool.executor,
        lambda: pool.engine,
        lambda: pool.session_factory,
    ]


async def _refuses_everything(pool: Any) -> None:
    assert not pool.is_initialized
    for door in _doors(pool):
        with pytest.raises(RuntimeError, match="not initialized"):
            door()
    with pytest.raises(RuntimeError, match="not initialized"):
        async with pool.session():
            pytest.fail("a closed pool lent a session")
    assert await pool.health_check() is False
    assert pool.statistics() == {}


async def test_before_and_after_everything_is_not_initialized(settings: Any) -> None:
    pool = SQLPool(settings.sql)
    await _refuses_everything(pool)
    await pool.shutdown()
    await pool.initialize()
    assert pool.is_initialized
    executor = pool.executor
    await pool.shutdown()
    await _refuses_everything(pool)
    with pytest.raises(NotInitializedError):
        await executor.run(scratch.names)
    await pool.shutdown()


async def test_usable_again_after_shutdown(settings: Any, backend: str) -> None:
    pool = SQLPool(settings.sql)
    for number in range(3):
        await pool.initialize()
        await pool.initialize()
        if number == 0 or backend == "sqlite-memory":
            await scratch.create_things(pool)
        await pool.executor.run(scratch.add, number, str(number))
        with pool.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM things")).scalar() >= 1
        async with pool.session() as session:
            await session.execute(text("SELECT 1"))
        await pool.shutdown()


async def test_concurrent_initialize_and_shutdown(settings: Any, leaks: Any) -> None:
    pool = SQLPool(settings.sql)
    await asyncio.gather(*(pool.initialize() for _ in range(50)))
    first = pool.executor
    await pool.initialize()
    assert pool.executor is first
    await asyncio.gather(*(pool.shutdown() for _ in range(50)))
    assert not pool.is_initialized
    await asyncio.gather(pool.initialize(), pool.shutdown(), pool.initialize(), pool.shutdown())
    await pool.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_initialize_from_several_threads_at_once(settings: Any, backend: str) -> None:
    pool = SQLPool(settings.sql)
    opened = []

    def work() -> None:
        async def open_and_ask() -> None:
            await pool.initialize()
            opened.append(pool.executor)
            assert await pool.health_check()

        asyncio.run(open_and_ask())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join(60) for thread in threads])
    assert len(opened) == 4
    assert len({id(executor) for executor in opened}) == 1
    assert await pool.health_check(), "a loop that came later"
    await pool.shutdown()
    opened.clear()
    gc.collect()  # asyncio warns of the transports of loops that were thrown away; here, not in a later test


async def test_a_cancelled_initialize_leaves_nothing_open(settings: Any, leaks: Any) -> None:
    for number in range(12):
        pool = SQLPool(settings.sql)
        task = asyncio.create_task(pool.initialize())
        await asyncio.sleep(0.0004 * number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await pool.initialize()
        assert await pool.health_check()
        await pool.shutdown()


async def test_when_the_opener_is_cancelled_another_takes_over(settings: Any) -> None:
    pool = SQLPool(settings.sql)
    first = asyncio.create_task(pool.initialize())
    await asyncio.sleep(0)
    second = asyncio.create_task(pool.initialize())
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert await pool.health_check()
    await pool.shutdown()


async def test_the_engine_works_beside_the_executor(pool: Any) -> None:
    await scratch.create_things(pool)
    await pool.executor.run(scratch.add, 1, "one")

    def work() -> Any:
        with pool.session_factory() as session:
            session.execute(text("INSERT INTO things (id, name) VALUES (2, 'two')"))
            session.commit()
        with pool.engine.begin() as connection:
            return connection.execute(text("SELECT name FROM things ORDER BY id")).scalars().all()

    assert await asyncio.to_thread(work) == ["one", "two"]
    assert await pool.executor.run(scratch.names) == ["one", "two"]
    assert pool.engine is pool.engine
    assert pool.session_factory is pool.session_factory


async def test_foreign_keys_hold_on_every_connection(pool: Any) -> None:
    await scratch.create_things(pool)
    with pytest.raises(ConstraintError):
        await pool.executor.run(scratch.add, 1, "one", 99)

    def work() -> Any:
        from sqlalchemy.exc import IntegrityError

        engine = pool.engine
        open_at_once = [engine.connect() for _ in range(3)]
        for connection in open_at_once:
            connection.execute(text("INSERT INTO things (id, name, parent) VALUES (1, 'one', 99)"))
            with pytest.raises(IntegrityError):
                connection.commit()
            connection.close()

    await asyncio.to_thread(work)
    assert await pool.executor.run(scratch.names) == []


async def test_health_check_has_a_time_limit_and_never_raises(pool: Any, backend: str) -> None:
    assert await pool.health_check(60.0) is True
    if backend == "sqlite-memory":
        started, gate = threading.Event(), threading.Event()
        busy = asyncio.create_task(pool.executor.run(scratch.hold, started, gate))
        assert await asyncio.to_thread(started.wait, 60)
        assert await pool.health_check(0.05) is False
        gate.set()
        await busy


async def test_an_outer_deadline_ends_a_statement(pool: Any) -> None:
    await scratch.create_things(pool)
    with pytest.raises(DeadlineExceededError), deadline(0.2):
        await pool.executor.run(scratch.slow, 600.0)
    await asyncio.wait_for(pool.executor.run(scratch.add, 1, "one"), 60)


async def test_the_command_timeout_ends_a_statement(settings: Any) -> None:
    limited = settings.merged_with({"sql": {"command_timeout_s": 1.0}})
    pool = SQLPool(limited.sql)
    await pool.initialize()

    async def works_again() -> bool:
        # its time is short, too: a busy machine may need several attempts
        with contextlib.suppress(DeadlineExceededError):
            await pool.executor.run(scratch.nothing)
            return True
        return False

    try:
        with pytest.raises(DeadlineExceededError):
            await asyncio.wait_for(pool.executor.run(scratch.slow, 600.0), 60)
        end = time.monotonic() + 60
        while not await works_again():
            assert time.monotonic() < end, "the statement goes on"
    finally:
        await pool.shutdown()


async def test_shutdown_finishes_what_is_under_way(settings: Any) -> None:
    pool = SQLPool(settings.sql)
    await pool.initialize()
    await scratch.create_things(pool)
    calls = [asyncio.create_task(pool.executor.run(scratch.add, n, str(n))) for n in range(5)]
    await asyncio.sleep(0)
    await pool.shutdown()
    done = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
    assert all(isinstance(result, (int, StorageError)) for result in done), done


# --- what cannot be opened --------------------------------------------------------------------------------------


async def _fails(sql: Any, error: Any, *words: str) -> None:
    pool = SQLPool(sql)
    for _ in range(2):
        with pytest.raises(error) as caught:
            await asyncio.wait_for(pool.initialize(), 60)
        assert not pool.is_initialized
    assert "secret" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    await pool.shutdown()


async def test_sqlite_paths_that_cannot_be(tmp_path: Path, leaks: Any) -> None:
    (tmp_path / "file").write_text("x")
    below = scratch.wide_settings(f"sqlite:///{tmp_path}/file/db.sqlite3").sql
    await _fails(below, UnavailableError, "directory")
    (tmp_path / "directory").mkdir()
    await _fails(scratch.wide_settings(f"sqlite:///{tmp_path}/directory").sql, UnavailableError)
    other = tmp_path / "other.sqlite3"
    other.write_bytes(b"not a database, but long enough to be looked at " * 50)
    leaks.database(f"sqlite:///{other}")
    await _fails(scratch.wide_settings(f"sqlite:///{other}").sql, CorruptionError, "not a SQLite database")
    assert other.read_bytes().startswith(b"not a database")
    other.unlink()
    pool = SQLPool(scratch.wide_settings(f"sqlite:///{other}").sql)
    await pool.initialize()
    await pool.shutdown()


async def test_the_directory_is_made_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "db.sqlite3"
    pool = SQLPool(scratch.wide_settings(f"sqlite:///{path}").sql)
    assert not path.parent.exists(), "constructing opens nothing"
    await pool.initialize()
    await pool.shutdown()
    assert path.exists()
    assert path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.postgresql
async def test_postgresql_that_cannot_be_reached(postgres: Any, databases: Any, leaks: Any) -> None:
    from tests.support.cluster import free_port

    nobody_listens = f"postgresql://u:secret@127.0.0.1:{free_port()}/atlas"
    await _fails(scratch.wide_settings(nobody_listens).sql, UnavailableError)
    url = databases.url("postgresql", tcp=True)
    missing = scratch.wide_settings(url.rpartition("/")[0] + "/no_such_database").sql
    await _fails(missing, UnavailableError, "database does not exist")
    unknown = url.replace("://postgres@", "://no_such_role:secret@")
    await _fails(scratch.wide_settings(unknown).sql, PermissionDeniedError, "user or password")


@pytest.mark.postgresql
async def test_a_budget_beyond_the_servers_limit_is_refused(
    postgres: Any, databases: Any, leaks: Any
) -> None:
    url = databases.url("postgresql")
    allowed = int(postgres.admin("SHOW max_connections")[0][0])
    wide = scratch.wide_settings(url, pool={"size": allowed, "max_overflow": 10})
    leaks.database(url, postgres)
    await _fails(wide.sql, PoolError, "max_connections", str(allowed + 10))


@pytest.mark.postgresql
async def test_pool_exhaustion_names_size_and_wait(postgres: Any, databases: Any) -> None:
    sql = {"pool": {"size": 1, "max_overflow": 1, "timeout": 0.2}}
    pool = SQLPool(scratch.wide_settings(databases.url("postgresql"), **sql).sql)
    await pool.initialize()
    try:
        holders = [asyncio.create_task(pool.executor.run(scratch.slow, 600.0)) for _ in range(2)]
        await wait_until(lambda: pool.statistics()["in_use"] == 2, 30)
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.executor.run(scratch.names)
        assert caught.value.size == 2
        assert caught.value.waited_s > 0.15
        assert "2" in str(caught.value)
        assert caught.value.retryable
        for holder in holders:
            holder.cancel()
        await asyncio.wait(holders)
        assert await pool.health_check(60.0)
    finally:
        await pool.shutdown()

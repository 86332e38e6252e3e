"""Administration: what both back ends share, and what only one has."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from modules.storage.pool import SQLPool
from modules.store_common.errors import (
    AlreadyExistsError,
    ConstraintError,
    DeadlineExceededError,
    InvalidValueError,
    NotConfiguredError,
    NotInitializedError,
    StatementError,
    StorageError,
)

from . import scratch


@pytest.fixture
async def things(pool: Any) -> Any:
    await scratch.create_things(pool)
    return pool


@pytest.mark.postgresql
def test_capabilities_have_the_names_of_the_issue() -> None:
    from modules.storage.backends.postgresql import PostgreSQLBackend
    from modules.storage.backends.sqlite import SQLiteBackend

    shared = {"get_table_names", "verify_tables", "execute_sql", "get_database_size"}
    sqlite = {"configure_pragmas", "ensure_directory", "vacuum", "checkpoint", "get_page_count", "db_path"}
    sqlite |= {"is_memory", "backup"}
    postgresql = {"ensure_extensions", "ensure_pgvector", "get_connection_count", "get_replication_lag"}
    assert shared | sqlite <= set(dir(SQLiteBackend))
    assert shared | postgresql <= set(dir(PostgreSQLBackend))


async def test_not_initialized(settings: Any) -> None:
    backend = scratch.admin(SQLPool(settings.sql))
    with pytest.raises(NotInitializedError):
        await backend.get_table_names()


async def test_tables_and_size(things: Any) -> None:
    backend = scratch.admin(things)
    assert "things" in await backend.get_table_names()
    assert await backend.verify_tables(["things", "nothing"]) == {"things": True, "nothing": False}
    assert await backend.verify_tables([]) == {}
    assert await backend.get_database_size() > 0


async def test_execute_sql(things: Any) -> None:
    run = scratch.admin(things).execute_sql
    assert await run("INSERT INTO things (id, name) VALUES (1, 'one')") == []
    assert await run("SELECT id, name FROM things WHERE id = :id", {"id": 1}) == [{"id": 1, "name": "one"}]
    assert await run("SELECT 'a:b' AS text, 1 AS n") == [{"text": "a:b", "n": 1}]
    await run("UPDATE things SET name = :name WHERE id = :id", {"name": "'; DROP TABLE things; --", "id": 1})
    assert len(await things.executor.run(scratch.names)) == 1


async def test_execute_sql_errors_are_typed(things: Any) -> None:
    run = scratch.admin(things).execute_sql
    await run("INSERT INTO things (id, name) VALUES (1, 'one')")
    for sql, params, error in (
        ("INSERT INTO things (id, name) VALUES (1, 'again')", None, AlreadyExistsError),
        ("INSERT INTO things (id, name) VALUES (2, NULL)", None, ConstraintError),
        ("INSERT INTO things (id, name, parent) VALUES (2, 'two', 77)", None, ConstraintError),
        ("SELEKT 1", None, StatementError),
        ("SELECT * FROM nothing_here", None, StatementError),
        ("SELECT :missing", {}, InvalidValueError),
    ):
        with pytest.raises(error):
            await run(sql, params)
    assert await things.executor.run(scratch.names) == ["one"]


async def test_parameters_that_do_not_fit_leave_the_database_working(things: Any) -> None:
    run = scratch.admin(things).execute_sql
    for value in (2**70, "\ud800", object()):
        with pytest.raises(StorageError):
            await asyncio.wait_for(run("INSERT INTO things (id, name) VALUES (9, :v)", {"v": value}), 3)
    with pytest.raises(StorageError):
        await asyncio.wait_for(run("INSERT INTO things (id, name) VALUES (:v, 'x')", {"v": 2**70}), 3)
    await asyncio.wait_for(things.executor.run(scratch.add, 1, "one"), 3)


async def test_a_transaction_left_open_by_free_sql_harms_nobody(things: Any) -> None:
    run = scratch.admin(things).execute_sql
    if things.dialect == "sqlite":
        with pytest.raises(StorageError, match="transaction open"):
            await run("BEGIN")
    else:
        await run("BEGIN")  # its connection is closed
    await asyncio.wait_for(things.executor.run(scratch.add, 1, "one"), 3)
    await asyncio.wait_for(things.executor.run(scratch.add, 2, "two"), 3)
    assert await things.executor.run(scratch.names) == ["one", "two"]


async def test_free_sql_ends_at_the_command_timeout(settings: Any) -> None:
    pool = SQLPool(settings.merged_with({"sql": {"command_timeout_s": 0.3}}).sql)
    await pool.initialize()
    try:
        endless = scratch.FOREVER if pool.dialect == "sqlite" else "SELECT pg_sleep(20)::text"
        with pytest.raises(DeadlineExceededError):
            await asyncio.wait_for(scratch.admin(pool).execute_sql(endless), 3)
        assert await asyncio.wait_for(scratch.admin(pool).execute_sql("SELECT 1 AS n"), 3) == [{"n": 1}]
    finally:
        await pool.shutdown()


# --- SQLite -------------------------------------------------------------------------------------------------------


def _sqlite_only(pool: Any) -> Any:
    if pool.dialect != "sqlite":
        pytest.skip("SQLite's administration")
    return scratch.admin(pool)


async def test_pragmas_in_effect(pool: Any, backend: str) -> None:
    found = await _sqlite_only(pool).configure_pragmas()
    assert found["journal_mode"] == ("wal" if backend == "sqlite" else "memory")
    assert found["synchronous"] == 2, "FULL"
    assert found["foreign_keys"] == 1
    assert found["busy_timeout"] == 5000


@pytest.mark.parametrize(("name", "number"), [("OFF", 0), ("NORMAL", 1), ("FULL", 2), ("EXTRA", 3)])
async def test_synchronous_is_configurable(databases: Any, name: str, number: int) -> None:
    sql = scratch.wide_settings(
        databases.url("sqlite"), sqlite_synchronous=name, sqlite_busy_timeout_s=1.5
    ).sql
    pool = SQLPool(sql)
    await pool.initialize()
    try:
        found = await scratch.admin(pool).configure_pragmas()
        assert (found["synchronous"], found["busy_timeout"]) == (number, 1500)

        def look() -> Any:
            with pool.engine.connect() as connection:
                return [
                    connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
                    for pragma in ("synchronous", "foreign_keys", "journal_mode", "busy_timeout")
                ]

        assert await asyncio.to_thread(look) == [number, 1, "wal", 1500]
    finally:
        await pool.shutdown()


async def test_paths(pool: Any, backend: str, tmp_path: Path) -> None:
    admin = _sqlite_only(pool)
    assert admin.is_memory is (backend == "sqlite-memory")
    assert (admin.db_path is None) is (backend == "sqlite-memory")
    admin.ensure_directory()
    assert await admin.get_page_count() >= 0


async def test_checkpoint_empties_the_log(things: Any, backend: str) -> None:
    admin = _sqlite_only(things)
    if backend == "sqlite":
        assert admin.get_wal_size() > 0
        reader = sqlite3.connect(admin.db_path)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM things").fetchall()
        await things.executor.run(scratch.add, 1, "one")
        reader.close()
    assert await admin.checkpoint() is True
    assert admin.get_wal_size() == 0


async def test_vacuum_gives_pages_back(things: Any) -> None:
    admin = _sqlite_only(things)
    await admin.execute_sql("CREATE TABLE fat (b BLOB)")
    await admin.execute_sql(
        "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 200)"
        " INSERT INTO fat SELECT zeroblob(4000) FROM c"
    )
    before = await admin.get_page_count()
    await admin.execute_sql("DROP TABLE fat")
    await admin.vacuum()
    assert await admin.get_page_count() < before / 4
    await things.executor.run(scratch.add, 1, "one")


async def test_vacuum_keeps_text_search_right(storage: Any) -> None:
    if storage.sql_pool.dialect != "sqlite":
        pytest.skip("SQLite's administration")
    for number in range(6):
        name = f"c{number}"
        await storage.conversations.create_conversation(conversation_id=name)
        await storage.conversations.add_message(name, role="user", content=f"the zebra number{number} runs")
    for number in (0, 1, 3):
        await storage.conversations.delete_conversation(f"c{number}")
    await storage.sql_backend.vacuum()
    for number in range(6):
        page = await storage.conversations.search(f"number{number}")
        found = {hit.message.conversation_id for hit in getattr(page, "hits", page)}
        assert found <= {f"c{number}"}
        assert bool(found) is (number not in (0, 1, 3))


async def test_backup_while_writing(things: Any, tmp_path: Path) -> None:
    admin = _sqlite_only(things)
    stop, warm = asyncio.Event(), asyncio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            await things.executor.run(scratch.add, written, f"name {written}")
            written += 1
            if written == 20:
                warm.set()

    writer = asyncio.create_task(write())
    await warm.wait()
    seen = []
    before = written
    made = await asyncio.wait_for(
        admin.backup(
            tmp_path / "new" / "copy.sqlite3", progress=lambda left, total: seen.append((left, total))
        ),
        20,
    )
    after = written
    stop.set()
    await writer
    copy = sqlite3.connect(made)
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = [row[0] for row in copy.execute("SELECT id FROM things ORDER BY id")]
    copy.close()
    assert rows == list(range(len(rows))), "a state that was there at one moment"
    assert before <= len(rows) <= after + 1
    assert seen
    assert seen[-1][0] == 0
    assert [path.name for path in made.parent.iterdir()] == ["copy.sqlite3"]
    again = await admin.backup(made)
    assert again == made
    opened = SQLPool(scratch.wide_settings(f"sqlite:///{made}").sql)
    await opened.initialize()
    assert len(await opened.executor.run(scratch.names)) == written
    await opened.shutdown()


async def test_a_backup_never_replaces_a_database_in_use(things: Any, tmp_path: Path) -> None:
    admin = _sqlite_only(things)
    if admin.db_path is not None:
        with pytest.raises(StorageError, match="in use"):
            await admin.backup(admin.db_path)
    other = SQLPool(scratch.wide_settings(f"sqlite:///{tmp_path}/other.sqlite3").sql)
    await other.initialize()
    await scratch.create_things(other)
    with pytest.raises(StorageError, match="in use"):
        await admin.backup(tmp_path / "other.sqlite3")
    await other.executor.run(scratch.add, 1, "one")
    await other.shutdown()


async def test_a_backup_that_cannot_be_written_leaves_nothing(things: Any, tmp_path: Path) -> None:
    admin = _sqlite_only(things)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    for target in (tmp_path / "taken", tmp_path / "file" / "copy"):
        with pytest.raises(StorageError):
            await admin.backup(target)
    assert not [name for name in os.listdir(tmp_path) if "partial" in name]


async def test_administration_does_not_wait_for_a_units_turn(things: Any, backend: str) -> None:
    """Looking at a database file must not queue behind the writer; health rests on it."""
    admin = _sqlite_only(things)
    if backend == "sqlite-memory":
        pytest.skip("one connection serves everything in memory")
    started, gate = threading.Event(), threading.Event()
    busy = asyncio.create_task(things.executor.run(scratch.hold, started, gate))
    await asyncio.to_thread(started.wait, 5)
    try:
        assert "things" in await asyncio.wait_for(admin.get_table_names(), 2)
        assert await asyncio.wait_for(admin.get_database_size(), 2) > 0
        assert await asyncio.wait_for(admin.get_page_count(), 2) > 0
    finally:
        gate.set()
        await busy


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def _postgresql_only(pool: Any) -> Any:
    if pool.dialect != "postgresql":
        pytest.skip("PostgreSQL's administration")
    return scratch.admin(pool)


async def test_extensions(pool: Any) -> None:
    admin = _postgresql_only(pool)
    found = await admin.ensure_extensions({"vector", "plpgsql"})
    assert set(found) == {"vector", "plpgsql"}
    assert all(version[0].isdigit() for version in found.values())
    assert await admin.ensure_extensions(["vector"]) == {"vector": found["vector"]}
    assert await admin.ensure_pgvector() == found["vector"]
    with pytest.raises(NotConfiguredError, match="no_such_extension"):
        await admin.ensure_extensions(["no_such_extension"])
    for wrong in ('vector"; DROP TABLE x; --', "", "Vector", "a b"):
        with pytest.raises(InvalidValueError):
            await admin.ensure_extensions([wrong])


async def test_connections_and_replication(pool: Any) -> None:
    admin = _postgresql_only(pool)
    assert await admin.get_connection_count() >= 1
    assert await admin.get_replication_lag() is None


async def test_vacuum_through_free_sql(things: Any) -> None:
    assert await _postgresql_only(things).execute_sql("VACUUM things") == []

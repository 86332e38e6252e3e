"""Migrations: models and revisions are equal, one of many migrates, a failure leaves nothing, others' tables are safe."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, List

import pytest
from sqlalchemy import inspect, text

from modules.storage.migrations import HEAD, VERSION_TABLE, runner
from modules.storage.migrations.comparison import differences
from modules.storage.pool import SQLPool
from modules.storage.settings import StorageSettings
from modules.store_common.errors import BusyError


def tables(engine: Any) -> List[str]:
    return sorted(inspect(engine).get_table_names())


async def test_a_new_database_gets_every_revision_once(pool: SQLPool) -> None:
    assert runner.current(pool.engine) is None
    assert runner.pending(pool.engine) == [item.revision for item in runner.history()]

    assert runner.upgrade(pool.engine) == [item.revision for item in runner.history()]

    assert runner.current(pool.engine) == HEAD
    assert runner.pending(pool.engine) == []
    assert runner.upgrade(pool.engine) == []


async def test_models_and_migrations_are_equal(pool: SQLPool) -> None:
    runner.upgrade(pool.engine)

    assert differences(pool.engine) == []


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE atlas_users ADD COLUMN forgotten INTEGER",
        "DROP INDEX ix_atlas_messages_deleted",
        "CREATE TABLE atlas_forgotten (id INTEGER)",
        "DROP TABLE atlas_kv_usage",
    ],
)
async def test_a_difference_is_seen(pool: SQLPool, change: str) -> None:
    runner.upgrade(pool.engine)
    with pool.engine.begin() as connection:
        connection.execute(text(change))

    assert differences(pool.engine)


@pytest.mark.parametrize("what", ["trigger", "column"])
async def test_the_sql_around_the_models_is_equal_too(pool: SQLPool, what: str) -> None:
    """What SQLAlchemy does not model is compared with what a database made from the models' DDL has."""
    from modules.conversation_store.models import DIALECT_DDL as CONVERSATIONS
    from modules.storage.schema import Base
    from modules.task_store.models import DIALECT_DDL as TASKS
    from modules.Tools.Base_Tools.kv_models import DIALECT_DDL as KEY_VALUE

    runner.upgrade(pool.engine)
    migrated = made_by_ddl(pool.engine)
    with pool.engine.begin() as connection:
        drop_everything(connection)
        Base.metadata.create_all(connection)
        for statement in (*CONVERSATIONS[pool.dialect], *KEY_VALUE[pool.dialect], *TASKS[pool.dialect]):
            connection.exec_driver_sql(
                statement.replace("%", "%%") if pool.dialect == "postgresql" else statement
            )

    assert migrated[what] == made_by_ddl(pool.engine)[what]
    assert migrated[what]


def made_by_ddl(engine: Any) -> Dict[str, Dict[str, str]]:
    queries = {
        "sqlite": {
            "trigger": "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'",
            "column": "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name LIKE 'atlas_%search%'",
        },
        "postgresql": {
            "trigger": "SELECT t.tgname, pg_get_triggerdef(t.oid) || p.prosrc FROM pg_trigger t"
            " JOIN pg_proc p ON p.oid = t.tgfoid WHERE NOT t.tgisinternal",
            "column": "SELECT table_name || '.' || column_name, generation_expression FROM information_schema.columns"
            " WHERE is_generated = 'ALWAYS' AND table_schema = 'public'"
            " UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE indexdef LIKE '%USING gin%'",
        },
    }[engine.dialect.name]
    with engine.connect() as connection:
        return {
            what: {
                name: " ".join(body.split())
                for name, body in connection.exec_driver_sql(query.replace("%", "%%"))
            }
            if engine.dialect.name == "postgresql"
            else {name: " ".join(body.split()) for name, body in connection.exec_driver_sql(query)}
            for what, query in queries.items()
        }


def drop_everything(connection: Any) -> None:
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        return
    for search in ("atlas_messages_search", "atlas_tasks_search"):
        connection.exec_driver_sql(f"DROP TABLE {search}")
    for name in sorted(inspect(connection).get_table_names(), key=lambda name: name == "atlas_conversations"):
        connection.exec_driver_sql(f'DROP TABLE "{name}"')


async def test_other_peoples_tables_are_neither_touched_nor_reported(pool: SQLPool) -> None:
    with pool.engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
        connection.execute(text("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT)"))
        connection.execute(text("CREATE INDEX by_name ON customers (name)"))

    runner.upgrade(pool.engine)

    assert differences(pool.engine) == []
    with pool.engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "theirs"
    assert {"customers", "alembic_version", VERSION_TABLE} <= set(tables(pool.engine))


async def test_a_database_from_the_future_is_refused(pool: SQLPool) -> None:
    runner.upgrade(pool.engine)
    with pool.engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))

    with pytest.raises(runner.MigrationError, match=r"'9999'.*newer release.*pip install --upgrade"):
        runner.upgrade(pool.engine)
    with pytest.raises(runner.MigrationError, match="9999"):
        runner.pending(pool.engine)
    assert runner.is_from_future("9999")
    assert runner.current(pool.engine) == "9999"


def test_known_revisions_are_not_from_the_future() -> None:
    assert not runner.is_from_future(None)
    assert not any(runner.is_from_future(item.revision) for item in runner.history())


def test_the_constant_is_the_newest_revision() -> None:
    assert runner.history()[-1].revision == HEAD
    assert [item.down_revision for item in runner.history()] == [
        None,
        *[item.revision for item in runner.history()[:-1]],
    ]


async def test_an_error_half_way_leaves_nothing(pool: SQLPool) -> None:
    # The table is made last of all by the revision, so that everything before it has to be taken back.
    with pool.engine.begin() as connection:
        connection.execute(text("CREATE TABLE atlas_turns (theirs INTEGER)"))
    before = tables(pool.engine)

    with pytest.raises(runner.MigrationError, match="nothing was changed"):
        runner.upgrade(pool.engine)

    assert tables(pool.engine) == before
    with pool.engine.begin() as connection:
        connection.execute(text("DROP TABLE atlas_turns"))
    assert runner.upgrade(pool.engine) == [item.revision for item in runner.history()]


async def test_twelve_threads_migrate_once(pool: SQLPool) -> None:
    start = threading.Barrier(12)
    applied: List[List[str]] = []
    engine = pool.engine

    def work() -> None:
        start.wait(60)
        applied.append(runner.upgrade(engine))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.get_running_loop().run_in_executor(None, thread.join, 100)

    assert sorted(map(len, applied)) == [0] * 11 + [len(runner.history())]


CHILD = """
import asyncio, json, sys
from modules.storage.migrations import runner
from modules.storage.pool import SQLPool
from modules.storage.settings import StorageSettings

async def main():
    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": sys.argv[1]}}).sql)
    await pool.initialize()
    engine = pool.engine
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(await asyncio.to_thread(runner.upgrade, engine)), flush=True)
    await pool.shutdown()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def test_ten_processes_starting_together_migrate_once(
    kind: str, databases: Any, child_environment: Dict[str, str]
) -> None:
    url = databases.url(kind)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=child_environment,
        )
        for _ in range(10)
    ]  # fmt: skip
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        outputs = []
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        for child in children:
            outputs.append(child.communicate(timeout=60)[0])
    finally:
        for child in children:
            child.kill()
            child.wait()

    assert [child.returncode for child in children] == [0] * 10
    applied = [json.loads(output) for output in outputs]
    assert sorted(map(len, applied)) == [0] * 9 + [len(runner.history())]


async def test_a_lock_that_is_held_ends_in_a_typed_error(pool: SQLPool, backend: str) -> None:
    if backend == "sqlite-memory":
        pytest.skip("no other process can hold the lock of a database in memory")
    engine = pool.engine
    with engine.connect() as holder, runner._locked(holder, 5.0):  # noqa: SIM117 - the second ends first
        with pytest.raises(BusyError, match="another process holds the lock"):
            await asyncio.get_running_loop().run_in_executor(
                None, lambda: runner.upgrade(engine, lock_timeout_seconds=0.05)
            )

    assert runner.upgrade(engine)


def test_a_killed_migration_leaves_nothing(tmp_path: Path, child_environment: Dict[str, str]) -> None:
    """The child dies inside the transaction, when every table is made and nothing is committed."""
    path = tmp_path / "killed.sqlite3"
    program = CHILD.replace(
        "async def main", "runner._run_whole, runner._run = runner._run, lambda *given: (runner._run_whole(*given), "
        "__import__('os').kill(__import__('os').getpid(), 9))\n\nasync def main"
    ).replace("asyncio.to_thread(runner.upgrade, engine)", "asyncio.sleep(0, runner.upgrade(engine))")  # fmt: skip
    child = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{path}"],
        input="go\n", text=True, capture_output=True, env=child_environment, timeout=60, check=False,
    )  # fmt: skip
    assert child.returncode == -9, child.stderr
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_the_language_of_search_goes_into_the_schema(pool: SQLPool) -> None:
    runner.upgrade(pool.engine, search_language="german")

    found = json.dumps(made_by_ddl(pool.engine)["column"])
    assert ("german" in found) == (pool.dialect == "postgresql")
    assert "porter" not in found
    assert differences(pool.engine) == []


async def test_an_unknown_language_changes_nothing(pool: SQLPool) -> None:
    with pytest.raises(runner.MigrationError, match="klingon"):
        runner.upgrade(pool.engine, search_language="klingon")

    assert VERSION_TABLE not in tables(pool.engine)


@pytest.mark.parametrize("language", ["english", "simple"])
def test_the_sql_of_the_revisions_makes_the_same_sqlite_schema(tmp_path: Path, language: str) -> None:
    script = runner.sql("sqlite", search_language=language)
    by_script, by_runner = tmp_path / "script.sqlite3", tmp_path / "runner.sqlite3"
    with sqlite3.connect(by_script) as connection:
        connection.executescript(script)
    connection.close()
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{by_runner}")
    runner.upgrade(engine, search_language=language)
    engine.dispose()

    assert schema_of(by_script) == schema_of(by_runner)


def schema_of(path: Path) -> List[Any]:
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
        version = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchall()
    connection.close()
    return [(kind, name, " ".join((sql or "").split())) for kind, name, sql in rows] + version


@pytest.mark.postgresql
def test_the_sql_of_the_revisions_runs_on_postgresql(postgres: Any, databases: Any) -> None:
    import psycopg
    from sqlalchemy import create_engine

    url = databases.url("postgresql")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(runner.sql("postgresql").encode())  # bytes: no parameters are looked for
    engine = create_engine(StorageSettings.from_dict({"sql": {"url": url}}).sql.get_driver_url("psycopg"))
    try:
        assert runner.current(engine) == HEAD
        assert differences(engine) == []
        assert len(made_by_ddl(engine)["trigger"]) >= 3
    finally:
        engine.dispose()


def test_an_up_to_date_database_does_not_cost_the_import_of_alembic(
    tmp_path: Path, child_environment: Dict[str, str]
) -> None:
    program = (
        "import sys; from sqlalchemy import create_engine; from modules.storage.migrations import runner; "
        f"engine = create_engine('sqlite:///{tmp_path / 'a.sqlite3'}'); print(len(runner.upgrade(engine)), "
        "'alembic' in sys.modules, runner.pending(engine)); engine.dispose()"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, env=child_environment, check=True
        ).stdout
        for _ in range(2)
    ]

    assert outputs == [f"{len(runner.history())} True []\n", "0 False []\n"]


async def test_from_the_first_revision_with_data(pool: SQLPool) -> None:
    """What the first release wrote is there after the second one's migration, byte for byte."""
    from alembic import command

    with pool.engine.connect() as connection, runner._locked(connection, 30.0):
        config = runner._config("english")
        config.attributes["connection"] = connection
        with runner._one_run:
            command.upgrade(config, "0001")
    assert runner.pending(pool.engine)[0] == "0002"
    with pool.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO atlas_kv_entries (tenant_id, namespace, key, value_json, version, size_bytes, created_at,"
                " updated_at) VALUES ('t', 'n', 'k', '{\"a\": -0.0}', 3, 11, :at, :at)"
            ),
            {"at": 1 if pool.dialect == "sqlite" else datetime(2026, 1, 1, tzinfo=timezone.utc)},
        )
        before = connection.execute(text("SELECT * FROM atlas_kv_entries")).all()

    assert runner.upgrade(pool.engine)[0] == "0002"

    assert runner.current(pool.engine) == HEAD
    assert differences(pool.engine) == []
    with pool.engine.connect() as connection:
        assert connection.execute(text("SELECT * FROM atlas_kv_entries")).all() == before


async def test_the_registry_of_pgvector_is_the_one_that_the_provider_makes(
    pool: SQLPool, backend: str
) -> None:
    if backend != "postgresql":
        pytest.skip("pgvector is PostgreSQL's")
    from modules.storage.vectors import pgvector_schema
    from modules.storage.vectors.pgvector import PgvectorProvider

    runner.upgrade(pool.engine)
    migrated = registry_of(pool.engine)
    with pool.engine.begin() as connection:
        connection.exec_driver_sql(f"DROP TABLE {pgvector_schema.REGISTRY}")
    provider = PgvectorProvider(pool.executor)
    await provider.initialize()
    await provider.create_collection("docs", 3)
    await provider.shutdown()

    assert registry_of(pool.engine) == migrated
    assert len(migrated) >= 9 + 2
    assert differences(pool.engine) == [], "its tables of documents are not ours to compare"
    with pool.engine.begin() as connection:  # a database where the provider was used before the revision
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0001'"))
        for table in made_after("0002"):
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {table} CASCADE")
    assert runner.upgrade(pool.engine)[0] == "0002"
    assert registry_of(pool.engine) == migrated


def made_after(revision: str) -> List[str]:
    """The tables that later revisions make."""
    files = Path(runner.__file__).with_name("versions").glob("*.py")
    later = [file.read_text(encoding="utf-8") for file in files if file.name[:4] > revision]
    return sorted({name for text in later for name in re.findall(r'create_table\(\s*"(\w+)"', text)})


def registry_of(engine: Any) -> List[str]:
    from modules.storage.vectors.pgvector_schema import REGISTRY

    with engine.connect() as connection:
        columns = connection.exec_driver_sql(
            "SELECT column_name, data_type, is_nullable, column_default, collation_name"
            " FROM information_schema.columns WHERE table_name = %s ORDER BY ordinal_position",
            (REGISTRY,),
        ).all()
        indexes = connection.exec_driver_sql(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s ORDER BY 1", (REGISTRY,)
        ).all()
    return [str(tuple(row)) for row in (*columns, *indexes)]

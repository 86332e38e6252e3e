"""The settings models: defaults, validation, conversion, equality."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import pytest

from modules.storage.settings import (
    KVStoreSettings,
    MongoBackendSettings,
    PoolerMode,
    PoolSettings,
    RetentionSettings,
    SettingsError,
    SQLBackendSettings,
    SQLDialect,
    SqliteSynchronous,
    StorageSettings,
    VectorBackendSettings,
    VectorBackendType,
)
from modules.store_common.errors import StorageError

FULL = {
    "sql": {
        "dialect": "postgresql",
        "host": "db.example.com",
        "port": 5433,
        "database": "mydb",
        "username": "user",
        "password": "canary-sql",
        "pool": {"size": 7, "max_overflow": 0, "timeout": 1.5, "recycle": -1, "pre_ping": False},
        "tls_mode": "verify-ca",
        "pooler": "transaction",
    },
    "mongo": {"url": "mongodb://u:canary-mongo@m.example.com/chat?replicaSet=rs0"},
    "vectors": {
        "backend": "pinecone",
        "pinecone_api_key": "canary-pinecone",
        "chroma_auth_token": "canary-chroma",
    },
    "kv": {"namespace_quota_bytes": 10, "default_ttl_seconds": 0.5},
    "retention": {"task_days": 3},
    "use_mongo_for_jobs": True,
    "default_tenant_id": "acme",
}


def test_defaults_are_embedded_and_need_no_service() -> None:
    settings = StorageSettings()
    assert settings.sql.dialect is SQLDialect.SQLITE
    assert settings.sql.get_url() == settings.sql.get_safe_url() == "sqlite:///.atlas/storage.sqlite3"
    assert settings.vectors.backend is VectorBackendType.SQLITE
    assert settings.kv.backend == "sql"
    assert not settings.use_mongo_for_conversations
    assert not settings.use_mongo_for_jobs
    assert set(settings.sources.values()) == {"default"}


def test_defaults_are_those_of_the_issue() -> None:
    sql, mongo, vectors = SQLBackendSettings(), MongoBackendSettings(), VectorBackendSettings()
    assert (sql.host, sql.port, sql.database) == ("localhost", 5432, "atlas")
    assert (mongo.host, mongo.port, mongo.database, mongo.auth_source) == (
        "localhost",
        27017,
        "atlas",
        "admin",
    )
    assert (mongo.max_pool_size, mongo.min_pool_size) == (100, 0)
    assert (vectors.collection_name, vectors.embedding_dimension) == ("atlas_vectors", 1536)
    kv, retention = KVStoreSettings(), RetentionSettings()
    assert (kv.namespace_quota_bytes, kv.global_quota_bytes, kv.default_ttl_seconds) == (0, 0, 0)
    assert set(retention.to_dict().values()) == {0}
    assert (sql.sqlite_synchronous, sql.pooler) == (SqliteSynchronous.FULL, PoolerMode.AUTO)


def test_pool_becomes_engine_arguments() -> None:
    assert PoolSettings().to_engine_kwargs() == {
        "pool_size": 5,
        "max_overflow": 10,
        "pool_timeout": 30.0,
        "pool_recycle": 1800,
        "pool_pre_ping": True,
    }


def test_round_trip_is_equal_and_masked_form_is_not_secret() -> None:
    settings = StorageSettings.from_dict(FULL)
    revealed = settings.to_dict(reveal_secrets=True)
    again = StorageSettings.from_dict(revealed)
    assert again == settings
    assert hash(again) == hash(settings)
    assert again.to_dict(reveal_secrets=True) == revealed
    assert settings != StorageSettings()
    assert "canary" in str(revealed)
    assert settings.to_dict()["sql"]["password"] == "***"


@pytest.mark.parametrize(
    "sql",
    [
        {},
        {"database": ":memory:"},
        {"database": "atlas"},
        {"path": "a b/x.db"},
        {"url": "sqlite:////abs/x.db"},
        {"url": "sqlite://"},
        {"dialect": "postgresql"},
        {"dialect": "postgresql", "url": "  "},
        {"url": "postgres://u:p%40@[::1]:99/db?sslmode=require"},
        {"url": "postgresql+asyncpg:///db?host=/run/pg&port=6000"},
        {"url": "postgresql://u@a:1,b:2/db"},
    ],
)
def test_every_way_to_name_a_database_round_trips(sql: dict[str, Any]) -> None:
    settings = StorageSettings.from_dict({"sql": sql})
    again = StorageSettings.from_dict(settings.to_dict(reveal_secrets=True))
    assert again == settings
    assert again.sql.get_url() == settings.sql.get_url()


def test_settings_are_frozen_and_survive_copies() -> None:
    settings = StorageSettings.from_dict(FULL)
    with pytest.raises(ValueError, match="frozen"):
        settings.default_tenant_id = "x"  # type: ignore[misc]
    for twin in (copy.deepcopy(settings), pickle.loads(pickle.dumps(settings))):
        assert twin == settings
        assert twin.sources == settings.sources


def test_sources_are_no_part_of_equality() -> None:
    by_env = StorageSettings.from_env({"ATLAS_SQL_PORT": "5433"})
    assert by_env == StorageSettings(sql=SQLBackendSettings(port=5433))
    assert by_env.sources["sql.port"] == "environment ATLAS_SQL_PORT"
    assert StorageSettings(sql=SQLBackendSettings(port=5433)).sources["sql.port"] == "arguments"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sql.port", 0),
        ("sql.port", 65536),
        ("sql.port", True),
        ("sql.port", "x"),
        ("sql.host", "a@b"),
        ("sql.host", ""),
        ("sql.database", ""),
        ("sql.database", "a\x00b"),
        ("sql.password", "a\x00b"),
        ("sql.username", "\ud800"),
        ("sql.pool.size", 0),
        ("sql.pool.max_overflow", -1),
        ("sql.pool.timeout", 0),
        ("sql.pool.timeout", float("nan")),
        ("sql.pool.timeout", float("inf")),
        ("sql.pool.pre_ping", "perhaps"),
        ("sql.command_timeout_s", -1),
        ("sql.max_waiters", 0),
        ("sql.sqlite_queue_size", 0),
        ("sql.sqlite_synchronous", "SOMETIMES"),
        ("sql.tls_mode", "on"),
        ("mongo.port", 70000),
        ("mongo.connect_timeout_ms", 0),
        ("mongo.min_pool_size", 101),
        ("vectors.embedding_dimension", 0),
        ("vectors.backend", " "),
        ("kv.namespace_quota_bytes", -1),
        ("kv.default_ttl_seconds", -0.1),
        ("kv.backend", ""),
        ("retention.job_days", -1),
        ("retention.task_days", 2.5),
        ("health_check_interval_seconds", 0),
        ("default_tenant_id", ""),
        ("sql", 5),
        ("sql.pool", [1]),
    ],
)
def test_wrong_values_name_their_key(key: str, value: Any) -> None:
    nested: Any = value
    for name in reversed(key.split(".")):
        nested = {name: nested}
    for build in (StorageSettings.from_dict, lambda mapping: StorageSettings(**mapping)):
        with pytest.raises(SettingsError) as caught:
            build(nested)
        assert caught.value.key == key
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


def test_single_sections_raise_settings_errors_too() -> None:
    with pytest.raises(SettingsError, match="port") as caught:
        SQLBackendSettings(port=0)
    assert isinstance(caught.value, (StorageError, ValueError))
    assert not caught.value.retryable


def test_numeric_text_and_names_in_any_case_are_accepted() -> None:
    sql = SQLBackendSettings(dialect="PostgreSQL", port="5433", sqlite_synchronous="normal")
    assert (sql.dialect, sql.port) == (SQLDialect.POSTGRESQL, 5433)
    assert sql.sqlite_synchronous is SqliteSynchronous.NORMAL


def test_several_wrong_values_are_all_named() -> None:
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_dict({"sql": {"port": 0}, "kv": {"global_quota_bytes": -1}})
    assert "sql.port" in str(caught.value)
    assert "kv.global_quota_bytes" in str(caught.value)


def test_unknown_dialect_suggests_the_nearest() -> None:
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_dict({"sql": {"dialect": "postgres"}})
    assert caught.value.suggestion == "postgresql"
    assert "sqlite" in str(caught.value)


def test_error_pickles_whole() -> None:
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_env({"ATLAS_SQL_PROT": "1"})
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (str(twin), twin.key, twin.source, twin.suggestion) == (
        str(caught.value),
        None,
        "environment ATLAS_SQL_PROT",
        "ATLAS_SQL_PORT",
    )


class TestMergedWith:
    def test_replaces_single_values_and_keeps_the_rest(self) -> None:
        base = StorageSettings.from_dict(FULL)
        new = base.merged_with({"sql": {"pool": {"size": 9}}, "default_tenant_id": None})
        assert new.sql.pool.size == 9
        assert new.sql.pool.timeout == 1.5
        assert new.sql.password == base.sql.password
        assert new.default_tenant_id == "default"
        assert new.sources["sql.pool.size"] == "overrides: sql.pool.size"
        assert new.sources["sql.pool.timeout"] == "mapping: sql.pool.timeout"

    def test_nothing_changes_nothing(self) -> None:
        base = StorageSettings.from_dict(FULL)
        assert base.merged_with({}) == base
        assert base.merged_with({}).sources == base.sources

    def test_a_whole_section_replaces_the_section(self) -> None:
        base = StorageSettings.from_dict(FULL)
        assert base.merged_with({"sql": SQLBackendSettings()}).sql == SQLBackendSettings()

    def test_a_file_replaces_a_file_under_either_name(self) -> None:
        base = StorageSettings(sql=SQLBackendSettings(database=":memory:"))
        assert base.merged_with({"sql": {"path": "x.db"}}).sql.path == "x.db"
        assert StorageSettings().merged_with({"sql": {"database": "y.db"}}).sql.path == "y.db"
        other = StorageSettings(sql=SQLBackendSettings(path="x.db"))
        assert other.merged_with({"sql": {"database": "y.db"}}).sql.path == "y.db"
        assert other.merged_with({"sql": {"dialect": "postgresql"}}).sql.database == "atlas"

    def test_part_of_a_connection_never_loses_silently_to_the_url(self) -> None:
        base = StorageSettings(sql=SQLBackendSettings(url="postgresql://u:p@h/db"))
        with pytest.raises(SettingsError, match=r"sql\.url") as caught:
            base.merged_with({"sql": {"host": "other"}})
        assert caught.value.key == "sql.host"
        moved = base.merged_with({"sql": {"url": None, "dialect": "postgresql", "host": "other"}})
        assert moved.sql.get_url() == "postgresql://other:5432/atlas"


def test_import_brings_no_database_library() -> None:
    code = (
        "import sys, modules.storage.settings;"
        "print([m for m in ('sqlalchemy', 'yaml', 'asyncpg', 'pymongo', 'pydantic_settings', 'orjson')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""Environment, YAML, mapping and their mix: what wins, where a value came from, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest
import yaml

from modules.storage.settings import SettingsError, SQLDialect, StorageSettings
from modules.storage.settings_sources import settings_table

YAML = """
app: {anything: goes}
storage:
  sql:
    url: postgresql://u:pw@db.example.com/main
    pool: {size: 8, timeout: 2}
  retention:
  kv: {default_ttl_seconds: null}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_variable_of_the_table_is_read() -> None:
    example = StorageSettings.from_dict(
        {
            "sql": {"url": "postgresql://u:p@h:1/d"},
            "vectors": {"backend": "chroma", "chroma_host": "c"},
        }
    )
    samples = {"bool": "yes", "int": "3", "float": "4.5"}
    for row in settings_table(StorageSettings):
        value = samples.get(type(row.default).__name__)
        if value is None:
            continue
        environ = {row.env: value} | (
            {"ATLAS_MONGO_MAX_POOL_SIZE": "9"} if "min_pool" in row.env.lower() else {}
        )
        if row.path[-1] == "pgvector_ef_construction":
            environ[row.env] = "8"
        settings = StorageSettings.from_env(environ)
        assert settings.sources[row.key] == f"environment {row.env}"
    assert example.vectors.chroma_host == "c"


def test_environment_values_arrive() -> None:
    settings = StorageSettings.from_env(
        {
            "ATLAS_SQL_DIALECT": " postgresql ",
            "ATLAS_SQL_PASSWORD": " with blanks ",
            "ATLAS_SQL_HOST": "",
            "ATLAS_SQL_POOL_PRE_PING": "off",
            "ATLAS_VECTOR_DIMENSION": "384",
            "ATLAS_VECTOR_COLLECTION": "notes",
            "ATLAS_HEALTH_CHECK_INTERVAL": "7",
            "ATLAS_REQUIRE_TENANT_CONTEXT": "True",
            "ATLAS_TEST_POSTGRES_URL": "not ours",
            "ATLAS_REQUIRE_BACKENDS": "not ours",
            "ATLAS_EMBEDDER": "not ours",
            "PATH": "/bin",
        }
    )
    assert settings.sql.dialect is SQLDialect.POSTGRESQL
    assert settings.sql.password is not None
    assert settings.sql.password.get_secret_value() == " with blanks "
    assert settings.sql.host == "localhost"
    assert settings.sql.pool.pre_ping is False
    assert (settings.vectors.embedding_dimension, settings.vectors.collection_name) == (384, "notes")
    assert settings.health_check_interval_seconds == 7
    assert settings.require_tenant_context is True


@pytest.mark.parametrize("text", ["1", "true", "YES", "on"])
def test_true_in_words(text: str) -> None:
    assert StorageSettings.from_env({"ATLAS_USE_MONGO_FOR_JOBS": text}).use_mongo_for_jobs is True


@pytest.mark.parametrize("text", ["0", "false", "No", "off"])
def test_false_in_words(text: str) -> None:
    assert StorageSettings.from_env({"ATLAS_SQL_POOL_PRE_PING": text}).sql.pool.pre_ping is False


def test_from_env_reads_the_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_SQL_PATH", "elsewhere.db")
    assert StorageSettings.from_env().sql.path == "elsewhere.db"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ATLAS_SQL_POOLSIZE", "ATLAS_SQL_POOL_SIZE"),
        ("ATLAS_MONGO_PASWORD", "ATLAS_MONGO_PASSWORD"),
        ("ATLAS_VECTOR_DIMENSIONS", "ATLAS_VECTOR_DIMENSION"),
        ("ATLAS_KV_QUOTA", None),
        ("ATLAS_RETENTION_CONVERSATIONS_DAYS", "ATLAS_RETENTION_CONVERSATION_DAYS"),
        ("ATLAS_HEALTH_CHECK_INTERVALL", "ATLAS_HEALTH_CHECK_INTERVAL"),
    ],
)
def test_unknown_variable_is_named_with_the_nearest(name: str, nearest: Optional[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_env({name: "canary-value"})
    assert name in str(caught.value)
    assert caught.value.source == f"environment {name}"
    assert caught.value.suggestion == nearest or nearest is None
    assert "canary" not in str(caught.value)


def test_wrong_variable_is_named() -> None:
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_env({"ATLAS_SQL_PORT": "99999"})
    assert (caught.value.key, caught.value.source) == ("sql.port", "environment ATLAS_SQL_PORT")
    assert "65535" in str(caught.value)


def test_yaml_block_is_read_with_its_origin(tmp_path: Path) -> None:
    path = write(tmp_path, YAML)
    settings = StorageSettings.from_yaml(path)
    assert settings.sql.dialect is SQLDialect.POSTGRESQL
    assert (settings.sql.host, settings.sql.database, settings.sql.pool.size) == ("db.example.com", "main", 8)
    sources = settings.sources
    assert sources["sql.url"] == f"{path}: storage.sql.url"
    assert sources["sql.host"] == sources["sql.dialect"] == sources["sql.url"]
    assert sources["sql.pool.size"] == f"{path}: storage.sql.pool.size"
    assert sources["kv.default_ttl_seconds"] == "default"


@pytest.mark.parametrize("text", ["", "other: 1", "storage:", "storage: {}"])
def test_yaml_without_our_block_is_the_default(tmp_path: Path, text: str) -> None:
    assert StorageSettings.from_yaml(write(tmp_path, text)) == StorageSettings()


@pytest.mark.parametrize(
    ("text", "key", "place", "suggestion"),
    [
        ("storage: {sql: {pol: {size: 3}}}", "sql.pol", "storage.sql.pol", "pool"),
        ("storage: {sql: {pol: }}", "sql.pol", "storage.sql.pol", "pool"),
        ("storage: {vector: {backend: none}}", "vector", "storage.vector", "vectors"),
        ("storage: {sql: {pool: {sise: 3}}}", "sql.pool.sise", "storage.sql.pool.sise", "size"),
        ("storage: {sql: {port: 0}}", "sql.port", "storage.sql.port", None),
        ("storage: {sql: {password: 12345}}", "sql.password", "storage.sql.password", None),
        ("storage: {sql: 5}", "sql", "storage.sql", None),
        ("storage: {1: 5}", None, "storage", None),
        ("storage: [1]", None, "storage", None),
    ],
)
def test_yaml_errors_name_the_place(
    tmp_path: Path, text: str, key: Optional[str], place: str, suggestion: Optional[str]
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_yaml(path)
    assert (caught.value.key, caught.value.source) == (key, f"{path}: {place}")
    assert caught.value.suggestion == suggestion
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "storage: {sql: {password: canary",
        "- a list",
        "storage: !canary x",
        "storage: *canary",
        "a: \x01canary",
    ],
)
def test_broken_yaml_names_the_file_and_no_content(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_yaml(path)
    assert caught.value.source == str(path)
    assert "canary" not in str(caught.value)
    assert caught.value.__context__ is None


def test_unreadable_files_are_settings_errors(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xff")
    for path in (tmp_path, tmp_path / "missing.yaml", tmp_path / "latin.yaml"):
        with pytest.raises(SettingsError) as caught:
            StorageSettings.from_yaml(path)
        assert str(path) in str(caught.value)


def test_environment_wins_over_yaml_over_defaults(tmp_path: Path) -> None:
    settings = StorageSettings.load(write(tmp_path, YAML), {"ATLAS_SQL_POOL_SIZE": "3"})
    assert (settings.sql.pool.size, settings.sql.pool.timeout, settings.sql.pool.recycle) == (3, 2.0, 1800)
    assert settings.sources["sql.pool.size"] == "environment ATLAS_SQL_POOL_SIZE"
    assert settings.sources["sql.pool.recycle"] == "default"


def test_load_takes_config_yaml_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert StorageSettings.load(environ={}) == StorageSettings()
    write(tmp_path, YAML)
    assert StorageSettings.load(environ={}).sources["sql.url"] == "config.yaml: storage.sql.url"


def test_the_later_source_names_the_sqlite_file(tmp_path: Path) -> None:
    older = write(tmp_path, "storage: {sql: {database: a.db}}")
    assert StorageSettings.load(older, {"ATLAS_SQL_PATH": "b.db"}).sql.path == "b.db"
    older = write(tmp_path, "storage: {sql: {path: a.db}}")
    settings = StorageSettings.load(older, {"ATLAS_SQL_DATABASE": "b.db"})
    assert settings.sql.path == "b.db"
    assert settings.sources["sql.path"] == "environment ATLAS_SQL_DATABASE"
    older = write(tmp_path, "storage: {sql: {dialect: postgresql, database: main}}")
    assert StorageSettings.load(older, {"ATLAS_SQL_PATH": "b.db"}).sql.database == "main"


def test_two_files_in_one_source_are_refused() -> None:
    with pytest.raises(SettingsError) as caught:
        StorageSettings.from_env({"ATLAS_SQL_PATH": "a", "ATLAS_SQL_DATABASE": "b"})
    assert caught.value.source == "environment ATLAS_SQL_DATABASE"


def test_dict_survives_yaml(tmp_path: Path) -> None:
    settings = StorageSettings.from_dict({"sql": {"url": "postgresql://u:p@h/d"}, "kv": {"backend": "sql"}})
    text = yaml.safe_dump({"storage": settings.to_dict(reveal_secrets=True)})
    assert StorageSettings.from_yaml(write(tmp_path, text)) == settings


def test_a_section_may_be_a_model() -> None:
    source = StorageSettings.from_dict({"sql": {"dialect": "postgresql", "username": "u", "password": "p"}})
    assert StorageSettings.from_dict({"sql": source.sql, "kv": source.kv}) == source

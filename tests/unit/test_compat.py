"""Between settings and the words of older parts of ATLAS: there and back, and what cannot be said is an error."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, Dict, Optional

import pytest

from ATLAS.config.storage import PerformanceMode, StorageArchitecture
from ATLAS.setup.controller import DatabaseState
from modules.storage.compat import (
    create_storage_settings_from_config,
    database_state_to_settings,
    storage_architecture_to_settings,
    storage_settings_to_architecture,
    storage_settings_to_database_state,
)
from modules.storage.settings import SettingsError, StorageSettings

_CANARY = "s3cr3t-canary"
_POSTGRES = f"postgresql://user:{_CANARY}@db.example.com:5433/mydb"
_MONGO = f"mongodb://user:{_CANARY}@mongo.example.com:27018/chats"


class _Config:
    def __init__(self, **blocks: Any) -> None:
        self._blocks = blocks

    def get_config(self, name: str, default: Any = None) -> Any:
        return self._blocks.get(name, default)


# --- architecture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "backend", "reuse", "vectors"),
    list(
        product(
            PerformanceMode,
            ["sqlite", "postgresql", "mongodb"],
            [True, False],
            ["sqlite", "pgvector", "chroma", "pinecone", "in_memory", "none"],
        )
    ),
)
def test_an_architecture_survives_the_way_there_and_back(
    mode: PerformanceMode, backend: str, reuse: bool, vectors: str
) -> None:
    wanted = StorageArchitecture(mode, backend, reuse, vectors)

    settings = storage_architecture_to_settings(
        wanted, database_url=_POSTGRES if backend == "postgresql" else None, mongo_url=_MONGO
    )

    assert storage_settings_to_architecture(settings) == wanted


def test_the_default_architecture_is_the_default_settings() -> None:
    assert storage_architecture_to_settings(StorageArchitecture()) == StorageSettings()
    assert storage_settings_to_architecture(StorageSettings()) == StorageArchitecture()


def test_an_architecture_may_be_a_mapping_as_a_file_holds_it() -> None:
    given = {
        "performance_mode": "Eco",
        "conversation_backend": "PostgreSQL",
        "vector_store_adapter": "pgvector",
    }

    settings = storage_architecture_to_settings(given, database_url=_POSTGRES)

    assert settings.sql.pool.size == 2
    assert settings.vectors.backend == "pgvector"
    assert settings.sql.get_url() == _POSTGRES


def test_what_an_architecture_has_no_words_for_may_be_given_beside_it() -> None:
    settings = storage_architecture_to_settings(
        StorageArchitecture(conversation_backend="mongodb"),
        database_url=_POSTGRES,
        mongo_url=_MONGO,
        extra={"use_mongo_for_jobs": True},
    )

    assert settings.sql.dialect.value == "postgresql"
    assert settings.use_mongo_for_conversations
    assert settings.use_mongo_for_jobs


def test_extra_settings_come_on_top() -> None:
    settings = storage_architecture_to_settings(
        StorageArchitecture(conversation_backend="postgresql"),
        extra={"sql": {"host": "db"}, "retention": {"task_days": 7}},
    )

    assert (settings.sql.host, settings.retention.task_days) == ("db", 7)


_WRONG_ARCHITECTURES: Dict[str, Any] = {
    "unknown field": ({"performance_mod": "eco"}, {}, "did you mean performance_mode"),
    "unknown mode": ({"performance_mode": "fast"}, {}, "eco, balanced, performance"),
    "unknown back end": ({"conversation_backend": "mysql"}, {}, "sqlite, postgresql, mongodb"),
    "reuse is no bool": ({"kv_reuse_conversation_store": "yes"}, {}, "true or false"),
    "no place for PostgreSQL": ({"conversation_backend": "postgresql"}, {}, "database_url"),
    "no place for MongoDB": ({"conversation_backend": "mongodb"}, {}, "mongo_url"),
    "keys elsewhere without MongoDB": ({"kv_reuse_conversation_store": False}, {}, "mongo_url"),
    "URL of another dialect": ({}, {"database_url": _POSTGRES}, "conversation_backend"),
    "extra contradicts": ({}, {"extra": {"vectors": {"backend": "chroma"}}}, "vector_store_adapter"),
    "not an architecture": ("eco", {}, "StorageArchitecture"),
}


@pytest.mark.parametrize("case", _WRONG_ARCHITECTURES)
def test_a_wrong_architecture_is_refused_and_named(case: str) -> None:
    given, arguments, words = _WRONG_ARCHITECTURES[case]

    with pytest.raises(SettingsError) as caught:
        storage_architecture_to_settings(given, **arguments)

    assert words in str(caught.value)
    assert _CANARY not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"sql": {"pool": {"size": 7}}},
        {"kv": {"backend": "somebody-elses"}},
        {"use_mongo_for_jobs": True, "mongo": {"url": _MONGO}},
        {"use_mongo_for_conversations": True, "mongo": {"url": _MONGO}, "sql": {"url": _POSTGRES}},
    ],
    ids=["pool", "kv", "jobs in MongoDB", "PostgreSQL beside MongoDB"],
)
def test_settings_that_no_architecture_can_say_are_refused(values: Dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        storage_settings_to_architecture(StorageSettings.from_dict(values))


# --- database state -----------------------------------------------------------------------------------------------

_STATES = {
    "sqlite": DatabaseState("sqlite", database="data/chats.sqlite3"),
    "sqlite, default file": DatabaseState("sqlite", database=".atlas/storage.sqlite3"),
    "postgresql": DatabaseState("postgresql", "db.example.com", 5433, "mydb", "user", "p@ss/wörd%"),
    "postgresql, options": DatabaseState(
        "postgresql",
        "db",
        5432,
        "mydb",
        options={
            "sslmode": "verify-ca",
            "sslrootcert": "/ca.pem",
            "connect_timeout": 3.0,
            "application_name": "x",
        },
    ),
    "mongodb": DatabaseState(
        "mongodb",
        "mongo",
        27018,
        "chats",
        "user",
        _CANARY,
        options={"replicaSet": "rs0", "authSource": "chats"},
    ),
}


@pytest.mark.parametrize("name", _STATES)
def test_a_state_survives_the_way_there_and_back(name: str) -> None:
    state = _STATES[name]

    assert storage_settings_to_database_state(database_state_to_settings(state)) == state


@pytest.mark.parametrize("dsn", [_POSTGRES, _MONGO, "sqlite:////var/lib/atlas/chats.sqlite3"])
def test_settings_with_a_url_survive_the_way_there_and_back(dsn: str) -> None:
    backend = dsn.partition(":")[0]
    settings = database_state_to_settings(DatabaseState(backend, dsn=dsn))

    state = storage_settings_to_database_state(settings)

    assert state.dsn == dsn
    assert database_state_to_settings(state) == settings


_WRONG_STATES: Dict[str, Any] = {
    "unknown back end": (DatabaseState("postgre"), "did you mean postgresql"),
    "SQLite with a host": (DatabaseState("sqlite", host="db"), "host"),
    "unknown option": (DatabaseState("postgresql", options={"ssl_mode": "require"}), "did you mean sslmode"),
    "option of another back end": (
        DatabaseState("sqlite", options={"sslmode": "require"}),
        "options.sslmode",
    ),
    "dsn of another back end": (DatabaseState("mongodb", dsn=_POSTGRES), "dsn"),
    "dsn and another host": (DatabaseState("postgresql", host="other", dsn=_POSTGRES), "host"),
    "dsn and another password": (DatabaseState("postgresql", password="other", dsn=_POSTGRES), "password"),
    "dsn that is none": (DatabaseState("postgresql", dsn=f"{_CANARY}"), "dsn"),
    "bad port": (DatabaseState("postgresql", port=70000), "sql.port"),
}


@pytest.mark.parametrize("case", _WRONG_STATES)
def test_a_wrong_state_is_refused_and_named(case: str) -> None:
    state, words = _WRONG_STATES[case]

    with pytest.raises(SettingsError) as caught:
        database_state_to_settings(state)

    assert words in str(caught.value)
    assert _CANARY not in str(caught.value)


def test_a_dsn_and_fields_that_agree_are_taken() -> None:
    state = DatabaseState("postgresql", "db.example.com", 5433, "mydb", "user", _CANARY, dsn=_POSTGRES)

    assert database_state_to_settings(state).sql.get_url() == _POSTGRES


def test_a_state_shows_no_secret() -> None:
    state = replace(_STATES["mongodb"], dsn=_MONGO)

    assert _CANARY not in repr(state)


# --- configuration ------------------------------------------------------------------------------------------------


def test_an_empty_configuration_gives_the_defaults() -> None:
    assert create_storage_settings_from_config(_Config()) == StorageSettings()


@pytest.mark.parametrize("days", [None, 0])
def test_a_missing_retention_means_keep(days: Optional[int]) -> None:
    settings = create_storage_settings_from_config(
        _Config(conversation_database={"url": _POSTGRES, "retention": {"days": days}}, task_store=None)
    )

    assert settings.retention.conversation_days == 0
    assert settings.retention.task_days == 0


def test_old_and_new_blocks_together() -> None:
    settings = create_storage_settings_from_config(
        _Config(
            storage={"require_tenant_context": True},
            storage_architecture={"conversation_backend": "postgresql", "performance_mode": "performance"},
            conversation_database={"url": _POSTGRES, "retention": {"days": 30, "history_message_limit": 500}},
            task_store={"retention": {"days": 5}},
            job_store={"retention": {"days": 6}},
        )
    )

    assert settings.require_tenant_context
    assert settings.sql.get_url() == _POSTGRES
    assert settings.sql.pool.size == 20
    assert settings.retention.to_dict() == {
        "conversation_days": 30,
        "conversation_history_limit": 500,
        "task_days": 5,
        "job_days": 6,
        "vector_days": 0,
    }


_WRONG_CONFIGURATIONS: Dict[str, Any] = {
    "unknown name": ({"conversation_database": {"retention": {"day": 3}}}, "did you mean retention.days"),
    "no mapping": ({"task_store": ["days"]}, "task_store"),
    "two answers": (
        {"storage": {"retention": {"task_days": 1}}, "task_store": {"retention": {"days": 2}}},
        "retention.task_days",
    ),
    "negative": ({"job_store": {"retention": {"days": -1}}}, "retention.job_days"),
}


@pytest.mark.parametrize("case", _WRONG_CONFIGURATIONS)
def test_a_wrong_configuration_is_refused_and_named(case: str) -> None:
    blocks, words = _WRONG_CONFIGURATIONS[case]

    with pytest.raises(SettingsError, match=words):
        create_storage_settings_from_config(_Config(**blocks))

"""URLs of the settings: built, taken apart, shown without secrets; checked against SQLAlchemy's own reading."""

from __future__ import annotations

from typing import Any, Optional
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import make_url

from modules.storage.settings import (
    MongoBackendSettings,
    SettingsError,
    SQLBackendSettings,
    SQLDialect,
    TLSMode,
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=30)


def pg(**parts: Any) -> SQLBackendSettings:
    return SQLBackendSettings(dialect="postgresql", **parts)


def test_urls_of_the_issue() -> None:
    settings = pg(host="db.example.com", port=5432, database="mydb", username="user", password="secret")
    assert settings.get_url() == "postgresql://user:secret@db.example.com:5432/mydb"
    assert settings.get_safe_url() == "postgresql://user:***@db.example.com:5432/mydb"
    assert SQLBackendSettings(database=":memory:").get_url() == "sqlite:///:memory:"
    assert SQLBackendSettings(database="data/x.db").get_url() == "sqlite:///data/x.db"
    assert SQLBackendSettings(path="/abs/x.db").get_url() == "sqlite:////abs/x.db"
    assert pg().get_url() == "postgresql://localhost:5432/atlas"


@given(username=texts, password=texts, database=texts)
def test_any_credentials_survive(username: str, password: str, database: str) -> None:
    settings = pg(host="h", username=username, password=password, database=database)
    read = make_url(settings.get_url())
    assert (read.username, read.password, read.host, read.port) == (username, password, "h", 5432)
    split = urlsplit(settings.get_url())  # as asyncpg reads it
    assert (unquote(split.username or ""), unquote(split.password or "")) == (username, password)
    assert unquote(split.path[1:]) == database
    again = SQLBackendSettings(url=settings.get_url())
    assert again.get_url() == settings.get_url()
    assert (again.username, again.database, again.password) == (username, database, settings.password)
    mongo = MongoBackendSettings(host="h", username=username, password=password)
    assert MongoBackendSettings(url=mongo.get_url()).password == mongo.password


@given(path=texts)
def test_any_sqlite_path_survives(path: str) -> None:
    settings = SQLBackendSettings(path=path)
    assert SQLBackendSettings(url=settings.get_url()).path == path


@given(text=st.text(max_size=60) | st.text(max_size=40).map(lambda tail: "postgresql://" + tail))
def test_any_text_is_a_url_or_a_settings_error(text: str) -> None:
    problem: Optional[SettingsError] = None
    try:
        SQLBackendSettings(url=text)
    except SettingsError as exc:
        problem = exc
    if problem is not None:
        assert problem.key in ("url", "host", "port", "database", "username", "password")
        assert problem.__context__ is None


@pytest.mark.parametrize(
    ("url", "host", "port", "database"),
    [
        ("postgresql://u:p@db:6000/x", "db", 6000, "x"),
        ("postgres://db", "db", 5432, "atlas"),
        ("postgresql+asyncpg://u@db:/x", "db", 5432, "x"),
        ("PostgreSQL://[2001:db8::1]:6000/x", "2001:db8::1", 6000, "x"),
        ("postgresql:///x?host=/run/pg", "/run/pg", 5432, "x"),
        ("postgresql:///x?host=%2Frun%2Fpg&port=6000&user=me&password=pw", "/run/pg", 6000, "x"),
        ("postgresql:///", "localhost", 5432, "atlas"),
        ("postgresql://a:1,b:2/x", "a,b", 1, "x"),
        ("postgresql://u:a:b@db/x%2Fy", "db", 5432, "x/y"),
    ],
)
def test_url_decides_the_fields(url: str, host: str, port: int, database: str) -> None:
    settings = SQLBackendSettings(url=url, dialect="sqlite", host="ignored", port=1, database="ignored")
    assert settings.dialect is SQLDialect.POSTGRESQL
    assert (settings.host, settings.port, settings.database) == (host, port, database)
    scheme, _, rest = settings.get_url().partition("://")
    assert rest == url.partition("://")[2]
    assert scheme in ("postgresql", "postgresql+asyncpg")
    assert settings.get_driver_url() == f"postgresql://{rest}"
    assert settings.get_driver_url("psycopg") == f"postgresql+psycopg://{rest}"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a/b.db", "a/b.db"),
        ("sqlite:////a/b.db", "/a/b.db"),
        ("sqlite://", ":memory:"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite+aiosqlite:///a%20b.db", "a b.db"),
    ],
)
def test_sqlite_url_decides_the_file(url: str, path: str) -> None:
    settings = SQLBackendSettings(url=url, dialect="postgresql", database="ignored")
    assert (settings.dialect, settings.path, settings.get_url()) == (SQLDialect.SQLITE, path, url)


def test_ipv6_and_socket_hosts_are_built() -> None:
    assert pg(host="::1").get_url() == pg(host="[::1]").get_url() == "postgresql://[::1]:5432/atlas"
    url = pg(host="/run/pg", username="u", password="p", port=6000).get_url()
    assert url == "postgresql://u:p@/atlas?host=/run/pg&port=6000"
    assert make_url(url).query == {"host": "/run/pg", "port": "6000"}
    assert SQLBackendSettings(url=url).host == "/run/pg"


@pytest.mark.parametrize(
    "url",
    [
        "canary",
        "canary://u:p@h/db",
        "postgresql+can ary://h/db",
        "postgresql://u:canary@h:notaport/db",
        "postgresql://u:canary@h:0/db",
        "postgresql://u:canary@h:65536/db",
        "postgresql://u:canary@h:٣/db",
        "postgresql://u:can/ary@h/db",
        "postgresql://u:12/canary@h/db",
        "postgresql://u:1?canary@h/db",
        "postgresql://u:can#ary@h/db",
        "postgresql://u:can@ary@h/db",
        "postgresql://u:can ary@h/db",
        "postgresql://u:canary%00@h/db",
        "postgresql://u:canary@[::1/db",
        "postgresql://u:canary@::1/db",
        "postgresql://u:canary@h/db?sslmode=canary",
        "sqlite://canary",
        "sqlite:///x?key=canary",
        "mysql://u:canary@h/db",
        "postgresql:/u:canary@h/db",
    ],
)
def test_bad_urls_are_refused_without_showing_them(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        SQLBackendSettings(url=url)
    assert caught.value.key == "url"
    for piece in ("canary", "ary", "12/"):
        assert piece not in repr(caught.value) + str(caught.value)


def test_scheme_suggestion() -> None:
    with pytest.raises(SettingsError) as caught:
        SQLBackendSettings(url="postgresq://h/db")
    assert caught.value.suggestion == "postgresql"


@pytest.mark.parametrize(
    ("host", "mode"),
    [
        ("localhost", TLSMode.PREFER),
        ("127.0.0.9", TLSMode.PREFER),
        ("::1", TLSMode.PREFER),
        ("/run/pg", TLSMode.PREFER),
        ("db.example.com", TLSMode.VERIFY_FULL),
        ("10.0.0.1", TLSMode.VERIFY_FULL),
        ("localhost,db.example.com", TLSMode.VERIFY_FULL),
        ("localhost.example.com", TLSMode.VERIFY_FULL),
    ],
)
def test_tls_is_verified_to_remote_hosts(host: str, mode: TLSMode) -> None:
    assert pg(host=host).effective_tls_mode is mode
    assert pg(host=host, tls_mode="disable").effective_tls_mode is TLSMode.DISABLE


def test_sslmode_of_the_url_counts_and_may_not_be_contradicted() -> None:
    url = "postgresql://db.example.com/x?sslmode=require"
    assert SQLBackendSettings(url=url).effective_tls_mode is TLSMode.REQUIRE
    assert SQLBackendSettings(url=url, tls_mode="require").effective_tls_mode is TLSMode.REQUIRE
    with pytest.raises(SettingsError) as caught:
        SQLBackendSettings(url=url, tls_mode="verify-full")
    assert caught.value.key == "tls_mode"


def test_an_authority_in_the_url_counts_and_may_not_be_contradicted() -> None:
    url = "postgresql://db.example.com/x?sslrootcert=/ca.pem&sslcert=/me.pem"
    assert SQLBackendSettings(url=url).get_tls_files()["ca_file"] == "/ca.pem"
    assert SQLBackendSettings(url=url, tls_ca_file="/ca.pem").get_tls_files()["cert_file"] == "/me.pem"
    with pytest.raises(SettingsError) as caught:
        SQLBackendSettings(url=url, tls_ca_file="/other.pem")
    assert caught.value.key == "tls_ca_file"


def test_only_known_parameters_are_shown() -> None:
    safe = SQLBackendSettings(
        url="postgresql://u:p@h/db?sslmode=require&sslpassword=canary&password=canary&options=canary"
    ).get_safe_url()
    assert safe == "postgresql://u:***@h/db?sslmode=require&sslpassword=***&password=***&options=***"


class TestMongo:
    def test_url_and_arguments(self) -> None:
        settings = MongoBackendSettings(host="h", username="u", password="p@s", replica_set="rs0", tls=False)
        assert settings.get_url() == "mongodb://u:p%40s@h:27017/atlas"
        assert settings.get_safe_url() == "mongodb://u:***@h:27017/atlas"
        assert settings.get_client_kwargs() == {
            "maxPoolSize": 100,
            "minPoolSize": 0,
            "connectTimeoutMS": 10_000,
            "serverSelectionTimeoutMS": 10_000,
            "tls": False,
            "replicaSet": "rs0",
            "authSource": "admin",
        }

    def test_url_wins_with_its_options(self) -> None:
        url = "mongodb+srv://u:p@cluster.example.com/chat?authSource=x&maxPoolSize=7&ssl=true"
        settings = MongoBackendSettings(url=url, host="ignored", database="ignored")
        assert (settings.get_url(), settings.host, settings.database) == (url, "cluster.example.com", "chat")
        kwargs = settings.get_client_kwargs()
        assert {"maxPoolSize", "authSource", "tls", "ssl"}.isdisjoint(kwargs)
        assert MongoBackendSettings(url="mongodb://h", database="kept").database == "kept"

    def test_tls_is_on_to_remote_hosts(self) -> None:
        assert MongoBackendSettings().effective_tls is False
        assert MongoBackendSettings(host="db.example.com").get_client_kwargs()["tls"] is True
        assert MongoBackendSettings(url="mongodb+srv://localhost").effective_tls is True
        assert MongoBackendSettings(url="mongodb://a.example.com/?tls=false").effective_tls is False
        assert MongoBackendSettings(url="mongodb://%2Ftmp%2Fmongodb-27017.sock/x").effective_tls is False
        with pytest.raises(SettingsError):
            MongoBackendSettings(url="mongodb://a.example.com/?tls=false", tls=True)

    def test_bad_url_is_refused(self) -> None:
        with pytest.raises(SettingsError) as caught:
            MongoBackendSettings(url="mongo://u:canary@h")
        assert caught.value.suggestion == "mongodb"
        assert "canary" not in str(caught.value)

"""Settings of the SQL database and its pool.

Users import the names from `modules.storage.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

from pydantic import Field
from pydantic import model_validator as validates

from .settings_base import (
    DEFAULT_DATABASE,
    SQL_SCHEMES,
    Host,
    Int,
    PoolerMode,
    Port,
    Seconds,
    Secret,
    Section,
    SQLDialect,
    SqliteSynchronous,
    Text,
    TLSMode,
    Url,
    adopt_url,
    blank_to_none,
    is_clean,
    reveal,
)
from .settings_sources import SettingsError
from .settings_urls import MASK, ParsedUrl, build_url, is_local_host, parse_url, sqlite_url


class PoolSettings(Section):
    """Size and patience of a connection pool."""

    size: Int = Field(5, ge=1, description="Connections kept open.")
    max_overflow: Int = Field(10, ge=0, description="Further connections opened under load.")
    timeout: Seconds = Field(30.0, description="Seconds to wait for a free connection.")
    recycle: Int = Field(1800, ge=-1, description="Seconds after which a connection is replaced; -1 = never.")
    pre_ping: bool = Field(True, description="Check an idle connection before it is used.")

    def to_engine_kwargs(self) -> dict[str, Any]:
        """The same as keyword arguments of `sqlalchemy.create_engine`."""
        return {
            "pool_size": self.size,
            "max_overflow": self.max_overflow,
            "pool_timeout": self.timeout,
            "pool_recycle": self.recycle,
            "pool_pre_ping": self.pre_ping,
        }


class SQLBackendSettings(Section):
    """The SQL database. After construction the fields say what is in effect, also when `url` was given."""

    dialect: SQLDialect = Field(
        SQLDialect.SQLITE, description="`sqlite` or `postgresql`; the scheme of `url` wins."
    )
    url: Optional[Url] = Field(None, description="Whole URL; wins over the single parts. A secret.")
    path: Text = Field(
        ".atlas/storage.sqlite3",
        description="SQLite: the database file, relative to the working directory; `:memory:` for none.",
    )
    host: Host = Field(
        "localhost", description="PostgreSQL: host name, address or directory of a unix socket."
    )
    port: Port = Field(5432, description="PostgreSQL: TCP port.")
    database: Text = Field(
        DEFAULT_DATABASE,
        description="PostgreSQL: name of the database. SQLite: if given, the file, as `path`.",
    )
    username: Optional[Text] = Field(None, description="PostgreSQL: role to log in as.")
    password: Optional[Secret] = Field(None, description="PostgreSQL: its password. A secret.")
    pool: PoolSettings = Field(default_factory=PoolSettings, description="The connection pool.")
    command_timeout_s: Seconds = Field(30.0, description="Seconds that one call may take, on both dialects.")
    connect_timeout_s: Seconds = Field(10.0, description="Seconds that opening a connection may take.")
    max_waiters: Int = Field(
        1000, ge=1, description="Calls that may wait for a connection; further ones fail at once."
    )
    max_idle_s: Seconds = Field(300.0, description="Seconds after which an unused connection is closed.")
    pooler: PoolerMode = Field(
        PoolerMode.AUTO,
        description="Pooler in front of PostgreSQL: `auto` (detected), `transaction`, `session` or `none`.",
    )
    tls_mode: Optional[TLSMode] = Field(
        None,
        description="`disable`, `prefer`, `require`, `verify-ca` or `verify-full`; "
        "unset: `verify-full` to remote hosts, `prefer` on loopback and unix sockets.",
    )
    tls_ca_file: Optional[Text] = Field(
        None, description="PEM file of trusted authorities; unset: the system's."
    )
    auto_migrate: bool = Field(
        True,
        description="Bring the schema up to date when the manager opens; off: a schema that is behind is refused.",
    )
    application_name: Text = Field("atlas-storage", description="Name shown in `pg_stat_activity`.")
    search_language: Text = Field("english", description="Language of text search: stemming and stop words.")
    sqlite_synchronous: SqliteSynchronous = Field(
        SqliteSynchronous.FULL, description="`PRAGMA synchronous`: `FULL`, `NORMAL`, `OFF` or `EXTRA`."
    )
    sqlite_busy_timeout_s: Seconds = Field(5.0, description="Seconds to wait for another process's lock.")
    sqlite_queue_size: Int = Field(10_000, ge=1, description="Calls that may wait for the SQLite writer.")

    @validates(mode="before")
    @classmethod
    def _settle(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        blank_to_none(data, "username", "password")
        parsed = adopt_url(data, SQL_SCHEMES)
        if parsed is None:
            _one_sqlite_file(data)
            return data
        data["dialect"] = parsed.scheme
        data.pop("database", None)
        if parsed.scheme == "sqlite":
            data["path"] = parsed.database
        else:
            data["database"] = parsed.option("dbname", "database") or parsed.database or DEFAULT_DATABASE
            _check_tls(data, parsed)
        return data

    @property
    def is_local(self) -> bool:
        """True when the database is a file, a unix socket or on loopback."""
        return self.dialect is SQLDialect.SQLITE or all(is_local_host(host) for host in self.host.split(","))

    @property
    def effective_tls_mode(self) -> TLSMode:
        """`tls_mode`, else what the URL's `sslmode` says, else the default for this host."""
        if self.tls_mode is not None:
            return self.tls_mode
        parsed = self._parsed()
        option = parsed.option("sslmode") if parsed else None
        if option is not None:
            return TLSMode.PREFER if option == "allow" else TLSMode(option)
        return TLSMode.PREFER if self.is_local else TLSMode.VERIFY_FULL

    def get_tls_files(self) -> dict[str, Optional[str]]:
        """The files that TLS needs, by the names of `TLSOptions`: `tls_ca_file` and those that the URL names.

        Holds the password of the client's key, if the URL has one: a secret, not for logs.
        """
        parsed = self._parsed()
        found = {name: parsed.option(option) if parsed else None for name, option in _TLS_FILES.items()}
        return {**found, "ca_file": self.tls_ca_file or found["ca_file"]}

    def get_url(self) -> str:
        """The URL with the real password: a secret, not for logs.

        An explicit `url` is given as it was written, except that `postgres://`, which SQLAlchemy refuses,
        becomes `postgresql://`.
        """
        if self.url is not None:
            scheme, _, rest = self.url.get_secret_value().partition("://")
            name, plus, driver = scheme.partition("+")
            return f"{SQL_SCHEMES[name.lower()]}{plus}{driver}://{rest}"
        return self._build(reveal(self.password))

    def get_driver_url(self, driver: str = "") -> str:
        """`get_url()` for a certain driver, e.g. "psycopg"; "" leaves the driver out, as asyncpg wants it."""
        scheme, _, rest = self.get_url().partition("://")
        return f"{scheme.partition('+')[0]}{driver and '+' + driver}://{rest}"

    def get_safe_url(self) -> str:
        """The URL with `***` for the password, for people and logs."""
        parsed = self._parsed()
        return parsed.safe() if parsed else self._build(None if self.password is None else MASK)

    def _parsed(self) -> Optional[ParsedUrl]:
        return parse_url(self.url.get_secret_value(), SQL_SCHEMES) if self.url is not None else None

    def _build(self, password: Optional[str]) -> str:
        if self.dialect is SQLDialect.SQLITE:
            return sqlite_url(self.path)
        return build_url(
            "postgresql",
            username=self.username,
            password=password,
            host=self.host,
            port=self.port,
            database=self.database,
        )


def _one_sqlite_file(data: dict[str, Any]) -> None:
    """On SQLite `database` is another name for `path`; two different files are refused."""
    database = data.get("database")
    if str(data.get("dialect", "sqlite")).strip().lower() != "sqlite" or not isinstance(database, str):
        return
    if "path" not in data:
        if database and is_clean(database):  # otherwise the check of `database` itself speaks
            data["path"] = database
    elif database not in (DEFAULT_DATABASE, data["path"]):
        raise SettingsError(
            "differs from sql.path, and both name the SQLite file; give one of them", key="database"
        )


#: What `TLSOptions` calls the parameters of a URL.
_TLS_FILES = {
    "ca_file": "sslrootcert",
    "cert_file": "sslcert",
    "key_file": "sslkey",
    "key_password": "sslpassword",
    "crl_file": "sslcrl",
}


def _check_tls(data: Mapping[str, Any], parsed: ParsedUrl) -> None:
    authority, ca_file = parsed.option("sslrootcert"), data.get("tls_ca_file")
    if authority is not None and ca_file not in (None, authority):
        raise SettingsError("contradicts the sslrootcert in the URL; give one of them", key="tls_ca_file")
    option = parsed.option("sslmode")
    if option is None:
        return
    if option not in {"allow", *(mode.value for mode in TLSMode)}:
        names = ", ".join(mode.value for mode in TLSMode)
        raise SettingsError(f"has an unknown sslmode; use one of: {names}", key="url")
    mode = data.get("tls_mode")
    if mode is not None and str(mode).strip().lower() != option:
        raise SettingsError("contradicts the sslmode in the URL; give one of them", key="tls_mode")

"""Between `DatabaseState` (one database, as the set-up asks for it) and the settings; see `modules.storage.compat`."""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from modules.storage.compat_records import DatabaseState
from modules.storage.settings import (
    MongoBackendSettings,
    SettingsError,
    SQLBackendSettings,
    StorageSettings,
)
from modules.storage.settings_base import MONGO_SCHEMES, SQL_SCHEMES, TLSMode, reveal
from modules.storage.settings_sources import nearest
from modules.storage.settings_urls import ParsedUrl, parse_url

__all__ = ["database_state_to_settings", "storage_settings_to_database_state"]

_PORTS = {"postgresql": 5432, "mongodb": 27017}
# Option of a connection, in the words of libpq or of MongoDB URLs -> the setting of the section.
_OPTIONS: Dict[str, Dict[str, str]] = {
    "sqlite": {},
    "postgresql": {
        "sslmode": "tls_mode",
        "sslrootcert": "tls_ca_file",
        "application_name": "application_name",
        "connect_timeout": "connect_timeout_s",
    },
    "mongodb": {
        "authSource": "auth_source",
        "replicaSet": "replica_set",
        "tls": "tls",
        "maxPoolSize": "max_pool_size",
        "minPoolSize": "min_pool_size",
        "connectTimeoutMS": "connect_timeout_ms",
        "serverSelectionTimeoutMS": "server_selection_timeout_ms",
    },
}


def database_state_to_settings(
    state: DatabaseState, *, extra: Optional[Mapping[str, Any]] = None
) -> StorageSettings:
    """Return settings that keep conversations in the database of `state`.

    Args:
        state: Where it is.
        extra: Further settings, nested as for `StorageSettings.from_dict`.

    Raises:
        SettingsError: the back end or an option is unknown, or `dsn` and another field contradict each other.
    """
    backend = _backend(state.backend)
    section = {"url": state.dsn} if state.dsn else _parts(state, backend)
    if state.dsn:
        _check_against_dsn(state, backend)
    for name, value in state.options.items():
        field = _OPTIONS[backend].get(name)
        if field is None:
            raise SettingsError(
                f"{backend} has no such option here",
                f"options.{name}",
                None,
                nearest(name, _OPTIONS[backend]),
            )
        section[field] = value
    if backend == "mongodb":
        values: Dict[str, Any] = {"mongo": section, "use_mongo_for_conversations": True}
    else:
        values = {"sql": section}
    return StorageSettings.from_dict(values).merged_with(extra or {})


def storage_settings_to_database_state(settings: StorageSettings) -> DatabaseState:
    """Return the database that keeps the conversations of `settings`; `dsn` is filled when the settings have a URL."""
    if settings.use_mongo_for_conversations:
        mongo = settings.mongo
        return _state("mongodb", mongo, MongoBackendSettings(), reveal(mongo.url))
    sql = settings.sql
    dsn = None if sql.url is None else sql.get_url()
    if sql.dialect.value == "sqlite":
        return DatabaseState("sqlite", database=sql.path, dsn=dsn or "")
    return _state("postgresql", sql, SQLBackendSettings(dialect=sql.dialect), dsn)


def _state(backend: str, section: Any, usual: Any, dsn: Optional[str]) -> DatabaseState:
    options = {
        name: _plain(getattr(section, field))
        for name, field in _OPTIONS[backend].items()
        if getattr(section, field) != getattr(usual, field)
    }
    return DatabaseState(
        backend,
        host=section.host,
        port=section.port,
        database=section.database,
        user=section.username or "",
        password=reveal(section.password) or "",
        dsn=dsn or "",
        options=options,
    )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, TLSMode) else value


def _backend(name: str) -> str:
    backend = str(name).strip().lower()
    backend = {"postgres": "postgresql", "mongo": "mongodb"}.get(backend, backend)
    if backend not in _OPTIONS:
        raise SettingsError(
            f"must be one of: {', '.join(_OPTIONS)}", "backend", None, nearest(backend, _OPTIONS)
        )
    return backend


def _parts(state: DatabaseState, backend: str) -> Dict[str, Any]:
    if backend == "sqlite":
        for field in ("host", "port", "user", "password"):
            if getattr(state, field):
                raise SettingsError("SQLite is a file: it has none", field)
        return {"dialect": "sqlite", **({"path": state.database} if state.database else {})}
    given = {
        "host": state.host,
        "port": state.port,
        "database": state.database,
        "username": state.user,
        "password": state.password,
    }
    section = {name: value for name, value in given.items() if value}
    return {"dialect": backend, **section} if backend == "postgresql" else section


def _check_against_dsn(state: DatabaseState, backend: str) -> None:
    """Refuse a field beside `dsn` that says something else."""
    schemes = MONGO_SCHEMES if backend == "mongodb" else SQL_SCHEMES
    try:
        parsed = parse_url(state.dsn, schemes)
    except SettingsError as exc:
        problem: Optional[SettingsError] = SettingsError(exc.reason, "dsn", None, exc.suggestion)
    else:
        problem = _difference(state, backend, parsed)
    if problem is not None:  # a new error: the dsn may hold a password anywhere
        raise problem


def _difference(state: DatabaseState, backend: str, parsed: ParsedUrl) -> Optional[SettingsError]:
    if parsed.scheme != backend:
        return SettingsError("contradicts the scheme of dsn", "backend")
    said: Dict[str, Tuple[Any, Callable[[], Any]]] = {
        "host": (state.host, lambda: parsed.option("host") or ",".join(parsed.hosts) or "localhost"),
        "port": (state.port, lambda: parsed.port or int(parsed.option("port") or _PORTS.get(backend, 0))),
        "database": (state.database, lambda: parsed.option("dbname") or parsed.database or "atlas"),
        "user": (state.user, lambda: parsed.username or parsed.option("user") or ""),
        "password": (state.password, lambda: parsed.password or parsed.option("password") or ""),
    }
    for field, (mine, theirs) in said.items():
        if mine and mine != theirs():
            return SettingsError("contradicts what dsn says; give one of them", field)
    return None

"""Between the settings of storage and the words of older parts of ATLAS, in both directions.

Nothing is guessed: what one side says and the other cannot is a `SettingsError`. Translating there and back gives what
both sides can say.

    storage_architecture_to_settings, storage_settings_to_architecture    which kinds of store (`StorageArchitecture`)
    database_state_to_settings, storage_settings_to_database_state        where one database is (`DatabaseState`)
    create_storage_settings_from_config                                   an application's configuration, by its blocks
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Dict, Mapping, Optional, Tuple, Union

from modules.storage.compat_records import ConfigSource, PerformanceMode, StorageArchitecture
from modules.storage.compat_state import database_state_to_settings, storage_settings_to_database_state
from modules.storage.settings import SettingsError, SQLDialect, StorageSettings
from modules.storage.settings_sources import nearest

__all__ = [
    "create_storage_settings_from_config",
    "database_state_to_settings",
    "storage_architecture_to_settings",
    "storage_settings_to_architecture",
    "storage_settings_to_database_state",
]

# (pool.size, pool.max_overflow) of each mode; the middle one is the default of `PoolSettings`.
_POOLS: Dict[PerformanceMode, Tuple[int, int]] = {
    PerformanceMode.ECO: (2, 3),
    PerformanceMode.BALANCED: (5, 10),
    PerformanceMode.PERFORMANCE: (20, 20),
}
_BACKENDS = ("sqlite", "postgresql", "mongodb")
# Any of these in `extra` says where a PostgreSQL database is.
_PLACES = frozenset({"url", "host", "port", "database", "username"})


def storage_architecture_to_settings(
    architecture: Union[StorageArchitecture, Mapping[str, Any]],
    *,
    database_url: Optional[str] = None,
    mongo_url: Optional[str] = None,
    extra: Optional[Mapping[str, Any]] = None,
) -> StorageSettings:
    """Return the settings that an architecture stands for.

    Args:
        architecture: Or a mapping with its fields.
        database_url: Where the SQL database is; needed for PostgreSQL unless `extra["sql"]` says it.
        mongo_url: Where MongoDB is; needed when something is kept there unless `extra["mongo"]` says it.
        extra: Further settings, nested as for `StorageSettings.from_dict`. May not contradict the architecture.

    Raises:
        SettingsError: a field is unknown or wrong, a place is missing, or two arguments contradict each other.
    """
    wanted = _architecture(architecture)
    extra = dict(extra or {})
    values = _values_of(wanted)
    if database_url is not None:
        values["sql"]["url"] = database_url
        del values["sql"]["dialect"]
    if mongo_url is not None:
        values["mongo"] = {"url": mongo_url}
    _require_places(wanted, values, extra, database_url, mongo_url)
    settings = StorageSettings.from_dict(values).merged_with(extra)
    _refuse_contradiction(wanted, settings)
    return settings


def storage_settings_to_architecture(settings: StorageSettings) -> StorageArchitecture:
    """Return the architecture that settings stand for.

    Raises:
        SettingsError: a pool size that is no performance mode's, a key-value back end that is neither database's, jobs in
            MongoDB, or PostgreSQL beside conversations in MongoDB: an architecture has no words for them.
    """
    if settings.use_mongo_for_jobs:
        raise SettingsError("an architecture cannot say that jobs are in MongoDB", "use_mongo_for_jobs")
    if settings.use_mongo_for_conversations and settings.sql.dialect is not SQLDialect.SQLITE:
        raise SettingsError(
            "an architecture with conversations in MongoDB cannot say that the rest is in PostgreSQL",
            "sql.dialect",
        )
    return _architecture_of(settings)


def _architecture_of(settings: StorageSettings) -> StorageArchitecture:
    """Return what an architecture can say of the settings; there may be more to them."""
    pool = (settings.sql.pool.size, settings.sql.pool.max_overflow)
    modes = [mode for mode, sizes in _POOLS.items() if sizes == pool]
    if not modes:
        sizes = ", ".join(f"{mode.value} {size}+{more}" for mode, (size, more) in _POOLS.items())
        raise SettingsError(
            f"no performance mode has the pool size {pool[0]}+{pool[1]} (they have: {sizes})", "sql.pool.size"
        )
    backend = "mongodb" if settings.use_mongo_for_conversations else settings.sql.dialect.value
    home = "mongo" if backend == "mongodb" else "sql"
    if settings.kv.backend not in ("sql", "mongo"):
        raise SettingsError(
            "an architecture can say sql or mongo only, not a back end of somebody else's", "kv.backend"
        )
    return StorageArchitecture(
        performance_mode=modes[0],
        conversation_backend=backend,
        kv_reuse_conversation_store=settings.kv.backend == home,
        vector_store_adapter=str(settings.vectors.backend),
    )


def create_storage_settings_from_config(config_manager: ConfigSource) -> StorageSettings:
    """Return the settings that an application's configuration asks for.

    These blocks are read, each optional:

        storage                 as the block of config.yaml
        storage_architecture    a `StorageArchitecture`, or a mapping with its fields
        conversation_database   {"url", "pool": {"size", ...}, "retention": {"days", "history_message_limit"}}
        task_store, job_store   {"retention": {"days"}}

    A missing retention means that things are kept.

    Args:
        config_manager: Anything with `get_config(name, default)`.

    Raises:
        SettingsError: a block is wrong, holds a name that is not known, or two blocks contradict each other.
    """
    given = {name: config_manager.get_config(name, None) for name in _BLOCKS}
    old = _old_blocks(given)
    block = given["storage"]
    new = StorageSettings.from_dict(_mapping(block, "storage")) if block is not None else None
    architecture = given["storage_architecture"]
    if architecture is not None:
        extra = dict(_mapping(block, "storage")) if block is not None else {}
        return storage_architecture_to_settings(architecture, extra=_merged(extra, old))
    if new is None:
        return StorageSettings.from_dict(old)
    _merged(dict(_mapping(block, "storage")), old)
    return new.merged_with(old)


_BLOCKS = ("storage", "storage_architecture", "conversation_database", "task_store", "job_store")
# Block -> dotted name in it -> path of the setting.
_OLD_NAMES: Dict[str, Dict[str, Tuple[str, ...]]] = {
    "conversation_database": {
        "url": ("sql", "url"),
        "pool.size": ("sql", "pool", "size"),
        "pool.max_overflow": ("sql", "pool", "max_overflow"),
        "pool.timeout": ("sql", "pool", "timeout"),
        "pool.recycle": ("sql", "pool", "recycle"),
        "pool.pre_ping": ("sql", "pool", "pre_ping"),
        "retention.days": ("retention", "conversation_days"),
        "retention.history_message_limit": ("retention", "conversation_history_limit"),
    },
    "task_store": {"retention.days": ("retention", "task_days")},
    "job_store": {"retention.days": ("retention", "job_days")},
}


def _old_blocks(given: Mapping[str, Any]) -> Dict[str, Any]:
    values: Dict[str, Any] = {}
    for block, names in _OLD_NAMES.items():
        for name, value in _flat(_mapping(given[block], block), block):
            if name not in names:
                raise SettingsError("there is no such setting", f"{block}.{name}", None, nearest(name, names))
            if value is not None:
                _put(values, names[name], value)
    return values


def _flat(block: Mapping[str, Any], source: str, prefix: str = "") -> Any:
    for name, value in block.items():
        if isinstance(value, Mapping):
            yield from _flat(value, source, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _put(values: Dict[str, Any], path: Tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def _mapping(block: Any, name: str) -> Mapping[str, Any]:
    if block is None:
        return {}
    if not isinstance(block, Mapping):
        raise SettingsError("must be a mapping of settings", name)
    return block


def _merged(first: Dict[str, Any], second: Mapping[str, Any], path: str = "") -> Dict[str, Any]:
    """Return both together; refuse a setting that they give different values."""
    both = dict(first)
    for name, value in second.items():
        here = f"{path}{name}"
        if isinstance(value, Mapping) and isinstance(both.get(name), Mapping):
            both[name] = _merged(dict(both[name]), value, f"{here}.")
        elif both.get(name, value) != value:
            raise SettingsError("two blocks of the configuration give it different values", here)
        else:
            both[name] = value
    return both


def _architecture(given: Union[StorageArchitecture, Mapping[str, Any]]) -> StorageArchitecture:
    if isinstance(given, StorageArchitecture):
        values = {field.name: getattr(given, field.name) for field in fields(given)}
    elif isinstance(given, Mapping):
        values = dict(given)
    else:
        raise SettingsError(f"must be a StorageArchitecture or a mapping, not {type(given).__name__}")
    names = [field.name for field in fields(StorageArchitecture)]
    for name in values:
        if name not in names:
            raise SettingsError(
                "there is no such field", f"architecture.{name}", None, nearest(str(name), names)
            )
    mode = str(getattr(values.get("performance_mode"), "value", values.get("performance_mode", "balanced")))
    backend = str(values.get("conversation_backend", "sqlite")).strip().lower()
    reuse = values.get("kv_reuse_conversation_store", True)
    _require_one_of(mode.strip().lower(), [item.value for item in PerformanceMode], "performance_mode")
    _require_one_of(backend, _BACKENDS, "conversation_backend")
    if not isinstance(reuse, bool):
        raise SettingsError("must be true or false", "architecture.kv_reuse_conversation_store")
    return StorageArchitecture(
        performance_mode=PerformanceMode(mode.strip().lower()),
        conversation_backend=backend,
        kv_reuse_conversation_store=reuse,
        vector_store_adapter=str(values.get("vector_store_adapter", "sqlite")).strip().lower(),
    )


def _require_one_of(value: str, allowed: Any, field: str) -> None:
    if value not in allowed:
        raise SettingsError(
            f"must be one of: {', '.join(allowed)}", f"architecture.{field}", None, nearest(value, allowed)
        )


def _values_of(wanted: StorageArchitecture) -> Dict[str, Any]:
    size, overflow = _POOLS[wanted.performance_mode]
    mongo = wanted.conversation_backend == "mongodb"
    sql: Dict[str, Any] = {"pool": {"size": size, "max_overflow": overflow}}
    sql["dialect"] = "sqlite" if mongo else wanted.conversation_backend
    return {
        "sql": sql,
        "use_mongo_for_conversations": mongo,
        "kv": {"backend": "mongo" if mongo is wanted.kv_reuse_conversation_store else "sql"},
        "vectors": {"backend": wanted.vector_store_adapter},
    }


def _require_places(
    wanted: StorageArchitecture,
    values: Mapping[str, Any],
    extra: Mapping[str, Any],
    database_url: Optional[str],
    mongo_url: Optional[str],
) -> None:
    placed = _PLACES.intersection(extra.get("sql") or {})
    if wanted.conversation_backend == "postgresql" and database_url is None and not placed:
        raise SettingsError(
            "the architecture says postgresql but not where it is; give database_url", "database_url"
        )
    in_mongo = values["use_mongo_for_conversations"] or values["kv"]["backend"] == "mongo"
    if in_mongo and mongo_url is None and not extra.get("mongo"):
        raise SettingsError(
            "the architecture keeps data in MongoDB but does not say where it is; give mongo_url", "mongo_url"
        )


def _refuse_contradiction(wanted: StorageArchitecture, settings: StorageSettings) -> None:
    got = _architecture_of(settings)
    for field in fields(StorageArchitecture):
        if getattr(got, field.name) != getattr(wanted, field.name):
            raise SettingsError(
                "the other arguments contradict what the architecture says", f"architecture.{field.name}"
            )

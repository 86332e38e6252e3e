"""Every setting of ATLAS storage: validated, frozen models, loaded from environment, YAML or a mapping.

Nothing configured just works: `StorageSettings()` is SQLite in `./.atlas/storage.sqlite3` and no external
service. Construction does no I/O. Any wrong setting is a `SettingsError` that names the key, the source and
the nearest valid name, and never a value. `repr`, `str` and `to_dict()` never show a secret.

docs/configuration.md lists every field with its environment variable; a test keeps it equal to this file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Optional, Union

from pydantic import Field, PrivateAttr
from pydantic import model_validator as validates

from .settings_base import (
    DEFAULT_DATABASE,
    MONGO_SCHEMES,
    Host,
    Int,
    NotNegative,
    PgvectorIndexType,
    PineconeMetric,
    PoolerMode,
    Port,
    Seconds,
    Secret,
    SecretUrl,
    Section,
    SQLDialect,
    SqliteSynchronous,
    TelemetryMode,
    Text,
    TLSMode,
    Url,
    VectorBackend,
    VectorBackendType,
    adopt_url,
    blank_to_none,
    reveal,
)
from .settings_outbox import OutboxSettings
from .settings_server import ServerSettings
from .settings_sources import (
    Layer,
    Setting,
    SettingsError,
    environment_layer,
    label_of,
    layer_from_mapping,
    merge_layers,
    settings_table,
    yaml_layer,
)
from .settings_sql import PoolSettings, SQLBackendSettings
from .settings_urls import MASK, ParsedUrl, build_url, is_local_host, parse_url

__all__ = [
    "DEFAULT_CONFIG_FILE",
    "KVStoreSettings",
    "MongoBackendSettings",
    "OutboxSettings",
    "PgvectorIndexType",
    "PineconeMetric",
    "PoolSettings",
    "PoolerMode",
    "RetentionSettings",
    "SQLBackendSettings",
    "SQLDialect",
    "SecretUrl",
    "ServerSettings",
    "SettingsError",
    "SqliteSynchronous",
    "StorageSettings",
    "TLSMode",
    "TelemetryMode",
    "VectorBackendSettings",
    "VectorBackendType",
]

DEFAULT_CONFIG_FILE = "config.yaml"
# What a URL says about the rest of its section.
_FROM_URL = frozenset({"dialect", "path", "host", "port", "database", "username", "password"})


class MongoBackendSettings(Section):
    """The MongoDB server, used by the stores that are told to (`use_mongo_for_*`, `kv.backend`)."""

    url: Optional[Url] = Field(
        None, description="Whole `mongodb://` or `mongodb+srv://` URL; wins. A secret."
    )
    host: Host = Field("localhost", description="Host name or address.")
    port: Port = Field(27017, description="TCP port.")
    database: Text = Field(DEFAULT_DATABASE, description="Name of the database; one in `url` wins.")
    username: Optional[Text] = Field(None, description="User to log in as.")
    password: Optional[Secret] = Field(None, description="Its password. A secret.")
    auth_source: Text = Field(
        "admin", description="Database that holds the user; with `url`, write it there."
    )
    replica_set: Optional[Text] = Field(None, description="Name of the replica set.")
    tls: Optional[bool] = Field(
        None,
        description="Use TLS and check the server's certificate; unset: yes to remote hosts, no on loopback.",
    )
    max_pool_size: Int = Field(100, ge=1, description="Connections per server at most.")
    min_pool_size: Int = Field(0, ge=0, description="Connections per server kept open.")
    connect_timeout_ms: Int = Field(
        10_000, ge=1, description="Milliseconds that opening a connection may take."
    )
    server_selection_timeout_ms: Int = Field(
        10_000, ge=1, description="Milliseconds to look for a usable server before a call fails."
    )
    command_timeout_s: Seconds = Field(
        30.0,
        le=60,
        description="Seconds that one call of a store may take; 60 at most, for what is older counts as left by the dead.",
    )

    @validates(mode="before")
    @classmethod
    def _settle(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        data = dict(data)
        blank_to_none(data, "username", "password")
        parsed = adopt_url(data, MONGO_SCHEMES)
        if parsed is not None and parsed.database:
            data["database"] = parsed.database
        return data

    @validates(mode="after")
    def _check(self) -> MongoBackendSettings:
        if self.min_pool_size > self.max_pool_size:
            raise SettingsError("must not be greater than max_pool_size", key="min_pool_size")
        option = self._parsed().option("tls", "ssl")
        if option is not None and self.tls is not None and (option.lower() == "true") != self.tls:
            raise SettingsError("contradicts the tls option in the URL; give one of them", key="tls")
        return self

    @property
    def effective_tls(self) -> bool:
        """Whether connections are encrypted: `tls`, else what the URL says, else True for remote hosts."""
        if self.tls is not None:
            return self.tls
        parsed = self._parsed()
        option = parsed.option("tls", "ssl")
        if option is not None:
            return option.lower() == "true"
        return parsed.driver == "srv" or not all(is_local_host(host) for host in self.host.split(","))

    def get_url(self) -> str:
        """The URL with the real password: a secret. Options are in `get_client_kwargs()`; use both."""
        return self.url.get_secret_value() if self.url is not None else self._build(reveal(self.password))

    def get_safe_url(self) -> str:
        """The URL with `***` for the password, for people and logs."""
        return self._parsed().safe() if self.url is not None else self._build(self.password and MASK)

    def get_client_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for PyMongo's client beside `get_url()`, less the options that `url` states."""
        options: dict[str, Any] = {
            "maxPoolSize": self.max_pool_size,
            "minPoolSize": self.min_pool_size,
            "connectTimeoutMS": self.connect_timeout_ms,
            "serverSelectionTimeoutMS": self.server_selection_timeout_ms,
            "tls": self.effective_tls,
        }
        if self.replica_set is not None:
            options["replicaSet"] = self.replica_set
        if self.username is not None and self.url is None:
            options["authSource"] = self.auth_source
        named = {key.lower() for key, _ in self._parsed().query}
        named |= {"tls"} if "ssl" in named else set()
        return {key: value for key, value in options.items() if key.lower() not in named}

    def _parsed(self) -> ParsedUrl:
        return (
            parse_url(self.url.get_secret_value(), MONGO_SCHEMES)
            if self.url is not None
            else ParsedUrl("mongodb")
        )

    def _build(self, password: Any) -> str:
        return build_url(
            "mongodb",
            username=self.username,
            password=password,
            host=self.host,
            port=self.port,
            database=self.database,
        )


class VectorBackendSettings(Section):
    """Where vectors are kept, and the settings of each place."""

    backend: VectorBackend = Field(
        VectorBackendType.SQLITE,
        description="`sqlite` (embedded), `pgvector`, `chroma`, `pinecone`, `in_memory`, `none`, or the name of a "
        "provider that a package of somebody else registers.",
    )
    collection_name: Text = Field("atlas_vectors", description="Collection used when a call names none.")
    embedding_dimension: Int = Field(1536, ge=1, description="Numbers per vector in a new collection.")
    sqlite_ann_rows: Int = Field(
        0,
        ge=0,
        description="sqlite: documents in a namespace from which on an approximate index is used (extra `ann`); 0 = every "
        "search is exact.",
    )
    pgvector_index_type: PgvectorIndexType = Field(
        PgvectorIndexType.HNSW, description="Index of a new collection: `hnsw`, `ivfflat` or `none` (exact)."
    )
    pgvector_lists: Int = Field(100, ge=1, le=32768, description="IVFFlat: number of lists.")
    pgvector_m: Int = Field(16, ge=2, le=100, description="HNSW: links per node.")
    pgvector_ef_construction: Int = Field(64, ge=4, le=1000, description="HNSW: candidates during the build.")
    pinecone_api_key: Optional[Secret] = Field(None, description="Pinecone: API key. A secret.")
    pinecone_environment: Optional[Text] = Field(None, description="Pinecone: region of a new index.")
    pinecone_index_name: Text = Field("atlas-vectors", description="Pinecone: name of the index.")
    pinecone_namespace: Optional[Text] = Field(
        None, description="Pinecone: namespace; unset: the default one."
    )
    pinecone_metric: PineconeMetric = Field(
        PineconeMetric.COSINE,
        description="Pinecone: metric of a new index: `cosine`, `euclidean` or `dotproduct`.",
    )
    chroma_host: Optional[Host] = Field(None, description="Chroma: host of its server; unset: embedded.")
    chroma_port: Port = Field(8000, description="Chroma: TCP port of its server.")
    chroma_persist_directory: Text = Field(".atlas/chroma", description="Chroma, embedded: its directory.")
    chroma_auth_token: Optional[Secret] = Field(None, description="Chroma: token for its server. A secret.")
    chroma_tenant: Text = Field("default_tenant", description="Chroma: its own tenant.")
    chroma_database: Text = Field("default_database", description="Chroma: its database.")


class KVStoreSettings(Section):
    """The key-value store."""

    backend: Text = Field("sql", description="Name of a registered backend; `sql` uses the SQL database.")
    namespace_quota_bytes: Int = Field(
        0, ge=0, description="Bytes that one namespace may hold; 0 = unlimited."
    )
    global_quota_bytes: Int = Field(0, ge=0, description="Bytes that all namespaces may hold; 0 = unlimited.")
    default_ttl_seconds: NotNegative = Field(
        0.0, description="Seconds that an entry lives when the call does not say; 0 = for ever."
    )


class RetentionSettings(Section):
    """How long things are kept; 0 always means: keep."""

    conversation_days: Int = Field(
        0, ge=0, description="Days without activity until a conversation is deleted; 0 = keep."
    )
    conversation_history_limit: Int = Field(0, ge=0, description="Messages kept per conversation; 0 = all.")
    task_days: Int = Field(0, ge=0, description="Days until a finished task is deleted; 0 = keep.")
    job_days: Int = Field(0, ge=0, description="Days until a finished job is deleted; 0 = keep.")
    vector_days: Int = Field(
        0,
        ge=0,
        description="Days until a vector is deleted, by its `created_at`; vectors of messages go with their messages; "
        "0 = keep.",
    )


class StorageSettings(Section):
    """Everything the storage manager needs to know. Without arguments: the embedded default."""

    sql: SQLBackendSettings = Field(default_factory=SQLBackendSettings, description="The SQL database.")
    mongo: MongoBackendSettings = Field(default_factory=MongoBackendSettings, description="MongoDB.")
    vectors: VectorBackendSettings = Field(default_factory=VectorBackendSettings, description="Vectors.")
    kv: KVStoreSettings = Field(default_factory=KVStoreSettings, description="Key-value store.")
    outbox: OutboxSettings = Field(default_factory=OutboxSettings, description="Outbox.")
    retention: RetentionSettings = Field(default_factory=RetentionSettings, description="Retention.")
    server: ServerSettings = Field(default_factory=ServerSettings, description="HTTP API and dashboard.")
    use_mongo_for_conversations: bool = Field(False, description="Keep conversations in MongoDB.")
    use_mongo_for_jobs: bool = Field(False, description="Keep jobs in MongoDB.")
    require_tenant_context: bool = Field(False, description="Refuse every call that names no tenant.")
    default_tenant_id: Text = Field(
        "default", description="Tenant of a call that names none, where that is allowed."
    )
    embedder: Optional[Text] = Field(
        None,
        description="What makes vectors of messages: `hashing`, `openai:MODEL`, `sentence-transformers:MODEL` or "
        "`module:callable`; unset: none, and search is by text.",
    )
    embedder_base_url: Optional[Text] = Field(
        None, description="openai: URL of the server up to `/v1`; unset: OpenAI's own."
    )
    embedder_api_key: Optional[Secret] = Field(None, description="openai: API key. A secret.")
    embedder_dimension: Int = Field(
        0, ge=0, description="Numbers per vector of the embedder; 0 = the embedder's own."
    )
    telemetry: TelemetryMode = Field(
        TelemetryMode.OFF,
        description="What is counted of each operation: `off`, `metrics` (calls, errors, times; some four "
        "microseconds each) or `opentelemetry` (the same, and spans through its API package); whoever serves the HTTP API "
        "and says nothing has `metrics`.",
    )
    health_check_interval_seconds: Seconds = Field(
        30.0, description="Seconds between background health checks."
    )
    health_check_timeout_seconds: Seconds = Field(5.0, description="Seconds that each health check may take.")

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_env(cls, environ: Optional[Mapping[str, str]] = None) -> StorageSettings:
        """Settings from environment variables over the defaults; `environ` defaults to the process's own.

        Raises:
            SettingsError: A variable is unknown or wrong; `source` names it.
        """
        return cls._from_layers([environment_layer(cls, environ)])

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> StorageSettings:
        """Settings from a nested mapping, as `to_dict(reveal_secrets=True)` gives; None means the default."""
        return cls._from_layers([layer_from_mapping(cls, mapping, "mapping")])

    @classmethod
    def from_yaml(cls, path: Union[str, os.PathLike[str]]) -> StorageSettings:
        """Settings from the `storage:` block of a YAML file, where `${NAME}` is an environment variable."""
        return cls._from_layers([yaml_layer(cls, path)])

    @classmethod
    def load(
        cls,
        yaml_path: Optional[Union[str, os.PathLike[str]]] = None,
        environ: Optional[Mapping[str, str]] = None,
    ) -> StorageSettings:
        """Settings from the environment over YAML over the defaults.

        Args:
            yaml_path: The file, which must exist. None: `config.yaml` in the working directory, if it exists.
            environ: None: the process's own.
        """
        if yaml_path is None and Path(DEFAULT_CONFIG_FILE).is_file():
            yaml_path = DEFAULT_CONFIG_FILE
        layers = [] if yaml_path is None else [yaml_layer(cls, yaml_path, environ)]
        return cls._from_layers([*layers, environment_layer(cls, environ)])

    def merged_with(self, overrides: Mapping[str, Any]) -> StorageSettings:
        """A copy with some values replaced (nested mapping; None = back to the default).

        Raises:
            SettingsError: Also when a part of a connection is replaced while `url`, which would win, stays.
        """
        base, origins = Layer({}, {}), self.sources
        for row, value in self.chosen():
            base.values[row.path] = value
            base.labels[row.path] = origins[row.key]
        over = layer_from_mapping(type(self), overrides, "overrides")
        for section in ("sql", "mongo"):
            parts = sorted(path[1] for path in over.values if path[:1] == (section,) and path[1] in _FROM_URL)
            if parts and getattr(self, section).url is not None and (section, "url") not in over.values:
                raise SettingsError(
                    f"{section}.url is set and would win; replace {section}.url, or set it to None as well",
                    f"{section}.{parts[0]}",
                    over.labels[section, parts[0]],
                )
        return self._from_layers([base, over])

    @property
    def sources(self) -> dict[str, str]:
        """Dotted path of every setting -> where its value came from; no part of equality.

        "environment ATLAS_SQL_URL", "config.yaml: storage.sql.url", "mapping: sql.url", "arguments",
        "default".
        """
        result: dict[str, str] = {}
        for row, value in self._values():
            key = f"{row.path[0]}.url" if self._is_from_url(row) else row.key
            if key == "sql.path" and key not in self._origins and value == self.sql.database:
                key = "sql.database"
            changed = value != row.default or key != row.key
            result[row.key] = self._origins.get(key, "arguments" if changed else "default")
        return result

    def chosen(self) -> list[tuple[Setting, Any]]:
        """The settings that are not at their default, less what a URL says already."""
        return [
            (row, value)
            for row, value in self._values()
            if value != row.default and not self._is_from_url(row)
        ]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorageSettings) and self.__dict__ == other.__dict__

    def _values(self) -> list[tuple[Setting, Any]]:
        return [(row, reduce(getattr, row.path, self)) for row in settings_table(type(self))]

    def _is_from_url(self, row: Setting) -> bool:
        section = row.path[0]
        if len(row.path) != 2 or section not in ("sql", "mongo") or row.path[1] not in _FROM_URL:
            return False
        return getattr(self, section).url is not None

    @classmethod
    def _from_layers(cls, layers: Sequence[Layer]) -> StorageSettings:
        values, labels = merge_layers(cls, layers)
        problem: Optional[SettingsError] = None
        try:
            settings = cls(**values)
        except SettingsError as exc:
            problem = exc
        if problem is not None:  # a new error, so that it names the source and has no context
            source = label_of(labels, problem.key)
            raise SettingsError(problem.reason, problem.key, source, problem.suggestion)
        settings._origins.update(labels)
        return settings

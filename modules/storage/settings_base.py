"""What every settings model is made of: the choices, the field types with their checks, the base class.

Users import the names from `modules.storage.settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Optional, Union

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
    ValidationError,
)

from .settings_sources import SettingsError, translate
from .settings_urls import MASK, ParsedUrl, parse_url

SQL_SCHEMES = {"sqlite": "sqlite", "postgresql": "postgresql", "postgres": "postgresql"}
MONGO_SCHEMES = {"mongodb": "mongodb"}
DEFAULT_DATABASE = "atlas"


class Choice(str, Enum):
    """Names of a choice, read without regard to case."""

    @classmethod
    def _missing_(cls, value: object) -> Optional[Choice]:
        text = str(value).strip().lower()
        return next((member for member in cls if member.value.lower() == text), None)

    def __str__(self) -> str:
        return str(self.value)


class SQLDialect(Choice):
    """The SQL databases that the stores run on."""

    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


class VectorBackendType(Choice):
    """Where vectors are kept: the providers that come with us. Others are known by the name they are registered with."""

    PGVECTOR = "pgvector"
    PINECONE = "pinecone"
    CHROMA = "chroma"
    SQLITE = "sqlite"
    IN_MEMORY = "in_memory"
    NONE = "none"


class SqliteSynchronous(Choice):
    """SQLite's `PRAGMA synchronous`."""

    OFF = "OFF"
    NORMAL = "NORMAL"
    FULL = "FULL"
    EXTRA = "EXTRA"


class PoolerMode(Choice):
    """What stands between us and PostgreSQL."""

    AUTO = "auto"
    TRANSACTION = "transaction"
    SESSION = "session"
    NONE = "none"


class TLSMode(Choice):
    """How a PostgreSQL connection is encrypted and checked, in libpq's words."""

    DISABLE = "disable"
    PREFER = "prefer"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


class TelemetryMode(Choice):
    """What monitoring is told of each operation."""

    OFF = "off"
    METRICS = "metrics"
    OPENTELEMETRY = "opentelemetry"


class PgvectorIndexType(Choice):
    """Kind of index on a pgvector collection."""

    HNSW = "hnsw"
    IVFFLAT = "ivfflat"
    NONE = "none"


class PineconeMetric(Choice):
    """Metric of a new Pinecone index."""

    COSINE = "cosine"
    EUCLIDEAN = "euclidean"
    DOTPRODUCT = "dotproduct"


class SecretUrl(SecretStr):
    """A URL that shows itself with its secrets masked; `get_secret_value()` gives the real one."""

    def _display(self) -> str:
        try:
            return parse_url(self._secret_value, {**SQL_SCHEMES, **MONGO_SCHEMES}).safe()
        except SettingsError:
            return MASK


def no_bool(value: Any) -> Any:
    """Return `value`, unless it is True or False."""
    # YAML reads `yes` as true and pydantic reads true as 1; a port or a size of True is a mistake.
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")  # noqa: TRY004 - pydantic takes only ValueError
    return value


def is_clean(text: str) -> bool:
    """True for text that every driver can carry: no NUL, no lone surrogate."""
    return "\x00" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def _clean_text(value: Any) -> Any:
    text = reveal(value)
    if isinstance(text, str) and not is_clean(text):
        raise ValueError("must not hold a NUL character or a lone surrogate")
    return value


def _clean_host(value: Any) -> Any:
    if isinstance(value, str) and not value.startswith("/"):
        value = value.strip().strip("[]")
        if not value or any(c.isspace() or c in "/@?#" for c in value):
            raise ValueError("must be a host name, an address or the directory of a unix socket")
    return value


def _vector_backend(value: Any) -> Union[VectorBackendType, str]:
    # Any name may be registered by somebody else's package, so an unknown one shows when the provider is looked for.
    if not isinstance(value, str) or not value.strip() or not is_clean(value):
        raise ValueError("must be the name of a vector provider")
    try:
        return VectorBackendType(value)
    except ValueError:
        return value.strip()


VectorBackend = Annotated[Union[VectorBackendType, str], PlainValidator(_vector_backend)]
Text = Annotated[str, BeforeValidator(_clean_text), Field(min_length=1)]
Host = Annotated[str, BeforeValidator(_clean_host), BeforeValidator(_clean_text)]
Secret = Annotated[SecretStr, BeforeValidator(_clean_text)]
Url = Annotated[SecretUrl, BeforeValidator(_clean_text)]
Port = Annotated[int, BeforeValidator(no_bool), Field(ge=1, le=65535)]
Int = Annotated[int, BeforeValidator(no_bool), Field(le=2**63 - 1)]
# The upper bound, three years, only keeps timers from overflowing.
Seconds = Annotated[float, BeforeValidator(no_bool), Field(gt=0, le=1e8, allow_inf_nan=False)]
NotNegative = Annotated[float, BeforeValidator(no_bool), Field(ge=0, le=1e12, allow_inf_nan=False)]


class Section(BaseModel):
    """Base of all settings: frozen, no unknown names, wrong values as `SettingsError`."""

    # defer_build: validators are made at first use, which takes 23 ms (of 110) off the import.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, defer_build=True)

    def __init__(self, /, **data: Any) -> None:
        problem: Optional[SettingsError] = None
        try:
            super().__init__(**data)
        except ValidationError as exc:
            problem = translate(exc, type(self))
        if problem is not None:  # outside the handler, so that pydantic's report is not even the context
            raise problem

    def to_dict(self, reveal_secrets: bool = False) -> dict[str, Any]:
        """Plain nested values for YAML or JSON.

        Args:
            reveal_secrets: False shows `***` for secrets; True gives what `from_dict` reads back.
        """
        return {name: _plain(getattr(self, name), reveal_secrets) for name in type(self).model_fields}


def _plain(value: Any, show: bool) -> Any:
    if isinstance(value, Section):
        return value.to_dict(show)
    if isinstance(value, SecretStr):
        return value.get_secret_value() if show else str(value) if isinstance(value, SecretUrl) else MASK
    return value.value if isinstance(value, Enum) else value


def reveal(value: Any) -> Any:
    """The real value of a secret; anything else as it is."""
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def adopt_url(data: dict[str, Any], schemes: Mapping[str, str]) -> Optional[ParsedUrl]:
    """Let an explicit `url` overrule the single parts in `data`; a blank one counts as unset."""
    url = reveal(data.get("url"))
    if not isinstance(url, str) or not is_clean(url):  # the check of the field speaks
        return None
    if not url.strip():
        data["url"] = None
        return None
    parsed = parse_url(url, schemes)
    data["url"] = SecretUrl(url)
    if parsed.scheme != "sqlite":
        # Query parameters are how libpq spells what the authority leaves out (a unix socket above all).
        host, port, password = parsed.option("host"), parsed.option("port"), parsed.option("password")
        data["host"] = host or ",".join(parsed.hosts) or "localhost"
        data["username"] = parsed.username or parsed.option("user")
        data["password"] = parsed.password if parsed.password is not None else password
        data.pop("port", None)
        if parsed.port or port:
            data["port"] = parsed.port or str(port).partition(",")[0]
    return parsed


def blank_to_none(data: dict[str, Any], *names: str) -> None:
    """Count empty text as unset."""
    for name in names:
        if reveal(data.get(name)) == "":
            data[name] = None

"""Column types: how a value stands in SQLite and in PostgreSQL, for the ORM and for the compiled statements alike.

Each type has two faces. SQLAlchemy's (`process_bind_param`, `process_result_value`) serves users' own ORM queries. Ours
(`encoder`, `decoder`) gives `Statement` plain functions, so that the hot path never goes through SQLAlchemy.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Callable, Optional

from sqlalchemy import JSON, BigInteger, Boolean, DateTime, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from modules.store_common.clock import from_microseconds, require_utc, to_microseconds
from modules.store_common.values import decode_json, decode_text, encode_json, encode_text

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

__all__ = [
    "NOW_SQLITE",
    "Codec",
    "FreeText",
    "JsonValue",
    "UtcDateTime",
    "decoder",
    "encoder",
    "utc_now",
]

Codec = Callable[[Any], Any]

#: The database's clock in SQLite's SQL: whole microseconds since 1970, in steps of 1 ms, the same within a statement.
#: SQLite counts milliseconds; a Julian day number holds them to 0.04 ms, so rounding finds them again. 2440587.5 is
#: 1970-01-01 (https://www.sqlite.org/lang_datefunc.html). One call of a function, where strftime takes two and a CAST:
#: 3 of the 16 us of writing a key.
NOW_SQLITE = "(CAST((julianday('now') - 2440587.5) * 86400000.0 + 0.5 AS INTEGER) * 1000)"


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. PostgreSQL: `timestamptz`. SQLite: whole microseconds since 1970 in an integer."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "sqlite":
            return dialect.type_descriptor(BigInteger())
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: Optional[datetime], dialect: Dialect) -> Any:
        instant = require_utc(value, "a point in time")
        if instant is None or dialect.name != "sqlite":
            return instant
        return to_microseconds(instant)

    def process_result_value(self, value: Any, dialect: Dialect) -> Optional[datetime]:
        if value is None or dialect.name != "sqlite":
            return require_utc(value, "a point in time")
        return from_microseconds(value)


class FreeText(TypeDecorator[str]):
    """Text that people wrote: may hold NUL, which is encoded (see `modules.store_common.values`)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Optional[str], dialect: Dialect) -> Any:
        return encode_text(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return decode_text(value)


class JsonValue(TypeDecorator[Any]):
    """A JSON value that comes back exactly as it was written.

    PostgreSQL: `json`, which keeps the text, and not `jsonb`, which turns -0.0 into 0.0, 1e16 into an integer and
    reorders keys. SQLite: `TEXT`, because a column declared JSON has numeric affinity there.

    In a `Statement` the parameter of such a column is JSON text made by `values.encode_json`; results are decoded.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(_JsonText())
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Optional[str]:
        return None if value is None else encode_json(value, "a JSON column")

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return decode_json(value) if isinstance(value, (str, bytes)) else value


class _JsonText(JSON):
    """PostgreSQL's `json` without SQLAlchemy's own (de)serialisation: `JsonValue` does it, with the value contract."""

    def bind_processor(self, dialect: Dialect) -> None:
        return None

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        return None


class utc_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """The database's own clock, as a `UtcDateTime`. Stable within a statement on PostgreSQL, so indexes can use it."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(utc_now, "postgresql")
def _utc_now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return "statement_timestamp()"


@compiles(utc_now, "sqlite")
def _utc_now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return NOW_SQLITE


def _microseconds(value: Any) -> Any:
    return None if value is None else to_microseconds(value)


def encoder(column_type: TypeEngine[Any], dialect: str) -> Optional[Codec]:
    """Return what turns a parameter into the driver's value, None where it goes as it is."""
    if isinstance(column_type, UtcDateTime) and dialect == "sqlite":
        return _microseconds
    if isinstance(column_type, FreeText):
        return encode_text
    return None


def decoder(column_type: TypeEngine[Any], dialect: str) -> Optional[Codec]:
    """Return what turns the driver's value (never None) into the result, None where it is right as it is."""
    if isinstance(column_type, JsonValue):
        return decode_json
    if isinstance(column_type, FreeText):
        return decode_text
    if dialect == "sqlite":
        if isinstance(column_type, UtcDateTime):
            return from_microseconds
        if isinstance(column_type, Boolean):
            return bool
    return None

"""The SQL of the key-value store, compiled once per dialect.

"Live" means not expired by the database's clock. An expired row is overwritten as if it were not there: its version and
time of creation start again.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Optional

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    LargeBinary,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal_column,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Boolean, Integer

from modules.storage.columns import JsonValue, UtcDateTime, utc_now
from modules.storage.schema import Identifier
from modules.storage.statements import Statement
from modules.Tools.Base_Tools.kv_models import KeyValueRow

__all__ = [
    "CLEAR",
    "CLEAR_BOUND",
    "CLEAR_EXPIRED",
    "CLEAR_REST",
    "CLEAR_REST_EXPIRED",
    "DELETE",
    "DELETE_VERSION",
    "EXISTS",
    "GET",
    "GET_BATCH",
    "GET_BATCH_OF_ONE",
    "GET_ENTRY",
    "GET_MANY",
    "INCREMENT",
    "LIST_AFTER",
    "LIST_AFTER_BELOW",
    "LIST_FROM",
    "LIST_FROM_BELOW",
    "LIST_NAMESPACES",
    "LOCK_ENTRY",
    "SET",
    "SET_ABSENT",
    "SET_BATCH",
    "SET_BATCH_QUIETLY",
    "SET_QUIETLY",
    "SET_VERSION",
    "TOUCH",
    "TTL",
    "VERSIONS",
    "VERSIONS_OF_ONE",
    "after_now",
    "holds_integer",
]

_E: Any = KeyValueRow.__table__
_C = _E.c
_KEY = [_C.tenant_id, _C.namespace, _C.key]
_TENANT = bindparam("tenant", type_=Identifier)
_SPACE = bindparam("space", type_=Identifier)
_NAME = bindparam("name", type_=Identifier)
_TTL = bindparam("ttl_us", type_=BigInteger)
_LIMIT = bindparam("row_limit", type_=Integer)
_ONE = literal_column("1", Integer)
_ZERO = literal_column("0", Integer)
_NEVER = _C.expires_at.is_(None)
_LIVE = or_(_NEVER, _C.expires_at > utc_now())
_THIS = and_(_C.tenant_id == _TENANT, _C.namespace == _SPACE, _C.key == _NAME)
_IN_SPACE = and_(_C.tenant_id == _TENANT, _C.namespace == _SPACE)
#: The columns of a `KeyValueEntry`, in the order in which `kv_operations` reads them.
_ENTRY = [
    _C.key,
    _C.value_json,
    _C.value_bytes,
    _C.version,
    _C.size_bytes,
    _C.created_at,
    _C.updated_at,
    _C.expires_at,
]


class after_now(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function that it is
    """So many microseconds from now by the database's clock; NULL for NULL."""

    type = UtcDateTime()
    inherit_cache = True


@compiles(after_now, "postgresql")
def _after_now_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return f"(statement_timestamp() + {compiler.process(element.clauses, **kw)} * interval '1 microsecond')"


@compiles(after_now, "sqlite")
def _after_now_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return f"({compiler.process(utc_now(), **kw)} + {compiler.process(element.clauses, **kw)})"


class holds_integer(FunctionElement[bool]):  # noqa: N801
    """Whether JSON text is an integer, as `values.encode_json` writes one."""

    type = Boolean()
    inherit_cache = True


@compiles(holds_integer, "postgresql")
def _holds_integer_postgresql(element: Any, compiler: Any, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)} ~ '^-?[0-9]+$')"


@compiles(holds_integer, "sqlite")
def _holds_integer_sqlite(element: Any, compiler: Any, **kw: Any) -> str:
    return f"(json_type({compiler.process(element.clauses, **kw)}) = 'integer')"


_SQLITE_NOW = str(utc_now().compile(dialect=sqlite.dialect()))

# --- reading ---------------------------------------------------------------------------------------------------------

GET = Statement(select(_C.value_json, _C.value_bytes).where(_THIS, _LIVE))

# OFFSET 0 keeps PostgreSQL from joining by reading the whole table, whatever it believes about its size.
GET_BATCH = Statement(
    postgresql=text(
        "SELECT w.position, e.value_json, e.value_bytes"
        " FROM unnest(:tenants, :spaces, :names) WITH ORDINALITY AS w(tenant_id, namespace, key, position)"
        " CROSS JOIN LATERAL (SELECT value_json, value_bytes FROM atlas_kv_entries AS x"
        " WHERE x.tenant_id = w.tenant_id AND x.namespace = w.namespace AND x.key = w.key"
        " AND (x.expires_at IS NULL OR x.expires_at > statement_timestamp()) OFFSET 0) AS e"
    )
    .bindparams(
        bindparam("tenants", type_=ARRAY(Identifier)),
        bindparam("spaces", type_=ARRAY(Identifier)),
        bindparam("names", type_=ARRAY(Identifier)),
    )
    .columns(position=BigInteger, value_json=JsonValue, value_bytes=LargeBinary),
    sqlite=text(
        "SELECT w.key, e.value_json, e.value_bytes FROM json_each(:wanted) AS w CROSS JOIN atlas_kv_entries AS e"
        " WHERE e.tenant_id = json_extract(w.value, '$[0]') AND e.namespace = json_extract(w.value, '$[1]')"
        " AND e.key = json_extract(w.value, '$[2]') AND (e.expires_at IS NULL OR e.expires_at > "
        + _SQLITE_NOW
        + ")"
    )
    .bindparams(bindparam("wanted", type_=Text))
    .columns(position=Integer, value_json=JsonValue, value_bytes=LargeBinary),
)

#: The same for keys of one namespace, which is what most callers that wait together ask for: two arrays less.
GET_BATCH_OF_ONE = Statement(
    postgresql=text(
        "SELECT w.position, e.value_json, e.value_bytes FROM unnest(:names) WITH ORDINALITY AS w(key, position)"
        " CROSS JOIN LATERAL (SELECT value_json, value_bytes FROM atlas_kv_entries AS x"
        " WHERE x.tenant_id = :tenant AND x.namespace = :space AND x.key = w.key"
        " AND (x.expires_at IS NULL OR x.expires_at > statement_timestamp()) OFFSET 0) AS e"
    )
    .bindparams(bindparam("names", type_=ARRAY(Identifier)), _TENANT, _SPACE)
    .columns(position=BigInteger, value_json=JsonValue, value_bytes=LargeBinary),
    sqlite=text(
        "SELECT w.key, e.value_json, e.value_bytes FROM json_each(:names) AS w CROSS JOIN atlas_kv_entries AS e"
        " WHERE e.tenant_id = :tenant AND e.namespace = :space AND e.key = w.value"
        " AND (e.expires_at IS NULL OR e.expires_at > " + _SQLITE_NOW + ")"
    )
    .bindparams(bindparam("names", type_=Text), _TENANT, _SPACE)
    .columns(position=Integer, value_json=JsonValue, value_bytes=LargeBinary),
)

GET_ENTRY = Statement(select(*_ENTRY).where(_THIS, _LIVE))
#: For a write that follows: other writers of this key wait.
LOCK_ENTRY = Statement(select(*_ENTRY).where(_THIS, _LIVE).with_for_update())
EXISTS = Statement(select(_C.version).where(_THIS, _LIVE))
TTL = Statement(select(_C.expires_at, utc_now().label("now")).where(_THIS, _LIVE))

GET_MANY = Statement(
    postgresql=select(_C.key, _C.value_json, _C.value_bytes).where(
        _IN_SPACE, _C.key == func.any(bindparam("names", type_=ARRAY(Identifier))), _LIVE
    ),
    sqlite=select(_C.key, _C.value_json, _C.value_bytes).where(
        _IN_SPACE,
        _C.key.in_(text("SELECT value FROM json_each(:names)").bindparams(bindparam("names", type_=Text))),
        _LIVE,
    ),
)

_AFTER = bindparam("after", type_=Identifier)
_UPPER = bindparam("upper", type_=Identifier)
_PAGE = select(*_ENTRY).where(_IN_SPACE, _LIVE).order_by(_C.key).limit(_LIMIT)
LIST_FROM = Statement(_PAGE.where(_C.key >= _AFTER))
LIST_FROM_BELOW = Statement(_PAGE.where(_C.key >= _AFTER, _C.key < _UPPER))
LIST_AFTER = Statement(_PAGE.where(_C.key > _AFTER))
LIST_AFTER_BELOW = Statement(_PAGE.where(_C.key > _AFTER, _C.key < _UPPER))


def _namespaces() -> Any:
    """Return the loose index scan: one look-up for each namespace, however many entries it has.

    No ORDER BY: each step adds one row, so they come in order, and only as many as the page takes are looked up.
    """
    first = (
        select(_C.namespace)
        .where(_C.tenant_id == _TENANT, _C.namespace > _AFTER)
        .order_by(_C.namespace)
        .limit(_ONE)
        .scalar_subquery()
    )
    found = select(first.label("namespace")).cte("found", recursive=True)
    following = (
        select(_C.namespace)
        .where(_C.tenant_id == _TENANT, _C.namespace > found.c.namespace)
        .order_by(_C.namespace)
        .limit(_ONE)
        .scalar_subquery()
    )
    found = found.union_all(select(following).where(found.c.namespace.is_not(None)))
    live = select(_ONE).where(_C.tenant_id == _TENANT, _C.namespace == found.c.namespace, _LIVE).exists()
    return select(found.c.namespace).where(found.c.namespace.is_not(None), live).limit(_LIMIT)


LIST_NAMESPACES = Statement(_namespaces())

# --- writing ---------------------------------------------------------------------------------------------------------

_VALUES = {
    "tenant_id": _TENANT,
    "namespace": _SPACE,
    "key": _NAME,
    "value_json": bindparam("text", type_=JsonValue),
    "value_bytes": bindparam("data", type_=LargeBinary),
    "version": _ONE,
    "size_bytes": bindparam("size", type_=BigInteger),
    "created_at": utc_now(),
    "updated_at": utc_now(),
    "expires_at": after_now(_TTL),
}


def _overwrite(statement: Any, condition: Optional[ColumnElement[bool]] = None) -> Any:
    new = statement.excluded
    # the time of this statement, already worked out for the row that was to be inserted
    expired = _C.expires_at <= new.updated_at
    return statement.on_conflict_do_update(
        index_elements=_KEY,
        set_={
            "value_json": new.value_json,
            "value_bytes": new.value_bytes,
            "version": case((expired, _ONE), else_=_C.version + _ONE),
            "size_bytes": new.size_bytes,
            "created_at": case((expired, new.created_at), else_=_C.created_at),
            "updated_at": new.updated_at,
            "expires_at": new.expires_at,
        },
        where=condition,
    )


def _set(insert: Any) -> Any:
    return _overwrite(insert(_E).values(_VALUES))


def _set_absent(insert: Any) -> Any:
    statement = insert(_E).values(_VALUES)
    return _overwrite(statement, _C.expires_at <= statement.excluded.updated_at).returning(_C.version)


SET = Statement(
    postgresql=_set(postgresql.insert).returning(_C.version), sqlite=_set(sqlite.insert).returning(_C.version)
)
#: Without RETURNING, for `run_many`.
SET_QUIETLY = Statement(postgresql=_set(postgresql.insert), sqlite=_set(sqlite.insert))
SET_ABSENT = Statement(postgresql=_set_absent(postgresql.insert), sqlite=_set_absent(sqlite.insert))

_LIST = (
    ("tenants", ARRAY(Identifier)),
    ("spaces", ARRAY(Identifier)),
    ("names", ARRAY(Identifier)),
    ("texts", ARRAY(Text)),
    ("datas", ARRAY(LargeBinary)),
    ("sizes", ARRAY(BigInteger)),
    ("ttls", ARRAY(BigInteger)),
)


def _set_batch() -> Any:
    rows = (
        func.unnest(*[bindparam(name, type_=kind) for name, kind in _LIST])
        .table_valued(
            Column("tenant_id", Identifier),
            Column("namespace", Identifier),
            Column("key", Identifier),
            Column("text", Text),
            Column("data", LargeBinary),
            Column("size", BigInteger),
            Column("ttl", BigInteger),
            name="w",
        )
        .render_derived()
    )
    source = select(
        rows.c.tenant_id,
        rows.c.namespace,
        rows.c.key,
        cast(rows.c.text, JsonValue),
        rows.c.data,
        _ONE,
        rows.c.size,
        utc_now(),
        utc_now(),
        after_now(rows.c.ttl),
    )
    return _overwrite(postgresql.insert(_E).from_select([c.name for c in _C], source))


#: Many entries in one statement; the caller sorts them by key, so that two such statements lock rows in one order.
SET_BATCH = Statement(postgresql=_set_batch().returning(_C.tenant_id, _C.namespace, _C.key, _C.version))
SET_BATCH_QUIETLY = Statement(postgresql=_set_batch())

#: What many writes made of their entries, in the order in which these are asked for (SQLite: `run_many` gives no rows).
VERSIONS = Statement(
    sqlite=text(
        "SELECT w.key, e.version FROM json_each(:wanted) AS w CROSS JOIN atlas_kv_entries AS e"
        " WHERE e.tenant_id = json_extract(w.value, '$[0]') AND e.namespace = json_extract(w.value, '$[1]')"
        " AND e.key = json_extract(w.value, '$[2]')"
    )
    .bindparams(bindparam("wanted", type_=Text))
    .columns(position=Integer, version=BigInteger)
)
#: The same for keys of one namespace.
VERSIONS_OF_ONE = Statement(
    sqlite=text(
        "SELECT w.key, e.version FROM json_each(:names) AS w CROSS JOIN atlas_kv_entries AS e"
        " WHERE e.tenant_id = :tenant AND e.namespace = :space AND e.key = w.value"
    )
    .bindparams(bindparam("names", type_=Text), _TENANT, _SPACE)
    .columns(position=Integer, version=BigInteger)
)

SET_VERSION = Statement(
    update(_E)
    .where(_THIS, _LIVE, _C.version == bindparam("expected", type_=BigInteger))
    .values(
        value_json=bindparam("text", type_=JsonValue),
        value_bytes=bindparam("data", type_=LargeBinary),
        version=_C.version + _ONE,
        size_bytes=bindparam("size", type_=BigInteger),
        updated_at=utc_now(),
        expires_at=after_now(_TTL),
    )
    .returning(_C.version)
)

TOUCH = Statement(update(_E).where(_THIS, _LIVE).values(expires_at=after_now(_TTL)).returning(_C.version))

#: Removes an expired entry too. Whether it was live is told by the caller from the two times: SQLite 3.40 takes
#: "expires_at IS NULL" for false in a RETURNING, whatever the row holds.
DELETE = Statement(delete(_E).where(_THIS).returning(_C.expires_at, utc_now().label("now")))
DELETE_VERSION = Statement(
    delete(_E)
    .where(_THIS, _LIVE, _C.version == bindparam("expected", type_=BigInteger))
    .returning(_C.version)
)


def _increment(insert: Any) -> Any:
    statement = insert(_E).values(_VALUES)
    new = statement.excluded
    expired = and_(_C.expires_at.is_not(None), _C.expires_at <= new.updated_at)
    stored = cast(_C.value_json, Text)
    number = cast(stored, BigInteger)
    # CASE, because only it promises that text which is no integer is never converted to one
    fits = case(
        (number.between(bindparam("low", type_=BigInteger), bindparam("high", type_=BigInteger)), _ONE),
        else_=_ZERO,
    )
    allowed = case((expired, _ONE), (holds_integer(stored), fits), else_=_ZERO)
    total = cast(number + bindparam("amount", type_=BigInteger), Text)
    return statement.on_conflict_do_update(
        index_elements=_KEY,
        set_={
            "value_json": case((expired, new.value_json), else_=cast(total, JsonValue)),
            "value_bytes": null(),
            "version": case((expired, _ONE), else_=_C.version + _ONE),
            "size_bytes": case(
                (expired, new.size_bytes),
                else_=bindparam("key_size", type_=BigInteger) + func.length(total),
            ),
            "created_at": case((expired, new.created_at), else_=_C.created_at),
            "updated_at": new.updated_at,
            "expires_at": case((expired, new.expires_at), else_=_C.expires_at),
        },
        where=allowed == _ONE,
    ).returning(_C.value_json)


INCREMENT = Statement(postgresql=_increment(postgresql.insert), sqlite=_increment(sqlite.insert))

#: The key that ends a batch of `clear`.
CLEAR_BOUND = Statement(
    select(_C.key)
    .where(_IN_SPACE, _C.key > _AFTER)
    .order_by(_C.key)
    .limit(_ONE)
    .offset(bindparam("skip", type_=Integer))
)
_CLEAR_PART = and_(_IN_SPACE, _C.key > _AFTER, _C.key <= _UPPER)
CLEAR_EXPIRED = Statement(delete(_E).where(_CLEAR_PART, _C.expires_at <= utc_now()))
CLEAR = Statement(delete(_E).where(_CLEAR_PART))
CLEAR_REST_EXPIRED = Statement(delete(_E).where(_IN_SPACE, _C.key > _AFTER, _C.expires_at <= utc_now()))
CLEAR_REST = Statement(delete(_E).where(_IN_SPACE, _C.key > _AFTER))

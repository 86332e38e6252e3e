"""Compiled statements, column types and operations: `modules.storage.{statements,columns,operations}`."""

from __future__ import annotations

import asyncio
import sqlite3
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    insert,
    select,
    text,
    update,
)

from modules.storage.columns import FreeText, JsonValue, UtcDateTime, decoder, encoder, utc_now
from modules.storage.operations import Operation, Store, Transaction, read, write
from modules.storage.statements import Statement
from modules.store_common.errors import InvalidValueError
from modules.store_common.tenancy import TenantPolicy
from modules.store_common.values import encode_json

TABLE = Table(
    "t",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("label", FreeText()),
    Column("body", JsonValue()),
    Column("at", UtcDateTime()),
    Column("flag", Boolean),
    Column("plain", String),
)
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
INSERT = Statement(insert(TABLE).values({c.name: bindparam(c.name) for c in TABLE.columns}))
SELECT = Statement(select(TABLE).where(TABLE.c.id == bindparam("id")))


def _run(connection: sqlite3.Connection, statement: Statement, **params: Any) -> Any:
    compiled = statement.compiled("sqlite")
    rows = connection.execute(compiled.sql, compiled.bind(params)).fetchall()
    return rows if compiled.decode is None else [compiled.decode(row) for row in rows]


@pytest.fixture
def connection() -> Any:
    made = sqlite3.connect(":memory:")
    made.execute('CREATE TABLE t (id INTEGER, label TEXT, body TEXT, "at" BIGINT, flag BOOLEAN, plain TEXT)')
    yield made
    made.close()


def test_values_come_back_through_sqlite(connection: sqlite3.Connection) -> None:
    body = {"b": [1, -0.0, "\x00"], "a": None}
    _run(
        connection, INSERT, id=1, label="a\x00b", body=encode_json(body, "body"), at=AT, flag=True, plain="p"
    )
    ((number, label, found, at, flag, plain),) = _run(connection, SELECT, id=1)
    assert (number, label, at, plain) == (1, "a\x00b", AT, "p")
    assert found == body
    assert flag is True
    assert connection.execute("SELECT typeof(at), instr(label, char(0)) FROM t").fetchone() == ("integer", 0)


def test_nulls_stay_null(connection: sqlite3.Connection) -> None:
    _run(connection, INSERT, id=1, label=None, body=None, at=None, flag=None, plain=None)
    assert _run(connection, SELECT, id=1) == [(1, None, None, None, None, None)]


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(KeyError, match="label"):
        INSERT.compiled("sqlite").bind({"id": 1})


def test_each_dialect_is_compiled_once_in_its_own_sql() -> None:
    compiled = SELECT.compiled("postgresql")
    assert compiled is SELECT.compiled("postgresql")
    assert "$1" in compiled.sql
    assert "?" in SELECT.compiled("sqlite").sql
    assert compiled.bind({"id": 7}) == (7,)


def test_constants_of_a_statement_and_repeated_parameters() -> None:
    statement = Statement(
        update(TABLE)
        .where(TABLE.c.plain == bindparam("p"), TABLE.c.id > 5)
        .values(label=bindparam("p"), flag=True)
    )
    for dialect in ("sqlite", "postgresql"):
        compiled = statement.compiled(dialect)
        assert not compiled.returns_rows
        assert "x" in compiled.bind({"p": "x"})


def test_a_statement_for_one_dialect_only() -> None:
    statement = Statement(sqlite=text("SELECT 1 AS one").columns(one=Integer()))
    assert statement.compiled("sqlite").returns_rows
    with pytest.raises(LookupError, match="not written for postgresql"):
        statement.compiled("postgresql")


def test_the_clock_of_sqlite(connection: sqlite3.Connection) -> None:
    ((now,),) = _run(connection, Statement(select(utc_now().label("now"))))
    assert abs(now - datetime.now(timezone.utc)) < timedelta(seconds=5)
    assert now.tzinfo is timezone.utc


@given(st.datetimes(timezones=st.just(timezone.utc)))
def test_every_instant_survives_as_an_integer(at: datetime) -> None:
    encode, decode = encoder(UtcDateTime(), "sqlite"), decoder(UtcDateTime(), "sqlite")
    assert encode is not None
    assert decode is not None
    assert decode(encode(at)) == at


def test_which_types_need_a_codec() -> None:
    assert encoder(BigInteger(), "sqlite") is None
    assert encoder(UtcDateTime(), "postgresql") is None
    assert encoder(JsonValue(), "sqlite") is None  # parameters are text already
    assert decoder(Boolean(), "postgresql") is None
    assert decoder(Boolean(), "sqlite") is bool
    assert decoder(FreeText(), "postgresql") is decoder(FreeText(), "sqlite")


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_the_orm_face_keeps_the_contract(dialect: str) -> None:
    from sqlalchemy.dialects import postgresql, sqlite

    made: Any = {"sqlite": sqlite.dialect, "postgresql": postgresql.dialect}[dialect]()
    column: Any = UtcDateTime()
    assert column.process_result_value(column.process_bind_param(AT, made), made) == AT
    body: Any = JsonValue()
    assert body.process_result_value(body.process_bind_param({"a": "\x00"}, made), made) == {"a": "\x00"}
    with pytest.raises(InvalidValueError, match="time zone"):
        column.process_bind_param(AT.replace(tzinfo=None), made)
    with pytest.raises(InvalidValueError):
        body.process_bind_param(float("nan"), made)


def test_operations_say_what_they_are() -> None:
    @read
    async def plain(tx: Transaction) -> int:
        return 1

    @read(snapshot=True)
    async def snapshot(tx: Transaction) -> int:
        return 2

    @write
    async def change(tx: Transaction, by: int) -> int:
        return by

    @write(atomic=False)
    async def single(tx: Transaction) -> int:
        return 4

    made: Any = [(o.writes, o.atomic, o.name) for o in (plain, snapshot, change, single)]
    assert made == [
        (False, False, "plain"),
        (False, True, "snapshot"),
        (True, True, "change"),
        (True, False, "single"),
    ]
    assert isinstance(change, Operation)
    assert len({plain, snapshot, change, single}) == 4
    tx: Any = None
    assert asyncio.run(change(tx, 3)) == 3


def test_a_store_asks_its_policy_for_the_tenant() -> None:
    store = Store(executor=object(), tenancy=TenantPolicy(default="d"))  # type: ignore[arg-type]
    assert store._tenant(None) == "d"
    assert store._tenant("acme") == "acme"

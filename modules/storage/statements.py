"""Portable statements: written once with SQLAlchemy Core, compiled once per dialect, run directly on the driver.

A `Statement` is a module constant beside the operations that use it. Compiling uses SQLAlchemy's public face only
(`str(compiled)`, `positiontup`, `params`, `binds`, `exported_columns`); values are converted by our own codecs
(`modules.storage.columns`). Measured: +8 us per operation over hand-written SQL on SQLite, +25 us on PostgreSQL, where
executing through SQLAlchemy Core costs +74 and +183 us (docs of the project, ACCESS_PATH).

Rules for what is compiled: parameters are `bindparam("name")`; no expanding `IN` (pass an array: `= ANY` on PostgreSQL,
`json_each` on SQLite); JSON parameters are text made by `values.encode_json`.
"""

from __future__ import annotations

import re
from operator import itemgetter
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from sqlalchemy import TextClause
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.sql.expression import Executable, ReturnsRows
from sqlalchemy.types import TypeEngine

from modules.storage.columns import Codec, decoder, encoder
from modules.store_common.errors import InvalidValueError

__all__ = ["CompiledStatement", "Row", "Statement", "quote_identifier"]

Row = Tuple[Any, ...]

# PostgreSQL cuts longer names off (NAMEDATALEN - 1), which would let two of them collide.
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_-]{0,62}\Z")


def quote_identifier(name: str) -> str:
    """Return `name` quoted for SQL: the one way by which a name that is not a constant gets into a statement.

    Raises:
        InvalidValueError: it is not 1 to 63 lower-case letters, digits, `_` and `-`, beginning with a letter or `_`.
    """
    if not _IDENTIFIER.match(name):
        raise InvalidValueError(
            "a name in SQL is 1 to 63 lower-case letters, digits, _ and -, and begins with a letter or _"
        )
    return f'"{name}"'


class CompiledStatement:
    """One statement in one dialect's SQL.

    Attributes:
        sql: The text for the driver, with positional parameters.
        bind: Turns named parameters into the driver's positional tuple.
        decode: Turns a driver's row into a result tuple; None where the row is right as it is.
        returns_rows: Whether it gives rows.
    """

    __slots__ = ("bind", "decode", "returns_rows", "sql")

    def __init__(
        self,
        sql: str,
        bind: Callable[[Mapping[str, Any]], Row],
        decode: Optional[Callable[[Any], Row]],
        returns_rows: bool,
    ) -> None:
        self.sql = sql
        self.bind = bind
        self.decode = decode
        self.returns_rows = returns_rows


class Statement:
    """A statement for both dialects.

    Args:
        clause: The SQLAlchemy Core expression. A `text()` that gives rows needs `.columns(...)` with types.
        postgresql: What PostgreSQL runs instead, for example a data-modifying CTE.
        sqlite: What SQLite runs instead.
    """

    __slots__ = ("_clauses", "_compiled")

    def __init__(
        self,
        clause: Optional[Executable] = None,
        *,
        postgresql: Optional[Executable] = None,
        sqlite: Optional[Executable] = None,
    ) -> None:
        self._clauses: Dict[str, Optional[Executable]] = {
            "postgresql": clause if postgresql is None else postgresql,
            "sqlite": clause if sqlite is None else sqlite,
        }
        self._compiled: Dict[str, CompiledStatement] = {}

    def compiled(self, dialect: str) -> CompiledStatement:
        """Return the statement in the SQL of `dialect` ("sqlite" or "postgresql"); compiled at the first call."""
        found = self._compiled.get(dialect)
        if found is None:
            clause = self._clauses[dialect]
            if clause is None:
                raise LookupError(f"this statement was not written for {dialect}")
            found = self._compiled[dialect] = _compile(clause, dialect)
        return found


def _dialect(name: str) -> Any:
    return sqlite.dialect(paramstyle="qmark") if name == "sqlite" else asyncpg.dialect()  # type: ignore[no-untyped-call]


def _compile(clause: Executable, dialect: str) -> CompiledStatement:
    compiled = clause.compile(dialect=_dialect(dialect))  # type: ignore[attr-defined]
    order: Sequence[str] = compiled.positiontup or ()
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    encoders = [(name, encoder(compiled.binds[name].type, dialect)) for name in order]
    types = _result_types(clause)
    return CompiledStatement(
        sql=str(compiled),
        bind=_binder(
            order, constants, [(i, codec) for i, (_, codec) in enumerate(encoders) if codec is not None]
        ),
        decode=_row_decoder(types, dialect),
        returns_rows=bool(types),
    )


def _result_types(clause: Any) -> List[TypeEngine[Any]]:
    if isinstance(clause, TextClause) or not isinstance(clause, ReturnsRows):
        return []
    return [column.type for column in clause.exported_columns]


def _binder(
    order: Sequence[str], constants: Mapping[str, Any], encoders: Sequence[Tuple[int, Codec]]
) -> Callable[[Mapping[str, Any]], Row]:
    """Return the function that makes the positional tuple; a missing name is a `KeyError` that says which."""
    if not order:
        return lambda params: ()
    pick = itemgetter(*order) if len(order) > 1 else (lambda params, _name=order[0]: (params[_name],))
    used = {name: value for name, value in constants.items() if name in order}
    if not used and not encoders:
        return pick

    def bind(params: Mapping[str, Any]) -> Row:
        values = list(pick({**used, **params} if used else params))
        for index, encode in encoders:
            values[index] = encode(values[index])
        return tuple(values)

    return bind


def _row_decoder(types: Sequence[TypeEngine[Any]], dialect: str) -> Optional[Callable[[Any], Row]]:
    decoders = [
        (index, codec)
        for index, codec in ((i, decoder(t, dialect)) for i, t in enumerate(types))
        if codec is not None
    ]
    if not decoders:
        return None

    def decode(row: Any) -> Row:
        values = list(row)
        for index, codec in decoders:
            if values[index] is not None:
                values[index] = codec(values[index])
        return tuple(values)

    return decode

"""An async SQLAlchemy engine whose connections are a unit of work's turn of the SQLite writer.

Users' ORM code inside a unit of work must see and join the unit's own transaction, which lives on the writer thread. So
this dialect's "DBAPI connection" sends every statement to that thread (one hop, rows fetched in the same hop) and turns
the session's begin / commit / rollback into a savepoint: the unit alone commits.
"""

from __future__ import annotations

import sqlite3
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Awaitable, Callable, List, Optional, Sequence, Tuple

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only

if TYPE_CHECKING:
    from modules.storage.backends.sqlite_turn import WriterTurn

__all__ = ["TurnDialect", "adopted_turn", "create_turn_engine"]

#: Gives the turn of the unit of work whose session is being used in this context, begun.
adopted_turn: ContextVar[Callable[[], Awaitable[WriterTurn]]] = ContextVar("atlas_storage_sqlite_turn")


class _Cursor:
    """The part of a DBAPI cursor that SQLAlchemy uses; rows are fetched with the statement."""

    arraysize = 1

    def __init__(self, turn: WriterTurn) -> None:
        self._turn = turn
        self._rows: List[Any] = []
        self.description: Optional[Sequence[Any]] = None
        self.rowcount = -1
        self.lastrowid: Optional[int] = None

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self._take(
            await_only(self._turn.call(lambda connection: _fetch(connection.execute(sql, parameters))))
        )

    def executemany(self, sql: str, parameters: Sequence[Sequence[Any]]) -> None:
        self._take(
            await_only(self._turn.call(lambda connection: _fetch(connection.executemany(sql, parameters))))
        )

    def _take(self, result: Tuple[List[Any], Optional[Sequence[Any]], int, Optional[int]]) -> None:
        self._rows, self.description, self.rowcount, self.lastrowid = result

    def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: Optional[int] = None) -> List[Any]:
        count = self.arraysize if size is None else size
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows

    def fetchall(self) -> List[Any]:
        rows, self._rows = self._rows, []
        return rows

    def setinputsizes(self, *sizes: Any) -> None:
        """Nothing to do: SQLite needs no sizes."""

    def close(self) -> None:
        self._rows = []

    async def _async_soft_close(self) -> None:
        """SQLAlchemy awaits this on the cursors of async drivers; the rows are here already."""


def _fetch(cursor: sqlite3.Cursor) -> Tuple[List[Any], Optional[Sequence[Any]], int, Optional[int]]:
    rows = cursor.fetchall() if cursor.description is not None else []
    return rows, cursor.description, cursor.rowcount, cursor.lastrowid


class _Connection:
    """A DBAPI connection over a turn. Ending it ends nothing: the turn belongs to the unit of work."""

    isolation_level = None

    def __init__(self, turn: WriterTurn) -> None:
        self._turn = turn
        self._in_savepoint = False

    def cursor(self) -> _Cursor:
        return _Cursor(self._turn)

    def begin(self) -> None:
        self._send("SAVEPOINT orm")
        self._in_savepoint = True

    def commit(self) -> None:
        if self._in_savepoint:
            self._in_savepoint = False
            self._send("RELEASE orm")

    def rollback(self) -> None:
        if self._in_savepoint:
            self._in_savepoint = False
            if self._turn.is_open:
                self._send("ROLLBACK TO orm")
                self._send("RELEASE orm")

    def close(self) -> None:
        self.rollback()

    def _send(self, sql: str) -> None:
        await_only(self._turn.call(lambda connection: connection.execute(sql).close()))


class TurnDialect(SQLiteDialect_pysqlite):
    """SQLite over a turn of the writer; async in SQLAlchemy's sense: its calls wait by switching greenlets."""

    driver = "atlas"
    is_async = True
    supports_statement_cache = True

    @classmethod
    def get_pool_class(cls, url: Any) -> Any:
        return NullPool

    def on_connect(self) -> Any:
        # the writer's connection is set up already
        return None

    def do_begin(self, dbapi_connection: Any) -> None:
        dbapi_connection.begin()

    def do_terminate(self, dbapi_connection: Any) -> None:
        dbapi_connection.close()


registry.register("sqlite.atlas", __name__, "TurnDialect")


def create_turn_engine() -> AsyncEngine:
    """Return the engine; its connections take the turn that `adopted_turn` of the calling context gives."""

    def adopt() -> Any:
        return _Connection(await_only(adopted_turn.get()()))

    return create_async_engine("sqlite+atlas://", creator=adopt, poolclass=NullPool)

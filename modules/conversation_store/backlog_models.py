"""Which indexes of meaning there are, and the triggers that note every change of a message for them in the outbox.

`atlas_embedding_indexes` holds a row for each index that is in use. A message of which an index does not yet know the newest
state (new, edited or gone) is a dirty key of the outbox: the target is `embedding_target(collection)`, the kind is the
conversation, the key the sequence. It says *which* message, never what it was: whoever works it off reads the message as
it is then.

The triggers are not there until the first index is registered (`backlog.register`), so that an application without an
embedder pays nothing for them, and go with the last one. On PostgreSQL they run once per statement, so that a batch of
appends pays once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List

from sqlalchemy import BigInteger, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import UtcDateTime
from modules.storage.outbox_queue import EMBEDDING_PREFIX
from modules.storage.outbox_statements import STAGE_ROWS
from modules.storage.schema import Base, Identifier

__all__ = ["TABLES", "TRIGGER_DDL", "TRIGGER_DROP_DDL", "EmbeddingIndexRow"]


class EmbeddingIndexRow(Base):
    """An index of meaning, by the name of its vector collection, and how far the messages that were there before are in.

    The three `filled_` columns are the last message that was put into the outbox; `filled` is 1 when all were.
    """

    __tablename__ = "atlas_embedding_indexes"
    __table_args__ = (PrimaryKeyConstraint("collection"),)

    collection: Mapped[str] = mapped_column(Identifier)
    filled: Mapped[int] = mapped_column(BigInteger, nullable=False)
    filled_tenant_id: Mapped[str] = mapped_column(Identifier, nullable=False)
    filled_conversation_id: Mapped[str] = mapped_column(Identifier, nullable=False)
    filled_sequence: Mapped[int] = mapped_column(BigInteger, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


#: What a migration creates.
TABLES: List[Any] = [EmbeddingIndexRow.__table__]

_SHOWN = "{row}.deleted_at IS NULL AND {row}.status <> 'streaming'"
_CHANGED = f"({_SHOWN.format(row='old')}) OR ({_SHOWN.format(row='new')})"
_COLUMNS = "content, search_text, name, role, status, created_at, deleted_at"


def _stage(dialect: str, row: str, source: str) -> str:
    target = f"'{EMBEDDING_PREFIX}' || i.collection"
    key = f"{row}.tenant_id, {target}, {row}.conversation_id, CAST({row}.sequence AS text)"
    return STAGE_ROWS[dialect].format(key=key, source=source)


_SQLITE = "CREATE TRIGGER IF NOT EXISTS atlas_embedding_{name} AFTER {event} ON atlas_messages WHEN {when} BEGIN {into}; END"
_SQLITE_NEW = _stage("sqlite", "new", "atlas_embedding_indexes i WHERE true")
_SQLITE_OLD = _stage("sqlite", "old", "atlas_embedding_indexes i WHERE true")

_FUNCTION = """
CREATE OR REPLACE FUNCTION atlas_embedding_{name}() RETURNS trigger LANGUAGE plpgsql AS $body$
BEGIN
  {into};
  RETURN NULL;
END
$body$
"""
_TRIGGER = """
CREATE TRIGGER atlas_embedding_{name} AFTER {event} ON atlas_messages {tables} {each}
EXECUTE FUNCTION atlas_embedding_{name}()
"""


def _postgresql(
    name: str, event: str, row: str, tables: str = "", each: str = "FOR EACH STATEMENT"
) -> List[str]:
    source = "atlas_embedding_indexes i"
    if tables:
        # in the order of their keys, so that two statements never wait for each other in a circle
        condition = _SHOWN.format(row=row) if name == "add" else "true"
        order = f'ORDER BY 1, 2, 3, CAST({row}.sequence AS text) COLLATE "C"'
        source = f"{row} CROSS JOIN {source} WHERE {condition} {order}"
    return [
        _FUNCTION.format(name=name, into=_stage("postgresql", row, source)),
        _TRIGGER.format(name=name, event=event, tables=tables, each=each),
    ]


#: Makes the triggers, by dialect. On PostgreSQL they must not be there yet.
TRIGGER_DDL: Dict[str, List[str]] = {
    "sqlite": [
        _SQLITE.format(name="add", event="INSERT", when=_SHOWN.format(row="new"), into=_SQLITE_NEW),
        _SQLITE.format(name="change", event=f"UPDATE OF {_COLUMNS}", when=_CHANGED, into=_SQLITE_NEW),
        _SQLITE.format(name="remove", event="DELETE", when="true", into=_SQLITE_OLD),
    ],
    "postgresql": [
        *_postgresql("add", "INSERT", "added", "REFERENCING NEW TABLE AS added"),
        *_postgresql("change", f"UPDATE OF {_COLUMNS}", "new", each=f"FOR EACH ROW WHEN ({_CHANGED})"),
        *_postgresql("remove", "DELETE", "removed", "REFERENCING OLD TABLE AS removed"),
    ],
}
#: Takes them away again.
TRIGGER_DROP_DDL: Dict[str, List[str]] = {
    "sqlite": [f"DROP TRIGGER IF EXISTS atlas_embedding_{name}" for name in ("add", "change", "remove")],
    "postgresql": [
        f"DROP FUNCTION IF EXISTS atlas_embedding_{name}() CASCADE" for name in ("add", "change", "remove")
    ],
}

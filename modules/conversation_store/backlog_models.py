"""Tables of what is still to be embedded, and the triggers that fill them in the transaction of every change.

`atlas_embedding_indexes` holds a row for each index of meaning that is in use; `atlas_embedding_backlog` a row for each
message of which an index does not yet know the newest state: new, edited or gone. The row says *which* message, never
what it was: whoever works it off reads the message as it is then.

The triggers are not there until the first index is registered (`backlog.register`), so that an application without an
embedder pays nothing for them, and go with the last one. On PostgreSQL they run once per statement, so that a batch of
appends pays once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional

from sqlalchemy import BigInteger, Index, PrimaryKeyConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import UtcDateTime, utc_now
from modules.storage.schema import Base, Identifier

__all__ = ["TABLES", "TRIGGER_DDL", "TRIGGER_DROP_DDL", "EmbeddingBacklogRow", "EmbeddingIndexRow"]


class EmbeddingIndexRow(Base):
    """An index of meaning, by the name of its vector collection, and how far the messages that were there before are in.

    The three `filled_` columns are the last message that was put into the backlog; `filled` is 1 when all were.
    """

    __tablename__ = "atlas_embedding_indexes"
    __table_args__ = (PrimaryKeyConstraint("collection"),)

    collection: Mapped[str] = mapped_column(Identifier)
    filled: Mapped[int] = mapped_column(BigInteger, nullable=False)
    filled_tenant_id: Mapped[str] = mapped_column(Identifier, nullable=False)
    filled_conversation_id: Mapped[str] = mapped_column(Identifier, nullable=False)
    filled_sequence: Mapped[int] = mapped_column(BigInteger, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class EmbeddingBacklogRow(Base):
    """A message to look at. `mark` changes when it changes again; a claim keeps other workers away until it ends.

    `noted_at` is when it was put in, and stays when it changes again: since then the index does not know its newest state.
    """

    __tablename__ = "atlas_embedding_backlog"
    __table_args__ = (
        PrimaryKeyConstraint("collection", "tenant_id", "conversation_id", "sequence"),
        Index("ix_atlas_embedding_backlog_claims", "collection", "claimed_until"),
        {"sqlite_with_rowid": False},
    )

    collection: Mapped[str] = mapped_column(Identifier)
    tenant_id: Mapped[str] = mapped_column(Identifier)
    conversation_id: Mapped[str] = mapped_column(Identifier)
    sequence: Mapped[int] = mapped_column(BigInteger)
    mark: Mapped[int] = mapped_column(BigInteger, nullable=False)
    attempts: Mapped[int] = mapped_column(BigInteger, nullable=False)
    claimed_by: Mapped[Optional[str]] = mapped_column(Identifier)
    claimed_until: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    noted_at: Mapped[datetime] = mapped_column(UtcDateTime, server_default=utc_now(), nullable=False)


#: What a migration creates.
TABLES: List[Any] = [EmbeddingIndexRow.__table__, EmbeddingBacklogRow.__table__]

_INTO = (
    "INSERT INTO atlas_embedding_backlog (collection, tenant_id, conversation_id, sequence, mark, attempts)"
    " SELECT i.collection, {row}.tenant_id, {row}.conversation_id, {row}.sequence, 1, 0"
    " FROM {source} WHERE {condition}"
    " ON CONFLICT (collection, tenant_id, conversation_id, sequence) DO UPDATE"
    " SET mark = atlas_embedding_backlog.mark + 1"
)
_SHOWN = "{row}.deleted_at IS NULL AND {row}.status <> 'streaming'"
_CHANGED = f"({_SHOWN.format(row='old')}) OR ({_SHOWN.format(row='new')})"
_COLUMNS = "content, search_text, name, role, status, created_at, deleted_at"

_SQLITE = "CREATE TRIGGER IF NOT EXISTS atlas_embedding_{name} AFTER {event} ON atlas_messages WHEN {when} BEGIN {into}; END"
_SQLITE_NEW = _INTO.format(row="new", source="atlas_embedding_indexes i", condition="true")
_SQLITE_OLD = _INTO.format(row="old", source="atlas_embedding_indexes i", condition="true")

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
    if tables:
        # in the order of their keys, so that two statements never wait for each other in a circle
        condition = _SHOWN.format(row=row) if name == "add" else "true"
        source = f"{row} CROSS JOIN atlas_embedding_indexes i"
        into = _INTO.format(
            row=row, source=source, condition=condition + f" ORDER BY 1, 2, 3, {row}.sequence"
        )
    else:
        into = _INTO.format(row=row, source="atlas_embedding_indexes i", condition="true")
    return [
        _FUNCTION.format(name=name, into=into),
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

"""Tables of the outbox: which keys are dirty, the home rows of what lives elsewhere, and the keys of applied units.

`atlas_outbox` holds one row for each key of each target that was ever staged and not purged since. The row says *which*
key is dirty and from which version on (`applied` < `version`), never what the change was: whoever works it off reads the
state as it is then. So changes coalesce by themselves, a key is in order by itself, and what waits behind a parked key
waits in the same row. A subscriber is a target too: `atlas_outbox_subscribers` says who wants the changes of a topic. And so
is an index of meaning: the triggers of `modules.conversation_store.backlog_models` put in which messages it does not know.

`atlas_staged` is the home of documents whose place is another store: their newest state, a tombstone when they are gone.

`atlas_units` remembers units of work that were given a key, and their result.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, List, Optional

from sqlalchemy import BigInteger, Index, LargeBinary, PrimaryKeyConstraint, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import UtcDateTime
from modules.storage.schema import Base, Identifier

__all__ = ["TABLES", "OutboxRow", "ReconciliationRow", "StagedRow", "SubscriberRow", "UnitRow"]


class OutboxRow(Base):
    """A key of a target. `state` is pending, parked or done.

    `version` grows with every change of the key and never begins again while the row is there; without one from the
    caller it is the time in microseconds, so that it grows beyond a purge too. `applied` is the last version that the
    target has. `available_at` is when a relay may take the row: later than now while it is claimed or put off. `fence`
    grows with every claim: who comes back with an older one was overtaken.
    """

    __tablename__ = "atlas_outbox"
    __table_args__ = (
        PrimaryKeyConstraint("tenant_id", "target", "kind", "key"),
        # Not led by the tenant: relays work for all tenants, oldest first.
        Index(
            "ix_atlas_outbox_pending",
            "target",
            "available_at",
            sqlite_where=text("state = 'pending'"),
            postgresql_where=text("state = 'pending'"),
        ),
        Index(
            "ix_atlas_outbox_parked",
            "target",
            "staged_at",
            sqlite_where=text("state = 'parked'"),
            postgresql_where=text("state = 'parked'"),
        ),
        Index(
            "ix_atlas_outbox_done",
            "available_at",
            sqlite_where=text("state = 'done'"),
            postgresql_where=text("state = 'done'"),
        ),
    )

    tenant_id: Mapped[str] = mapped_column(Identifier)
    target: Mapped[str] = mapped_column(Identifier)
    kind: Mapped[str] = mapped_column(Identifier)
    key: Mapped[str] = mapped_column(Identifier)
    state: Mapped[str] = mapped_column(Identifier, nullable=False)
    version: Mapped[int] = mapped_column(BigInteger, nullable=False)
    applied: Mapped[int] = mapped_column(BigInteger, nullable=False)
    attempts: Mapped[int] = mapped_column(BigInteger, nullable=False)
    fence: Mapped[int] = mapped_column(BigInteger, nullable=False)
    staged_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    available_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    claimed_by: Mapped[Optional[str]] = mapped_column(Identifier)
    error: Mapped[Optional[str]] = mapped_column(Text)
    payload: Mapped[Optional[str]] = mapped_column(Text)


class SubscriberRow(Base):
    """Who gets the changes of a topic, from when the row was there; `target` is the name of its rows in the outbox."""

    __tablename__ = "atlas_outbox_subscribers"
    __table_args__ = (PrimaryKeyConstraint("topic", "target"), {"sqlite_with_rowid": False})

    topic: Mapped[str] = mapped_column(Identifier)
    target: Mapped[str] = mapped_column(Identifier)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class StagedRow(Base):
    """A document of another store as it ought to be there. The row with an empty `id` is the collection itself."""

    __tablename__ = "atlas_staged"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "target", "collection", "namespace", "id"),)

    tenant_id: Mapped[str] = mapped_column(Identifier)
    target: Mapped[str] = mapped_column(Identifier)
    collection: Mapped[str] = mapped_column(Identifier)
    namespace: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    version: Mapped[int] = mapped_column(BigInteger, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    deleted: Mapped[int] = mapped_column(BigInteger, nullable=False)
    digest: Mapped[str] = mapped_column(Identifier, nullable=False)
    body: Mapped[Optional[str]] = mapped_column(Text)
    vector: Mapped[Optional[bytes]] = mapped_column(LargeBinary)


class UnitRow(Base):
    """A unit of work that was given a key: it is there if and only if the unit was committed."""

    __tablename__ = "atlas_units"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "key"), Index(None, "created_at"))

    tenant_id: Mapped[str] = mapped_column(Identifier)
    key: Mapped[str] = mapped_column(Identifier)
    digest: Mapped[str] = mapped_column(Identifier, nullable=False)
    result: Mapped[Optional[str]] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


class ReconciliationRow(Base):
    """How far a comparison with a target has come, so that it can be taken up again."""

    __tablename__ = "atlas_reconciliations"
    __table_args__ = (PrimaryKeyConstraint("target"),)

    target: Mapped[str] = mapped_column(Identifier)
    progress: Mapped[str] = mapped_column(Text, nullable=False)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)


#: What a migration creates.
TABLES: List[Any] = [
    OutboxRow.__table__,
    SubscriberRow.__table__,
    StagedRow.__table__,
    UnitRow.__table__,
    ReconciliationRow.__table__,
]

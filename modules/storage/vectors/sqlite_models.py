"""Tables of the embedded vector store.

Every write of a collection takes the next number of its counter `changes`, in the same transaction, and stamps it on the
rows it writes. So a process that has seen number n asks for the rows above n and knows that it has everything. What was
deleted is told by tombstones; when they grow many they are dropped, and `changes_known` says below which number they are
missing: who has seen less loads anew.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, List, Optional

from sqlalchemy import BigInteger, Index, LargeBinary, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import FreeText, JsonValue, UtcDateTime
from modules.storage.schema import Base, Identifier

__all__ = ["TABLES", "VectorCollectionRow", "VectorRow", "VectorTombstoneRow"]


class VectorCollectionRow(Base):
    """A collection. `collection_id` is random and never used again, so that a cache never mistakes a successor."""

    __tablename__ = "atlas_vector_collections"

    tenant_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    name: Mapped[str] = mapped_column(Identifier, primary_key=True)
    collection_id: Mapped[int] = mapped_column(BigInteger, nullable=False)
    dimension: Mapped[int] = mapped_column(BigInteger, nullable=False)
    metric: Mapped[str] = mapped_column(Identifier, nullable=False)
    details: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    changes: Mapped[int] = mapped_column(BigInteger, nullable=False)
    changes_known: Mapped[int] = mapped_column(BigInteger, nullable=False)
    tombstones: Mapped[int] = mapped_column(BigInteger, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)

    __table_args__ = (UniqueConstraint("tenant_id", "collection_id"),)


class VectorRow(Base):
    """A document. `vector` is little-endian float32; it stands last, so that a scan of the metadata can skip it."""

    __tablename__ = "atlas_vectors"

    tenant_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    collection_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    namespace: Mapped[str] = mapped_column(Identifier, primary_key=True)
    id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    change: Mapped[int] = mapped_column(BigInteger, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    details: Mapped[Any] = mapped_column("metadata", JsonValue, nullable=False)
    content: Mapped[Optional[str]] = mapped_column(FreeText, nullable=True)
    vector: Mapped[bytes] = mapped_column(LargeBinary, nullable=False)

    __table_args__ = (Index(None, "tenant_id", "collection_id", "namespace", "change", "id"),)


class VectorTombstoneRow(Base):
    """A document that is gone, for the caches that still hold it."""

    __tablename__ = "atlas_vector_tombstones"

    tenant_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    collection_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    namespace: Mapped[str] = mapped_column(Identifier, primary_key=True)
    change: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(Identifier, primary_key=True)


#: What a migration creates; there is no other DDL.
TABLES: List[Any] = [VectorCollectionRow.__table__, VectorRow.__table__, VectorTombstoneRow.__table__]

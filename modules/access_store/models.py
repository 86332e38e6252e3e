"""Table of the API tokens. A token itself is nowhere: the row holds its SHA-256."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Optional

from sqlalchemy import PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import JsonValue, UtcDateTime
from modules.storage.schema import Base, Identifier

__all__ = ["ApiTokenRow"]


class ApiTokenRow(Base):
    """A token. `tenant_id` is the tenant it is bound to; `other_tenants` those it may name besides."""

    __tablename__ = "atlas_api_tokens"
    __table_args__ = (PrimaryKeyConstraint("tenant_id", "id"), UniqueConstraint("tenant_id", "digest"))

    tenant_id: Mapped[str] = mapped_column(Identifier)
    id: Mapped[str] = mapped_column(Identifier)
    digest: Mapped[str] = mapped_column(Identifier)
    name: Mapped[str] = mapped_column(Identifier)
    scopes: Mapped[Any] = mapped_column(JsonValue)
    other_tenants: Mapped[Any] = mapped_column(JsonValue)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    last_used_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)
    revoked_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime)

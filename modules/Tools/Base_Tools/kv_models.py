"""Tables of the key-value store, and the triggers that keep its accounts.

`atlas_kv_usage` has a row only for what some process limits: a namespace, or (under the empty name, which no caller can
use) a whole tenant. Triggers keep an existing row in step with every change of the entries, whoever makes it, so that
processes with other settings cannot make it drift. Without quotas the table is empty and the triggers stop at once.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional

from sqlalchemy import BigInteger, CheckConstraint, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from modules.storage.columns import JsonValue, UtcDateTime
from modules.storage.schema import Base, Identifier

__all__ = ["ACCOUNT_LOCK", "DIALECT_DDL", "TOTAL", "KeyValueRow", "KeyValueUsageRow"]

#: Under this name stands the account of a tenant's total; a namespace's own name is never empty.
TOTAL = ""


class KeyValueRow(Base):
    """An entry. Exactly one of `value_json` and `value_bytes` is set; JSON null is the text "null"."""

    __tablename__ = "atlas_kv_entries"

    tenant_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    namespace: Mapped[str] = mapped_column(Identifier, primary_key=True)
    key: Mapped[str] = mapped_column(Identifier, primary_key=True)
    value_json: Mapped[Optional[Any]] = mapped_column(JsonValue, nullable=True)
    value_bytes: Mapped[Optional[bytes]] = mapped_column(LargeBinary, nullable=True)
    version: Mapped[int] = mapped_column(BigInteger, nullable=False)
    size_bytes: Mapped[int] = mapped_column(BigInteger, nullable=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    updated_at: Mapped[datetime] = mapped_column(UtcDateTime, nullable=False)
    expires_at: Mapped[Optional[datetime]] = mapped_column(UtcDateTime, nullable=True)

    __table_args__ = (
        CheckConstraint("(value_json IS NULL) <> (value_bytes IS NULL)", name="one_value"),
        Index(
            None,
            "tenant_id",
            "expires_at",
            postgresql_where=text("expires_at IS NOT NULL"),
            sqlite_where=text("expires_at IS NOT NULL"),
        ),
    )


class KeyValueUsageRow(Base):
    """How much a namespace, or under the name `TOTAL` a tenant, holds. Expired entries count until they are removed."""

    __tablename__ = "atlas_kv_usage"

    tenant_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    namespace: Mapped[str] = mapped_column(Identifier, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger, nullable=False)
    entries: Mapped[int] = mapped_column(BigInteger, nullable=False)


# One update serves a namespace's account and the total's, in the order in which a quota's write locks them.
_SQLITE = """
CREATE TRIGGER atlas_kv_usage_{name} AFTER {event} ON atlas_kv_entries {condition}
BEGIN
  UPDATE atlas_kv_usage SET size_bytes = size_bytes + ({size}), entries = entries + ({entries})
  WHERE tenant_id = {row}.tenant_id AND namespace IN ('', {row}.namespace);
END
"""
_SQLITE_DDL = [
    _SQLITE.format(
        name="insert", event="INSERT", condition="", row="new", size="new.size_bytes", entries="1"
    ),
    _SQLITE.format(
        name="update",
        event="UPDATE OF size_bytes",
        condition="WHEN new.size_bytes <> old.size_bytes",
        row="new",
        size="new.size_bytes - old.size_bytes",
        entries="0",
    ),
    _SQLITE.format(
        name="delete", event="DELETE", condition="", row="old", size="-old.size_bytes", entries="-1"
    ),
]

#: PostgreSQL's lock on an account that does not exist; names hold no control characters, so no two accounts share a text.
ACCOUNT_LOCK = "hashtextextended({tenant} || chr(10) || {namespace}, 7067)"

# An account that does not exist is announced by a shared lock, so that who opens it waits for the writers that did not
# see it. One account after the other, in the order of `kv_quota`: so nobody waits in a circle.
_FUNCTION = """
CREATE FUNCTION atlas_kv_usage_{{name}}() RETURNS trigger LANGUAGE plpgsql AS $body$
DECLARE
  d record;
BEGIN
  IF EXISTS (SELECT 1 FROM atlas_kv_usage) THEN
    FOR d IN
      SELECT c.tenant_id, coalesce(c.namespace, '') AS namespace,
             sum(c.size_bytes) AS size_bytes, sum(c.entries) AS entries
      FROM ({{changes}}) AS c GROUP BY GROUPING SETS ((c.tenant_id, c.namespace), (c.tenant_id))
      HAVING sum(c.size_bytes) <> 0 OR sum(c.entries) <> 0
      ORDER BY 1, 2
    LOOP
      {account}
      IF NOT FOUND THEN
        PERFORM pg_advisory_xact_lock_shared({lock});
        {account}
      END IF;
    END LOOP;
  END IF;
  RETURN NULL;
END
$body$
""".format(
    lock=ACCOUNT_LOCK.format(tenant="d.tenant_id", namespace="d.namespace"),
    account="""
      UPDATE atlas_kv_usage AS u SET size_bytes = u.size_bytes + d.size_bytes, entries = u.entries + d.entries
      WHERE u.tenant_id = d.tenant_id AND u.namespace = d.namespace;
    """.strip(),
)

_TRIGGER = """
CREATE TRIGGER atlas_kv_usage_{name} AFTER {name} ON atlas_kv_entries
REFERENCING {tables} FOR EACH STATEMENT EXECUTE FUNCTION atlas_kv_usage_{name}()
"""

_ADDED = "SELECT tenant_id, namespace, size_bytes, 1 AS entries FROM added"
_REMOVED = "SELECT tenant_id, namespace, -size_bytes AS size_bytes, -1 AS entries FROM removed"
_POSTGRESQL_DDL = [
    _FUNCTION.format(name="insert", changes=_ADDED),
    _TRIGGER.format(name="insert", tables="NEW TABLE AS added"),
    _FUNCTION.format(name="update", changes=_ADDED + " UNION ALL " + _REMOVED),
    _TRIGGER.format(name="update", tables="OLD TABLE AS removed NEW TABLE AS added"),
    _FUNCTION.format(name="delete", changes=_REMOVED),
    _TRIGGER.format(name="delete", tables="OLD TABLE AS removed"),
]

#: SQL texts that `create_all` cannot say, run after it, by dialect.
DIALECT_DDL: Dict[str, List[str]] = {"sqlite": _SQLITE_DDL, "postgresql": _POSTGRESQL_DDL}

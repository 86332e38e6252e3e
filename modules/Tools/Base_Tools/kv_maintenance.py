"""Upkeep of the key-value store across tenants: for the manager, not for callers with a tenant."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete, literal_column, select, text
from sqlalchemy.types import Integer

from modules.storage.columns import utc_now
from modules.storage.operations import Executor, Transaction, write
from modules.storage.schema import Identifier
from modules.storage.statements import Statement
from modules.store_common.errors import InvalidValueError
from modules.Tools.Base_Tools.kv_models import KeyValueRow
from modules.Tools.Base_Tools.kv_quota import LOCK_TENANT_ACCOUNTS

__all__ = ["KeyValueMaintenance", "sweep"]

_E: Any = KeyValueRow.__table__
_TENANT = bindparam("tenant", type_=Identifier)
_LIMIT = bindparam("row_limit", type_=Integer)
_ONE = literal_column("1", Integer)
_TENANTS_PER_SWEEP = 100


def _tenants() -> Any:
    """Return the loose scan of the index on (tenant_id, expires_at): one look-up for each tenant that uses expiry."""
    of_index = select(_E.c.tenant_id).where(_E.c.expires_at.is_not(None)).order_by(_E.c.tenant_id).limit(_ONE)
    found = select(of_index.scalar_subquery().label("tenant_id")).cte("found", recursive=True)
    following = of_index.where(_E.c.tenant_id > found.c.tenant_id).scalar_subquery()
    found = found.union_all(select(following).where(found.c.tenant_id.is_not(None)))
    expired = select(_ONE).where(_E.c.tenant_id == found.c.tenant_id, _E.c.expires_at <= utc_now()).exists()
    return select(found.c.tenant_id).where(found.c.tenant_id.is_not(None), expired).limit(_LIMIT)


_EXPIRED_TENANTS = Statement(_tenants())
# Rows that someone is writing are left for the next sweep; PostgreSQL looks at the others again once it holds them.
_SWEEP = Statement(
    postgresql=text(
        "WITH doomed AS (SELECT ctid FROM atlas_kv_entries"
        " WHERE tenant_id = :tenant AND expires_at <= statement_timestamp()"
        " ORDER BY expires_at LIMIT :row_limit FOR UPDATE SKIP LOCKED)"
        " DELETE FROM atlas_kv_entries AS e USING doomed WHERE e.ctid = doomed.ctid"
    ).bindparams(_TENANT, _LIMIT),
    sqlite=delete(_E).where(
        literal_column("rowid").in_(
            select(literal_column("rowid"))
            .select_from(_E)
            .where(_E.c.tenant_id == _TENANT, _E.c.expires_at <= utc_now())
            .order_by(_E.c.expires_at)
            .limit(_LIMIT)
        )
    ),
)


@write
async def sweep(tx: Transaction, limit: int) -> int:
    """Remove up to `limit` expired entries of any tenant; return how many."""
    removed = 0
    for (tenant_id,) in await tx.all(_EXPIRED_TENANTS, row_limit=_TENANTS_PER_SWEEP):
        await tx.all(LOCK_TENANT_ACCOUNTS, tenant=tenant_id)
        removed += await tx.run(_SWEEP, tenant=tenant_id, row_limit=limit - removed)
        if removed >= limit:
            break
    return removed


class KeyValueMaintenance:
    """What the manager does in the background; has no tenant and gives no data.

    Args:
        executor: A pool's.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def sweep_expired(self, limit: int = 1000) -> int:
        """Remove expired entries of every tenant, in one transaction.

        Args:
            limit: The most to remove, 1 to 100,000.

        Returns:
            How many were removed; call again while it is `limit`.
        """
        if type(limit) is not int or not 1 <= limit <= 100_000:
            raise InvalidValueError("limit must be an int from 1 to 100,000")
        return await self._executor.run(sweep, limit)

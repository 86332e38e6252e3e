"""Quotas: limits in bytes for a namespace and for a tenant, exact under concurrency.

A write under a limit runs in one transaction: lock the accounts it counts against, write (the triggers of `kv_models`
book it), read the accounts, and fail as a whole when a limit is passed. The accounts are locked before any entry, so
that writers of one configuration never wait for each other in a circle.

The first write under a limit opens its account with the SUM of what is there. Writers that know of no limit may be at
work, and what they have not committed is not in the SUM. So on PostgreSQL every statement that changes an entry announces
the accounts that it did not find by a shared lock, and who opens one takes that lock alone. They announce themselves only
once there is any account in the database; before the very first one, `start_accounts` lets all writers finish once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Final, List, Optional, Tuple

from sqlalchemy import BigInteger, Text, and_, bindparam, delete, func, literal_column, or_, select, text
from sqlalchemy.dialects import postgresql, sqlite

from modules.storage.columns import utc_now
from modules.storage.operations import Operation, Transaction, write
from modules.storage.schema import Identifier
from modules.storage.statements import Statement
from modules.Tools.Base_Tools.kv_errors import GlobalQuotaExceededError, NamespaceQuotaExceededError
from modules.Tools.Base_Tools.kv_models import ACCOUNT_LOCK, TOTAL, KeyValueRow, KeyValueUsageRow

__all__ = ["LOCK_TENANT_ACCOUNTS", "NOT_STARTED", "Limits", "refusal", "start_accounts", "within_limits"]

_E: Any = KeyValueRow.__table__
_U: Any = KeyValueUsageRow.__table__
_TENANT = bindparam("tenant", type_=Identifier)
_SPACE = bindparam("space", type_=Identifier)
_NOBODY = literal_column("''", Identifier)
_ZERO = literal_column("0", BigInteger)
#: See `within_limits`.
NOT_STARTED: Final = object()


@dataclass(frozen=True)
class Limits:
    """Configured limits in bytes; 0 is no limit.

    Attributes:
        namespace_bytes: For each namespace of each tenant.
        total_bytes: For each tenant, over all its namespaces.
    """

    namespace_bytes: int = 0
    total_bytes: int = 0

    def __bool__(self) -> bool:
        return self.namespace_bytes > 0 or self.total_bytes > 0

    def accounts(self, namespace: str) -> Dict[str, int]:
        """Return the limit of each account that a write to `namespace` counts against."""
        limits = {namespace: self.namespace_bytes, TOTAL: self.total_bytes}
        return {name: limit for name, limit in limits.items() if limit > 0}


def _these(table: Any) -> Any:
    """Return the condition for the accounts `one` and `two` of a tenant; both may be the same name."""
    return and_(
        table.c.tenant_id == _TENANT,
        or_(
            table.c.namespace == bindparam("one", type_=Identifier),
            table.c.namespace == bindparam("two", type_=Identifier),
        ),
    )


_ACCOUNTS = select(_U.c.namespace, _U.c.size_bytes).where(_these(_U))
_READ_ACCOUNTS = Statement(_ACCOUNTS)
_OTHER = _U.alias("other")
_FOUND = select(func.count()).select_from(_OTHER).where(_these(_OTHER)).scalar_subquery()
#: Locks the accounts, or gives and locks nothing when there are not as many as `wanted`.
_LOCK_ACCOUNTS = Statement(
    _ACCOUNTS.where(bindparam("wanted", type_=BigInteger) == _FOUND)
    .order_by(_U.c.namespace)
    .with_for_update()
)
LOCK_TENANT_ACCOUNTS = Statement(
    select(_U.c.namespace).where(_U.c.tenant_id == _TENANT).order_by(_U.c.namespace).with_for_update()
)
#: Says that accounts are in use: an account of no tenant.
_MARK = Statement(
    postgresql=postgresql.insert(_U)
    .values(tenant_id=_NOBODY, namespace=_NOBODY, size_bytes=_ZERO, entries=_ZERO)
    .on_conflict_do_nothing()
)
_IS_MARKED = Statement(select(_U.c.entries).where(_U.c.tenant_id == _NOBODY, _U.c.namespace == _NOBODY))
_STOP_WRITERS = Statement(postgresql=text("LOCK TABLE atlas_kv_entries IN SHARE ROW EXCLUSIVE MODE"))
_OPEN_ALONE = Statement(
    postgresql=text(
        "SELECT pg_advisory_xact_lock(" + ACCOUNT_LOCK.format(tenant=":tenant", namespace=":space") + ")"
    )
    .bindparams(_TENANT, _SPACE)
    .columns(locked=Text)
)


def _open_account(insert: Any, *, total: bool) -> Any:
    count = select(
        _TENANT,
        _NOBODY if total else _SPACE,
        func.coalesce(func.sum(_E.c.size_bytes), _ZERO),
        func.count(),
    ).where(_E.c.tenant_id == _TENANT)
    if not total:
        count = count.where(_E.c.namespace == _SPACE)
    statement = insert(_U).from_select(["tenant_id", "namespace", "size_bytes", "entries"], count)
    return statement.on_conflict_do_nothing()


_OPEN_NAMESPACE = Statement(
    postgresql=_open_account(postgresql.insert, total=False), sqlite=_open_account(sqlite.insert, total=False)
)
_OPEN_TOTAL = Statement(
    postgresql=_open_account(postgresql.insert, total=True), sqlite=_open_account(sqlite.insert, total=True)
)
_EXPIRED = delete(_E).where(_E.c.tenant_id == _TENANT, _E.c.expires_at <= utc_now())
_PURGE_NAMESPACE = Statement(_EXPIRED.where(_E.c.namespace == _SPACE))
_PURGE_TENANT = Statement(_EXPIRED)


@write
async def within_limits(
    tx: Transaction,
    limits: Limits,
    tenant_id: str,
    namespace: str,
    operation: Operation[Any, Any],
    arguments: Tuple[Any, ...],
) -> Any:
    """Run a write of one namespace and return its result, or fail when it passes a limit.

    Returns `NOT_STARTED`, with nothing done, when `start_accounts` has to come first.

    A write that makes nothing larger is let through whatever is used: it cannot be the one that passes the limit.
    """
    accounts = limits.accounts(namespace)
    before = await _lock(tx, tenant_id, accounts)
    if before is None:
        return NOT_STARTED
    result = await operation(tx, tenant_id, namespace, *arguments)
    after = await _read(tx, tenant_id, accounts)
    needed = {name: after[name] - before[name] for name in accounts}
    if any(_passes(name, after, needed, accounts) for name in accounts):
        if _passes(TOTAL, after, needed, accounts):
            await tx.run(_PURGE_TENANT, tenant=tenant_id)
        else:
            await tx.run(_PURGE_NAMESPACE, tenant=tenant_id, space=namespace)
        after = await _read(tx, tenant_id, accounts)
        for name in accounts:
            if _passes(name, after, needed, accounts):
                raise refusal(name, accounts[name], after[name] - needed[name], needed[name])
    return result


def _passes(name: str, used: Dict[str, int], needed: Dict[str, int], limits: Dict[str, int]) -> bool:
    return name in limits and needed[name] > 0 and used[name] > limits[name]


async def _read(tx: Transaction, tenant_id: str, accounts: Dict[str, int]) -> Dict[str, int]:
    names = list(accounts)
    rows = await tx.all(_READ_ACCOUNTS, tenant=tenant_id, one=names[0], two=names[-1])
    return {row[0]: row[1] for row in rows}


async def _lock(tx: Transaction, tenant_id: str, accounts: Dict[str, int]) -> Optional[Dict[str, int]]:
    """Lock the accounts, opening those that are not there; None when `start_accounts` has to come first."""
    found = await _lock_these(tx, tenant_id, list(accounts))
    if found:
        return found
    if tx.dialect == "postgresql" and await tx.first(_IS_MARKED) is None:
        return None
    # one after the other: who holds the right to open an account waits for nothing but that account
    for name in sorted(accounts):
        row = await _lock_these(tx, tenant_id, [name])
        if not row:
            await _open(tx, tenant_id, name)
            row = await _lock_these(tx, tenant_id, [name])
        found.update(row)
    return found


async def _lock_these(tx: Transaction, tenant_id: str, names: List[str]) -> Dict[str, int]:
    rows = await tx.all(_LOCK_ACCOUNTS, tenant=tenant_id, one=names[0], two=names[-1], wanted=len(names))
    return {row[0]: row[1] for row in rows}


async def _open(tx: Transaction, tenant_id: str, name: str) -> None:
    """Open an account with what is there; on PostgreSQL after every writer that cannot have seen it has finished."""
    if tx.dialect == "postgresql":
        await tx.all(_OPEN_ALONE, tenant=tenant_id, space=name)
    if name == TOTAL:
        await tx.run(_OPEN_TOTAL, tenant=tenant_id)
    else:
        await tx.run(_OPEN_NAMESPACE, tenant=tenant_id, space=name)


@write
async def start_accounts(tx: Transaction) -> None:
    """Let every writer of this moment finish, so that all later ones see that accounts are in use. Once per database."""
    if await tx.first(_IS_MARKED) is None:
        await tx.run(_STOP_WRITERS)
        await tx.run(_MARK)


def refusal(name: str, limit: int, used: int, needed: int) -> Exception:
    """Return the error of a limit that would be passed; all in bytes."""
    amounts = (
        f"of {limit} bytes: {used} are used and this write needs {needed} more; delete something or raise"
    )
    if name == TOTAL:
        return GlobalQuotaExceededError(
            f"the tenant's limit {amounts} kv.global_quota_bytes", limit, used, needed
        )
    return NamespaceQuotaExceededError(
        f"the namespace {name!r} has a limit {amounts} kv.namespace_quota_bytes", limit, used, needed
    )

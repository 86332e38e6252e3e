"""Room: leases, for applications where only one runner at a time may write to a conversation.

A lease is three columns of the conversation's row. The fencing number grows with every acquisition and release, and
`add_message(..., lease=)` compares it at the write: a runner that slept through the end of its lease is refused, whatever
its own clock says. Times are the database's.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Union

from sqlalchemy import BigInteger, Double, bindparam, cast, literal_column, null, or_, update

from modules.conversation_store.append import Condition, refusal
from modules.conversation_store.append_statements import STATE
from modules.conversation_store.errors import (
    ConversationLeaseHeldError,
    ConversationLeaseLostError,
    ConversationNotFoundError,
)
from modules.conversation_store.models import ConversationRow
from modules.conversation_store.records import ConversationLease
from modules.storage.columns import utc_now
from modules.storage.operations import Store, Transaction, write
from modules.storage.statements import Statement
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import check_identifier

__all__ = [
    "ACQUIRE",
    "RELEASE",
    "RENEW",
    "Leases",
    "acquire",
    "after_seconds",
    "check_seconds",
    "release",
    "renew",
]

_C = ConversationRow
_MAX_SECONDS = 30 * 86_400


def check_seconds(seconds: Union[int, float], where: str) -> float:
    """Return `seconds` if it is a finite number greater than 0 and at most 30 days."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InvalidValueError(f"{where} must be a number of seconds, not {type(seconds).__name__}")
    if not math.isfinite(seconds) or not 0 < seconds <= _MAX_SECONDS:
        raise InvalidValueError(f"{where} must be more than 0 and at most {_MAX_SECONDS} seconds")
    return float(seconds)


def after_seconds(name: str, dialect: str, sign: int = 1) -> Any:
    """Return "the database's now plus the parameter `name` in seconds" (minus, for a negative `sign`)."""
    seconds = bindparam(name, type_=Double)
    if dialect == "postgresql":
        return utc_now() + sign * seconds * literal_column("interval '1 second'")
    return utc_now() + sign * cast(seconds * 1_000_000, BigInteger)


_HERE = (_C.tenant_id == bindparam("tenant_id"), _C.id == bindparam("conversation_id"))
_OWN = (*_HERE, _C.lease_owner == bindparam("owner"), _C.lease_fence == bindparam("fence"))
_GIVEN = (_C.lease_fence, _C.lease_expires_at)


def _acquire(dialect: str) -> Any:
    free = or_(
        _C.lease_owner.is_(None), _C.lease_expires_at <= utc_now(), _C.lease_owner == bindparam("owner")
    )
    return (
        update(_C)
        .where(*_HERE, _C.status == "active", free)
        .values(
            lease_owner=bindparam("owner"),
            lease_fence=_C.lease_fence + 1,
            lease_expires_at=after_seconds("seconds", dialect),
        )
        .returning(*_GIVEN)
    )


def _renew(dialect: str) -> Any:
    return (
        update(_C).where(*_OWN).values(lease_expires_at=after_seconds("seconds", dialect)).returning(*_GIVEN)
    )


ACQUIRE = Statement(sqlite=_acquire("sqlite"), postgresql=_acquire("postgresql"))
RENEW = Statement(sqlite=_renew("sqlite"), postgresql=_renew("postgresql"))
RELEASE = Statement(
    update(_C)
    .where(*_OWN)
    .values(lease_owner=null(), lease_expires_at=null(), lease_fence=_C.lease_fence + 1)
    .returning(_C.lease_fence)
)


@write(atomic=False)
async def acquire(tx: Transaction, key: Dict[str, Any], owner: str, seconds: float) -> ConversationLease:
    """Take the lease if it is free, run out, or the owner's already."""
    row = await tx.first(ACQUIRE, **key, owner=owner, seconds=seconds)
    if row is not None:
        return ConversationLease(key["conversation_id"], owner, row[0], row[1])
    state = await tx.first(STATE, **key)
    if state is not None and state[0] == "active":
        raise ConversationLeaseHeldError(key["conversation_id"])
    raise await refusal(tx, **key, condition=Condition())


@write(atomic=False)
async def renew(
    tx: Transaction, key: Dict[str, Any], lease: ConversationLease, seconds: float
) -> ConversationLease:
    """Move the end of a lease that nobody took over."""
    row = await tx.first(RENEW, **key, owner=lease.owner, fence=lease.fence, seconds=seconds)
    if row is None:
        if await tx.first(STATE, **key) is None:
            raise ConversationNotFoundError(lease.conversation_id)
        raise ConversationLeaseLostError(lease.conversation_id)
    return ConversationLease(lease.conversation_id, lease.owner, row[0], row[1])


@write(atomic=False)
async def release(tx: Transaction, key: Dict[str, Any], lease: ConversationLease) -> bool:
    """Give a lease back."""
    return await tx.first(RELEASE, **key, owner=lease.owner, fence=lease.fence) is not None


class Leases(Store):
    """Leases of conversations."""

    async def acquire_lease(
        self,
        conversation_id: str,
        owner: str,
        *,
        ttl_seconds: float = 60.0,
        tenant_id: Optional[str] = None,
    ) -> ConversationLease:
        """Take the right to write to the conversation; give it to `add_message(..., lease=)`.

        Args:
            conversation_id: Which; it must be active.
            owner: Who, unique for each runner. The same owner may take it again: its earlier lease is then void.
            ttl_seconds: How long it holds, up to 30 days, by the database's clock; `renew_lease` before that.
            tenant_id: Whose; see `TenantPolicy`.

        Raises:
            ConversationLeaseHeldError: another owner has it; retryable.
            ConversationNotFoundError, ConversationArchivedError: nobody can write to it.
        """
        key = self._lease_key(tenant_id, conversation_id)
        seconds = check_seconds(ttl_seconds, "ttl_seconds")
        return await self._executor.run(acquire, key, check_identifier(owner, "owner"), seconds)

    async def renew_lease(
        self, lease: ConversationLease, *, ttl_seconds: float = 60.0, tenant_id: Optional[str] = None
    ) -> ConversationLease:
        """Let the lease hold for another `ttl_seconds` from now.

        Raises:
            ConversationLeaseLostError: somebody took it over, or it was released.
        """
        key = self._lease_key(tenant_id, lease.conversation_id)
        return await self._executor.run(renew, key, lease, check_seconds(ttl_seconds, "ttl_seconds"))

    async def release_lease(self, lease: ConversationLease, *, tenant_id: Optional[str] = None) -> bool:
        """Give the lease back; False when it was no longer held."""
        return await self._executor.run(release, self._lease_key(tenant_id, lease.conversation_id), lease)

    def _lease_key(self, tenant_id: Optional[str], conversation_id: str) -> Dict[str, Any]:
        return {
            "tenant_id": self._tenant(tenant_id),
            "conversation_id": check_identifier(conversation_id, "conversation_id"),
        }

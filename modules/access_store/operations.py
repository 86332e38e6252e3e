"""Statements and operations of the access store."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from sqlalchemy import (
    BigInteger,
    Double,
    bindparam,
    case,
    cast,
    insert,
    literal_column,
    null,
    or_,
    select,
    update,
)

from modules.access_store.models import ApiTokenRow
from modules.access_store.records import AccessToken
from modules.storage.columns import utc_now
from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row, Statement

__all__ = [
    "ADD",
    "FIND",
    "LIST",
    "NOTE_USE",
    "REVOKE",
    "add_token",
    "find_token",
    "list_tokens",
    "note_use",
    "revoke_token",
]

_T = ApiTokenRow
_COLUMNS: List[Any] = [
    _T.id, _T.tenant_id, _T.name, _T.scopes, _T.other_tenants, _T.created_at, _T.expires_at, _T.last_used_at, _T.revoked_at,
]  # fmt: skip
# A use is written down at most this often, so that reading costs no write.
_USE_EVERY_S = 60


def _to_token(row: Row) -> AccessToken:
    return AccessToken(row[0], row[1], row[2], tuple(row[3]), tuple(row[4]), *row[5:9])


def _from_now(seconds: Any, dialect: str) -> Any:
    if dialect == "postgresql":
        return utc_now() + seconds * literal_column("interval '1 second'")
    return utc_now() + cast(seconds * 1_000_000, BigInteger)


def _add(dialect: str) -> Any:
    lifetime = bindparam("lifetime_s", type_=Double)
    values = {
        _T.tenant_id: bindparam("tenant_id"),
        _T.id: bindparam("id"),
        _T.digest: bindparam("digest"),
        _T.name: bindparam("name"),
        _T.scopes: bindparam("scopes"),
        _T.other_tenants: bindparam("other_tenants"),
        _T.created_at: utc_now(),
        _T.expires_at: case((lifetime > 0, _from_now(lifetime, dialect)), else_=null()),
    }
    return insert(_T).values(values).returning(*_COLUMNS)


ADD = Statement(sqlite=_add("sqlite"), postgresql=_add("postgresql"))
FIND = Statement(
    select(
        *_COLUMNS,
        _T.digest,
        case((_T.revoked_at.is_not(None), 2), (_T.expires_at <= utc_now(), 1), else_=0).label("ended"),
    ).where(_T.tenant_id == bindparam("tenant_id"), _T.digest == bindparam("digest"))
)
LIST = Statement(
    select(*_COLUMNS)
    .where(_T.tenant_id == bindparam("tenant_id"), _T.id > bindparam("after"))
    .order_by(_T.id)
    .limit(bindparam("limit", type_=BigInteger))
)
_HERE = (_T.tenant_id == bindparam("tenant_id"), _T.id == bindparam("id"))
REVOKE = Statement(
    update(_T)
    .where(*_HERE)
    .values(revoked_at=case((_T.revoked_at.is_(None), utc_now()), else_=_T.revoked_at))
    .returning(*_COLUMNS)
)


def _note_use(dialect: str) -> Any:
    due = or_(
        _T.last_used_at.is_(None), _T.last_used_at <= _from_now(literal_column(f"-{_USE_EVERY_S:d}"), dialect)
    )
    return update(_T).where(*_HERE, due).values(last_used_at=utc_now())


NOTE_USE = Statement(sqlite=_note_use("sqlite"), postgresql=_note_use("postgresql"))


@write(atomic=False)
async def add_token(tx: Transaction, values: Dict[str, Any]) -> AccessToken:
    """Add a token."""
    return _to_token(await tx.one(ADD, **values))


@read
async def find_token(tx: Transaction, tenant_id: str, digest: str) -> Optional[Row]:
    """Return (token, digest, 0 valid | 1 expired | 2 revoked) of a digest, None when there is none."""
    row = await tx.first(FIND, tenant_id=tenant_id, digest=digest)
    return None if row is None else (_to_token(row), row[9], row[10])


@read
async def list_tokens(tx: Transaction, tenant_id: str, after: str, limit: int) -> List[AccessToken]:
    """Return tokens by id."""
    return [_to_token(row) for row in await tx.all(LIST, tenant_id=tenant_id, after=after, limit=limit)]


@write(atomic=False)
async def revoke_token(tx: Transaction, tenant_id: str, token_id: str) -> Optional[AccessToken]:
    """Revoke a token and return it, None when there is none."""
    row = await tx.first(REVOKE, tenant_id=tenant_id, id=token_id)
    return None if row is None else _to_token(row)


@write(atomic=False)
async def note_use(tx: Transaction, tenant_id: str, token_id: str) -> bool:
    """Write down that a token was used, unless that was done within the last minute."""
    return await tx.run(NOTE_USE, tenant_id=tenant_id, id=token_id) == 1

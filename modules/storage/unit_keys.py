"""The keys of units of work: a unit with a key is done once, and who asks again gets the first result.

The key's row is the unit's first write. It is there if and only if the unit was committed: two units with one key wait for
each other in the database, and whether a unit whose COMMIT got no answer was applied is read from it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Optional

from sqlalchemy import BigInteger, Double, String, Text, bindparam, text

from modules.storage.columns import NOW_SQLITE
from modules.storage.operations import Transaction, write
from modules.storage.statements import Statement
from modules.store_common.errors import IdempotencyConflictError
from modules.store_common.values import check_identifier, decode_json, encode_json

__all__ = ["UnitKey", "UnitRecord", "enter_key", "keep_result", "make_key", "probe_key", "purge_keys"]

_THIS = (bindparam("tenant_id", type_=String()), bindparam("key", type_=String()))
_ENTER_TEXT = (
    "INSERT INTO atlas_units (tenant_id, key, digest, created_at) VALUES (:tenant_id, :key, :digest, {now})"
    " ON CONFLICT (tenant_id, key) DO NOTHING"
)
_ENTERING = (*_THIS, bindparam("digest", type_=String()))
_ENTER = Statement(
    sqlite=text(_ENTER_TEXT.format(now=NOW_SQLITE)).bindparams(*_ENTERING),
    postgresql=text(_ENTER_TEXT.format(now="statement_timestamp()")).bindparams(*_ENTERING),
)
_FIND = Statement(
    text("SELECT digest, result FROM atlas_units WHERE tenant_id = :tenant_id AND key = :key")
    .bindparams(*_THIS)
    .columns(digest=String, result=Text)
)
_RESULT = Statement(
    text("UPDATE atlas_units SET result = :result WHERE tenant_id = :tenant_id AND key = :key").bindparams(
        *_THIS, bindparam("result", type_=Text())
    )
)
_PURGE_TEXT = (
    "DELETE FROM atlas_units WHERE (tenant_id, key) IN (SELECT tenant_id, key FROM atlas_units"
    " WHERE created_at <= {before} ORDER BY created_at LIMIT :limit)"
)
_PURGING: Any = (bindparam("seconds", type_=Double()), bindparam("limit", type_=BigInteger))
_PURGE = Statement(
    sqlite=text(_PURGE_TEXT.format(before=NOW_SQLITE + " - CAST(:seconds * 1000000 AS INTEGER)")).bindparams(
        *_PURGING
    ),
    postgresql=text(
        _PURGE_TEXT.format(before="statement_timestamp() - make_interval(secs => :seconds)")
    ).bindparams(*_PURGING),
)


@dataclass(frozen=True)
class UnitKey:
    """The key of a unit: whose, which, and what the unit was asked to do, as a digest."""

    tenant_id: str
    key: str
    digest: str


@dataclass(frozen=True)
class UnitRecord:
    """A unit with this key that was committed.

    Attributes:
        digest: Of its body.
        result: What `set_result` was given; None when it was not.
    """

    digest: str
    result: Any


def make_key(tenant_id: str, key: str, body: Any) -> UnitKey:
    """Return the key of a unit; `body` is a JSON value.

    Raises:
        InvalidValueError: the key or the body breaks the value contract.
    """
    digest = hashlib.blake2b(encode_json(body, "the body").encode(), digest_size=16).hexdigest()
    return UnitKey(tenant_id, check_identifier(key, "the key of a unit of work"), digest)


@write
async def enter_key(tx: Transaction, key: UnitKey) -> Optional[UnitRecord]:
    """Take the key; returns None, or what it was used for before. Waits while another unit holds it.

    Raises:
        IdempotencyConflictError: it was used with another body.
    """
    if await tx.run(_ENTER, tenant_id=key.tenant_id, key=key.key, digest=key.digest):
        return None
    row = await tx.one(_FIND, tenant_id=key.tenant_id, key=key.key)
    if row[0] != key.digest:
        raise IdempotencyConflictError(
            "this key was used by a unit of work with another body; a key stands for one request"
        )
    return _record(row)


@write
async def probe_key(tx: Transaction, tenant_id: str, key: str) -> Optional[UnitRecord]:
    """Say for certain whether a unit with this key was committed: waits for one that may still be. Roll it back."""
    if await tx.run(_ENTER, tenant_id=tenant_id, key=key, digest=""):
        return None
    return _record(await tx.one(_FIND, tenant_id=tenant_id, key=key))


def _record(row: Any) -> UnitRecord:
    return UnitRecord(row[0], None if row[1] is None else decode_json(row[1]))


@write
async def keep_result(tx: Transaction, key: UnitKey, result: str) -> None:
    """Keep the unit's result, JSON text made by `encode_json`."""
    await tx.run(_RESULT, tenant_id=key.tenant_id, key=key.key, result=result)


@write
async def purge_keys(tx: Transaction, older_than_s: float, limit: int) -> int:
    """Forget up to `limit` keys that are older; returns how many."""
    return await tx.run(_PURGE, seconds=older_than_s, limit=limit)

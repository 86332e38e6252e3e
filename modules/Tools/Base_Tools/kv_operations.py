"""Operations of the key-value store: what it does inside a transaction. Values come in checked and encoded.

A row of an entry is (key, value_json, value_bytes, version, size_bytes, created_at, updated_at, expires_at).
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Sequence, Tuple

import orjson

from modules.storage.operations import Transaction, read, write
from modules.storage.statements import Row
from modules.store_common.errors import ConcurrencyError
from modules.Tools.Base_Tools import kv_statements as sql
from modules.Tools.Base_Tools.kv_arguments import fits_integer
from modules.Tools.Base_Tools.kv_errors import CounterOverflowError, InvalidValueTypeError
from modules.Tools.Base_Tools.kv_records import EncodedValue

__all__ = [
    "check_countable",
    "clear_part",
    "comparable",
    "compare_and_set",
    "count_up",
    "delete_entry",
    "delete_version",
    "exists",
    "get_entry",
    "get_many",
    "get_value",
    "list_entries",
    "list_namespaces",
    "replace_version",
    "set_absent",
    "set_entry",
    "set_many",
    "set_version",
    "time_to_live",
    "touch",
    "wrong_version",
]

_MAX_INTEGER = 2**63 - 1
_MIN_INTEGER = -(2**63)
# How often a change by others between a refused write and the look at its reason is taken as a reason to try again.
_ATTEMPTS = 20
_ROWS_PER_STATEMENT = 1000


def _one_namespace(tenants: Sequence[str], spaces: Sequence[str]) -> bool:
    return tenants.count(tenants[0]) == len(tenants) and spaces.count(spaces[0]) == len(spaces)


async def _get_batch(tx: Transaction, calls: Sequence[Tuple[Any, ...]]) -> Sequence[Optional[Row]]:
    tenants, spaces, names = zip(*calls)
    arrays = tx.dialect == "postgresql"
    first = 1 if arrays else 0
    if _one_namespace(tenants, spaces):
        wanted: Any = names if arrays else orjson.dumps(names).decode()
        rows = await tx.all(sql.GET_BATCH_OF_ONE, tenant=tenants[0], space=spaces[0], names=wanted)
    elif arrays:
        rows = await tx.all(sql.GET_BATCH, tenants=tenants, spaces=spaces, names=names)
    else:
        rows = await tx.all(sql.GET_BATCH, wanted=orjson.dumps(calls).decode())
    results: List[Optional[Row]] = [None] * len(calls)
    for position, value, data in rows:
        results[position - first] = (value, data)
    return results


@read(batch=_get_batch)
async def get_value(tx: Transaction, tenant_id: str, namespace: str, key: str) -> Optional[Row]:
    """Return (JSON value, None) or (None, bytes) of the live entry; None without one."""
    return await tx.first(sql.GET, tenant=tenant_id, space=namespace, name=key)


@read
async def get_entry(tx: Transaction, tenant_id: str, namespace: str, key: str) -> Optional[Row]:
    """Return the row of the live entry, None without one."""
    return await tx.first(sql.GET_ENTRY, tenant=tenant_id, space=namespace, name=key)


@read
async def exists(tx: Transaction, tenant_id: str, namespace: str, key: str) -> bool:
    """Return whether there is a live entry."""
    return await tx.first(sql.EXISTS, tenant=tenant_id, space=namespace, name=key) is not None


@read
async def time_to_live(tx: Transaction, tenant_id: str, namespace: str, key: str) -> Optional[Row]:
    """Return (expires_at, now) of the live entry, both by the database's clock; None without one."""
    return await tx.first(sql.TTL, tenant=tenant_id, space=namespace, name=key)


@read
async def get_many(tx: Transaction, tenant_id: str, namespace: str, keys: List[str]) -> List[Row]:
    """Return (key, JSON value, bytes) of those live entries."""
    names: Any = keys if tx.dialect == "postgresql" else orjson.dumps(keys).decode()
    return await tx.all(sql.GET_MANY, tenant=tenant_id, space=namespace, names=names)


@read
async def list_entries(
    tx: Transaction,
    tenant_id: str,
    namespace: str,
    start: str,
    upper: Optional[str],
    inclusive: bool,
    limit: int,
) -> List[Row]:
    """Return the rows of live entries from `start` (or after it), below `upper` if there is one, by key."""
    where: Dict[str, Any] = {"tenant": tenant_id, "space": namespace, "after": start, "row_limit": limit}
    if upper is None:
        return await tx.all(sql.LIST_FROM if inclusive else sql.LIST_AFTER, **where)
    return await tx.all(sql.LIST_FROM_BELOW if inclusive else sql.LIST_AFTER_BELOW, upper=upper, **where)


@read
async def list_namespaces(tx: Transaction, tenant_id: str, after: str, limit: int) -> List[str]:
    """Return the namespaces of live entries that come after `after`."""
    return [
        row[0] for row in await tx.all(sql.LIST_NAMESPACES, tenant=tenant_id, after=after, row_limit=limit)
    ]


def _one_entry(tenant_id: str, namespace: str, key: str, *_: Any) -> Tuple[str, str, str]:
    return (tenant_id, namespace, key)


async def _set_batch(tx: Transaction, calls: Sequence[Tuple[Any, ...]]) -> Sequence[Any]:
    """Write many entries of different keys together, and return their versions."""
    if tx.dialect == "sqlite":
        await tx.run_many(sql.SET_QUIETLY, [_entry_parameters(*call) for call in calls])
        return await _versions(tx, *zip(*[call[:3] for call in calls]))
    rows = sorted(calls)
    tenants, spaces, names, values, ttls = zip(*rows)
    texts, datas, sizes = zip(*values)
    written = await tx.all(
        sql.SET_BATCH,
        tenants=tenants,
        spaces=spaces,
        names=names,
        texts=texts,
        datas=datas,
        sizes=[size + len(name.encode()) for size, name in zip(sizes, names)],
        ttls=ttls,
    )
    versions = {(tenant, space, name): version for tenant, space, name, version in written}
    return [versions[call[:3]] for call in calls]


async def _versions(
    tx: Transaction, tenants: Sequence[str], spaces: Sequence[str], names: Sequence[str]
) -> Sequence[int]:
    """Return the versions of entries that were just written, expired or not (SQLite)."""
    if _one_namespace(tenants, spaces):
        rows = await tx.all(
            sql.VERSIONS_OF_ONE, tenant=tenants[0], space=spaces[0], names=orjson.dumps(names).decode()
        )
    else:
        rows = await tx.all(sql.VERSIONS, wanted=orjson.dumps(list(zip(tenants, spaces, names))).decode())
    return [version for _, version in rows]


def _entry_parameters(
    tenant_id: str, namespace: str, key: str, value: EncodedValue, ttl_us: Optional[int]
) -> Dict[str, Any]:
    text, data, size = value
    return {
        "tenant": tenant_id,
        "space": namespace,
        "name": key,
        "text": text,
        "data": data,
        "size": size + len(key.encode()),
        "ttl_us": ttl_us,
    }


@write(atomic=False, batch=_set_batch, conflict_key=_one_entry)
async def set_entry(
    tx: Transaction, tenant_id: str, namespace: str, key: str, value: EncodedValue, ttl_us: Optional[int]
) -> int:
    """Write the entry whatever is there, and return its version."""
    row = await tx.one(sql.SET, **_entry_parameters(tenant_id, namespace, key, value, ttl_us))
    return int(row[0])


@write(atomic=False)
async def set_absent(
    tx: Transaction, tenant_id: str, namespace: str, key: str, value: EncodedValue, ttl_us: Optional[int]
) -> int:
    """Write the entry if none is live; return 1, or 0 if one was."""
    row = await tx.first(sql.SET_ABSENT, **_entry_parameters(tenant_id, namespace, key, value, ttl_us))
    return 0 if row is None else 1


@write(atomic=False)
async def set_version(
    tx: Transaction,
    tenant_id: str,
    namespace: str,
    key: str,
    value: EncodedValue,
    ttl_us: Optional[int],
    expected: int,
) -> int:
    """Write the entry if it has the `expected` version (0: if none is live), and return the new one."""
    parameters = _entry_parameters(tenant_id, namespace, key, value, ttl_us)
    if expected == 0:
        row = await tx.first(sql.SET_ABSENT, **parameters)
    else:
        row = await tx.first(sql.SET_VERSION, expected=expected, **parameters)
    if row is None:
        raise await _wrong_version(tx, tenant_id, namespace, key, expected)
    return int(row[0])


@write(atomic=False)
async def replace_version(
    tx: Transaction,
    tenant_id: str,
    namespace: str,
    key: str,
    value: EncodedValue,
    ttl_us: Optional[int],
    expected: int,
) -> int:
    """Write the entry if it has the `expected` version; return the new one, 0 if it has another or is not there."""
    parameters = _entry_parameters(tenant_id, namespace, key, value, ttl_us)
    row = await tx.first(sql.SET_VERSION, expected=expected, **parameters)
    return 0 if row is None else int(row[0])


async def _wrong_version(
    tx: Transaction, tenant_id: str, namespace: str, key: str, expected: int
) -> ConcurrencyError:
    found = await tx.first(sql.EXISTS, tenant=tenant_id, space=namespace, name=key)
    return wrong_version(namespace, key, expected, 0 if found is None else int(found[0]))


def wrong_version(namespace: str, key: str, expected: int, actual: int) -> ConcurrencyError:
    """Return the error of a version that is not the expected one; 0 means that there is no entry."""
    return ConcurrencyError(
        f"the key {key!r} of namespace {namespace!r} has version {actual} and not the expected {expected}"
        " (0 means that it does not exist); read it again and decide",
        expected,
        actual,
    )


@write
async def set_many(
    tx: Transaction,
    tenant_id: str,
    namespace: str,
    items: List[Tuple[str, EncodedValue]],
    ttl_us: Optional[int],
) -> int:
    """Write all entries, whatever is there, and return how many."""
    for start in range(0, len(items), _ROWS_PER_STATEMENT):
        part = items[start : start + _ROWS_PER_STATEMENT]
        if tx.dialect == "postgresql":
            await tx.run(
                sql.SET_BATCH_QUIETLY,
                tenants=[tenant_id] * len(part),
                spaces=[namespace] * len(part),
                names=[key for key, _ in part],
                texts=[value.text for _, value in part],
                datas=[value.data for _, value in part],
                sizes=[value.size_bytes + len(key.encode()) for key, value in part],
                ttls=[ttl_us] * len(part),
            )
        else:
            await tx.run_many(
                sql.SET_QUIETLY,
                [_entry_parameters(tenant_id, namespace, key, value, ttl_us) for key, value in part],
            )
    return len(items)


@write(atomic=False)
async def delete_entry(tx: Transaction, tenant_id: str, namespace: str, key: str) -> bool:
    """Remove the entry; return whether a live one was there."""
    row = await tx.first(sql.DELETE, tenant=tenant_id, space=namespace, name=key)
    return row is not None and (row[0] is None or row[0] > row[1])


@write(atomic=False)
async def delete_version(tx: Transaction, tenant_id: str, namespace: str, key: str, expected: int) -> bool:
    """Remove the entry if it has the `expected` version."""
    row = await tx.first(sql.DELETE_VERSION, tenant=tenant_id, space=namespace, name=key, expected=expected)
    if row is None:
        raise await _wrong_version(tx, tenant_id, namespace, key, expected)
    return True


@write(atomic=False)
async def touch(tx: Transaction, tenant_id: str, namespace: str, key: str, ttl_us: Optional[int]) -> bool:
    """Give the live entry a new time to live (None: for ever); return whether there is one."""
    row = await tx.first(sql.TOUCH, tenant=tenant_id, space=namespace, name=key, ttl_us=ttl_us)
    return row is not None


@write
async def compare_and_set(
    tx: Transaction,
    tenant_id: str,
    namespace: str,
    key: str,
    expected: Tuple[Optional[bytes], Optional[bytes]],
    value: EncodedValue,
    ttl_us: Optional[int],
    expected_version: Optional[int],
) -> int:
    """Write the entry if its value is the `expected` one (see `comparable`); return its version, 0 if it is not."""
    row = await tx.first(sql.LOCK_ENTRY, tenant=tenant_id, space=namespace, name=key)
    if row is None or comparable(row[1], row[2]) != expected or expected_version not in (None, row[3]):
        return 0
    parameters = _entry_parameters(tenant_id, namespace, key, value, ttl_us)
    changed = await tx.first(sql.SET_VERSION, expected=row[3], **parameters)
    return 0 if changed is None else int(changed[0])


def comparable(value: Any, data: Optional[bytes]) -> Tuple[Optional[bytes], Optional[bytes]]:
    """Return a form of a stored value that is equal for equal JSON: key order does not matter, 1, 1.0 and true differ."""
    return (None, data) if data is not None else (orjson.dumps(value, option=orjson.OPT_SORT_KEYS), None)


@write(atomic=False)
async def count_up(
    tx: Transaction,
    tenant_id: str,
    namespace: str,
    key: str,
    amount: int,
    initial: int,
    ttl_us: Optional[int],
) -> int:
    """Add `amount` to the integer stored (to `initial` when there is none) and return the sum."""
    text = str(initial + amount)
    size = len(key.encode())
    for _ in range(_ATTEMPTS):
        row = await tx.first(
            sql.INCREMENT,
            tenant=tenant_id,
            space=namespace,
            name=key,
            text=text,
            data=None,
            size=size + len(text),
            key_size=size,
            ttl_us=ttl_us,
            amount=amount,
            low=_MIN_INTEGER - min(amount, 0),
            high=_MAX_INTEGER - max(amount, 0),
        )
        if row is not None:
            return int(row[0])
        await _explain_refusal(tx, tenant_id, namespace, key, amount)
    raise ConcurrencyError(f"the key {key!r} of namespace {namespace!r} kept changing its type; try again")


async def _explain_refusal(tx: Transaction, tenant_id: str, namespace: str, key: str, amount: int) -> None:
    """Raise for the reason why an increment was refused; return if it is gone by now."""
    found = await tx.first(sql.GET, tenant=tenant_id, space=namespace, name=key)
    if found is None:
        return
    check_countable(namespace, key, found[0], found[1], amount)


def check_countable(namespace: str, key: str, value: Any, data: Optional[bytes], amount: int) -> None:
    """Raise unless `amount` can be added to what is stored."""
    if type(value) is not int or data is not None:
        kind = "bytes" if data is not None else type(value).__name__
        raise InvalidValueTypeError(
            f"the key {key!r} of namespace {namespace!r} holds a value of type {kind}; only an int can be incremented"
        )
    if not fits_integer(value + amount):
        raise CounterOverflowError(
            f"the key {key!r} of namespace {namespace!r} would leave 64 signed bits; it was not changed"
        )


@write
async def clear_part(
    tx: Transaction, tenant_id: str, namespace: str, after: str, batch_size: int
) -> Tuple[int, Optional[str]]:
    """Remove up to `batch_size` entries that come after `after`; return how many were live, and where to go on."""
    where = {"tenant": tenant_id, "space": namespace, "after": after}
    bound = await tx.first(sql.CLEAR_BOUND, skip=batch_size - 1, **where)
    if bound is None:
        await tx.run(sql.CLEAR_REST_EXPIRED, **where)
        return await tx.run(sql.CLEAR_REST, **where), None
    await tx.run(sql.CLEAR_EXPIRED, upper=bound[0], **where)
    return await tx.run(sql.CLEAR, upper=bound[0], **where), bound[0]

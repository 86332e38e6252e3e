"""The key-value store in MongoDB: the forms of its operations over documents. `KeyValueStore` itself is the same class.

Every write is one conditional change of the entry's document (see `kv_mongo_documents`). What writes more than one is in
`kv_mongo_many`.
"""

from __future__ import annotations

import random
from typing import Any, Dict, Hashable, List, Optional, Tuple

from modules.storage.documents import (
    NEVER,
    SEPARATOR,
    Document,
    Documents,
    Tries,
    key_of,
)
from modules.storage.statements import Row
from modules.store_common.clock import from_microseconds
from modules.store_common.errors import AlreadyExistsError, ConcurrencyError
from modules.store_common.values import JsonText, encode_json
from modules.Tools.Base_Tools import kv_operations as op
from modules.Tools.Base_Tools.kv_arguments import fits_integer
from modules.Tools.Base_Tools.kv_mongo_documents import (
    ENTRIES,
    FORMS,
    check_size,
    entry_fields,
    expires,
    value_of,
)
from modules.Tools.Base_Tools.kv_records import EncodedValue

__all__ = [
    "clear_part",
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
    "overwrite",
    "replace_version",
    "set_absent",
    "set_entry",
    "set_version",
    "time_to_live",
    "touch",
]

_FIELDS = ("k", "j", "b", "v", "z", "c", "u", "e")


def _row(document: Document) -> Row:
    value, data = value_of(document)
    times = from_microseconds(document["c"]), from_microseconds(document["u"])
    end = None if document["e"] == NEVER else from_microseconds(document["e"])
    return (document["k"], value, data, document["v"], document["z"], *times, end)


async def _live(db: Documents, tenant_id: str, namespace: str, key: str, *fields: str) -> Optional[Document]:
    found = await db.find_one(ENTRIES, {"_id": key_of(tenant_id, namespace, key)}, fields=("e", *fields))
    return None if found is None or found["e"] <= await db.now() else found


# --- reading -----------------------------------------------------------------------------------------------------------


@FORMS.form_of(op.get_value)
async def get_value(db: Documents, tenant_id: str, namespace: str, key: str) -> Optional[Row]:
    """Return (JSON value, None) or (None, bytes) of the live entry."""
    found = await _live(db, tenant_id, namespace, key, "j", "b")
    return None if found is None else value_of(found)


@FORMS.form_of(op.get_entry)
async def get_entry(db: Documents, tenant_id: str, namespace: str, key: str) -> Optional[Row]:
    """Return the row of the live entry."""
    found = await _live(db, tenant_id, namespace, key, *_FIELDS)
    return None if found is None else _row(found)


@FORMS.form_of(op.exists)
async def exists(db: Documents, tenant_id: str, namespace: str, key: str) -> bool:
    """Return whether there is a live entry."""
    return await _live(db, tenant_id, namespace, key) is not None


@FORMS.form_of(op.time_to_live)
async def time_to_live(db: Documents, tenant_id: str, namespace: str, key: str) -> Optional[Row]:
    """Return (expires_at, now) of the live entry."""
    found = await _live(db, tenant_id, namespace, key)
    if found is None:
        return None
    end = None if found["e"] == NEVER else from_microseconds(found["e"])
    return end, from_microseconds(await db.now())


@FORMS.form_of(op.get_many)
async def get_many(db: Documents, tenant_id: str, namespace: str, keys: List[str]) -> List[Row]:
    """Return (key, JSON value, bytes) of those live entries."""
    ids = [key_of(tenant_id, namespace, key) for key in keys]
    where = {"_id": {"$in": ids}, "e": {"$gt": await db.now()}}
    return [(found["k"], *value_of(found)) for found in await db.find(ENTRIES, where, fields=("k", "j", "b"))]


def _within(tenant_id: str, namespace: str, key: str = "") -> str:
    return key_of(tenant_id, namespace, key)


def _beyond(tenant_id: str, namespace: str) -> str:
    """Return a text above every key of the namespace and below those of all later ones."""
    return key_of(tenant_id, namespace) + chr(ord(SEPARATOR) + 1)


@FORMS.form_of(op.list_entries)
async def list_entries(
    db: Documents,
    tenant_id: str,
    namespace: str,
    start: str,
    upper: Optional[str],
    inclusive: bool,
    limit: int,
) -> List[Row]:
    """Return the rows of live entries in a range of keys."""
    end = _beyond(tenant_id, namespace) if upper is None else _within(tenant_id, namespace, upper)
    keys = {"$gte" if inclusive else "$gt": _within(tenant_id, namespace, start), "$lt": end}
    where = {"_id": keys, "e": {"$gt": await db.now()}}
    found = await db.find(ENTRIES, where, sort=[("_id", 1)], limit=limit, fields=_FIELDS)
    return [_row(document) for document in found]


@FORMS.form_of(op.list_namespaces)
async def list_namespaces(db: Documents, tenant_id: str, after: str, limit: int) -> List[str]:
    """Return namespaces of live entries: one look-up for each."""
    names: List[str] = []
    above = key_of(tenant_id, "") if not after else _beyond(tenant_id, after)
    now = await db.now()
    while len(names) < limit:
        where = {"_id": {"$gt": above, "$lt": tenant_id + chr(ord(SEPARATOR) + 1)}, "e": {"$gt": now}}
        found = await db.find_one(ENTRIES, where, sort=[("_id", 1)], fields=("s",))
        if found is None:
            break
        names.append(found["s"])
        above = _beyond(tenant_id, found["s"])
    return names


# --- writing -----------------------------------------------------------------------------------------------------------


async def overwrite(
    db: Documents,
    tenant_id: str,
    namespace: str,
    key: str,
    fields: Dict[str, Any],
    now: int,
    *,
    if_live: bool = True,
) -> int:
    """Write the entry and return its version; 0 when a live one is there and `if_live` is False.

    An expired entry is overwritten as if it were not there: its version and time of creation start again.

    Args:
        db: The collections.
        tenant_id: Whose.
        namespace: Its namespace.
        key: Its key.
        fields: What `entry_fields` gave.
        now: The time of the write.
        if_live: Whether a live entry may be overwritten.
    """
    place = {"_id": key_of(tenant_id, namespace, key)}
    new = {"t": tenant_id, "s": namespace, "k": key}
    async for _ in Tries():
        try:
            if not if_live:
                await db.insert(ENTRIES, [{**place, **new, **fields, "v": 1, "c": now}])
                return 1
            where = {**place, "e": {"$gt": now}}
            change = {"$set": fields, "$inc": {"v": 1}, "$setOnInsert": {**new, "c": now}}
            found = await db.change(ENTRIES, where, change, upsert=True, fields=("v",))
            return 0 if found is None else int(found["v"])
        except AlreadyExistsError:
            fresh = {"$set": {**fields, **new, "v": 1, "c": now}}
            if await db.update(ENTRIES, {**place, "e": {"$lte": now}}, fresh):
                return 1
        if not if_live:
            return 0
    raise ConcurrencyError(
        f"the key {key!r} of namespace {namespace!r} kept expiring and coming back; try again"
    )


@FORMS.form_of(op.set_entry)
async def set_entry(
    db: Documents, tenant_id: str, namespace: str, key: str, value: EncodedValue, ttl_us: Optional[int]
) -> int:
    """Write the entry whatever is there."""
    now = await db.now()
    fields = entry_fields(key, value, now, ttl_us)
    check_size(fields["z"])
    return await overwrite(db, tenant_id, namespace, key, fields, now)


@FORMS.form_of(op.set_absent)
async def set_absent(
    db: Documents, tenant_id: str, namespace: str, key: str, value: EncodedValue, ttl_us: Optional[int]
) -> int:
    """Write the entry if none is live; 0 if one was."""
    now = await db.now()
    fields = entry_fields(key, value, now, ttl_us)
    check_size(fields["z"])
    return await overwrite(db, tenant_id, namespace, key, fields, now, if_live=False)


@FORMS.form_of(op.set_version)
async def set_version(
    db: Documents,
    tenant_id: str,
    namespace: str,
    key: str,
    value: EncodedValue,
    ttl_us: Optional[int],
    expected: int,
) -> int:
    """Write the entry if it has the `expected` version (0: if none is live)."""
    if expected == 0:
        version = await set_absent(db, tenant_id, namespace, key, value, ttl_us)
    else:
        version = await replace_version(db, tenant_id, namespace, key, value, ttl_us, expected)
    if not version:
        raise await _wrong_version(db, tenant_id, namespace, key, expected)
    return int(version)


@FORMS.form_of(op.replace_version)
async def replace_version(
    db: Documents,
    tenant_id: str,
    namespace: str,
    key: str,
    value: EncodedValue,
    ttl_us: Optional[int],
    expected: int,
) -> int:
    """Write the entry if it has the `expected` version; 0 if not."""
    return await _replace(db, tenant_id, namespace, key, value, ttl_us, {"v": expected})


async def _replace(
    db: Documents,
    tenant_id: str,
    namespace: str,
    key: str,
    value: EncodedValue,
    ttl_us: Optional[int],
    expected: Dict[str, Any],
) -> int:
    now = await db.now()
    fields = entry_fields(key, value, now, ttl_us)
    check_size(fields["z"])
    where = {"_id": key_of(tenant_id, namespace, key), "e": {"$gt": now}, **expected}
    found = await db.change(ENTRIES, where, {"$set": fields, "$inc": {"v": 1}}, fields=("v",))
    return 0 if found is None else int(found["v"])


async def _wrong_version(
    db: Documents, tenant_id: str, namespace: str, key: str, expected: int
) -> ConcurrencyError:
    found = await _live(db, tenant_id, namespace, key, "v")
    return op.wrong_version(namespace, key, expected, 0 if found is None else found["v"])


@FORMS.form_of(op.delete_entry)
async def delete_entry(db: Documents, tenant_id: str, namespace: str, key: str) -> bool:
    """Remove the entry; whether a live one was there."""
    place = {"_id": key_of(tenant_id, namespace, key)}
    gone = await db.delete(ENTRIES, {**place, "e": {"$gt": await db.now()}})
    if not gone:
        await db.delete(ENTRIES, {**place, "e": {"$lte": await db.now()}})
    return gone == 1


@FORMS.form_of(op.delete_version)
async def delete_version(db: Documents, tenant_id: str, namespace: str, key: str, expected: int) -> bool:
    """Remove the entry if it has the `expected` version."""
    where = {"_id": key_of(tenant_id, namespace, key), "e": {"$gt": await db.now()}, "v": expected}
    if not await db.delete(ENTRIES, where):
        raise await _wrong_version(db, tenant_id, namespace, key, expected)
    return True


@FORMS.form_of(op.touch)
async def touch(db: Documents, tenant_id: str, namespace: str, key: str, ttl_us: Optional[int]) -> bool:
    """Give the live entry a new time to live."""
    now = await db.now()
    where = {"_id": key_of(tenant_id, namespace, key), "e": {"$gt": now}}
    return await db.update(ENTRIES, where, {"$set": {"e": expires(now, ttl_us)}}) == 1


def _one_entry(tenant_id: str, namespace: str, key: str, *_: Any) -> Hashable:
    return tenant_id, namespace, key


@FORMS.form_of(op.compare_and_set, turn=_one_entry)
async def compare_and_set(
    db: Documents,
    tenant_id: str,
    namespace: str,
    key: str,
    expected: Tuple[Optional[bytes], Optional[bytes]],
    value: EncodedValue,
    ttl_us: Optional[int],
    expected_version: Optional[int],
) -> int:
    """Write the entry if its value is the `expected` one."""
    async for _ in Tries():
        found = await _live(db, tenant_id, namespace, key, "j", "b", "v", "r")
        if found is None or op.comparable(*value_of(found)) != expected:
            return 0
        if expected_version not in (None, found["v"]):
            return 0
        version = await _replace(db, tenant_id, namespace, key, value, ttl_us, {"r": found["r"]})
        if version:
            return version
        # written meanwhile, perhaps with an equal value: look again
    raise ConcurrencyError(f"the key {key!r} of namespace {namespace!r} kept changing; try again")


@FORMS.form_of(op.count_up, turn=_one_entry)
async def count_up(
    db: Documents,
    tenant_id: str,
    namespace: str,
    key: str,
    amount: int,
    initial: int,
    ttl_us: Optional[int],
) -> int:
    """Add `amount` to the integer stored."""
    async for _ in Tries():
        found = await _live(db, tenant_id, namespace, key, "j", "b", "r")
        if found is None:
            total = initial + amount
            if await set_absent(db, tenant_id, namespace, key, _encoded(total), ttl_us):
                return int(total)
            continue
        current, data = value_of(found)
        op.check_countable(namespace, key, current, data, amount)
        total = current + amount
        text, _, size = _encoded(total)
        fields = {"j": str(text), "z": size + len(key.encode()), "u": await db.now(), "r": _mark()}
        where = {"_id": key_of(tenant_id, namespace, key), "r": found["r"], "e": {"$gt": fields["u"]}}
        if await db.update(ENTRIES, where, {"$set": fields, "$inc": {"v": 1}}):
            return int(total)
    raise ConcurrencyError(f"the key {key!r} of namespace {namespace!r} kept changing; try again")


def _mark() -> int:
    return random.getrandbits(63)


def _encoded(number: int) -> EncodedValue:
    if not fits_integer(number):
        raise AssertionError("checked by the caller")
    text: JsonText = encode_json(number, "the value")
    return EncodedValue(text, None, len(text))


@FORMS.form_of(op.clear_part)
async def clear_part(
    db: Documents, tenant_id: str, namespace: str, after: str, batch_size: int
) -> Tuple[int, Optional[str]]:
    """Remove up to `batch_size` entries that come after `after`; how many were live, and where to go on."""
    start, end = _within(tenant_id, namespace, after), _beyond(tenant_id, namespace)
    last = await db.find(
        ENTRIES,
        {"_id": {"$gt": start, "$lt": end}},
        sort=[("_id", 1)],
        skip=batch_size - 1,
        limit=1,
        fields=("k",),
    )
    keys: Dict[str, Any] = {"$gt": start, "$lt": end}
    if last:
        keys = {"$gt": start, "$lte": last[0]["_id"]}
    await db.delete(ENTRIES, {"_id": keys, "e": {"$lte": await db.now()}}, many=True)
    return await db.delete(ENTRIES, {"_id": keys}, many=True), last[0]["k"] if last else None

"""The key-value store in MongoDB: writes of more than one document, quotas, and the sweep.

`set_many` is announced: the batch is written down first (its head last, which is the point of no return), then applied
entry by entry, then forgotten. A process that dies in between leaves the batch, and the next sweep applies the rest; an
entry says which batch it was written by, so that what was applied is not applied again. Until then others may see part.

A limit in bytes needs the sum of what is there and a write to be one step. So a write under a limit holds the tenant's
lock (a document with an end, by the server's clock), adds up the sizes from the index, and only then writes: exact among
all writers under a limit, of any process. Adding up costs time in proportion to the entries counted.
"""

from __future__ import annotations

import asyncio
from typing import Any, Awaitable, Callable, Dict, Hashable, List, Optional, Tuple

from modules.storage.documents import Document, Documents, key_of
from modules.storage.operations import Operation
from modules.store_common.backoff import full_jitter
from modules.store_common.errors import AlreadyExistsError
from modules.store_common.ids import new_id
from modules.Tools.Base_Tools import kv_maintenance, kv_quota
from modules.Tools.Base_Tools import kv_operations as op
from modules.Tools.Base_Tools.kv_models import TOTAL
from modules.Tools.Base_Tools.kv_mongo_documents import (
    BATCH_PARTS,
    BATCHES,
    ENTRIES,
    FORMS,
    LOCKS,
    check_size,
    entry_fields,
    value_of,
)
from modules.Tools.Base_Tools.kv_quota import Limits
from modules.Tools.Base_Tools.kv_records import EncodedValue

__all__ = [
    "finish_batches",
    "set_many",
    "start_accounts",
    "sweep",
    "within_limits",
]

# Bytes of entries in one part of a batch.
_PART_BYTES = 4 * 1024 * 1024
_ENTRIES_PER_CALL = 500
_SECOND = 1_000_000
# A batch this old has no living writer: longer than any call may take by default.
_ABANDONED_US = 90 * _SECOND
# How long a lock holds when its owner dies; a call ends by its deadline long before.
_LOCK_US = 60 * _SECOND

_Items = List[Tuple[str, EncodedValue]]


@FORMS.form_of(op.set_many)
async def set_many(
    db: Documents, tenant_id: str, namespace: str, items: _Items, ttl_us: Optional[int]
) -> int:
    """Write all entries, whatever is there."""
    now = await db.now()
    fields = [(key, entry_fields(key, value, now, ttl_us)) for key, value in items]
    for _, entry in fields:
        check_size(entry["z"])
    batch = new_id()
    parts = [
        {"_id": key_of(tenant_id, batch, number), "b": batch, "n": number, "i": part}
        for number, part in enumerate(_parts(fields))
    ]
    for part in parts:
        await db.insert(BATCH_PARTS, [part])
    head = {"_id": batch, "t": tenant_id, "s": namespace, "c": now}
    await db.insert(BATCHES, [head])
    for part in parts:
        await _apply(db, head, part, again=False)
    await _forget(db, batch)
    return len(items)


def _parts(fields: List[Tuple[str, Dict[str, Any]]]) -> List[List[Dict[str, Any]]]:
    parts: List[List[Dict[str, Any]]] = [[]]
    size = 0
    for key, entry in fields:
        if parts[-1] and (size + entry["z"] > _PART_BYTES or len(parts[-1]) >= _ENTRIES_PER_CALL):
            parts.append([])
            size = 0
        parts[-1].append({"k": key, **entry})
        size += entry["z"]
    return parts


async def _apply(db: Documents, head: Document, part: Document, *, again: bool) -> None:
    """Write the entries of a part; `again`: those that were not written by this batch yet."""
    tenant_id, namespace, written_at = head["t"], head["s"], head["c"]
    ids = [key_of(tenant_id, namespace, entry["k"]) for entry in part["i"]]
    # what had expired by then is as if it were not there
    await db.delete(ENTRIES, {"_id": {"$in": ids}, "e": {"$lte": written_at}}, many=True)
    changes: List[Tuple[Dict[str, Any], Dict[str, Any]]] = []
    for place, entry in zip(ids, part["i"]):
        fields = {name: entry[name] for name in ("j", "b", "z", "u", "e", "r")}
        new = {"t": tenant_id, "s": namespace, "k": entry["k"], "c": written_at}
        change = {"$set": {**fields, "o": head["_id"]}, "$inc": {"v": 1}, "$setOnInsert": new}
        changes.append(({"_id": place}, change))
    if not again:
        await db.upsert_each(ENTRIES, changes)
        return
    for where, change in changes:
        try:
            await db.update(ENTRIES, {**where, "o": {"$ne": head["_id"]}}, change, upsert=True)
        except AlreadyExistsError:
            # this batch wrote it before its process died
            continue


async def _forget(db: Documents, batch: str) -> None:
    await db.delete(BATCHES, {"_id": batch})
    await db.delete(BATCH_PARTS, {"b": batch}, many=True)


async def finish_batches(db: Documents, before: int) -> int:
    """Apply the batches announced before `before`, whose writers died, and forget parts that were never announced."""
    heads = await db.find(BATCHES, {"c": {"$lte": before}}, sort=[("c", 1)], limit=100)
    for head in heads:
        for part in await db.find(BATCH_PARTS, {"b": head["_id"]}, sort=[("n", 1)]):
            await _apply(db, head, part, again=True)
        await _forget(db, head["_id"])
    return len(heads)


@FORMS.form_of(kv_maintenance.sweep)
async def sweep(db: Documents, limit: int) -> int:
    """Remove up to `limit` expired entries of any tenant, and finish what dead processes began."""
    now = await db.now()
    await finish_batches(db, now - _ABANDONED_US)
    removed = 0
    after = ""
    while removed < limit:
        # one look-up for each tenant: the index leads with it
        found = await db.find_one(ENTRIES, {"t": {"$gt": after}}, sort=[("t", 1)], fields=("t",))
        if found is None:
            break
        after = found["t"]
        where = {"t": after, "e": {"$lte": now}}
        doomed = await db.find(ENTRIES, where, sort=[("e", 1)], limit=limit - removed, fields=("_id",))
        if doomed:
            ids = [document["_id"] for document in doomed]
            # written anew since: it stays
            removed += await db.delete(ENTRIES, {"_id": {"$in": ids}, "e": {"$lte": now}}, many=True)
    return removed


# --- limits ------------------------------------------------------------------------------------------------------------


def _one_tenant(limits: Limits, tenant_id: str, *_: Any) -> Hashable:
    return "limits", tenant_id


@FORMS.form_of(kv_quota.start_accounts)
async def start_accounts(db: Documents) -> None:
    """Nothing has to be prepared here."""


@FORMS.form_of(kv_quota.within_limits, turn=_one_tenant)
async def within_limits(
    db: Documents,
    limits: Limits,
    tenant_id: str,
    namespace: str,
    operation: Operation[Any, Any],
    arguments: Tuple[Any, ...],
) -> Any:
    """Run a write of one namespace, or fail when it would pass a limit."""

    async def guarded() -> Any:
        growth = await _growth(db, tenant_id, namespace, operation, arguments)
        if growth > 0:
            await _make_room(db, limits, tenant_id, namespace, growth)
        return await db.run(operation, tenant_id, namespace, *arguments)

    return await _locked(db, key_of(tenant_id, "limits"), guarded)


async def _locked(db: Documents, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
    owner = new_id()
    attempt = 0
    while True:
        now = await db.now()
        try:
            where = {"_id": name, "until": {"$lte": now}}
            if await db.update(
                LOCKS, where, {"$set": {"owner": owner, "until": now + _LOCK_US}}, upsert=True
            ):
                break
        except AlreadyExistsError:
            attempt += 1
            await asyncio.sleep(full_jitter(min(attempt, 6), base_s=0.002, cap_s=0.05))
    try:
        return await work()
    finally:
        await db.delete(LOCKS, {"_id": name, "owner": owner})


async def _make_room(db: Documents, limits: Limits, tenant_id: str, namespace: str, growth: int) -> None:
    """Remove expired entries if need be; raise when there is no room all the same."""
    accounts = limits.accounts(namespace)
    wheres: Dict[str, Dict[str, Any]] = {
        name: {"t": tenant_id} if name == TOTAL else {"t": tenant_id, "s": namespace} for name in accounts
    }
    used = {name: await db.total(ENTRIES, wheres[name], "z") for name in accounts}
    full = [name for name in accounts if used[name] + growth > accounts[name]]
    if not full:
        return
    widest = wheres[TOTAL] if TOTAL in full else wheres[namespace]
    await db.delete(ENTRIES, {**widest, "e": {"$lte": await db.now()}}, many=True)
    for name in full:
        left = await db.total(ENTRIES, wheres[name], "z")
        if left + growth > accounts[name]:
            raise kv_quota.refusal(name, accounts[name], left, growth)


async def _growth(
    db: Documents, tenant_id: str, namespace: str, operation: Operation[Any, Any], arguments: Tuple[Any, ...]
) -> int:
    """Return how many bytes more a write makes, less what it replaces; 0 when it will refuse itself."""
    if operation is op.set_many:
        new = {key: value.size_bytes + len(key.encode()) for key, value in arguments[0]}
        return int(sum(new.values()) - await _sizes(db, tenant_id, namespace, list(new)))
    if operation in (op.delete_entry, op.delete_version, op.clear_part):
        return 0
    key = arguments[0]
    found = await db.find_one(ENTRIES, {"_id": key_of(tenant_id, namespace, key)})
    live = found if found is not None and found["e"] > await db.now() else None
    there = 0 if found is None else int(found["z"])
    if operation is op.count_up:
        return _counted(key, live, arguments[1], arguments[2]) - there
    if not _will_write(operation, live, arguments):
        return 0
    value: EncodedValue = arguments[2] if operation is op.compare_and_set else arguments[1]
    return int(value.size_bytes + len(key.encode()) - there)


def _counted(key: str, live: Optional[Document], amount: int, initial: int) -> int:
    current = initial if live is None else value_of(live)[0]
    # what is no int is refused by the write itself
    number = len(str(current + amount)) if type(current) is int else 0
    return number + len(key.encode())


def _will_write(operation: Operation[Any, Any], live: Optional[Document], arguments: Tuple[Any, ...]) -> bool:
    if operation is op.set_absent:
        return live is None
    if operation in (op.set_version, op.replace_version):
        return bool((0 if live is None else live["v"]) == arguments[3])
    if operation is op.compare_and_set:
        return live is not None and op.comparable(*value_of(live)) == arguments[1]
    return True


async def _sizes(db: Documents, tenant_id: str, namespace: str, keys: List[str]) -> int:
    total = 0
    for start in range(0, len(keys), _ENTRIES_PER_CALL):
        ids = [key_of(tenant_id, namespace, key) for key in keys[start : start + _ENTRIES_PER_CALL]]
        total += sum(found["z"] for found in await db.find(ENTRIES, {"_id": {"$in": ids}}, fields=("z",)))
    return total

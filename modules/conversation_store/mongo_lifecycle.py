"""The conversation store in MongoDB: removing, emptying and forking conversations, assets, and retention."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from modules.conversation_store import lifecycle as op
from modules.conversation_store import retention
from modules.conversation_store.encoding import encode_metadata
from modules.conversation_store.errors import (
    ConversationExistsError,
    ConversationNotFoundError,
    MessageNotFoundError,
)
from modules.conversation_store.mongo_conversations import new_conversation
from modules.conversation_store.mongo_documents import (
    ASSETS,
    CONVERSATIONS,
    EVENTS,
    FORMS,
    MESSAGES,
    conversation_of,
    find_conversation,
    instant,
    range_of,
    state_of,
)
from modules.conversation_store.mongo_garbage import collect, note_garbage
from modules.conversation_store.mongo_messages import live_message
from modules.conversation_store.records import Asset, Conversation
from modules.storage.documents import Document, Documents, key_of
from modules.store_common.errors import AlreadyExistsError
from modules.store_common.ids import new_id
from modules.store_common.values import decode_json, decode_text, encode_text

__all__ = [
    "add",
    "archive",
    "assets",
    "delete_idle",
    "delete_surplus",
    "fork",
    "hard_delete",
    "purge_conversations",
    "purge_messages",
    "reset",
    "trim",
]

_SECOND = 1_000_000
_COPIED_AT_ONCE = 500


async def _remove(db: Documents, found: Document, where: Dict[str, Any]) -> bool:
    """Remove a conversation if it still is as `where` says, and everything in it."""
    noted = await note_garbage(db, found["t"], found["id"], found["g"], found["u"])
    removed = await db.delete(CONVERSATIONS, {"_id": found["_id"], "g": found["g"], **where})
    await collect(db, noted)
    return removed == 1


@FORMS.form_of(op.hard_delete)
async def hard_delete(db: Documents, key: Dict[str, Any]) -> bool:
    """Delete a conversation for good."""
    while True:
        found = await find_conversation(db, **key, deleted=True)
        if found is None:
            return False
        if await _remove(db, found, {}):
            return True


@FORMS.form_of(op.reset)
async def reset(db: Documents, key: Dict[str, Any]) -> Conversation:
    """Delete a conversation's messages."""
    while True:
        found = await find_conversation(db, **key)
        if found is None:
            raise ConversationNotFoundError(key["conversation_id"])
        noted = await note_garbage(db, found["t"], found["id"], found["g"])
        empty = {"g": new_id(), "last": 0, "trimmed": 0, "kept": 0, "lo": None, "le": 0}
        # whoever holds a lease holds it on the conversation as it was
        steps = {"$set": {**empty, "ua": await db.now()}, "$inc": {"v": 1, "lf": 1}}
        where = {"_id": found["_id"], "g": found["g"], "status": {"$ne": "deleted"}}
        after = await db.change(CONVERSATIONS, where, steps)
        if after is not None:
            await collect(db, noted)
            return conversation_of(after)


@FORMS.form_of(op.fork)
async def fork(
    db: Documents, key: Dict[str, Any], message_id: Optional[str], new: Dict[str, Any]
) -> Conversation:
    """Copy a conversation up to a message: the messages first, then the conversation that makes them seen."""
    while True:
        copy = await _forked(db, key, message_id, new)
        if copy is not None:
            return copy


async def _forked(
    db: Documents, key: Dict[str, Any], message_id: Optional[str], new: Dict[str, Any]
) -> Optional[Conversation]:
    """Return the copy; None: the messages were removed while they were copied, and the copy with them."""
    tenant_id = key["tenant_id"]
    found = await find_conversation(db, **key)
    if found is None:
        raise ConversationNotFoundError(key["conversation_id"])
    source = conversation_of(found)
    sequence = source.last_sequence
    if message_id is not None:
        point = await live_message(db, tenant_id, state_of(found), message_id)
        if point is None:
            raise MessageNotFoundError(key["conversation_id"], message_id)
        sequence = point["n"]
    values = {
        "tenant_id": tenant_id,
        "conversation_id": new["id"],
        "title": source.title if new["title"] is None else new["title"],
        "user_id": source.user_id,
        "session_id": source.session_id,
        "metadata": encode_metadata(source.metadata),
        "forked_from_id": source.id,
        "forked_from_sequence": sequence,
    }
    copy = new_conversation(values, await db.now())
    if await find_conversation(db, tenant_id, new["id"], deleted=True) is not None:
        raise ConversationExistsError(new["id"])
    noted = await note_garbage(db, tenant_id, new["id"], copy["g"])
    try:
        copy["last"] = copy["kept"] = await _copy(db, found, copy, sequence)
        # messages are removed after their generation has gone out of use: if it has not, none was missing
        again = await db.find_one(CONVERSATIONS, {"_id": found["_id"]}, fields=("g",))
        if again is None or again["g"] != found["g"]:
            return None
        await db.insert(CONVERSATIONS, [copy])
    except AlreadyExistsError as exc:
        raise ConversationExistsError(new["id"]) from exc
    finally:
        await collect(db, noted)
    return conversation_of(copy)


async def _copy(db: Documents, source: Document, copy: Document, sequence: int) -> int:
    """Copy the messages up to `sequence` into the generation of `copy`; return how many."""
    tenant_id, after, count = source["t"], 0, 0
    upto = range_of(tenant_id, source["g"], sequence)
    while True:
        where = {"_id": {"$gt": range_of(tenant_id, source["g"], after), "$lte": upto}, "da": None}
        found = await db.find(MESSAGES, where, sort=[("_id", 1)], limit=_COPIED_AT_ONCE)
        made = []
        for message in found:
            count += 1
            made.append(_copied(message, copy, count))
        if made:
            await db.insert(MESSAGES, made)
        if len(found) < _COPIED_AT_ONCE:
            return count
        after = found[-1]["n"]


def _copied(message: Document, copy: Document, sequence: int) -> Document:
    left_behind = ("ck", "cl", "bd", "le", "tf", "te")
    kept = {name: value for name, value in message.items() if name not in left_behind}
    return {
        **kept,
        "_id": range_of(copy["t"], copy["g"], sequence),
        "g": copy["g"],
        "c": copy["id"],
        "n": sequence,
        "st": "interrupted" if message["st"] == "streaming" else message["st"],
        "v": 1,
        "ep": 0,
        "cl": None,
        "bd": None,
    }


# --- assets ------------------------------------------------------------------------------------------------------------


@FORMS.form_of(op.add)
async def add(db: Documents, values: Dict[str, Any]) -> Asset:
    """Add an asset."""
    found = await find_conversation(db, values["tenant_id"], values["conversation_id"])
    if found is None:
        raise ConversationNotFoundError(values["conversation_id"])
    document = {
        "_id": key_of(values["tenant_id"], found["u"], values["id"]),
        "t": values["tenant_id"],
        "c": values["conversation_id"],
        "i": values["id"],
        "message": values["message_id"],
        "uri": encode_text(values["uri"]),
        "name": encode_text(values["name"]),
        "type": values["media_type"],
        "size": values["size_bytes"],
        "digest": values["digest"],
        "m": str(values["metadata"]),
        "ca": await db.now(),
    }
    try:
        await db.insert(ASSETS, [document])
    except AlreadyExistsError as exc:
        raise op.asset_exists(values["conversation_id"]) from exc
    again = await db.find_one(CONVERSATIONS, {"_id": found["_id"]}, fields=("u",))
    if again is None or again["u"] != found["u"]:
        # whoever removed the conversation may have removed its assets before this one was there
        await db.delete(ASSETS, {"_id": document["_id"]})
        raise ConversationNotFoundError(values["conversation_id"])
    return _asset(document)


def _asset(found: Document) -> Asset:
    return Asset(
        found["c"],
        found["i"],
        found["message"],
        decode_text(found["uri"]),
        decode_text(found["name"]),
        found["type"],
        found["size"],
        found["digest"],
        decode_json(found["m"]),
        instant(found["ca"]),
    )


@FORMS.form_of(op.assets)
async def assets(db: Documents, key: Dict[str, Any], after: str, limit: int) -> List[Asset]:
    """Return assets by id."""
    found = await find_conversation(db, **key)
    if found is None:
        return []
    start, end = key_of(found["t"], found["u"], after), key_of(found["t"], found["u"]) + "\x20"
    there = await db.find(ASSETS, {"_id": {"$gt": start, "$lt": end}}, sort=[("_id", 1)], limit=limit)
    return [_asset(document) for document in there]


# --- retention ---------------------------------------------------------------------------------------------------------


async def _mark(
    db: Documents, where: Dict[str, Any], field: str, status: str, limit: int, skip: int = 0
) -> int:
    """Give conversations that are still so another status, those idle longest first (`skip`: last), and count them."""
    order = [("ua", -1), ("id", -1)] if skip else [("ua", 1)]
    found = await db.find(
        CONVERSATIONS, where, sort=order, limit=limit, skip=skip, fields=("_id", "v", "last")
    )
    now = await db.now()
    changed = 0
    for document in found:
        as_seen = {**where, **document}
        new = {"$set": {"status": status, field: now}, "$inc": {"v": 1}}
        changed += await db.update(CONVERSATIONS, as_seen, new)
    return changed


async def _idle(db: Documents, tenant_id: str, seconds: float, status: Any) -> Dict[str, Any]:
    before = await db.now() - int(seconds * _SECOND)
    return {"t": tenant_id, "status": status, "ua": {"$lte": before}}


@FORMS.form_of(retention.archive)
async def archive(db: Documents, tenant_id: str, limit: int, seconds: float) -> int:
    """Archive conversations that nobody used."""
    return await _mark(db, await _idle(db, tenant_id, seconds, "active"), "aa", "archived", limit)


@FORMS.form_of(retention.delete_idle)
async def delete_idle(db: Documents, tenant_id: str, limit: int, seconds: float) -> int:
    """Soft-delete conversations that nobody used."""
    where = await _idle(db, tenant_id, seconds, {"$in": ["active", "archived"]})
    return await _mark(db, where, "da", "deleted", limit)


@FORMS.form_of(retention.delete_surplus)
async def delete_surplus(db: Documents, tenant_id: str, limit: int, keep: int) -> int:
    """Soft-delete conversations beyond the number to keep."""
    where = {"t": tenant_id, "status": {"$in": ["active", "archived"]}}
    return await _mark(db, where, "da", "deleted", limit, skip=keep)


@FORMS.form_of(retention.trim)
async def trim(db: Documents, tenant_id: str, limit: int, keep: int) -> int:
    """Soft-delete messages beyond the history limit, of one conversation at a time."""
    where = {"t": tenant_id, "kept": {"$gt": keep}, "status": {"$ne": "deleted"}}
    found = await db.find_one(CONVERSATIONS, where)
    if found is None:
        return 0
    trimmed = found["trimmed"]
    upto = min(found["last"] - keep, trimmed + limit)
    places = {"$gt": range_of(tenant_id, found["g"], trimmed), "$lte": range_of(tenant_id, found["g"], upto)}
    old = {"_id": places, "da": None, "st": {"$ne": "streaming"}}
    await db.update(MESSAGES, old, {"$set": {"da": await db.now()}}, many=True)
    as_seen = {"_id": found["_id"], "g": found["g"], "trimmed": trimmed}
    steps = {"$set": {"trimmed": upto}, "$inc": {"kept": trimmed - upto}}
    await db.update(CONVERSATIONS, as_seen, steps)
    return int(upto - trimmed)


@FORMS.form_of(retention.purge_conversations)
async def purge_conversations(db: Documents, tenant_id: str, limit: int, seconds: float) -> int:
    """Remove soft-deleted conversations for good."""
    before = await db.now() - int(seconds * _SECOND)
    where = {"t": tenant_id, "da": {"$gt": 0, "$lte": before}}
    removed = 0
    for found in await db.find(CONVERSATIONS, where, sort=[("da", 1)], limit=limit):
        removed += await _remove(db, found, {"status": "deleted"})
    return removed


@FORMS.form_of(retention.purge_messages)
async def purge_messages(db: Documents, tenant_id: str, limit: int, seconds: float) -> int:
    """Remove soft-deleted messages and their events for good."""
    before = await db.now() - int(seconds * _SECOND)
    where = {"t": tenant_id, "da": {"$gt": 0, "$lte": before}}
    found = await db.find(MESSAGES, where, sort=[("da", 1)], limit=limit, fields=("_id", "g", "i"))
    for generation in sorted({message["g"] for message in found}):
        gone = [message["i"] for message in found if message["g"] == generation]
        await db.delete(EVENTS, {"t": tenant_id, "g": generation, "i": {"$in": gone}}, many=True)
    ids = [message["_id"] for message in found]
    if ids:
        await db.delete(MESSAGES, {"_id": {"$in": ids}}, many=True)
    return len(ids)

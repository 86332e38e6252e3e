"""The conversation store in MongoDB: conversations, leases, users and sessions. Each call changes one document."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

from modules.conversation_store import conversations as op
from modules.conversation_store import leases, maintenance, people, transfer
from modules.conversation_store.append import Condition, refusal_of
from modules.conversation_store.errors import (
    ConversationExistsError,
    ConversationLeaseHeldError,
    ConversationLeaseLostError,
    ConversationNotFoundError,
)
from modules.conversation_store.mongo_documents import (
    CONVERSATIONS,
    FORMS,
    SESSIONS,
    USERS,
    conversation_of,
    find_conversation,
    instant,
    micros,
)
from modules.conversation_store.records import Conversation, ConversationLease
from modules.storage.documents import Document, Documents, key_of
from modules.storage.statements import Row
from modules.store_common.errors import AlreadyExistsError, ConcurrencyError
from modules.store_common.ids import new_id
from modules.store_common.values import decode_json, decode_text, encode_text

__all__ = [
    "acquire",
    "change",
    "conversations_after",
    "create",
    "ensure_header",
    "ensure_profile",
    "get",
    "list_rows",
    "new_conversation",
    "release",
    "renew",
    "set_status",
    "soft_delete",
    "tenants_after",
]

_SECOND = 1_000_000


def new_conversation(values: Mapping[str, Any], now: int) -> Document:
    """Return the document of a new conversation from the values that `ADD_CONVERSATION` takes."""
    return {
        "_id": key_of(values["tenant_id"], values["conversation_id"]),
        "t": values["tenant_id"],
        "id": values["conversation_id"],
        "title": encode_text(values["title"]),
        "status": "active",
        "user": values["user_id"],
        "session": values["session_id"],
        "m": str(values["metadata"]),
        "g": new_id(),
        "u": new_id(),
        "last": 0,
        "ep": 0,
        "trimmed": 0,
        "kept": 0,
        "v": 1,
        "ff": values["forked_from_id"],
        "fs": values["forked_from_sequence"],
        # nobody's lease ran out long ago
        "lo": None,
        "lf": 0,
        "le": 0,
        "ca": now,
        "ua": now,
        "aa": None,
        "da": None,
    }


@FORMS.form_of(op.create)
async def create(db: Documents, values: Dict[str, Any], must_be_new: bool) -> Conversation:
    """Add a conversation, or give the one that has the id."""
    document = new_conversation(values, await db.now())
    try:
        await db.insert(CONVERSATIONS, [document])
        return conversation_of(document)
    except AlreadyExistsError as exc:
        if must_be_new:
            raise ConversationExistsError(values["conversation_id"]) from exc
    there = await find_conversation(db, values["tenant_id"], values["conversation_id"])
    if there is None:
        raise ConversationNotFoundError(values["conversation_id"])
    return conversation_of(there)


@FORMS.form_of(op.get)
async def get(db: Documents, tenant_id: str, conversation_id: str) -> Optional[Conversation]:
    """Return a conversation that is not deleted."""
    found = await find_conversation(db, tenant_id, conversation_id)
    return None if found is None else conversation_of(found)


def _record_row(found: Document) -> Row:
    return tuple(vars(conversation_of(found)).values())


@FORMS.form_of(op.list_rows)
async def list_rows(db: Documents, params: Dict[str, Any]) -> List[Row]:
    """Return conversations, the one updated last first."""
    where: Dict[str, Any] = {"t": params["tenant_id"], "status": params["status"]}
    for name, field in (("user_id", "user"), ("session_id", "session")):
        if params[name] is not None:
            where[field] = params[name]
    updated: Dict[str, Any] = {}
    if params["updated_after"] is not None:
        updated["$gte"] = micros(params["updated_after"])
    if params["updated_before"] is not None:
        updated["$lt"] = micros(params["updated_before"])
    if updated:
        where["ua"] = updated
    if "at" in params:
        at = micros(params["at"])
        where["$or"] = [{"ua": {"$lt": at}}, {"ua": at, "id": {"$lt": params["id"]}}]
    found = await db.find(CONVERSATIONS, where, sort=[("ua", -1), ("id", -1)], limit=params["limit"])
    return [_record_row(document) for document in found]


@FORMS.form_of(transfer.conversations_after)
async def conversations_after(db: Documents, tenant_id: str, after: str, limit: int) -> List[Conversation]:
    """Return conversations by id."""
    beyond = {"$gt": key_of(tenant_id, after), "$lt": tenant_id + "\x20"}
    where = {"_id": beyond, "t": tenant_id, "status": {"$ne": "deleted"}}
    found = await db.find(CONVERSATIONS, where, sort=[("_id", 1)], limit=limit)
    return [conversation_of(document) for document in found]


@FORMS.form_of(maintenance.tenants_after)
async def tenants_after(db: Documents, after: str, limit: int) -> List[str]:
    """Return tenants in order of their ids: one look-up for each."""
    names: List[str] = []
    while len(names) < limit:
        found = await db.find_one(CONVERSATIONS, {"t": {"$gt": after}}, sort=[("t", 1)], fields=("t",))
        if found is None:
            break
        after = found["t"]
        names.append(after)
    return names


def _here(values: Mapping[str, Any]) -> Dict[str, Any]:
    return {"_id": key_of(values["tenant_id"], values["conversation_id"])}


@FORMS.form_of(op.change)
async def change(db: Documents, values: Dict[str, Any]) -> Conversation:
    """Change title or metadata."""
    expected = values["expected_version"]
    where = {**_here(values), "status": {"$ne": "deleted"}}
    if expected is not None:
        where["v"] = expected
    new: Dict[str, Any] = {"ua": await db.now()}
    if not values["keep_title"]:
        new["title"] = encode_text(values["title"])
    if not values["keep_metadata"]:
        new["m"] = str(values["metadata"])
    found = await db.change(CONVERSATIONS, where, {"$set": new, "$inc": {"v": 1}})
    if found is not None:
        return conversation_of(found)
    actual = await get(db, values["tenant_id"], values["conversation_id"])
    if actual is None:
        raise ConversationNotFoundError(values["conversation_id"])
    raise op.wrong_version(actual.id, expected, actual.version)


@FORMS.form_of(op.set_status)
async def set_status(db: Documents, kind: str, tenant_id: str, conversation_id: str) -> Conversation:
    """Archive or unarchive; a conversation that is so already is left alone."""
    now = await db.now()
    before, after = ("archived", "active") if kind == "unarchive" else ("active", "archived")
    new: Dict[str, Any] = {"status": after, "aa": None if kind == "unarchive" else now}
    steps: Dict[str, Any] = {"$set": new}
    if kind != "archive_imported":
        new["ua"] = now
        steps["$inc"] = {"v": 1}
    found = await db.change(
        CONVERSATIONS, {"_id": key_of(tenant_id, conversation_id), "status": before}, steps
    )
    if found is not None:
        return conversation_of(found)
    as_it_is = await find_conversation(db, tenant_id, conversation_id)
    if as_it_is is None:
        raise ConversationNotFoundError(conversation_id)
    return conversation_of(as_it_is)


@FORMS.form_of(op.soft_delete)
async def soft_delete(db: Documents, tenant_id: str, conversation_id: str) -> bool:
    """Mark a conversation as deleted."""
    where = {"_id": key_of(tenant_id, conversation_id), "status": {"$ne": "deleted"}}
    new = {"$set": {"status": "deleted", "da": await db.now()}, "$inc": {"v": 1}}
    return await db.update(CONVERSATIONS, where, new) == 1


@FORMS.form_of(transfer.ensure_header)
async def ensure_header(db: Documents, values: Dict[str, Any], times: Dict[str, Any]) -> bool:
    """Add the conversation unless it is there; say whether it was added."""
    document = new_conversation(values, await db.now())
    document["ca"] = document["ca"] if times["created"] is None else micros(times["created"])
    document["ua"] = document["ua"] if times["updated"] is None else micros(times["updated"])
    try:
        await db.insert(CONVERSATIONS, [document])
        return True
    except AlreadyExistsError:
        if await find_conversation(db, values["tenant_id"], values["conversation_id"]) is None:
            raise ConversationNotFoundError(values["conversation_id"]) from None
        return False


# --- leases ------------------------------------------------------------------------------------------------------------


@FORMS.form_of(leases.acquire)
async def acquire(db: Documents, key: Dict[str, Any], owner: str, seconds: float) -> ConversationLease:
    """Take the lease if it is free, run out, or the owner's already."""
    now = await db.now()
    free = [{"le": {"$lte": now}}, {"lo": owner}]
    new = {"$set": {"lo": owner, "le": now + int(seconds * _SECOND)}, "$inc": {"lf": 1}}
    found = await db.change(CONVERSATIONS, {**_here(key), "status": "active", "$or": free}, new)
    if found is not None:
        return _lease(key, found)
    state = await find_conversation(db, **key, deleted=True)
    if state is not None and state["status"] == "active":
        raise ConversationLeaseHeldError(key["conversation_id"])
    row = None if state is None else (state["status"], state["last"], state["lf"], state["lo"])
    raise refusal_of(row, key["conversation_id"], Condition())


def _lease(key: Mapping[str, Any], found: Document) -> ConversationLease:
    return ConversationLease(key["conversation_id"], found["lo"], found["lf"], instant(found["le"]))


@FORMS.form_of(leases.renew)
async def renew(
    db: Documents, key: Dict[str, Any], lease: ConversationLease, seconds: float
) -> ConversationLease:
    """Move the end of a lease that nobody took over."""
    where = {**_here(key), "lo": lease.owner, "lf": lease.fence}
    ends = await db.now() + int(seconds * _SECOND)
    found = await db.change(CONVERSATIONS, where, {"$set": {"le": ends}})
    if found is not None:
        return _lease(key, found)
    if await find_conversation(db, **key, deleted=True) is None:
        raise ConversationNotFoundError(lease.conversation_id)
    raise ConversationLeaseLostError(lease.conversation_id)


@FORMS.form_of(leases.release)
async def release(db: Documents, key: Dict[str, Any], lease: ConversationLease) -> bool:
    """Give a lease back."""
    where = {**_here(key), "lo": lease.owner, "lf": lease.fence}
    return await db.update(CONVERSATIONS, where, {"$set": {"lo": None, "le": 0}, "$inc": {"lf": 1}}) == 1


# --- people ------------------------------------------------------------------------------------------------------------


@FORMS.form_of(people.ensure_profile)
async def ensure_profile(db: Documents, kind: str, values: Dict[str, Any]) -> Row:
    """Add a user or session, or change the given parts of one that is there."""
    now = await db.now()
    label = encode_text(values["label"]) if kind == "user" else values["label"]
    # the fields that are kept are only set in a new document; MongoDB refuses a field that both name
    new: Dict[str, Any] = {"t": values["tenant_id"], "id": values["id"], "ca": now}
    given: Dict[str, Any] = {"ua": now}
    (new if values["keep_label"] else given)["label"] = label
    (new if values["keep_metadata"] else given)["m"] = str(values["metadata"])
    where = {"_id": key_of(values["tenant_id"], values["id"])}
    collection = USERS if kind == "user" else SESSIONS
    for _ in range(2):
        try:
            found = await db.change(collection, where, {"$set": given, "$setOnInsert": new}, upsert=True)
            break
        except AlreadyExistsError:
            # two callers added it at once; this one finds it now
            found = None
    if found is None:
        raise ConcurrencyError(f"the {kind} {values['id']!r} is being removed; try again")
    label = decode_text(found["label"]) if kind == "user" else found["label"]
    return (found["id"], label, decode_json(found["m"]), instant(found["ca"]), instant(found["ua"]))

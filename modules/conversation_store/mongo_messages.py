"""The conversation store in MongoDB: reading and changing messages, and turns.

A change keeps the former version as an event. The event is put into the message by the change itself and moved to its own
collection afterwards; readers of events look at both places, so a process that dies between loses nothing.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from modules.conversation_store import messages as op
from modules.conversation_store import reading, turn_operations
from modules.conversation_store.errors import (
    ConversationLeaseLostError,
    ConversationNotFoundError,
    MessageNotFoundError,
)
from modules.conversation_store.messages import encode_former
from modules.conversation_store.metadata_filter import MetadataFilter
from modules.conversation_store.mongo_documents import (
    EVENTS,
    FORMS,
    MESSAGES,
    State,
    event_of,
    find_conversation,
    language_of,
    message_of,
    metadata_terms,
    range_of,
    row_of,
    state_of,
    words_fields,
)
from modules.conversation_store.mongo_garbage import collect_old_garbage
from modules.conversation_store.reading import Fetch
from modules.conversation_store.records import Message, MessageEvent
from modules.storage.documents import Document, Documents, key_of
from modules.storage.statements import Row
from modules.store_common.errors import AlreadyExistsError
from modules.store_common.values import decode_json, decode_text

__all__ = [
    "delete",
    "edit",
    "end_turn",
    "fetch",
    "fetch_events",
    "get",
    "get_sequences",
    "live_message",
    "load_recent",
    "recover",
    "store_part",
]

_SECOND = 1_000_000
_Key = Mapping[str, Any]


async def _state(db: Documents, tenant_id: str, conversation_id: str) -> Optional[State]:
    found = await find_conversation(db, tenant_id, conversation_id)
    return None if found is None else state_of(found)


def _places(tenant_id: str, state: State, after: int = 0, before: int = 2**62) -> Dict[str, Any]:
    """Return the condition for the published messages between two sequences."""
    return {
        "$gt": range_of(tenant_id, state.generation, after),
        "$lt": range_of(tenant_id, state.generation, min(before, state.last + 1)),
    }


async def live_message(
    db: Documents, tenant_id: str, state: Optional[State], message_id: str
) -> Optional[Document]:
    """Return a published message that is not deleted."""
    if state is None:
        return None
    where = {"t": tenant_id, "g": state.generation, "i": message_id, "da": None, "n": {"$lte": state.last}}
    return await db.find_one(MESSAGES, where)


@FORMS.form_of(op.get)
async def get(db: Documents, tenant_id: str, conversation_id: str, message_id: str) -> Optional[Message]:
    """Return a message that is not deleted."""
    state = await _state(db, tenant_id, conversation_id)
    found = await live_message(db, tenant_id, state, message_id)
    return None if found is None else message_of(found)


@FORMS.form_of(op.get_sequences)
async def get_sequences(
    db: Documents, tenant_id: str, conversation_id: str, sequences: Sequence[int]
) -> Dict[int, Message]:
    """Return messages by their places, deleted ones too."""
    state = await _state(db, tenant_id, conversation_id)
    if state is None:
        return {}
    ids = [range_of(tenant_id, state.generation, number) for number in sequences if number <= state.last]
    return {found["n"]: message_of(found) for found in await db.find(MESSAGES, {"_id": {"$in": ids}})}


@FORMS.form_of(reading.load_recent)
async def load_recent(db: Documents, tenant_id: str, conversation_id: str, limit: int) -> List[Message]:
    """Return the last messages, oldest first."""
    state = await _state(db, tenant_id, conversation_id)
    if state is None:
        return []
    where = {"_id": _places(tenant_id, state), "da": None}
    found = await db.find(MESSAGES, where, sort=[("_id", -1)], limit=limit)
    return [message_of(document) for document in reversed(found)]


@FORMS.form_of(reading.fetch)
async def fetch(db: Documents, which: Fetch, params: Mapping[str, Any]) -> List[Row]:
    """Return messages after and before the sequences in `params`."""
    tenant_id = params["tenant_id"]
    state = await _state(db, tenant_id, params["conversation_id"])
    if state is None:
        return []
    where: Dict[str, Any] = {"_id": _places(tenant_id, state, params["after"], params["before"])}
    for name, values in which.lists.items():
        where["st" if name == "status" else name] = {"$in": values}
    if not which.include_deleted:
        where["da"] = None
    if which.metadata is not None:
        where["mt"] = {"$all": _terms(which.metadata)}
    order = -1 if which.backward else 1
    found = await db.find(MESSAGES, where, sort=[("_id", order)], limit=params["limit"])
    return [row_of(document) for document in found]


def _terms(wanted: MetadataFilter) -> List[str]:
    return metadata_terms(decode_json(wanted.document))


# --- events ------------------------------------------------------------------------------------------------------------


@FORMS.form_of(reading.fetch_events)
async def fetch_events(db: Documents, params: Mapping[str, Any]) -> List[MessageEvent]:
    """Return events in order."""
    tenant_id, limit = params["tenant_id"], params["limit"]
    state = await _state(db, tenant_id, params["conversation_id"])
    if state is None:
        return []
    at: Tuple[int, int] = (params["sequence"], params["version"])
    # the creation of a message is version 1
    first = at[0] if at[1] < 1 else at[0] + 1
    of_message = {"i": params["message_id"]} if "message_id" in params else {}
    found = await db.find(
        MESSAGES,
        {"_id": _places(tenant_id, state, first - 1), **of_message},
        sort=[("_id", 1)],
        limit=limit,
    )
    moving = await db.find(
        MESSAGES,
        {"_id": _places(tenant_id, state, at[0] - 1), "le.0": {"$exists": True}, **of_message},
        sort=[("_id", 1)],
        limit=limit,
    )
    past = {
        "$gt": _event_id(tenant_id, state.generation, *at),
        "$lt": key_of(tenant_id, state.generation, "A"),
    }
    moved = await db.find(EVENTS, {"_id": past, **of_message}, sort=[("_id", 1)], limit=limit)
    events = {(event["n"], event["v"]): event for event in [*moved, *_events_in(moving)]}
    events.update({(document["n"], 1): _creation(document) for document in found})
    ordered = sorted(place for place in events if place > at)
    return [event_of(events[place]) for place in ordered[:limit]]


def _event_id(tenant_id: str, generation: str, sequence: int, version: int) -> str:
    return key_of(range_of(tenant_id, generation, sequence), f"{version:012}")


def _events_in(messages: Sequence[Document]) -> List[Document]:
    return [event for document in messages for event in document["le"]]


def _creation(document: Document) -> Document:
    names = ("c", "n", "i", "ca")
    fields = {name: document[name] for name in names}
    return {**fields, "v": 1, "type": "created", "former": None, "ac": document["au"]}


# --- changes -----------------------------------------------------------------------------------------------------------


async def _changed(
    db: Documents,
    key: _Key,
    message_id: str,
    kind: str,
    expected: Optional[int],
    actor_id: Optional[str],
    new: Dict[str, Any],
) -> Message:
    """Change a message that is not deleted, and keep its former version as an event."""
    tenant_id = key["tenant_id"]
    while True:
        state = await _state(db, tenant_id, key["conversation_id"])
        if state is None:
            raise ConversationNotFoundError(key["conversation_id"])
        found = await live_message(db, tenant_id, state, message_id)
        if found is None:
            raise MessageNotFoundError(key["conversation_id"], message_id)
        before = message_of(found)
        op.check_version(before, expected)
        event = {
            **{name: found[name] for name in ("t", "g", "c", "n", "i")},
            "_id": _event_id(tenant_id, found["g"], found["n"], found["v"] + 1),
            "v": found["v"] + 1,
            "type": kind,
            "former": encode_former(
                {"content": before.content, "metadata": before.metadata, "status": before.status}
            ),
            "ac": actor_id,
            "ca": await db.now(),
        }
        words: Dict[str, Any] = {}
        if "j" in new:
            text = new.get("_search_text")
            words = words_fields(new["j"], text, decode_text(found["name"]), await language_of(db))
        fields = {name: value for name, value in new.items() if not name.startswith("_")}
        steps = {"$set": {**fields, **words}, "$inc": {"v": 1}, "$push": {"le": event}}
        where = {"_id": found["_id"], "v": found["v"], "da": None}
        after = await db.change(MESSAGES, where, steps)
        if after is not None:
            await _move_events(db, after)
            return message_of(after)


async def _move_events(db: Documents, message: Document) -> None:
    for event in message["le"]:
        try:
            await db.insert(EVENTS, [event])
        except AlreadyExistsError:
            # a process died after this step, or another does it now
            continue
    versions = [event["v"] for event in message["le"]]
    await db.update(MESSAGES, {"_id": message["_id"]}, {"$pull": {"le": {"v": {"$in": versions}}}})


@FORMS.form_of(op.edit)
async def edit(
    db: Documents,
    key: Dict[str, Any],
    message_id: str,
    given: Dict[str, Any],
    expected: Optional[int],
    actor_id: Optional[str],
) -> Message:
    """Change a message and keep its former version as an event."""
    new: Dict[str, Any] = {"ea": await db.now()}
    if "content" in given:
        new.update(j=str(given["content"]), _search_text=given["search_text"])
    if "metadata" in given:
        new.update(m=str(given["metadata"]), mt=metadata_terms(decode_json(given["metadata"])))
    if "status" in given:
        new["st"] = given["status"]
    return await _changed(db, key, message_id, "edited", expected, actor_id, new)


@FORMS.form_of(op.delete)
async def delete(
    db: Documents, key: Dict[str, Any], message_id: str, expected: Optional[int], actor_id: Optional[str]
) -> Message:
    """Mark a message as deleted."""
    return await _changed(db, key, message_id, "deleted", expected, actor_id, {"da": await db.now()})


# --- turns -------------------------------------------------------------------------------------------------------------


async def _reply(db: Documents, key: _Key) -> Dict[str, Any]:
    """Return the condition for the message that a turn writes, whatever became of its conversation's status."""
    found = await find_conversation(db, key["tenant_id"], key["conversation_id"], deleted=True)
    if found is None:
        raise ConversationLeaseLostError(key["conversation_id"])
    return {"_id": range_of(key["tenant_id"], found["g"], key["sequence"])}


@FORMS.form_of(turn_operations.store_part)
async def store_part(
    db: Documents, key: Dict[str, Any], fence: str, seconds: float, content: Optional[str]
) -> None:
    """Renew the turn's lease and store what was written so far."""
    where = {**await _reply(db, key), "tf": fence}
    ends = {"te": await db.now() + int(seconds * _SECOND)}
    if content is not None:
        new = {**ends, "j": str(content)}
        if await db.update(MESSAGES, {**where, "st": "streaming"}, {"$set": new}):
            return
    if not await db.update(MESSAGES, where, {"$set": ends}):
        raise ConversationLeaseLostError(key["conversation_id"])


@FORMS.form_of(turn_operations.end_turn)
async def end_turn(db: Documents, key: Dict[str, Any], fence: str, values: Dict[str, Any]) -> None:
    """Finish the reply."""
    where = {**await _reply(db, key), "tf": fence}
    found = await db.find_one(MESSAGES, where, fields=("name",))
    if found is not None:
        content, words = str(values["content"]), values["search_text"]
        new = {
            "j": content,
            "m": str(values["metadata"]),
            "mt": metadata_terms(decode_json(values["metadata"])),
            "st": values["status"],
            **words_fields(content, words, decode_text(found["name"]), await language_of(db)),
        }
        over = {"tf": "", "te": ""}
        if await db.update(MESSAGES, {**where, "st": "streaming"}, {"$set": new, "$unset": over}):
            return
        # somebody gave it another status: the turn ends all the same
        if await db.update(MESSAGES, where, {"$unset": over}):
            return
    raise ConversationLeaseLostError(key["conversation_id"])


@FORMS.form_of(turn_operations.recover)
async def recover(db: Documents, tenant_id: Optional[str], limit: int) -> int:
    """Mark the replies of dead turns as interrupted; what they wrote is kept."""
    now = await db.now()
    where: Dict[str, Any] = {"te": {"$gt": 0, "$lte": now}}
    if tenant_id is None:
        await collect_old_garbage(db)
    else:
        where["t"] = tenant_id
    language = await language_of(db)
    ended = 0
    for found in await db.find(MESSAGES, where, sort=[("te", 1)], limit=limit):
        dead = {"_id": found["_id"], "tf": found["tf"], "te": {"$lte": now}}
        over: Dict[str, Any] = {"$unset": {"tf": "", "te": ""}}
        if found["st"] == "streaming":
            words = words_fields(found["j"], decode_text(found["x"]), decode_text(found["name"]), language)
            over["$set"] = {"st": "interrupted", **words}
        ended += await db.update(MESSAGES, dead, over)
    return ended

"""The conversation store in MongoDB: its collections, and how a record stands in a document.

    atlas_conversations   _id tenant, id
        g     the generation of its messages: a new one with each reset, so that a reset is one change of one document
        u     its incarnation: assets are of one
        last  the sequence of its newest message: what is beyond is not published yet, and no reader sees it
        ep    the epoch: raised to shut out a writer that left something beyond `last`
        kept  messages not trimmed: `last` less `trimmed`
    atlas_messages        _id tenant, generation, sequence with leading zeros: a page of history is a range of keys
        i     its id in the conversation    ck  tenant, generation and idempotency key, where there is one
        w     the words to search           wt, ep  which write made it
        le    events of its changes that are on their way to their own collection
        tf te fence and end of the turn that writes it
    atlas_message_events, atlas_assets, atlas_users, atlas_sessions
    atlas_message_garbage generations that may have to be removed; see `mongo_lifecycle`

JSON stands as text, instants as microseconds.
"""

from __future__ import annotations

from decimal import Decimal
from hashlib import blake2b
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import orjson

from modules.conversation_store.records import Conversation, Message, MessageEvent
from modules.conversation_store.search_ddl import MAX_SEARCH_CHARACTERS
from modules.conversation_store.stemming import stems_of, words_of
from modules.storage.documents import (
    MAX_DOCUMENT_BYTES,
    Document,
    DocumentForms,
    Documents,
    IndexModel,
    instant,
    key_of,
    micros,
)
from modules.store_common.errors import InvalidValueError
from modules.store_common.values import decode_json, decode_text, encode_text

__all__ = [
    "ASSETS",
    "CONVERSATIONS",
    "EVENTS",
    "FORMS",
    "GARBAGE",
    "LANGUAGE",
    "MESSAGES",
    "SESSIONS",
    "USERS",
    "State",
    "conversation_of",
    "event_of",
    "find_conversation",
    "instant",
    "language_of",
    "message_document",
    "message_of",
    "metadata_terms",
    "micros",
    "range_of",
    "row_of",
    "state_of",
    "words_fields",
]

CONVERSATIONS = "atlas_conversations"
MESSAGES = "atlas_messages"
EVENTS = "atlas_message_events"
ASSETS = "atlas_assets"
USERS = "atlas_users"
SESSIONS = "atlas_sessions"
GARBAGE = "atlas_message_garbage"
#: Holds the language of the search index.
LANGUAGE = "atlas_search_language"

_T = ("t", 1)
FORMS = DocumentForms(
    "conversations",
    1,
    [CONVERSATIONS, MESSAGES, EVENTS, ASSETS, USERS, SESSIONS, GARBAGE, LANGUAGE],
    [
        IndexModel(CONVERSATIONS, "ix_updated", [_T, ("status", 1), ("ua", -1), ("id", -1)]),
        IndexModel(CONVERSATIONS, "ix_user", [_T, ("user", 1), ("status", 1), ("ua", -1), ("id", -1)]),
        IndexModel(CONVERSATIONS, "ix_session", [_T, ("session", 1), ("status", 1), ("ua", -1), ("id", -1)]),
        IndexModel(CONVERSATIONS, "ix_deleted", [_T, ("da", 1)]),
        IndexModel(CONVERSATIONS, "ix_kept", [_T, ("kept", 1)]),
        IndexModel(MESSAGES, "uq_id", [_T, ("g", 1), ("i", 1)], unique=True),
        # one text of all three parts, because only an index on a single field can leave documents without it out
        IndexModel(MESSAGES, "uq_client_key", [("ck", 1)], unique=True, sparse=True),
        IndexModel(MESSAGES, "ix_words", [_T, ("w", 1)]),
        IndexModel(MESSAGES, "ix_deleted", [_T, ("da", 1)]),
        # across tenants on purpose: whoever looks for dead turns looks for those of all
        IndexModel(MESSAGES, "ix_turns", [("te", 1)], sparse=True),
        IndexModel(EVENTS, "ix_message", [_T, ("g", 1), ("i", 1), ("n", 1), ("v", 1)]),
        IndexModel(GARBAGE, "ix_noted", [("at", 1)]),
    ],
)

_DIGITS = 12
_LANGUAGE_GOOD_FOR_US = 60_000_000


class State(NamedTuple):
    """What a writer has to know of a conversation to append to it."""

    generation: str
    last: int
    epoch: int


def range_of(tenant_id: str, generation: str, sequence: int) -> str:
    """Return the `_id` of the message with that sequence."""
    return key_of(tenant_id, generation, f"{min(max(sequence, 0), 10**_DIGITS - 1):0{_DIGITS}}")


async def find_conversation(
    db: Documents, tenant_id: str, conversation_id: str, *, deleted: bool = False
) -> Optional[Document]:
    """Return a conversation's document; `deleted`: a soft-deleted one, too."""
    found = await db.find_one(CONVERSATIONS, {"_id": key_of(tenant_id, conversation_id)})
    return found if found is not None and (deleted or found["status"] != "deleted") else None


def state_of(found: Document) -> State:
    """Return the part that appends compare."""
    return State(found["g"], found["last"], found["ep"])


def conversation_of(found: Document) -> Conversation:
    """Return the record of a document."""
    return Conversation(
        found["id"],
        decode_text(found["title"]),
        found["status"],
        found["user"],
        found["session"],
        decode_json(found["m"]),
        found["last"],
        found["v"],
        found["ff"],
        found["fs"],
        instant(found["ca"]),
        instant(found["ua"]),
        instant(found["aa"]),
        instant(found["da"]),
    )


def row_of(found: Document) -> Tuple[Any, ...]:
    """Return a message as a row of `MESSAGE_COLUMNS`."""
    return (
        found["c"],
        found["n"],
        found["i"],
        found["role"],
        decode_json(found["j"]),
        decode_text(found["name"]),
        found["type"],
        found["st"],
        decode_json(found["m"]),
        found["au"],
        found["pa"],
        found["cl"],
        found["v"],
        instant(found["ca"]),
        instant(found["ea"]),
        instant(found["da"]),
    )


def message_of(found: Document) -> Message:
    """Return the record of a document."""
    return Message(*row_of(found))


def event_of(found: Mapping[str, Any]) -> MessageEvent:
    """Return the record of an event."""
    former = None if found["former"] is None else decode_json(found["former"])
    return MessageEvent(
        found["c"],
        found["n"],
        found["v"],
        found["i"],
        found["type"],
        former,
        found["ac"],
        instant(found["ca"]),
    )


def words_fields(
    content: str, search_text: Optional[str], name: Optional[str], language: str
) -> Dict[str, Any]:
    """Return what search finds a message by: its words, each once, and how many there are.

    Args:
        content: JSON text; searched where `search_text` is None.
        search_text: The words of a content that is no plain text.
        name: The speaker's, part of the words.
        language: Of the index.
    """
    text = search_text
    if text is None:
        plain = decode_json(content)
        text = plain if isinstance(plain, str) else ""
    words = words_of(f"{name or ''} {text[:MAX_SEARCH_CHARACTERS]}")
    return {"x": encode_text(search_text), "w": sorted(set(stems_of(words, language))), "wl": len(words)}


def message_document(
    tenant_id: str,
    conversation_id: str,
    state: State,
    sequence: int,
    fields: Mapping[str, Any],
    language: str,
) -> Document:
    """Return the document of a new message.

    Args:
        tenant_id: Whose.
        conversation_id: Where to.
        state: Of the conversation.
        sequence: Its place.
        fields: What `encode_message` gave, with `created_at` in microseconds.
        language: Of the search index.

    Raises:
        InvalidValueError: it is larger than a document of MongoDB can be.
    """
    size = sum(len(str(fields[name] or "").encode()) for name in ("content", "metadata"))
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidValueError(
            f"the message is {size} bytes long; a document of MongoDB holds at most {MAX_DOCUMENT_BYTES}"
        )
    client_id = fields["client_message_id"]
    document = {
        "_id": range_of(tenant_id, state.generation, sequence),
        "t": tenant_id,
        "g": state.generation,
        "c": conversation_id,
        "n": sequence,
        "i": fields["id"],
        "role": fields["role"],
        "name": encode_text(fields["name"]),
        "type": fields["type"],
        "st": fields["status"],
        "j": str(fields["content"]),
        "m": str(fields["metadata"]),
        "mt": metadata_terms(decode_json(fields["metadata"])),
        "au": fields["author_id"],
        "pa": fields["parent_id"],
        "cl": client_id,
        "bd": fields["body_digest"],
        "v": 1,
        "ca": fields["created_at"],
        "ea": None,
        "da": None,
        "ep": state.epoch,
        **words_fields(str(fields["content"]), fields["search_text"], fields["name"], language),
    }
    if client_id is not None:
        document["ck"] = key_of(tenant_id, state.generation, client_id)
    return document


def metadata_terms(metadata: Mapping[str, Any]) -> List[str]:
    """Return a text for each plain value in `metadata` and the objects in it: what a metadata filter asks for."""
    terms: List[str] = []
    stack: List[Tuple[List[str], Mapping[str, Any]]] = [([], metadata)]
    while stack:
        path, level = stack.pop()
        for key, value in level.items():
            if isinstance(value, dict):
                stack.append(([*path, key], value))
            elif not isinstance(value, list):
                terms.append(_term([*path, key], value))
    return sorted(terms)


def _term(path: List[str], value: Any) -> str:
    """Return a short text for a path and value; 1 and 1.0 are one value, as in JSON, and True is another."""
    if type(value) in (int, float):
        kind, text = "n", str(Decimal(repr(value)).normalize() + 0)
    else:
        kind, text = type(value).__name__[0], str(value)
    return blake2b(orjson.dumps([path, kind, text]), digest_size=12).hexdigest()


async def language_of(db: Documents) -> str:
    """Return the language of the search index; read once a minute."""
    hint = db.remembered(LANGUAGE)
    now = await db.now()
    if hint is not None and now - hint[1] < _LANGUAGE_GOOD_FOR_US:
        return str(hint[0])
    found = await db.find_one(LANGUAGE, {"_id": "language"})
    language = "english" if found is None else found["language"]
    db.remember(LANGUAGE, (language, now))
    return str(language)

"""The conversation store in MongoDB: search by words, on an index of our own.

Every message holds its words, in English by their stems, in an array that is indexed. A search takes the messages that
have any of the question's words and ranks them as the SQL back ends do, by BM25 with each word counted once per message:

    score = sum over the words found of idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * size / mean size))

so it costs time in proportion to the messages that match. MongoDB's own text index is not used: it knows no tenant's
rarities, and its scores would differ from server to server.
"""

from __future__ import annotations

import math
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from modules.conversation_store import search as op
from modules.conversation_store import search_pending
from modules.conversation_store.meaning import Place
from modules.conversation_store.mongo_documents import (
    CONVERSATIONS,
    FORMS,
    LANGUAGE,
    MESSAGES,
    find_conversation,
    micros,
    range_of,
    row_of,
    words_fields,
)
from modules.conversation_store.stemming import stems_of, words_of
from modules.storage.documents import Document, Documents, key_of
from modules.storage.statements import Row
from modules.store_common.values import decode_text

__all__ = [
    "find",
    "index_pending",
    "rank",
    "rebuild",
]

# The most messages that a search ranks. Source: 100,000 x 200 bytes is what a process can hold beside others.
_MOST_MATCHES = 100_000
_AT_ONCE = 500
_SIZE_GOOD_FOR_US = 60_000_000
_RANKED = ("c", "g", "n", "w", "wl")


@FORMS.form_of(op.find)
async def find(
    db: Documents, params: Dict[str, Any], terms: List[str], roles: Optional[List[str]], whole: bool
) -> Optional[List[Row]]:
    """Return the messages found, best first, with their words and scores."""
    ranking = await _ranked(db, params, terms, roles)
    ids = {range_of(params["tenant_id"], match["g"], match["n"]): score for match, score in ranking}
    found: Dict[str, Document] = {}
    places = list(ids)
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        for document in await db.find(MESSAGES, {"_id": {"$in": part}}):
            found[document["_id"]] = document
    return [
        (*row_of(found[place]), decode_text(found[place]["x"]), score)
        for place, score in ids.items()
        if place in found
    ]


@FORMS.form_of(op.rank)
async def rank(
    db: Documents, params: Dict[str, Any], terms: List[str], roles: Optional[List[str]], whole: bool
) -> Optional[Dict[Place, float]]:
    """Return the scores of the same search, best first."""
    return {(match["c"], match["n"]): score for match, score in await _ranked(db, params, terms, roles)}


async def _ranked(
    db: Documents, params: Mapping[str, Any], terms: Sequence[str], roles: Optional[List[str]]
) -> List[Tuple[Document, float]]:
    words = [word for term in terms for word in words_of(term)]
    wanted = sorted(set(stems_of(words, params["language"])))
    where = await _condition(db, params, wanted, roles)
    if where is None:
        return []
    matches = await db.find(MESSAGES, where, limit=_MOST_MATCHES, fields=_RANKED)
    matches = await _visible(db, params["tenant_id"], matches)
    if not matches:
        return []
    size = max(len(matches), await _size(db, params))
    scores = _scores(matches, set(wanted), size)
    ranking = sorted(zip(matches, scores), key=lambda pair: (-pair[1], pair[0]["c"], pair[0]["n"]))
    return ranking[: params["limit"]]


async def _condition(
    db: Documents, params: Mapping[str, Any], wanted: List[str], roles: Optional[List[str]]
) -> Optional[Dict[str, Any]]:
    where: Dict[str, Any] = {
        "t": params["tenant_id"],
        "w": {"$in": wanted},
        "da": None,
        "st": {"$ne": "streaming"},
    }
    if "conversation_id" in params:
        found = await find_conversation(db, params["tenant_id"], params["conversation_id"])
        if found is None:
            return None
        where["g"] = found["g"]
    if roles is not None:
        where["role"] = {"$in": roles}
    times: Dict[str, Any] = {}
    if params["after"] is not None:
        times["$gte"] = micros(params["after"])
    if params["before"] is not None:
        times["$lt"] = micros(params["before"])
    if times:
        where["ca"] = times
    return where


async def _visible(db: Documents, tenant_id: str, matches: List[Document]) -> List[Document]:
    """Return those that are published, in a conversation that is not deleted."""
    conversations = sorted({match["c"] for match in matches})
    states: Dict[str, Document] = {}
    for start in range(0, len(conversations), _AT_ONCE):
        ids = [key_of(tenant_id, name) for name in conversations[start : start + _AT_ONCE]]
        where = {"_id": {"$in": ids}, "status": {"$ne": "deleted"}}
        for found in await db.find(CONVERSATIONS, where, fields=("id", "g", "last")):
            states[found["id"]] = found
    return [
        match
        for match in matches
        if match["c"] in states
        and states[match["c"]]["g"] == match["g"]
        and match["n"] <= states[match["c"]]["last"]
    ]


async def _size(db: Documents, params: Mapping[str, Any]) -> int:
    """Return about how many messages are searched; only the weights depend on it."""
    if "conversation_id" in params:
        found = await find_conversation(db, params["tenant_id"], params["conversation_id"])
        return 0 if found is None else int(found["last"])
    key = ("messages", params["tenant_id"])
    hint = db.remembered(key)
    now = await db.now()
    if hint is not None and now - hint[1] < _SIZE_GOOD_FOR_US:
        return int(hint[0])
    size = await db.count(MESSAGES, {"t": params["tenant_id"]})
    db.remember(key, (size, now))
    return size


def _scores(matches: Sequence[Document], wanted: Set[str], size: int) -> List[float]:
    """Return the score of each match.

    Source:
        Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; k1 = 1.2, b = 0.75 as in
        SQLite's FTS5.
    """
    mean = sum(match["wl"] for match in matches) / len(matches) or 1.0
    having = [wanted.intersection(match["w"]) for match in matches]
    counts: Dict[str, int] = {}
    for words in having:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    rarity = {word: math.log(1 + (size - n + 0.5) / (n + 0.5)) for word, n in counts.items()}
    return [
        sum(_sorted_values(rarity, words)) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * match["wl"] / mean))
        for match, words in zip(matches, having)
    ]


def _sorted_values(rarity: Mapping[str, float], words: Iterable[str]) -> List[float]:
    """Return rarities in one order, so that equal sets have equal sums."""
    return sorted(rarity[word] for word in words)


@FORMS.form_of(op.rebuild)
async def rebuild(db: Documents, language: str) -> None:
    """Make the search index anew, in a language: message by message, while others write."""
    await db.update(LANGUAGE, {"_id": "language"}, {"$set": {"language": language}}, upsert=True)
    db.remember(LANGUAGE, None)
    after = ""
    while True:
        found = await db.find(
            MESSAGES,
            {"_id": {"$gt": after}},
            sort=[("_id", 1)],
            limit=_AT_ONCE,
            fields=("j", "x", "name"),
        )
        for message in found:
            name = decode_text(message["name"])
            words = words_fields(message["j"], decode_text(message["x"]), name, language)
            # edited meanwhile: whoever did that indexed it
            await db.update(MESSAGES, {"_id": message["_id"], "j": message["j"]}, {"$set": words})
        if len(found) < _AT_ONCE:
            return
        after = found[-1]["_id"]


@FORMS.form_of(search_pending.index_pending)
async def index_pending(db: Documents, limit: int) -> int:
    """Nothing is ever pending: a message is written with its words."""
    return 0

"""Room: search over messages, by words, by meaning, or both.

The full-text index is in `search_ddl`, the statements in `search_statements`, the reading of questions in `query`, the
fusion of the rankings in `meaning`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from sqlalchemy import text

from modules.conversation_store.encoding import check_label, check_limit
from modules.conversation_store.meaning import MODES, Nearest, Place, SearchHits, SemanticIndex, fuse
from modules.conversation_store.records import SearchHit
from modules.conversation_store.rows import to_message
from modules.conversation_store.search_ddl import rebuild_ddl
from modules.conversation_store.search_pending import has_pending, search_everything
from modules.conversation_store.search_statements import (
    MESSAGES_AT,
    RANK_ALL,
    RANK_ONE,
    SEARCH_ALL,
    SEARCH_ONE,
)
from modules.storage.operations import Executor, Store, Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.clock import require_utc
from modules.store_common.errors import InvalidValueError, NotConfiguredError
from modules.store_common.text_query import fts5_query, question_terms, snippet_of
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "MAX_HITS",
    "Search",
    "find",
    "messages_at",
    "rank",
    "rebuild",
]

MAX_HITS = 1000
# How many messages of each ranking are fused. Enough that a conversation of this many is ranked exactly.
_CANDIDATES = 1000
_MOST_ASKED = 10_000
_TOO_MANY_GONE = "many of the nearest messages are deleted; run `atlas-storage embed` and search again"


@read
async def find(
    tx: Transaction, params: Dict[str, Any], terms: List[str], roles: Optional[List[str]], whole: bool
) -> Optional[List[Row]]:
    """Run a search whose parameters were checked; None: not while messages are pending that `whole` asks for."""
    if whole and await has_pending(tx):
        return None
    return await _run(tx, SEARCH_ONE if "conversation_id" in params else SEARCH_ALL, params, terms, roles)


@read
async def rank(
    tx: Transaction, params: Dict[str, Any], terms: List[str], roles: Optional[List[str]], whole: bool
) -> Optional[Dict[Place, float]]:
    """Return the scores of the same search, best first; None as `find`."""
    if whole and await has_pending(tx):
        return None
    statement = RANK_ONE if "conversation_id" in params else RANK_ALL
    return {(row[0], row[1]): row[2] for row in await _run(tx, statement, params, terms, roles)}


async def _run(
    tx: Transaction,
    statement: Statement,
    params: Dict[str, Any],
    terms: List[str],
    roles: Optional[List[str]],
) -> List[Row]:
    one = "conversation_id" in params
    if tx.dialect == "sqlite":
        scope = "" if one else "q" + params["tenant_id"].encode().hex() + "x"
        params = {**params, "query": fts5_query(terms, scope), "roles": roles and encode_json(roles, "roles")}
    else:
        params = {**params, "query": " ".join(terms), "roles": roles}
    return await tx.all(statement, **params)


@read
async def messages_at(
    tx: Transaction, params: Dict[str, Any], places: Sequence[Place], roles: Optional[List[str]]
) -> Dict[Place, Row]:
    """Return the messages at `places` that are searchable and pass the filters, with their words for the snippet."""
    keys: Dict[str, Any]
    if tx.dialect == "sqlite":
        keys = {"keys": encode_json([list(place) for place in places], "keys")}
        keys["roles"] = roles and encode_json(roles, "roles")
    else:
        keys = {
            "conversations": [place[0] for place in places],
            "sequences": [place[1] for place in places],
            "roles": roles,
        }
    names = ("tenant_id", "after", "before")
    rows = await tx.all(MESSAGES_AT, **keys, **{name: params[name] for name in names})
    return {(row[0], row[1]): row for row in rows}


@write
async def rebuild(tx: Transaction, language: str) -> None:
    """Make the search index anew, in a language."""
    for sql in rebuild_ddl(tx.dialect, language):
        await tx.run(Statement(text(sql)))


class Search(Store):
    """Search by words, by meaning, or both."""

    _search_language: str
    _semantic: Optional[SemanticIndex]

    async def search(
        self,
        query: str,
        *,
        mode: str = "text",
        conversation_id: Optional[str] = None,
        role: Union[str, Sequence[str], None] = None,
        created_after: Optional[datetime] = None,
        created_before: Optional[datetime] = None,
        limit: int = 10,
        snippet_characters: int = 160,
        tenant_id: Optional[str] = None,
    ) -> SearchHits:
        """Return the messages that fit `query` best, best first.

        By "text" a message fits when it has any of the question's words, whatever their ending (in English); the
        speaker's name counts as part of the text. By "semantic" those fit whose meaning is nearest, as the configured
        embedder sees it. "hybrid" adds both scores, and to each message's a share of its neighbours': the best choice
        where an embedder is configured (docs/semantic-search.md).

        Args:
            query: Any text a person types, up to 64 KiB; quotes and operators are nothing special. A blank text finds
                nothing; by "text", so does one of nothing but stop words.
            mode: "text", "semantic" or "hybrid".
            conversation_id: Only in this conversation.
            role: Only messages of this role, or one of these.
            created_after: Only created at this time or later; aware.
            created_before: Only created before this time; aware.
            limit: 1 to 1,000.
            snippet_characters: About how long the snippets are, 1 to 10,000.
            tenant_id: Whose; see `TenantPolicy`.

        Returns:
            Hits with scores that compare within this result only ("semantic": the cosine); equal scores by conversation
            and sequence. `complete` is False when messages may be missing, for example not embedded yet.

        Raises:
            NotConfiguredError: a mode other than "text" without an embedder.
        """
        if mode not in MODES:
            raise InvalidValueError(f"the search mode must be one of {', '.join(MODES)}")
        params: Dict[str, Any] = {
            "tenant_id": self._tenant(tenant_id),
            "after": require_utc(created_after, "created_after"),
            "before": require_utc(created_before, "created_before"),
            "limit": check_limit(limit, "limit", MAX_HITS),
            "language": self._search_language,
        }
        if conversation_id is not None:
            params["conversation_id"] = check_identifier(conversation_id, "conversation_id")
        roles = (
            None
            if role is None
            else [check_label(item, "role") for item in ([role] if isinstance(role, str) else role)]
        )
        check_limit(snippet_characters, "snippet_characters")
        terms = question_terms(query, self._search_language)
        if mode != "text":
            if self._semantic is None:
                raise NotConfiguredError(
                    f"search by mode {mode!r} needs an embedder; set ATLAS_EMBEDDER (docs/semantic-search.md)"
                )
            found = _ByMeaning(self._executor, self._semantic, params, terms, roles, snippet_characters)
            return await found.hits(query, mode)
        if not terms:
            return SearchHits()
        rows = await search_everything(self._executor, find, params, terms, roles)
        return SearchHits(_hit(row[:-1], row[-1], terms, snippet_characters) for row in rows)

    async def rebuild_search(self) -> None:
        """Make the search index of all tenants anew, in this store's language. Writes wait meanwhile.

        Needed after the setting of the language was changed. A task of administration: it takes no tenant and reads
        no message out.
        """
        await self._executor.run(rebuild, self._search_language)


class _ByMeaning:
    """A search by meaning: candidates of the index, ranked, and the messages that they stand for."""

    def __init__(
        self,
        executor: Executor,
        index: SemanticIndex,
        params: Dict[str, Any],
        terms: List[str],
        roles: Optional[List[str]],
        width: int,
    ) -> None:
        self._executor = executor
        self._index = index
        self._params = params
        self._terms = terms
        self._roles = roles
        self._width = width

    async def hits(self, query: str, mode: str) -> SearchHits:
        if not query.strip():
            return SearchHits()
        return await (self._semantically(query) if mode == "semantic" else self._both(query))

    async def _nearest(self, query: str, limit: int) -> Nearest:
        return await self._index.nearest(
            query,
            tenant_id=self._params["tenant_id"],
            limit=limit,
            conversation_id=self._params.get("conversation_id"),
            roles=self._roles,
            created_after=self._params["after"],
            created_before=self._params["before"],
        )

    async def _semantically(self, query: str) -> SearchHits:
        wanted = self._params["limit"]
        # hits that are gone by now, or in a deleted conversation, are dropped below: ask for more until there are enough
        asked = wanted + 10
        while True:
            nearest = await self._nearest(query, asked)
            ranking = sorted(nearest.scores.items(), key=lambda item: (-item[1], item[0]))
            hits = await self._fetch(ranking, wanted)
            if len(hits) == wanted or nearest.is_all or asked >= _MOST_ASKED:
                break
            asked = min(asked * 4, _MOST_ASKED)
        complete = nearest.is_complete and (len(hits) == wanted or nearest.is_all)
        return SearchHits(
            hits, complete=complete, reason="" if complete else nearest.reason or _TOO_MANY_GONE
        )

    async def _both(self, query: str) -> SearchHits:
        wanted = self._params["limit"]
        nearest = await self._nearest(query, _CANDIDATES)
        words: Mapping[Place, float] = {}
        if self._terms:
            words = await search_everything(
                self._executor, rank, {**self._params, "limit": _CANDIDATES}, self._terms, self._roles
            )
        hits = await self._fetch(fuse(words, nearest.scores), wanted)
        complete = nearest.is_complete and (len(hits) == wanted or nearest.is_all)
        return SearchHits(
            hits, complete=complete, reason="" if complete else nearest.reason or _TOO_MANY_GONE
        )

    async def _fetch(self, ranking: Sequence[Tuple[Place, float]], wanted: int) -> List[SearchHit]:
        """Return the first `wanted` of a ranking that are messages still (the ranking may name others)."""
        hits: List[SearchHit] = []
        start, step = 0, wanted + 10
        while start < len(ranking) and len(hits) < wanted:
            part = ranking[start : start + step]
            rows = await self._executor.run(
                messages_at, self._params, [place for place, _ in part], self._roles
            )
            there = [(rows[place], score) for place, score in part if place in rows]
            hits += [_hit(row, score, self._terms, self._width) for row, score in there[: wanted - len(hits)]]
            start, step = start + step, step * 4
        return hits


def _hit(row: Row, score: float, terms: List[str], width: int) -> SearchHit:
    message = to_message(row[:-1])
    words = row[-1] if row[-1] is not None else message.content if isinstance(message.content, str) else ""
    return SearchHit(message, float(score), snippet_of(words, terms, width))

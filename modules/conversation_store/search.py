"""Room: search over messages, by words, by meaning, or both. The full-text index is in `search_ddl`, the reading of
questions in `query`, the fusion of the rankings in `meaning`.

SQLite ranks with FTS5's BM25. PostgreSQL's own ranks know nothing of how rare a word is, so BM25 is computed in the
statement: the rarity of each term from the messages that matched, each term counted once per message.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from sqlalchemy import BigInteger, Double, String, Text, bindparam, literal_column, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.conversation_store.encoding import check_label, check_limit
from modules.conversation_store.meaning import MODES, Nearest, Place, SearchHits, SemanticIndex, fuse
from modules.conversation_store.models import MessageRow
from modules.conversation_store.query import fts5_query, question_terms, snippet_of
from modules.conversation_store.records import SearchHit
from modules.conversation_store.rows import MESSAGE_COLUMNS, to_message
from modules.conversation_store.search_ddl import rebuild_ddl
from modules.conversation_store.search_pending import has_pending, search_everything
from modules.storage.columns import UtcDateTime
from modules.storage.operations import Store, Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.clock import require_utc
from modules.store_common.errors import InvalidValueError, NotConfiguredError
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "MAX_HITS",
    "MESSAGES_AT",
    "RANK_ALL",
    "RANK_ONE",
    "SEARCH_ALL",
    "SEARCH_ONE",
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
_LIST = ", ".join(f"m.{column.name}" for column in MESSAGE_COLUMNS)
_COLUMNS = (
    *MESSAGE_COLUMNS,
    MessageRow.search_text,
    literal_column("score", Double).label("score"),
)
_TIMES = (bindparam("after", type_=UtcDateTime), bindparam("before", type_=UtcDateTime))

_FILTERS = """
    AND m.deleted_at IS NULL AND m.status <> 'streaming'
    AND (:after IS NULL OR m.created_at >= :after) AND (:before IS NULL OR m.created_at < :before)
"""

# CROSS JOIN keeps SQLite to this order: the match first, then look-ups by key.
_SQLITE_SELECT = f"SELECT {_LIST}, m.search_text, -bm25(atlas_messages_search, 1.0, 0.0) AS score"
_SQLITE_RANK = "SELECT m.conversation_id, m.sequence, -bm25(atlas_messages_search, 1.0, 0.0) AS score"
_SQLITE_SQL = f"""
FROM atlas_messages_search
CROSS JOIN atlas_search_numbers n ON n.number = (atlas_messages_search.rowid >> 31)
CROSS JOIN atlas_messages m ON m.tenant_id = n.tenant_id AND m.conversation_id = n.conversation_id
    AND m.sequence = (atlas_messages_search.rowid & 2147483647)
CROSS JOIN atlas_conversations c ON c.tenant_id = m.tenant_id AND c.id = m.conversation_id
WHERE atlas_messages_search MATCH :query AND n.tenant_id = :tenant_id AND c.status <> 'deleted'
    AND (:roles IS NULL OR m.role IN (SELECT value FROM json_each(:roles)))
    {_FILTERS}
"""
_SQLITE_RANGE = """
    AND atlas_messages_search.rowid >= (SELECT number << 31 FROM atlas_search_numbers
        WHERE tenant_id = :tenant_id AND conversation_id = :conversation_id)
    AND atlas_messages_search.rowid < (SELECT (number + 1) << 31 FROM atlas_search_numbers
        WHERE tenant_id = :tenant_id AND conversation_id = :conversation_id)
"""
_ORDER = "ORDER BY score DESC, m.conversation_id, m.sequence LIMIT :limit"

# k1 = 1.2 and b = 0.75 as in FTS5 (https://www.sqlite.org/fts5.html#the_bm25_function); a lexeme of our words is made of
# letters and digits only, so that quoting it is enough to make it a tsquery
_POSTGRES_HEAD = """
WITH terms AS MATERIALIZED (
    SELECT lexeme, ('''' || lexeme || '''')::tsquery AS term
    FROM unnest(to_tsvector(CAST(:language AS regconfig), :query))
), wanted AS (
    SELECT string_agg(term::text, ' | ')::tsquery AS any_of FROM terms
), found AS MATERIALIZED (
    SELECT m.conversation_id, m.sequence, m.search_vector AS words, greatest(length(m.search_vector), 1) AS size
    FROM atlas_messages m JOIN atlas_conversations c ON c.tenant_id = m.tenant_id AND c.id = m.conversation_id
    WHERE m.tenant_id = :tenant_id AND c.status <> 'deleted'
        AND m.search_vector @@ (SELECT any_of FROM wanted)
        AND (:roles IS NULL OR m.role = ANY(:roles))
"""
_POSTGRES_TAIL = """
), corpus AS MATERIALIZED (
    SELECT greatest(count(*), {size})::float8 AS size, coalesce(avg(size), 1)::float8 AS mean FROM found
), pairs AS MATERIALIZED (
    SELECT t.lexeme, f.conversation_id, f.sequence, f.size FROM found f JOIN terms t ON f.words @@ t.term
), rarity AS MATERIALIZED (
    SELECT p.lexeme, ln(1 + (max(c.size) - count(*) + 0.5) / (count(*) + 0.5)) AS idf
    FROM pairs p CROSS JOIN corpus c GROUP BY p.lexeme
), ranked AS (
    SELECT p.conversation_id, p.sequence,
        sum(r.idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * p.size / c.mean))) AS score
    FROM pairs p JOIN rarity r ON r.lexeme = p.lexeme CROSS JOIN corpus c
    GROUP BY p.conversation_id, p.sequence
    ORDER BY score DESC, p.conversation_id, p.sequence LIMIT :limit
)
"""
_POSTGRES_RANK = "SELECT conversation_id, sequence, score FROM ranked"
_POSTGRES_SELECT = f"""
SELECT {_LIST}, m.search_text, r.score FROM ranked r
JOIN atlas_messages m ON m.tenant_id = :tenant_id AND m.conversation_id = r.conversation_id AND m.sequence = r.sequence
ORDER BY r.score DESC, m.conversation_id, m.sequence
"""
# How many messages there are is an estimate unless one conversation is searched; only the weights depend on it. A table
# that was never analysed has no row count: 400 bytes a message is near enough.
_ALL_SIZE = """(SELECT greatest(reltuples, pg_relation_size('atlas_messages') / 400)::bigint
    FROM pg_class WHERE oid = 'atlas_messages'::regclass)"""
_ONE_SIZE = (
    "(SELECT last_sequence FROM atlas_conversations WHERE tenant_id = :tenant_id AND id = :conversation_id)"
)

_ONLY_ONE = "AND m.conversation_id = :conversation_id"
_TAIL_ALL = _FILTERS + _POSTGRES_TAIL.replace("{size}", _ALL_SIZE)
_TAIL_ONE = _ONLY_ONE + _FILTERS + _POSTGRES_TAIL.replace("{size}", _ONE_SIZE)


def _statement(sqlite: Any, postgresql: Any, one: bool, columns: Sequence[Any] = _COLUMNS) -> Statement:
    names = ["tenant_id", "query", *(["conversation_id"] if one else [])]
    shared = [
        *[bindparam(name, type_=String()) for name in names],
        bindparam("limit", type_=BigInteger),
        *_TIMES,
    ]
    return Statement(
        sqlite=sqlite.bindparams(*shared, bindparam("roles", type_=Text())).columns(*columns),
        postgresql=postgresql.bindparams(
            *shared, bindparam("roles", type_=ARRAY(Text())), bindparam("language", type_=String())
        ).columns(*columns),
    )


SEARCH_ALL = _statement(
    text(_SQLITE_SELECT + _SQLITE_SQL + _ORDER),
    text(_POSTGRES_HEAD + _TAIL_ALL + _POSTGRES_SELECT),
    False,
)
SEARCH_ONE = _statement(
    text(_SQLITE_SELECT + _SQLITE_SQL + _SQLITE_RANGE + _ORDER),
    text(_POSTGRES_HEAD + _TAIL_ONE + _POSTGRES_SELECT),
    True,
)
_RANK_COLUMNS = (MessageRow.conversation_id, MessageRow.sequence, _COLUMNS[-1])
#: The same rankings without the messages, to be fused with another.
RANK_ALL = _statement(
    text(_SQLITE_RANK + _SQLITE_SQL + _ORDER),
    text(_POSTGRES_HEAD + _TAIL_ALL + _POSTGRES_RANK),
    False,
    _RANK_COLUMNS,
)
RANK_ONE = _statement(
    text(_SQLITE_RANK + _SQLITE_SQL + _SQLITE_RANGE + _ORDER),
    text(_POSTGRES_HEAD + _TAIL_ONE + _POSTGRES_RANK),
    True,
    _RANK_COLUMNS,
)

_AT_SQL = f"""
SELECT {_LIST}, m.search_text FROM {{keys}}
JOIN atlas_messages m ON m.tenant_id = :tenant_id AND m.conversation_id = k.conversation_id AND m.sequence = k.sequence
JOIN atlas_conversations c ON c.tenant_id = m.tenant_id AND c.id = m.conversation_id
WHERE c.status <> 'deleted' AND {{roles}}
    {_FILTERS}
"""
_AT_KEYS = (
    "(SELECT json_extract(value, '$[0]') AS conversation_id, json_extract(value, '$[1]') AS sequence"
    " FROM json_each(:keys)) AS k"
)
_AT_SQLITE = "(:roles IS NULL OR m.role IN (SELECT value FROM json_each(:roles)))"
_AT_BINDS = (bindparam("tenant_id", type_=String()), *_TIMES)
#: The searchable messages at places, in any order.
MESSAGES_AT = Statement(
    sqlite=text(_AT_SQL.format(keys=_AT_KEYS, roles=_AT_SQLITE))
    .bindparams(*_AT_BINDS, bindparam("keys", type_=Text()), bindparam("roles", type_=Text()))
    .columns(*_COLUMNS[:-1]),
    postgresql=text(
        _AT_SQL.format(
            keys="unnest(:conversations, :sequences) AS k (conversation_id, sequence)",
            roles="(:roles IS NULL OR m.role = ANY(:roles))",
        )
    )
    .bindparams(
        *_AT_BINDS,
        bindparam("conversations", type_=ARRAY(Text())),
        bindparam("sequences", type_=ARRAY(BigInteger())),
        bindparam("roles", type_=ARRAY(Text())),
    )
    .columns(*_COLUMNS[:-1]),
)


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
async def rebuild(tx: Transaction, statements: Sequence[Statement]) -> None:
    """Make the search index anew."""
    for statement in statements:
        await tx.run(statement)


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
            found = _Found(self, params, terms, roles, snippet_characters)
            return await found.by_meaning(query, mode)
        if not terms:
            return SearchHits()
        rows = await search_everything(self._executor, find, params, terms, roles)
        return SearchHits(_hit(row[:-1], row[-1], terms, snippet_characters) for row in rows)

    async def rebuild_search(self) -> None:
        """Make the search index of all tenants anew, in this store's language. Writes wait meanwhile.

        Needed after the setting of the language was changed. A task of administration: it takes no tenant and reads
        no message out.
        """
        statements = [
            Statement(text(sql)) for sql in rebuild_ddl(self._executor.dialect, self._search_language)
        ]
        await self._executor.run(rebuild, statements)


class _Found:
    """A search by meaning: candidates of the index, ranked, and the messages that they stand for."""

    def __init__(
        self, store: Search, params: Dict[str, Any], terms: List[str], roles: Optional[List[str]], width: int
    ) -> None:
        self._executor = store._executor
        self._semantic = store._semantic
        self._params = params
        self._terms = terms
        self._roles = roles
        self._width = width

    async def by_meaning(self, query: str, mode: str) -> SearchHits:
        if self._semantic is None:
            raise NotConfiguredError(
                f"search by mode {mode!r} needs an embedder; set ATLAS_EMBEDDER (docs/semantic-search.md)"
            )
        if not query.strip():
            return SearchHits()
        return await (self._semantically(query) if mode == "semantic" else self._both(query))

    async def _nearest(self, query: str, limit: int) -> Nearest:
        assert self._semantic is not None
        return await self._semantic.nearest(
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
            hits += [
                _hit(rows[place], score, self._terms, self._width) for place, score in part if place in rows
            ]
            start, step = start + step, step * 4
        return hits[:wanted]


def _hit(row: Row, score: float, terms: List[str], width: int) -> SearchHit:
    message = to_message(row[:-1])
    words = row[-1] if row[-1] is not None else message.content if isinstance(message.content, str) else ""
    return SearchHit(message, float(score), snippet_of(words, terms, width))

"""Room: full-text search over messages. The index is in `search_ddl`, the reading of questions in `query`.

SQLite ranks with FTS5's BM25. PostgreSQL's own ranks know nothing of how rare a word is, so BM25 is computed in the
statement: the rarity of each term from the messages that matched, each term counted once per message.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, List, Optional, Sequence, Union

from sqlalchemy import BigInteger, Double, String, Text, bindparam, literal_column, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.conversation_store.encoding import check_label, check_limit
from modules.conversation_store.models import MessageRow
from modules.conversation_store.query import fts5_query, question_terms, snippet_of
from modules.conversation_store.records import SearchHit
from modules.conversation_store.rows import MESSAGE_COLUMNS, to_message
from modules.conversation_store.search_ddl import rebuild_ddl
from modules.conversation_store.search_pending import has_pending, index_all_pending
from modules.storage.columns import UtcDateTime
from modules.storage.operations import Store, Transaction, read, write
from modules.storage.statements import Row, Statement
from modules.store_common.clock import require_utc
from modules.store_common.values import check_identifier, encode_json

__all__ = [
    "MAX_HITS",
    "SEARCH_ALL",
    "SEARCH_ONE",
    "Search",
    "find",
    "rebuild",
]

MAX_HITS = 1000
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
_SQLITE_SQL = f"""
SELECT {_LIST}, m.search_text, -bm25(atlas_messages_search, 1.0, 0.0) AS score
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
_POSTGRES_TAIL = f"""
), corpus AS MATERIALIZED (
    SELECT greatest(count(*), {{size}})::float8 AS size, coalesce(avg(size), 1)::float8 AS mean FROM found
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

_SQLITE_ALL = text(_SQLITE_SQL + _ORDER)
_SQLITE_ONE = text(_SQLITE_SQL + _SQLITE_RANGE + _ORDER)
_POSTGRES_ALL = text(_POSTGRES_HEAD + _FILTERS + _POSTGRES_TAIL.replace("{size}", _ALL_SIZE))
_POSTGRES_ONE = text(
    _POSTGRES_HEAD
    + "AND m.conversation_id = :conversation_id"
    + _FILTERS
    + _POSTGRES_TAIL.replace("{size}", _ONE_SIZE)
)


def _statement(sqlite: Any, postgresql: Any, one: bool) -> Statement:
    names = ["tenant_id", "query", *(["conversation_id"] if one else [])]
    shared = [
        *[bindparam(name, type_=String()) for name in names],
        bindparam("limit", type_=BigInteger),
        *_TIMES,
    ]
    return Statement(
        sqlite=sqlite.bindparams(*shared, bindparam("roles", type_=Text())).columns(*_COLUMNS),
        postgresql=postgresql.bindparams(
            *shared, bindparam("roles", type_=ARRAY(Text())), bindparam("language", type_=String())
        ).columns(*_COLUMNS),
    )


SEARCH_ALL = _statement(_SQLITE_ALL, _POSTGRES_ALL, False)
SEARCH_ONE = _statement(_SQLITE_ONE, _POSTGRES_ONE, True)


@read
async def find(
    tx: Transaction, params: Dict[str, Any], terms: List[str], roles: Optional[List[str]], whole: bool
) -> Optional[List[Row]]:
    """Run a search whose parameters were checked; None: not while messages are pending that `whole` asks for."""
    if whole and await has_pending(tx):
        return None
    one = "conversation_id" in params
    if tx.dialect == "sqlite":
        scope = "" if one else "q" + params["tenant_id"].encode().hex() + "x"
        params = {**params, "query": fts5_query(terms, scope), "roles": roles and encode_json(roles, "roles")}
    else:
        params = {**params, "query": " ".join(terms), "roles": roles}
    return await tx.all(SEARCH_ONE if one else SEARCH_ALL, **params)


@write
async def rebuild(tx: Transaction, statements: Sequence[Statement]) -> None:
    """Make the search index anew."""
    for statement in statements:
        await tx.run(statement)


class Search(Store):
    """Full-text search."""

    _search_language: str

    async def search(
        self,
        query: str,
        *,
        conversation_id: Optional[str] = None,
        role: Union[str, Sequence[str], None] = None,
        created_after: Optional[datetime] = None,
        created_before: Optional[datetime] = None,
        limit: int = 10,
        snippet_characters: int = 160,
        tenant_id: Optional[str] = None,
    ) -> List[SearchHit]:
        """Return the messages that fit `query` best, best first.

        A message fits when it has any of the question's words, whatever their ending (in English). The speaker's name
        counts as part of the text.

        Args:
            query: Any text a person types, up to 64 KiB; quotes and operators are nothing special. A blank text, or
                one of nothing but stop words, finds nothing.
            conversation_id: Only in this conversation.
            role: Only messages of this role, or one of these.
            created_after: Only created at this time or later; aware.
            created_before: Only created before this time; aware.
            limit: 1 to 1,000.
            snippet_characters: About how long the snippets are, 1 to 10,000.
            tenant_id: Whose; see `TenantPolicy`.

        Returns:
            Hits with scores that compare within this result only; equal scores by conversation and sequence.
        """
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
        if not terms:
            return []
        rows = await self._executor.run(find, params, terms, roles, True)
        if rows is None:
            await index_all_pending(self._executor)
            # what others have written meanwhile may be missing, what was there when this call came is not
            rows = await self._executor.run(find, params, terms, roles, False) or []
        return [_hit(row, terms, snippet_characters) for row in rows]

    async def rebuild_search(self) -> None:
        """Make the search index of all tenants anew, in this store's language. Writes wait meanwhile.

        Needed after the setting of the language was changed. A task of administration: it takes no tenant and reads
        no message out.
        """
        statements = [
            Statement(text(sql)) for sql in rebuild_ddl(self._executor.dialect, self._search_language)
        ]
        await self._executor.run(rebuild, statements)


def _hit(row: Row, terms: List[str], width: int) -> SearchHit:
    message = to_message(row[:-2])
    words = row[-2] if row[-2] is not None else message.content if isinstance(message.content, str) else ""
    return SearchHit(message, float(row[-1]), snippet_of(words, terms, width))

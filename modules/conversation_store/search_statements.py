"""The SQL of search. The full-text index that it reads is made by `search_ddl`.

SQLite ranks with FTS5's BM25. PostgreSQL's own ranks know nothing of how rare a word is, so BM25 is computed in the
statement: the rarity of each term from the messages that matched, each term counted once per message.
"""

from __future__ import annotations

from typing import Any, Sequence

from sqlalchemy import BigInteger, Double, String, Text, bindparam, literal_column, text
from sqlalchemy.dialects.postgresql import ARRAY

from modules.conversation_store.models import MessageRow
from modules.conversation_store.rows import MESSAGE_COLUMNS
from modules.storage.columns import UtcDateTime
from modules.storage.statements import Statement

__all__ = ["MESSAGES_AT", "RANK_ALL", "RANK_ONE", "SEARCH_ALL", "SEARCH_ONE"]

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
CROSS JOIN atlas_messages m
CROSS JOIN atlas_conversations c
WHERE m.tenant_id = :tenant_id AND m.conversation_id = k.conversation_id AND m.sequence = k.sequence
    AND c.tenant_id = m.tenant_id AND c.id = m.conversation_id AND c.status <> 'deleted' AND {{roles}}
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

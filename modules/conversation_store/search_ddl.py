"""The search index: SQL that differs by dialect and by language, run after the tables exist.

SQLite: an FTS5 table without its own copy of the text, filled by triggers on `atlas_messages`. Its row ids must survive
VACUUM (which renumbers implicit ones), so each conversation gets a number of its own in `atlas_search_numbers` and a
message's row id is `number * 2^31 + sequence`: one conversation is one range of row ids, which FTS5 can restrict a
MATCH to. The column `scope` holds one token for the tenant, so that a MATCH is restricted to the tenant inside FTS5. The
token ends in "x", which no rule of the Porter stemmer touches, and is made of the tenant's bytes: no two tenants share one.
FTS5 writes its words out at the end of every statement, which made an append cost 89 us instead of 42, and 168 after
40,000 messages. So the triggers only note the row ids of new messages in `atlas_search_pending`; a search, a large import
and the background put them into the index many at a time (`SQLITE_INDEX_PENDING`), in the transaction that forgets them.

PostgreSQL: a generated `tsvector` column and a GIN index.

A message is searchable when it is not deleted and not streaming. Its words are the speaker's name and `search_text`, or
the content itself where that is a plain text; at most `MAX_SEARCH_CHARACTERS` of them. The name is part of it because
questions name speakers: evidence recall@10 on 1,200 questions was 0.625 with it and 0.558 without (docs/conversations.md).
"""

from __future__ import annotations

from typing import List

from modules.store_common.text_query import LANGUAGES, check_language

__all__ = [
    "LANGUAGES",
    "MAX_SEARCH_CHARACTERS",
    "SQLITE_FORGET_PENDING",
    "SQLITE_INDEX_PENDING",
    "dialect_ddl",
    "rebuild_ddl",
]

# PostgreSQL refuses a tsvector over 1 MB; this many characters stay below it whatever they are.
MAX_SEARCH_CHARACTERS = 100_000


def dialect_ddl(dialect: str, language: str = "english") -> List[str]:
    """Return the SQL texts that make the search index, in order.

    Args:
        dialect: "sqlite" or "postgresql".
        language: One of `LANGUAGES`; fixed in the database until `rebuild_ddl` is run.
    """
    check_language(language)
    return _sqlite(language) if dialect == "sqlite" else _postgresql(language)


def rebuild_ddl(dialect: str, language: str = "english") -> List[str]:
    """Return the SQL texts that drop the search index, make it for `language` and fill it from the messages."""
    check_language(language)
    if dialect == "sqlite":
        return [*_SQLITE_DROP, *_sqlite(language), _SQLITE_FILL]
    return [
        "DROP INDEX IF EXISTS ix_atlas_messages_search",
        "ALTER TABLE atlas_messages DROP COLUMN IF EXISTS search_vector",
        *_postgresql(language),
    ]


def _postgresql(language: str) -> List[str]:
    words = (
        "left(coalesce(name || ': ', '') || coalesce(search_text, "
        f"CASE WHEN json_typeof(content) = 'string' THEN content #>> '{{}}' END, ''), {MAX_SEARCH_CHARACTERS})"
    )
    return [
        "ALTER TABLE atlas_messages ADD COLUMN search_vector tsvector GENERATED ALWAYS AS ("
        "CASE WHEN deleted_at IS NULL AND status <> 'streaming' "
        f"THEN to_tsvector('{language}'::regconfig, {words}) END) STORED",
        "CREATE INDEX ix_atlas_messages_search ON atlas_messages USING gin (search_vector)",
    ]


def _searchable(row: str) -> str:
    return f"{row}.deleted_at IS NULL AND {row}.status <> 'streaming'"


def _words(row: str) -> str:
    plain = f"CASE WHEN json_type({row}.content) = 'text' THEN json_extract({row}.content, '$') END"
    words = f"coalesce({row}.name || ': ', '') || coalesce({row}.search_text, {plain}, '')"
    return f"substr({words}, 1, {MAX_SEARCH_CHARACTERS})"


def _scope(row: str) -> str:
    return f"'q' || hex({row}.tenant_id) || 'x'"


def _number(row: str) -> str:
    return (
        f"SELECT number FROM atlas_search_numbers WHERE tenant_id = {row}.tenant_id "
        f"AND conversation_id = {row}.conversation_id"
    )


def _id(row: str) -> str:
    return f"(({_number(row)}) << 31) | {row}.sequence"


def _add(row: str) -> str:
    return f"INSERT INTO atlas_search_pending (id) SELECT {_id(row)} WHERE {_searchable(row)};"


def _remove(row: str) -> str:
    # A table without its own text needs the words that were indexed to take them out again; a pending message has none.
    return (
        "INSERT INTO atlas_messages_search (atlas_messages_search, rowid, body, scope) "
        f"SELECT 'delete', {_id(row)}, {_words(row)}, {_scope(row)} "
        f"WHERE {_searchable(row)} AND NOT EXISTS (SELECT 1 FROM atlas_search_pending WHERE id = ({_id(row)})); "
        f"DELETE FROM atlas_search_pending WHERE id = ({_id(row)});"
    )


def _sqlite(language: str) -> List[str]:
    stemmer = "porter " if language == "english" else ""
    return [
        "CREATE TABLE IF NOT EXISTS atlas_search_numbers (number INTEGER PRIMARY KEY AUTOINCREMENT, "
        "tenant_id VARCHAR NOT NULL, conversation_id VARCHAR NOT NULL, UNIQUE (tenant_id, conversation_id))",
        "CREATE TABLE IF NOT EXISTS atlas_search_pending (id INTEGER PRIMARY KEY)",
        "CREATE VIRTUAL TABLE atlas_messages_search USING fts5(body, scope, content='', "
        f"tokenize='{stemmer}unicode61 remove_diacritics 2')",
        "CREATE TRIGGER atlas_search_numbers_add AFTER INSERT ON atlas_conversations BEGIN "
        "INSERT OR IGNORE INTO atlas_search_numbers (tenant_id, conversation_id) VALUES (new.tenant_id, new.id); END",
        f"CREATE TRIGGER atlas_messages_search_add AFTER INSERT ON atlas_messages BEGIN {_add('new')} END",
        # One trigger for both halves: SQLite does not say in which order two triggers of one event run.
        "CREATE TRIGGER atlas_messages_search_change AFTER UPDATE OF content, search_text, status, deleted_at "
        f"ON atlas_messages BEGIN {_remove('old')} {_add('new')} END",
        f"CREATE TRIGGER atlas_messages_search_remove AFTER DELETE ON atlas_messages BEGIN {_remove('old')} END",
    ]


_SQLITE_DROP = [
    "DROP TRIGGER IF EXISTS atlas_search_numbers_add",
    "DROP TRIGGER IF EXISTS atlas_messages_search_add",
    "DROP TRIGGER IF EXISTS atlas_messages_search_change",
    "DROP TRIGGER IF EXISTS atlas_messages_search_remove",
    "DROP TABLE IF EXISTS atlas_messages_search",
    "DELETE FROM atlas_search_pending",
]

_SQLITE_FILL = (
    "INSERT INTO atlas_messages_search (rowid, body, scope) "
    f"SELECT (n.number << 31) | m.sequence, {_words('m')}, {_scope('m')} FROM atlas_messages m "
    "JOIN atlas_search_numbers n ON n.tenant_id = m.tenant_id AND n.conversation_id = m.conversation_id "
    f"WHERE {_searchable('m')}"
)

#: Put up to `:limit` pending messages into the index; then, in the same transaction, `SQLITE_FORGET_PENDING`.
SQLITE_INDEX_PENDING = (
    "INSERT INTO atlas_messages_search (rowid, body, scope) "
    f"SELECT p.id, {_words('m')}, {_scope('m')} FROM (SELECT id FROM atlas_search_pending ORDER BY id LIMIT :limit) p "
    "CROSS JOIN atlas_search_numbers n ON n.number = (p.id >> 31) "
    "CROSS JOIN atlas_messages m ON m.tenant_id = n.tenant_id AND m.conversation_id = n.conversation_id "
    "AND m.sequence = (p.id & 2147483647)"
)
SQLITE_FORGET_PENDING = (
    "DELETE FROM atlas_search_pending "
    "WHERE id IN (SELECT id FROM atlas_search_pending ORDER BY id LIMIT :limit)"
)

"""The SQL of search over tasks. The full-text index that it reads is made by `search_ddl`.

SQLite ranks with FTS5's BM25. PostgreSQL's own ranks know nothing of how rare a word is, so BM25 is computed in the
statement: the rarity of each term from the tasks that matched, each term counted once per task.
"""

from __future__ import annotations

from typing import Any, Tuple

from sqlalchemy import BigInteger, Double, String, bindparam, literal_column, text

from modules.storage.statements import Statement
from modules.task_store.rows import TASK_COLUMNS

__all__ = ["SEARCH"]

_LIST = ", ".join(f"t.{column.name}" for column in TASK_COLUMNS)
_FILTERS = """
    AND (:status IS NULL OR t.status = :status) AND (:owner_id IS NULL OR t.owner_id = :owner_id)
    AND (:conversation_id IS NULL OR t.conversation_id = :conversation_id)
    AND (:open = 0 OR t.closed = 0)
"""
# CROSS JOIN keeps SQLite to this order: the match first, then look-ups by key.
_SQLITE = f"""
SELECT {_LIST}, -bm25(atlas_tasks_search, 1.0, 0.0) AS score
FROM atlas_tasks_search
CROSS JOIN atlas_task_search_numbers n ON n.number = atlas_tasks_search.rowid
CROSS JOIN atlas_tasks t ON t.tenant_id = n.tenant_id AND t.id = n.task_id
WHERE atlas_tasks_search MATCH :query AND n.tenant_id = :tenant_id
    {_FILTERS}
ORDER BY score DESC, t.id LIMIT :limit
"""
# k1 = 1.2 and b = 0.75 as in FTS5 (https://www.sqlite.org/fts5.html#the_bm25_function); a lexeme of our words is made of
# letters and digits only, so that quoting it is enough to make it a tsquery
_POSTGRESQL = f"""
WITH terms AS MATERIALIZED (
    SELECT lexeme, ('''' || lexeme || '''')::tsquery AS term
    FROM unnest(to_tsvector(CAST(:language AS regconfig), :query))
), wanted AS (
    SELECT string_agg(term::text, ' | ')::tsquery AS any_of FROM terms
), found AS MATERIALIZED (
    SELECT t.id, t.search_vector AS words, greatest(length(t.search_vector), 1) AS size
    FROM atlas_tasks t
    WHERE t.tenant_id = :tenant_id AND t.search_vector @@ (SELECT any_of FROM wanted)
        {_FILTERS}
), corpus AS MATERIALIZED (
    SELECT greatest(count(*), (SELECT greatest(reltuples, pg_relation_size('atlas_tasks') / 400)::bigint
        FROM pg_class WHERE oid = 'atlas_tasks'::regclass))::float8 AS size, coalesce(avg(size), 1)::float8 AS mean
    FROM found
), pairs AS MATERIALIZED (
    SELECT w.lexeme, f.id, f.size FROM found f JOIN terms w ON f.words @@ w.term
), rarity AS MATERIALIZED (
    SELECT p.lexeme, ln(1 + (max(c.size) - count(*) + 0.5) / (count(*) + 0.5)) AS idf
    FROM pairs p CROSS JOIN corpus c GROUP BY p.lexeme
), ranked AS (
    SELECT p.id, sum(r.idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * p.size / c.mean))) AS score
    FROM pairs p JOIN rarity r ON r.lexeme = p.lexeme CROSS JOIN corpus c
    GROUP BY p.id
    ORDER BY score DESC, p.id LIMIT :limit
)
SELECT {_LIST}, r.score FROM ranked r JOIN atlas_tasks t ON t.tenant_id = :tenant_id AND t.id = r.id
ORDER BY r.score DESC, t.id
"""
_BINDS: Tuple[Any, ...] = (
    *[
        bindparam(name, type_=String())
        for name in ("tenant_id", "query", "status", "owner_id", "conversation_id")
    ],
    bindparam("open", type_=BigInteger),
    bindparam("limit", type_=BigInteger),
)
_COLUMNS = (*TASK_COLUMNS, literal_column("score", Double).label("score"))
SEARCH = Statement(
    sqlite=text(_SQLITE).bindparams(*_BINDS).columns(*_COLUMNS),
    postgresql=text(_POSTGRESQL)
    .bindparams(*_BINDS, bindparam("language", type_=String()))
    .columns(*_COLUMNS),
)

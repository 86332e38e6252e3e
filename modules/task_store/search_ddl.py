"""The search index of tasks: SQL that differs by dialect and by language, run after the tables exist.

SQLite: an FTS5 table without its own copy of the text, filled by triggers on `atlas_tasks`. Its row ids must survive
VACUUM, so each task gets a number of its own in `atlas_task_search_numbers`. The column `scope` holds one token for the
tenant, made of the tenant's bytes and an "x" (which no rule of the Porter stemmer touches), so that a MATCH is restricted
to the tenant inside FTS5. Only a change of title or description touches the index; a move does not.

PostgreSQL: a generated `tsvector` column and a GIN index.

The words of a task are its title and description; at most `MAX_SEARCH_CHARACTERS` of them.
"""

from __future__ import annotations

from typing import List

from modules.store_common.text_query import check_language

__all__ = ["MAX_SEARCH_CHARACTERS", "dialect_ddl", "rebuild_ddl"]

# PostgreSQL refuses a tsvector over 1 MB; this many characters stay below it whatever they are.
MAX_SEARCH_CHARACTERS = 100_000


def dialect_ddl(dialect: str, language: str = "english") -> List[str]:
    """Return the SQL texts that make the search index, in order.

    Args:
        dialect: "sqlite" or "postgresql".
        language: One of `text_query.LANGUAGES`; fixed in the database until `rebuild_ddl` is run.
    """
    check_language(language)
    return _sqlite(language) if dialect == "sqlite" else _postgresql(language)


def rebuild_ddl(dialect: str, language: str = "english") -> List[str]:
    """Return the SQL texts that drop the search index, make it for `language` and fill it from the tasks."""
    check_language(language)
    if dialect == "sqlite":
        return [*_SQLITE_DROP, *_sqlite(language), _SQLITE_FILL]
    return [
        "DROP INDEX IF EXISTS ix_atlas_tasks_search",
        "ALTER TABLE atlas_tasks DROP COLUMN IF EXISTS search_vector",
        *_postgresql(language),
    ]


def _postgresql(language: str) -> List[str]:
    return [
        "ALTER TABLE atlas_tasks ADD COLUMN search_vector tsvector GENERATED ALWAYS AS ("
        f"to_tsvector('{language}'::regconfig, "
        f"left(title || ' ' || coalesce(description, ''), {MAX_SEARCH_CHARACTERS}))) STORED",
        "CREATE INDEX ix_atlas_tasks_search ON atlas_tasks USING gin (search_vector)",
    ]


def _words(row: str) -> str:
    return f"substr({row}.title || ' ' || coalesce({row}.description, ''), 1, {MAX_SEARCH_CHARACTERS})"


_NEW_NUMBER = (
    "(SELECT number FROM atlas_task_search_numbers WHERE tenant_id = new.tenant_id AND task_id = new.id)"
)
_OLD_NUMBER = (
    "(SELECT number FROM atlas_task_search_numbers WHERE tenant_id = old.tenant_id AND task_id = old.id)"
)
_ADD = (
    "INSERT INTO atlas_tasks_search (rowid, body, scope) "
    f"VALUES ({_NEW_NUMBER}, {_words('new')}, 'q' || hex(new.tenant_id) || 'x');"
)
# A table without its own text needs the words that were indexed to take them out again.
_REMOVE = (
    "INSERT INTO atlas_tasks_search (atlas_tasks_search, rowid, body, scope) "
    f"VALUES ('delete', {_OLD_NUMBER}, {_words('old')}, 'q' || hex(old.tenant_id) || 'x');"
)


def _sqlite(language: str) -> List[str]:
    stemmer = "porter " if language == "english" else ""
    return [
        "CREATE TABLE IF NOT EXISTS atlas_task_search_numbers (number INTEGER PRIMARY KEY AUTOINCREMENT, "
        "tenant_id VARCHAR NOT NULL, task_id VARCHAR NOT NULL, UNIQUE (tenant_id, task_id))",
        "CREATE VIRTUAL TABLE atlas_tasks_search USING fts5(body, scope, content='', "
        f"tokenize='{stemmer}unicode61 remove_diacritics 2')",
        "CREATE TRIGGER atlas_tasks_search_add AFTER INSERT ON atlas_tasks BEGIN "
        "INSERT INTO atlas_task_search_numbers (tenant_id, task_id) VALUES (new.tenant_id, new.id); "
        f"{_ADD} END",
        "CREATE TRIGGER atlas_tasks_search_change AFTER UPDATE OF title, description ON atlas_tasks BEGIN "
        f"{_REMOVE} {_ADD} END",
        f"CREATE TRIGGER atlas_tasks_search_remove AFTER DELETE ON atlas_tasks BEGIN {_REMOVE} "
        "DELETE FROM atlas_task_search_numbers WHERE tenant_id = old.tenant_id AND task_id = old.id; END",
    ]


_SQLITE_DROP = [
    "DROP TRIGGER IF EXISTS atlas_tasks_search_add",
    "DROP TRIGGER IF EXISTS atlas_tasks_search_change",
    "DROP TRIGGER IF EXISTS atlas_tasks_search_remove",
    "DROP TABLE IF EXISTS atlas_tasks_search",
]

_SQLITE_FILL = (
    "INSERT INTO atlas_tasks_search (rowid, body, scope) "
    f"SELECT n.number, {_words('t')}, 'q' || hex(t.tenant_id) || 'x' FROM atlas_tasks t "
    "JOIN atlas_task_search_numbers n ON n.tenant_id = t.tenant_id AND n.task_id = t.id"
)

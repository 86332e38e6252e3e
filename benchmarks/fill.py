"""Fills databases with SQL alone: the rows that the contenders find, and the many rows of the growth test."""

from __future__ import annotations

import sqlite3
from typing import Any, List, Tuple

from benchmarks.data import CONTENT, KEYS, MESSAGES_EACH, NAMESPACE, TENANT

__all__ = ["fill_postgresql", "fill_sqlite"]

_VALUE = '{"theme":"dark","visits":17,"last_query":"tables by the window for two on Friday","tags":["food","travel"]}'

_STATEMENTS: List[Tuple[str, str]] = [
    (
        "conversations",
        "INSERT INTO atlas_conversations (tenant_id, id, status, last_sequence, trimmed_sequence, version, metadata,"
        " lease_fence, created_at, updated_at)"
        " SELECT '{tenant}', {conversation}, 'active', {each}, 0, 1, '{{}}', 0, {now}, {now} FROM {numbers}",
    ),
    (
        "messages",
        "INSERT INTO atlas_messages (tenant_id, conversation_id, sequence, id, role, type, status, content, metadata,"
        " version, created_at)"
        " SELECT '{tenant}', {conversation_of_message}, i % {each} + 1, 'message-' || i, 'user', 'message', 'complete',"
        " '\"{content}\"', '{{}}', 1, {now} FROM {numbers}",
    ),
    (
        "keys",
        "INSERT INTO atlas_kv_entries (tenant_id, namespace, key, value_json, version, size_bytes, created_at, updated_at)"
        " SELECT '{tenant}', '{namespace}', {key}, '{value}', 1, 130, {now}, {now} FROM {numbers}",
    ),
]


def _statements(dialect: str, conversations: int, keys: int) -> List[str]:
    counts = {"conversations": conversations, "messages": conversations * MESSAGES_EACH, "keys": keys}
    texts = []
    for name, template in _STATEMENTS:
        if dialect == "sqlite":
            pad = "printf('%07d', {})"
            now = "1767225600000000"
            counted = f"SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < {counts[name]}"
            numbers = f"(WITH RECURSIVE n (i) AS ({counted}) SELECT i FROM n)"
        else:
            pad = "lpad(({})::text, 7, '0')"
            now = "timestamptz '2026-01-01 00:00:00Z'"
            numbers = f"generate_series(0, {counts[name] - 1}) AS n (i)"
        texts.append(
            template.format(
                tenant=TENANT,
                namespace=NAMESPACE,
                each=MESSAGES_EACH,
                now=now,
                numbers=numbers,
                value=_VALUE,
                content=CONTENT.replace("'", "''"),
                conversation="'conversation-' || " + pad.format("i"),
                conversation_of_message="'conversation-' || " + pad.format(f"i / {MESSAGES_EACH}"),
                key="'user-' || " + pad.format("i"),
            )
        )
    return texts


def fill_sqlite(path: str, conversations: int, keys: int = KEYS) -> None:
    """Fill a migrated database. The search index is not filled: the contenders append to it, and nobody reads it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        triggers = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name = 'atlas_messages_search_add'"
        ).fetchall()
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for text in _statements("sqlite", conversations, keys):
            connection.execute(text)
        for _, sql in triggers:
            connection.execute(sql)
        connection.execute("COMMIT")
        connection.execute("ANALYZE")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


async def fill_postgresql(
    connection: Any, conversations: int, keys: int = KEYS, *, without_search: bool = False
) -> None:
    """Fill a migrated database through an asyncpg connection.

    Args:
        connection: An open connection.
        conversations: How many, each with `MESSAGES_EACH` messages.
        keys: How many.
        without_search: Drop the search index first, for databases so large that it would take minutes to fill.
    """
    if without_search:
        await connection.execute("DROP INDEX ix_atlas_messages_search")
    for text in _statements("postgresql", conversations, keys):
        await connection.execute(text, timeout=600)
    await connection.execute("VACUUM ANALYZE", timeout=600)
    await connection.execute("CHECKPOINT", timeout=600)

"""The first schema: conversations with text search, and the key-value store.

Written out in full: a released revision never changes when the models do.

Revision ID: 0001
Revises:
"""

# ruff: noqa: E501
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from modules.storage.migrations import MigrationError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

IDENTIFIER = sa.String().with_variant(sa.String(collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")
JSON_TEXT = sa.Text().with_variant(sa.JSON(), "postgresql")

LANGUAGES = (
    "simple",
    "arabic",
    "armenian",
    "basque",
    "catalan",
    "danish",
    "dutch",
    "english",
    "finnish",
    "french",
    "german",
    "greek",
    "hindi",
    "hungarian",
    "indonesian",
    "irish",
    "italian",
    "lithuanian",
    "nepali",
    "norwegian",
    "portuguese",
    "romanian",
    "russian",
    "serbian",
    "spanish",
    "swedish",
    "tamil",
    "turkish",
    "yiddish",
)

KEY_VALUE_SQLITE = [
    """\
CREATE TRIGGER atlas_kv_usage_insert AFTER INSERT ON atlas_kv_entries
BEGIN
  UPDATE atlas_kv_usage SET size_bytes = size_bytes + (new.size_bytes), entries = entries + (1)
  WHERE tenant_id = new.tenant_id AND namespace IN ('', new.namespace);
END
""",
    """\
CREATE TRIGGER atlas_kv_usage_update AFTER UPDATE OF size_bytes ON atlas_kv_entries WHEN new.size_bytes <> old.size_bytes
BEGIN
  UPDATE atlas_kv_usage SET size_bytes = size_bytes + (new.size_bytes - old.size_bytes), entries = entries + (0)
  WHERE tenant_id = new.tenant_id AND namespace IN ('', new.namespace);
END
""",
    """\
CREATE TRIGGER atlas_kv_usage_delete AFTER DELETE ON atlas_kv_entries
BEGIN
  UPDATE atlas_kv_usage SET size_bytes = size_bytes + (-old.size_bytes), entries = entries + (-1)
  WHERE tenant_id = old.tenant_id AND namespace IN ('', old.namespace);
END
""",
]

KEY_VALUE_POSTGRESQL = [
    """\
CREATE FUNCTION atlas_kv_usage_insert() RETURNS trigger LANGUAGE plpgsql AS $body$
DECLARE
  d record;
BEGIN
  IF EXISTS (SELECT 1 FROM atlas_kv_usage) THEN
    FOR d IN
      SELECT c.tenant_id, coalesce(c.namespace, '') AS namespace,
             sum(c.size_bytes) AS size_bytes, sum(c.entries) AS entries
      FROM (SELECT tenant_id, namespace, size_bytes, 1 AS entries FROM added) AS c GROUP BY GROUPING SETS ((c.tenant_id, c.namespace), (c.tenant_id))
      HAVING sum(c.size_bytes) <> 0 OR sum(c.entries) <> 0
      ORDER BY 1, 2
    LOOP
      UPDATE atlas_kv_usage AS u SET size_bytes = u.size_bytes + d.size_bytes, entries = u.entries + d.entries
      WHERE u.tenant_id = d.tenant_id AND u.namespace = d.namespace;
      IF NOT FOUND THEN
        PERFORM pg_advisory_xact_lock_shared(hashtextextended(d.tenant_id || chr(10) || d.namespace, 7067));
        UPDATE atlas_kv_usage AS u SET size_bytes = u.size_bytes + d.size_bytes, entries = u.entries + d.entries
      WHERE u.tenant_id = d.tenant_id AND u.namespace = d.namespace;
      END IF;
    END LOOP;
  END IF;
  RETURN NULL;
END
$body$
""",
    """\
CREATE TRIGGER atlas_kv_usage_insert AFTER insert ON atlas_kv_entries
REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION atlas_kv_usage_insert()
""",
    """\
CREATE FUNCTION atlas_kv_usage_update() RETURNS trigger LANGUAGE plpgsql AS $body$
DECLARE
  d record;
BEGIN
  IF EXISTS (SELECT 1 FROM atlas_kv_usage) THEN
    FOR d IN
      SELECT c.tenant_id, coalesce(c.namespace, '') AS namespace,
             sum(c.size_bytes) AS size_bytes, sum(c.entries) AS entries
      FROM (SELECT tenant_id, namespace, size_bytes, 1 AS entries FROM added UNION ALL SELECT tenant_id, namespace, -size_bytes AS size_bytes, -1 AS entries FROM removed) AS c GROUP BY GROUPING SETS ((c.tenant_id, c.namespace), (c.tenant_id))
      HAVING sum(c.size_bytes) <> 0 OR sum(c.entries) <> 0
      ORDER BY 1, 2
    LOOP
      UPDATE atlas_kv_usage AS u SET size_bytes = u.size_bytes + d.size_bytes, entries = u.entries + d.entries
      WHERE u.tenant_id = d.tenant_id AND u.namespace = d.namespace;
      IF NOT FOUND THEN
        PERFORM pg_advisory_xact_lock_shared(hashtextextended(d.tenant_id || chr(10) || d.namespace, 7067));
        UPDATE atlas_kv_usage AS u SET size_bytes = u.size_bytes + d.size_bytes, entries = u.entries + d.entries
      WHERE u.tenant_id = d.tenant_id AND u.namespace = d.namespace;
      END IF;
    END LOOP;
  END IF;
  RETURN NULL;
END
$body$
""",
    """\
CREATE TRIGGER atlas_kv_usage_update AFTER update ON atlas_kv_entries
REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION atlas_kv_usage_update()
""",
    """\
CREATE FUNCTION atlas_kv_usage_delete() RETURNS trigger LANGUAGE plpgsql AS $body$
DECLARE
  d record;
BEGIN
  IF EXISTS (SELECT 1 FROM atlas_kv_usage) THEN
    FOR d IN
      SELECT c.tenant_id, coalesce(c.namespace, '') AS namespace,
             sum(c.size_bytes) AS size_bytes, sum(c.entries) AS entries
      FROM (SELECT tenant_id, namespace, -size_bytes AS size_bytes, -1 AS entries FROM removed) AS c GROUP BY GROUPING SETS ((c.tenant_id, c.namespace), (c.tenant_id))
      HAVING sum(c.size_bytes) <> 0 OR sum(c.entries) <> 0
      ORDER BY 1, 2
    LOOP
      UPDATE atlas_kv_usage AS u SET size_bytes = u.size_bytes + d.size_bytes, entries = u.entries + d.entries
      WHERE u.tenant_id = d.tenant_id AND u.namespace = d.namespace;
      IF NOT FOUND THEN
        PERFORM pg_advisory_xact_lock_shared(hashtextextended(d.tenant_id || chr(10) || d.namespace, 7067));
        UPDATE atlas_kv_usage AS u SET size_bytes = u.size_bytes + d.size_bytes, entries = u.entries + d.entries
      WHERE u.tenant_id = d.tenant_id AND u.namespace = d.namespace;
      END IF;
    END LOOP;
  END IF;
  RETURN NULL;
END
$body$
""",
    """\
CREATE TRIGGER atlas_kv_usage_delete AFTER delete ON atlas_kv_entries
REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION atlas_kv_usage_delete()
""",
]

SEARCH_SQLITE = [
    "CREATE TABLE IF NOT EXISTS atlas_search_numbers (number INTEGER PRIMARY KEY AUTOINCREMENT, tenant_id VARCHAR NOT NULL, conversation_id VARCHAR NOT NULL, UNIQUE (tenant_id, conversation_id))",
    "CREATE TABLE IF NOT EXISTS atlas_search_pending (id INTEGER PRIMARY KEY)",
    "CREATE VIRTUAL TABLE atlas_messages_search USING fts5(body, scope, content='', tokenize='@STEMMER@unicode61 remove_diacritics 2')",
    "CREATE TRIGGER atlas_search_numbers_add AFTER INSERT ON atlas_conversations BEGIN INSERT OR IGNORE INTO atlas_search_numbers (tenant_id, conversation_id) VALUES (new.tenant_id, new.id); END",
    "CREATE TRIGGER atlas_messages_search_add AFTER INSERT ON atlas_messages BEGIN INSERT INTO atlas_search_pending (id) SELECT ((SELECT number FROM atlas_search_numbers WHERE tenant_id = new.tenant_id AND conversation_id = new.conversation_id) << 31) | new.sequence WHERE new.deleted_at IS NULL AND new.status <> 'streaming'; END",
    "CREATE TRIGGER atlas_messages_search_change AFTER UPDATE OF content, search_text, status, deleted_at ON atlas_messages BEGIN INSERT INTO atlas_messages_search (atlas_messages_search, rowid, body, scope) SELECT 'delete', ((SELECT number FROM atlas_search_numbers WHERE tenant_id = old.tenant_id AND conversation_id = old.conversation_id) << 31) | old.sequence, substr(coalesce(old.name || ': ', '') || coalesce(old.search_text, CASE WHEN json_type(old.content) = 'text' THEN json_extract(old.content, '$') END, ''), 1, 100000), 'q' || hex(old.tenant_id) || 'x' WHERE old.deleted_at IS NULL AND old.status <> 'streaming' AND NOT EXISTS (SELECT 1 FROM atlas_search_pending WHERE id = (((SELECT number FROM atlas_search_numbers WHERE tenant_id = old.tenant_id AND conversation_id = old.conversation_id) << 31) | old.sequence)); DELETE FROM atlas_search_pending WHERE id = (((SELECT number FROM atlas_search_numbers WHERE tenant_id = old.tenant_id AND conversation_id = old.conversation_id) << 31) | old.sequence); INSERT INTO atlas_search_pending (id) SELECT ((SELECT number FROM atlas_search_numbers WHERE tenant_id = new.tenant_id AND conversation_id = new.conversation_id) << 31) | new.sequence WHERE new.deleted_at IS NULL AND new.status <> 'streaming'; END",
    "CREATE TRIGGER atlas_messages_search_remove AFTER DELETE ON atlas_messages BEGIN INSERT INTO atlas_messages_search (atlas_messages_search, rowid, body, scope) SELECT 'delete', ((SELECT number FROM atlas_search_numbers WHERE tenant_id = old.tenant_id AND conversation_id = old.conversation_id) << 31) | old.sequence, substr(coalesce(old.name || ': ', '') || coalesce(old.search_text, CASE WHEN json_type(old.content) = 'text' THEN json_extract(old.content, '$') END, ''), 1, 100000), 'q' || hex(old.tenant_id) || 'x' WHERE old.deleted_at IS NULL AND old.status <> 'streaming' AND NOT EXISTS (SELECT 1 FROM atlas_search_pending WHERE id = (((SELECT number FROM atlas_search_numbers WHERE tenant_id = old.tenant_id AND conversation_id = old.conversation_id) << 31) | old.sequence)); DELETE FROM atlas_search_pending WHERE id = (((SELECT number FROM atlas_search_numbers WHERE tenant_id = old.tenant_id AND conversation_id = old.conversation_id) << 31) | old.sequence); END",
]

SEARCH_POSTGRESQL = [
    "ALTER TABLE atlas_messages ADD COLUMN search_vector tsvector GENERATED ALWAYS AS (CASE WHEN deleted_at IS NULL AND status <> 'streaming' THEN to_tsvector('@LANGUAGE@'::regconfig, left(coalesce(name || ': ', '') || coalesce(search_text, CASE WHEN json_typeof(content) = 'string' THEN content #>> '{}' END, ''), 100000)) END) STORED",
    "CREATE INDEX ix_atlas_messages_search ON atlas_messages USING gin (search_vector)",
]

# Which words are stemmed is part of the index. All texts are made here, of constants: nothing a caller gives becomes SQL.
# They have no parameters: a colon in them means itself.
SEARCH = {
    language: {
        "sqlite": [
            item.replace("@STEMMER@", "porter " if language == "english" else "").replace(":", r"\:")
            for item in SEARCH_SQLITE
        ],
        "postgresql": [
            item.replace("@LANGUAGE@", language).replace(":", r"\:") for item in SEARCH_POSTGRESQL
        ],
    }
    for language in LANGUAGES
}
KEY_VALUE = {
    "sqlite": [item.replace(":", r"\:") for item in KEY_VALUE_SQLITE],
    "postgresql": [item.replace(":", r"\:") for item in KEY_VALUE_POSTGRESQL],
}


def upgrade() -> None:
    language = op.get_context().opts["search_language"]
    dialect = op.get_context().dialect.name
    if language not in SEARCH:
        raise MigrationError(
            f"sql.search_language {language!r} is unknown; use one of: {', '.join(LANGUAGES)}"
        )
    _tables()
    for statement in (*SEARCH[language][dialect], *KEY_VALUE[dialect]):
        op.execute(sa.text(statement))


def _tables() -> None:
    op.create_table(
        "atlas_conversations",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("user_id", IDENTIFIER, nullable=True),
        sa.Column("session_id", IDENTIFIER, nullable=True),
        sa.Column("title", sa.Text(), nullable=True),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("trimmed_sequence", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("metadata", JSON_TEXT, nullable=False),
        sa.Column("forked_from_id", IDENTIFIER, nullable=True),
        sa.Column("forked_from_sequence", sa.BigInteger(), nullable=True),
        sa.Column("lease_owner", IDENTIFIER, nullable=True),
        sa.Column("lease_fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("archived_at", INSTANT, nullable=True),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_atlas_conversations")),
    )
    op.create_index(
        "ix_atlas_conversations_deleted",
        "atlas_conversations",
        ["tenant_id", "deleted_at"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_conversations_session",
        "atlas_conversations",
        ["tenant_id", "session_id", "updated_at", "id"],
        unique=False,
        sqlite_where=sa.text("session_id IS NOT NULL"),
        postgresql_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_conversations_updated",
        "atlas_conversations",
        ["tenant_id", "updated_at", "id"],
        unique=False,
    )
    op.create_index(
        "ix_atlas_conversations_user",
        "atlas_conversations",
        ["tenant_id", "user_id", "updated_at", "id"],
        unique=False,
        sqlite_where=sa.text("user_id IS NOT NULL"),
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_table(
        "atlas_kv_entries",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("namespace", IDENTIFIER, nullable=False),
        sa.Column("key", IDENTIFIER, nullable=False),
        sa.Column("value_json", JSON_TEXT, nullable=True),
        sa.Column("value_bytes", sa.LargeBinary(), nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=True),
        sa.CheckConstraint(
            "(value_json IS NULL) <> (value_bytes IS NULL)", name=op.f("ck_atlas_kv_entries_one_value")
        ),
        sa.PrimaryKeyConstraint("tenant_id", "namespace", "key", name=op.f("pk_atlas_kv_entries")),
    )
    op.create_index(
        op.f("ix_atlas_kv_entries_tenant_id_expires_at"),
        "atlas_kv_entries",
        ["tenant_id", "expires_at"],
        unique=False,
        postgresql_where=sa.text("expires_at IS NOT NULL"),
        sqlite_where=sa.text("expires_at IS NOT NULL"),
    )
    op.create_table(
        "atlas_kv_usage",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("namespace", IDENTIFIER, nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "namespace", name=op.f("pk_atlas_kv_usage")),
    )
    op.create_table(
        "atlas_sessions",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("user_id", IDENTIFIER, nullable=True),
        sa.Column("metadata", JSON_TEXT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_atlas_sessions")),
    )
    op.create_table(
        "atlas_users",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("metadata", JSON_TEXT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_atlas_users")),
    )
    op.create_table(
        "atlas_assets",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("conversation_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("message_id", IDENTIFIER, nullable=True),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("media_type", IDENTIFIER, nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("digest", IDENTIFIER, nullable=True),
        sa.Column("metadata", JSON_TEXT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["atlas_conversations.tenant_id", "atlas_conversations.id"],
            name=op.f("fk_atlas_assets_tenant_id_conversation_id_atlas_conversations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "conversation_id", "id", name=op.f("pk_atlas_assets")),
    )
    op.create_table(
        "atlas_message_events",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("conversation_id", IDENTIFIER, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("message_id", IDENTIFIER, nullable=False),
        sa.Column("type", IDENTIFIER, nullable=False),
        sa.Column("former", JSON_TEXT, nullable=False),
        sa.Column("actor_id", IDENTIFIER, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["atlas_conversations.tenant_id", "atlas_conversations.id"],
            name=op.f("fk_atlas_message_events_tenant_id_conversation_id_atlas_conversations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "tenant_id", "conversation_id", "sequence", "version", name=op.f("pk_atlas_message_events")
        ),
    )
    op.create_table(
        "atlas_messages",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("conversation_id", IDENTIFIER, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("role", IDENTIFIER, nullable=False),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("type", IDENTIFIER, nullable=False),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("content", JSON_TEXT, nullable=False),
        sa.Column("search_text", sa.Text(), nullable=True),
        sa.Column("metadata", JSON_TEXT, nullable=False),
        sa.Column("author_id", IDENTIFIER, nullable=True),
        sa.Column("parent_id", IDENTIFIER, nullable=True),
        sa.Column("client_message_id", IDENTIFIER, nullable=True),
        sa.Column("body_digest", IDENTIFIER, nullable=True),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("edited_at", INSTANT, nullable=True),
        sa.Column("deleted_at", INSTANT, nullable=True),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["atlas_conversations.tenant_id", "atlas_conversations.id"],
            name=op.f("fk_atlas_messages_tenant_id_conversation_id_atlas_conversations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "conversation_id", "sequence", name=op.f("pk_atlas_messages")),
        sa.UniqueConstraint("tenant_id", "id", "conversation_id", name="uq_atlas_messages_id"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_atlas_messages_deleted",
        "atlas_messages",
        ["tenant_id", "deleted_at"],
        unique=False,
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_index(
        "uq_atlas_messages_client_message_id",
        "atlas_messages",
        ["tenant_id", "conversation_id", "client_message_id"],
        unique=True,
        sqlite_where=sa.text("client_message_id IS NOT NULL"),
        postgresql_where=sa.text("client_message_id IS NOT NULL"),
    )
    op.create_table(
        "atlas_turns",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("conversation_id", IDENTIFIER, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("fence", IDENTIFIER, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("expires_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "conversation_id"],
            ["atlas_conversations.tenant_id", "atlas_conversations.id"],
            name=op.f("fk_atlas_turns_tenant_id_conversation_id_atlas_conversations"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "conversation_id", "sequence", name=op.f("pk_atlas_turns")),
    )
    op.create_index("ix_atlas_turns_expires", "atlas_turns", ["expires_at"], unique=False)

"""The task store: tasks with tags, dependencies, assignments and events, and full-text search over them.

Written out in full: a released revision never changes when the models do.

Revision ID: 0005
Revises: 0004
"""

# ruff: noqa: E501
from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

IDENTIFIER = sa.String().with_variant(sa.String(collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")
JSON_TEXT = sa.Text().with_variant(sa.JSON(), "postgresql")

SEARCH_SQLITE = [
    """\
CREATE TABLE IF NOT EXISTS atlas_task_search_numbers (number INTEGER PRIMARY KEY AUTOINCREMENT, tenant_id VARCHAR NOT NULL, task_id VARCHAR NOT NULL, UNIQUE (tenant_id, task_id))""",
    """\
CREATE VIRTUAL TABLE atlas_tasks_search USING fts5(body, scope, content='', tokenize='@STEMMER@unicode61 remove_diacritics 2')""",
    """\
CREATE TRIGGER atlas_tasks_search_add AFTER INSERT ON atlas_tasks BEGIN INSERT INTO atlas_task_search_numbers (tenant_id, task_id) VALUES (new.tenant_id, new.id); INSERT INTO atlas_tasks_search (rowid, body, scope) VALUES ((SELECT number FROM atlas_task_search_numbers WHERE tenant_id = new.tenant_id AND task_id = new.id), substr(new.title || ' ' || coalesce(new.description, ''), 1, 100000), 'q' || hex(new.tenant_id) || 'x'); END""",
    """\
CREATE TRIGGER atlas_tasks_search_change AFTER UPDATE OF title, description ON atlas_tasks BEGIN INSERT INTO atlas_tasks_search (atlas_tasks_search, rowid, body, scope) VALUES ('delete', (SELECT number FROM atlas_task_search_numbers WHERE tenant_id = old.tenant_id AND task_id = old.id), substr(old.title || ' ' || coalesce(old.description, ''), 1, 100000), 'q' || hex(old.tenant_id) || 'x'); INSERT INTO atlas_tasks_search (rowid, body, scope) VALUES ((SELECT number FROM atlas_task_search_numbers WHERE tenant_id = new.tenant_id AND task_id = new.id), substr(new.title || ' ' || coalesce(new.description, ''), 1, 100000), 'q' || hex(new.tenant_id) || 'x'); END""",
    """\
CREATE TRIGGER atlas_tasks_search_remove AFTER DELETE ON atlas_tasks BEGIN INSERT INTO atlas_tasks_search (atlas_tasks_search, rowid, body, scope) VALUES ('delete', (SELECT number FROM atlas_task_search_numbers WHERE tenant_id = old.tenant_id AND task_id = old.id), substr(old.title || ' ' || coalesce(old.description, ''), 1, 100000), 'q' || hex(old.tenant_id) || 'x'); DELETE FROM atlas_task_search_numbers WHERE tenant_id = old.tenant_id AND task_id = old.id; END""",
]
SEARCH_POSTGRESQL = [
    """\
ALTER TABLE atlas_tasks ADD COLUMN search_vector tsvector GENERATED ALWAYS AS (to_tsvector('@LANGUAGE@'::regconfig, left(title || ' ' || coalesce(description, ''), 100000))) STORED""",
    """\
CREATE INDEX ix_atlas_tasks_search ON atlas_tasks USING gin (search_vector)""",
]


LANGUAGES = (
    "simple", "arabic", "armenian", "basque", "catalan", "danish", "dutch", "english", "finnish", "french", "german",
    "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian", "nepali", "norwegian", "portuguese",
    "romanian", "russian", "serbian", "spanish", "swedish", "tamil", "turkish", "yiddish",
)  # fmt: skip
# Colons are marks of parameters to SQLAlchemy's text().
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


def upgrade() -> None:
    _tasks()
    _task_tags()
    _task_dependencies()
    _task_assignments()
    _task_events()
    # revision 0001 has refused languages that there are not
    for statement in SEARCH[op.get_context().opts["search_language"]][op.get_context().dialect.name]:
        op.execute(sa.text(statement))


def _tasks() -> None:
    op.create_table(
        "atlas_tasks",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("closed", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("owner_id", IDENTIFIER, nullable=True),
        sa.Column("session_id", IDENTIFIER, nullable=True),
        sa.Column("conversation_id", IDENTIFIER, nullable=True),
        sa.Column("parent_id", IDENTIFIER, nullable=True),
        sa.Column("tags", JSON_TEXT, nullable=False),
        sa.Column("due_at", INSTANT, nullable=True),
        sa.Column("metadata", JSON_TEXT, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("open_dependencies", sa.BigInteger(), nullable=False),
        sa.Column("last_event", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", IDENTIFIER, nullable=True),
        sa.Column("body_digest", IDENTIFIER, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=True),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_atlas_tasks")),
    )
    op.create_index(
        "ix_atlas_tasks_conversation",
        "atlas_tasks",
        ["tenant_id", "conversation_id", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("conversation_id IS NOT NULL"),
        postgresql_where=sa.text("conversation_id IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_tasks_due",
        "atlas_tasks",
        ["tenant_id", "closed", "due_at", "id"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL AND closed = 0"),
        postgresql_where=sa.text("due_at IS NOT NULL AND closed = 0"),
    )
    op.create_index(
        "ix_atlas_tasks_finished",
        "atlas_tasks",
        ["tenant_id", "finished_at"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NOT NULL"),
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_tasks_open",
        "atlas_tasks",
        ["tenant_id", "closed", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("closed = 0"),
        postgresql_where=sa.text("closed = 0"),
    )
    op.create_index(
        "ix_atlas_tasks_owner",
        "atlas_tasks",
        ["tenant_id", "owner_id", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("owner_id IS NOT NULL"),
        postgresql_where=sa.text("owner_id IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_tasks_parent",
        "atlas_tasks",
        ["tenant_id", "parent_id", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index("ix_atlas_tasks_rank", "atlas_tasks", ["tenant_id", "rank", "id"], unique=False)
    op.create_index(
        "ix_atlas_tasks_session",
        "atlas_tasks",
        ["tenant_id", "session_id", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("session_id IS NOT NULL"),
        postgresql_where=sa.text("session_id IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_tasks_startable",
        "atlas_tasks",
        ["tenant_id", "status", "open_dependencies", "rank", "id"],
        unique=False,
        sqlite_where=sa.text("open_dependencies = 0 AND closed = 0"),
        postgresql_where=sa.text("open_dependencies = 0 AND closed = 0"),
    )
    op.create_index(
        "ix_atlas_tasks_status", "atlas_tasks", ["tenant_id", "status", "rank", "id"], unique=False
    )
    op.create_index("ix_atlas_tasks_updated", "atlas_tasks", ["tenant_id", "updated_at", "id"], unique=False)
    op.create_index(
        "uq_atlas_tasks_idempotency_key",
        "atlas_tasks",
        ["tenant_id", "idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )


def _task_tags() -> None:
    op.create_table(
        "atlas_task_tags",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("tag", IDENTIFIER, nullable=False),
        sa.Column("rank", sa.BigInteger(), nullable=False),
        sa.Column("task_id", IDENTIFIER, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["atlas_tasks.tenant_id", "atlas_tasks.id"],
            name=op.f("fk_atlas_task_tags_tenant_id_task_id_atlas_tasks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "tag", "rank", "task_id", name=op.f("pk_atlas_task_tags")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_atlas_task_tags_task", "atlas_task_tags", ["tenant_id", "task_id"], unique=False)


def _task_dependencies() -> None:
    op.create_table(
        "atlas_task_dependencies",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("task_id", IDENTIFIER, nullable=False),
        sa.Column("depends_on_id", IDENTIFIER, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "depends_on_id"],
            ["atlas_tasks.tenant_id", "atlas_tasks.id"],
            name=op.f("fk_atlas_task_dependencies_tenant_id_depends_on_id_atlas_tasks"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["atlas_tasks.tenant_id", "atlas_tasks.id"],
            name=op.f("fk_atlas_task_dependencies_tenant_id_task_id_atlas_tasks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "tenant_id", "task_id", "depends_on_id", name=op.f("pk_atlas_task_dependencies")
        ),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_atlas_task_dependencies_waiting",
        "atlas_task_dependencies",
        ["tenant_id", "depends_on_id", "task_id"],
        unique=False,
    )


def _task_assignments() -> None:
    op.create_table(
        "atlas_task_assignments",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("task_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("assignee_id", IDENTIFIER, nullable=False),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("assigned_by_id", IDENTIFIER, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "task_id"],
            ["atlas_tasks.tenant_id", "atlas_tasks.id"],
            name=op.f("fk_atlas_task_assignments_tenant_id_task_id_atlas_tasks"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "task_id", "id", name=op.f("pk_atlas_task_assignments")),
    )
    op.create_index(
        "ix_atlas_task_assignments_assignee",
        "atlas_task_assignments",
        ["tenant_id", "assignee_id", "id", "task_id"],
        unique=False,
    )
    op.create_index(
        "uq_atlas_task_assignments_open",
        "atlas_task_assignments",
        ["tenant_id", "task_id", "assignee_id"],
        unique=True,
        sqlite_where=sa.text("status IN ('pending', 'accepted')"),
        postgresql_where=sa.text("status IN ('pending', 'accepted')"),
    )


def _task_events() -> None:
    op.create_table(
        "atlas_task_events",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("task_id", IDENTIFIER, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("type", IDENTIFIER, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("data", JSON_TEXT, nullable=False),
        sa.Column("actor_id", IDENTIFIER, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "task_id", "sequence", name=op.f("pk_atlas_task_events")),
    )
    op.create_index(
        "ix_atlas_task_events_deleted",
        "atlas_task_events",
        ["tenant_id", "created_at"],
        unique=False,
        sqlite_where=sa.text("type = 'deleted'"),
        postgresql_where=sa.text("type = 'deleted'"),
    )

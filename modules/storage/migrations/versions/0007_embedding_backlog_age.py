"""Since when a message waits to be embedded, by the database's clock.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

IDENTIFIER = sa.String().with_variant(sa.String(collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")
_NOW_SQLITE = "(CAST(strftime('%s', 'now') AS INTEGER) * 1000000 + CAST(substr(strftime('%f', 'now'), 4) AS INTEGER) * 1000)"
_COLUMNS = "collection, tenant_id, conversation_id, sequence, mark, attempts, claimed_by, claimed_until"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.add_column(
            "atlas_embedding_backlog",
            sa.Column("noted_at", INSTANT, nullable=False, server_default=sa.text("statement_timestamp()")),
        )
        return
    # SQLite adds no column whose default is the time, and renames no table that a trigger writes to: made anew
    op.execute(f"CREATE TABLE atlas_embedding_backlog_kept AS SELECT {_COLUMNS} FROM atlas_embedding_backlog")
    op.drop_table("atlas_embedding_backlog")
    op.create_table(
        "atlas_embedding_backlog",
        sa.Column("collection", IDENTIFIER, nullable=False),
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("conversation_id", IDENTIFIER, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("mark", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("claimed_by", IDENTIFIER, nullable=True),
        sa.Column("claimed_until", INSTANT, nullable=True),
        sa.Column("noted_at", INSTANT, nullable=False, server_default=sa.text(_NOW_SQLITE)),
        sa.PrimaryKeyConstraint(
            "collection",
            "tenant_id",
            "conversation_id",
            "sequence",
            name=op.f("pk_atlas_embedding_backlog"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_atlas_embedding_backlog_claims", "atlas_embedding_backlog", ["collection", "claimed_until"]
    )
    op.execute(
        f"INSERT INTO atlas_embedding_backlog ({_COLUMNS}) SELECT {_COLUMNS} FROM atlas_embedding_backlog_kept"
    )
    op.execute("DROP TABLE atlas_embedding_backlog_kept")

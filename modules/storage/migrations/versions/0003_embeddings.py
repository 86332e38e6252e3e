"""Search by meaning: which indexes there are, and the backlog of messages that they do not know yet.

The triggers that fill the backlog are not made here: they come and go with the indexes.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

IDENTIFIER = sa.String().with_variant(sa.String(collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "atlas_embedding_indexes",
        sa.Column("collection", IDENTIFIER, nullable=False),
        sa.Column("filled", sa.BigInteger(), nullable=False),
        sa.Column("filled_tenant_id", IDENTIFIER, nullable=False),
        sa.Column("filled_conversation_id", IDENTIFIER, nullable=False),
        sa.Column("filled_sequence", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("collection", name=op.f("pk_atlas_embedding_indexes")),
    )
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

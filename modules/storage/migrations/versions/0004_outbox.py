"""The outbox of the unit of work: dirty keys, subscribers, home rows of other stores' documents, keys of applied units.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

IDENTIFIER = sa.String().with_variant(sa.String(collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")


def upgrade() -> None:
    _create_outbox()
    op.create_table(
        "atlas_outbox_subscribers",
        sa.Column("topic", IDENTIFIER, nullable=False),
        sa.Column("target", IDENTIFIER, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("topic", "target", name=op.f("pk_atlas_outbox_subscribers")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "atlas_staged",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("target", IDENTIFIER, nullable=False),
        sa.Column("collection", IDENTIFIER, nullable=False),
        sa.Column("namespace", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("deleted", sa.BigInteger(), nullable=False),
        sa.Column("digest", IDENTIFIER, nullable=False),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("vector", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint(
            "tenant_id", "target", "collection", "namespace", "id", name=op.f("pk_atlas_staged")
        ),
    )
    op.create_table(
        "atlas_units",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("key", IDENTIFIER, nullable=False),
        sa.Column("digest", IDENTIFIER, nullable=False),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key", name=op.f("pk_atlas_units")),
    )
    op.create_index(op.f("ix_atlas_units_created_at"), "atlas_units", ["created_at"])
    op.create_table(
        "atlas_reconciliations",
        sa.Column("target", IDENTIFIER, nullable=False),
        sa.Column("progress", sa.Text(), nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("target", name=op.f("pk_atlas_reconciliations")),
    )


def _create_outbox() -> None:
    op.create_table(
        "atlas_outbox",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("target", IDENTIFIER, nullable=False),
        sa.Column("kind", IDENTIFIER, nullable=False),
        sa.Column("key", IDENTIFIER, nullable=False),
        sa.Column("state", IDENTIFIER, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("applied", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("staged_at", INSTANT, nullable=False),
        sa.Column("available_at", INSTANT, nullable=False),
        sa.Column("claimed_by", IDENTIFIER, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("payload", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "target", "kind", "key", name=op.f("pk_atlas_outbox")),
    )
    for name, columns, where in (
        ("pending", ["target", "available_at"], sa.text("state = 'pending'")),
        ("parked", ["target", "staged_at"], sa.text("state = 'parked'")),
        ("done", ["available_at"], sa.text("state = 'done'")),
    ):
        op.create_index(
            f"ix_atlas_outbox_{name}", "atlas_outbox", columns, sqlite_where=where, postgresql_where=where
        )

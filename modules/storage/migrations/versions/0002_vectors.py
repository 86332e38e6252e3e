"""Vectors: the tables of the embedded store on SQLite, the registry of collections of pgvector on PostgreSQL.

pgvector's tables of documents are made when a collection is: they need the extension, which may not be there. The registry
does not; it is taken over where the provider has made it already.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

REGISTRY_POSTGRESQL = [
    """\
CREATE TABLE IF NOT EXISTS atlas_pgvector_collections (
    tenant_id text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    physical text NOT NULL,
    dimension integer NOT NULL,
    metric text NOT NULL,
    options json NOT NULL,
    metadata json NOT NULL,
    state json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    CONSTRAINT pk_atlas_pgvector_collections PRIMARY KEY (tenant_id, name)
)""",
    "CREATE INDEX IF NOT EXISTS ix_atlas_pgvector_collections_physical ON atlas_pgvector_collections (physical)",
]


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        for statement in REGISTRY_POSTGRESQL:
            op.execute(statement)
        return
    op.create_table(
        "atlas_vector_collections",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("collection_id", sa.BigInteger(), nullable=False),
        sa.Column("dimension", sa.BigInteger(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("changes", sa.BigInteger(), nullable=False),
        sa.Column("changes_known", sa.BigInteger(), nullable=False),
        sa.Column("tombstones", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_atlas_vector_collections")),
        sa.UniqueConstraint(
            "tenant_id", "collection_id", name=op.f("uq_atlas_vector_collections_tenant_id_collection_id")
        ),
    )
    op.create_table(
        "atlas_vectors",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("collection_id", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("change", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=True),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant_id", "collection_id", "namespace", "id", name=op.f("pk_atlas_vectors")
        ),
    )
    op.create_index(
        op.f("ix_atlas_vectors_tenant_id_collection_id_namespace_change_id"),
        "atlas_vectors",
        ["tenant_id", "collection_id", "namespace", "change", "id"],
        unique=False,
    )
    op.create_table(
        "atlas_vector_tombstones",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("collection_id", sa.BigInteger(), nullable=False),
        sa.Column("namespace", sa.String(), nullable=False),
        sa.Column("change", sa.BigInteger(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant_id", "collection_id", "namespace", "change", "id", name=op.f("pk_atlas_vector_tombstones")
        ),
    )

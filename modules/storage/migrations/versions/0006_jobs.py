"""The job store: jobs, runs, schedules, workers.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

IDENTIFIER = sa.String().with_variant(sa.String(collation="C"), "postgresql")
INSTANT = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")
JSON_TEXT = sa.Text().with_variant(sa.JSON(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "atlas_jobs",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("name", IDENTIFIER, nullable=True),
        sa.Column("handler", IDENTIFIER, nullable=False),
        sa.Column("queue", IDENTIFIER, nullable=False),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("parked", sa.SmallInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.SmallInteger(), nullable=False),
        sa.Column("concurrency_limit", sa.Integer(), nullable=True),
        sa.Column("run_at", INSTANT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.Column("started_at", INSTANT, nullable=True),
        sa.Column("finished_at", INSTANT, nullable=True),
        sa.Column("lease_until", INSTANT, nullable=True),
        sa.Column("worker", IDENTIFIER, nullable=True),
        sa.Column("concurrency_key", IDENTIFIER, nullable=True),
        sa.Column("schedule_id", IDENTIFIER, nullable=True),
        sa.Column("scheduled_for", INSTANT, nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("options", JSON_TEXT, nullable=True),
        sa.Column("progress", JSON_TEXT, nullable=True),
        sa.Column("payload", JSON_TEXT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_atlas_jobs")),
    )
    op.create_index(
        "ix_atlas_jobs_claim",
        "atlas_jobs",
        ["queue", "priority", "run_at"],
        postgresql_where=sa.text("status = 'scheduled' AND parked = 0"),
        sqlite_where=sa.text("status = 'scheduled' AND parked = 0"),
    )
    op.create_index(
        "ix_atlas_jobs_claim_tenant",
        "atlas_jobs",
        ["tenant_id", "queue", "priority", "run_at"],
        postgresql_where=sa.text("status = 'scheduled' AND parked = 0"),
        sqlite_where=sa.text("status = 'scheduled' AND parked = 0"),
    )
    op.create_index(
        "ix_atlas_jobs_dead",
        "atlas_jobs",
        ["finished_at"],
        postgresql_where=sa.text("status = 'failed'"),
        sqlite_where=sa.text("status = 'failed'"),
    )
    op.create_index(
        "ix_atlas_jobs_leases",
        "atlas_jobs",
        ["lease_until"],
        postgresql_where=sa.text("status = 'running'"),
        sqlite_where=sa.text("status = 'running'"),
    )
    op.create_index(
        "ix_atlas_jobs_names",
        "atlas_jobs",
        ["tenant_id", "name", "id"],
        postgresql_where=sa.text("name IS NOT NULL"),
        sqlite_where=sa.text("name IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_jobs_parked",
        "atlas_jobs",
        ["tenant_id", "concurrency_key", "priority", "run_at"],
        postgresql_where=sa.text("parked = 1"),
        sqlite_where=sa.text("parked = 1"),
    )
    op.create_index(
        "ix_atlas_jobs_running_key",
        "atlas_jobs",
        ["tenant_id", "concurrency_key"],
        postgresql_where=sa.text("status = 'running' AND concurrency_key IS NOT NULL"),
        sqlite_where=sa.text("status = 'running' AND concurrency_key IS NOT NULL"),
    )
    op.create_index(
        "ix_atlas_jobs_status",
        "atlas_jobs",
        ["tenant_id", "status", "id"],
        postgresql_where=sa.text("version > 0"),
        sqlite_where=sa.text("version > 0"),
    )
    op.create_index(
        "uq_atlas_jobs_name",
        "atlas_jobs",
        ["tenant_id", "name"],
        unique=True,
        postgresql_where=sa.text("name IS NOT NULL AND status IN ('draft', 'scheduled', 'running')"),
        sqlite_where=sa.text("name IS NOT NULL AND status IN ('draft', 'scheduled', 'running')"),
    )
    op.create_table(
        "atlas_job_runs",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("job_id", IDENTIFIER, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("finished_at", INSTANT, nullable=False),
        sa.Column("result_until", INSTANT, nullable=True),
        sa.Column("worker", IDENTIFIER, nullable=True),
        sa.Column("error", JSON_TEXT, nullable=True),
        sa.Column("result", JSON_TEXT, nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "number", name=op.f("pk_atlas_job_runs")),
    )
    op.create_index(
        "ix_atlas_job_runs_results",
        "atlas_job_runs",
        ["result_until"],
        postgresql_where=sa.text("result_until IS NOT NULL"),
        sqlite_where=sa.text("result_until IS NOT NULL"),
    )
    op.create_table(
        "atlas_job_logs",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("job_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("level", IDENTIFIER, nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "id", name=op.f("pk_atlas_job_logs")),
    )
    op.create_table(
        "atlas_job_events",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("job_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("place", IDENTIFIER, nullable=False),
        sa.Column("type", IDENTIFIER, nullable=False),
        sa.Column("data", JSON_TEXT, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "id", name=op.f("pk_atlas_job_events")),
    )
    op.create_table(
        "atlas_job_keys",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("kind", IDENTIFIER, nullable=False),
        sa.Column("key", IDENTIFIER, nullable=False),
        sa.Column("job_id", IDENTIFIER, nullable=False),
        sa.Column("digest", IDENTIFIER, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("until", INSTANT, nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "kind", "key", name=op.f("pk_atlas_job_keys")),
    )
    op.create_index("ix_atlas_job_keys_job", "atlas_job_keys", ["tenant_id", "job_id"])
    op.create_table(
        "atlas_job_tasks",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("job_id", IDENTIFIER, nullable=False),
        sa.Column("task_id", IDENTIFIER, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "task_id", name=op.f("pk_atlas_job_tasks")),
    )
    op.create_index("ix_atlas_job_tasks_task", "atlas_job_tasks", ["tenant_id", "task_id", "job_id"])
    op.create_table(
        "atlas_job_assignments",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("job_id", IDENTIFIER, nullable=False),
        sa.Column("assignee", IDENTIFIER, nullable=False),
        sa.Column("status", IDENTIFIER, nullable=False),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "job_id", "assignee", name=op.f("pk_atlas_job_assignments")),
    )
    op.create_index(
        "ix_atlas_job_assignments_assignee",
        "atlas_job_assignments",
        ["tenant_id", "assignee", "status", "job_id"],
    )
    op.create_table(
        "atlas_job_schedules",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("name", IDENTIFIER, nullable=False),
        sa.Column("enabled", sa.SmallInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("recurrence", JSON_TEXT, nullable=False),
        sa.Column("job", JSON_TEXT, nullable=False),
        sa.Column("next_at", INSTANT, nullable=True),
        sa.Column("last_at", INSTANT, nullable=True),
        sa.Column("created_at", INSTANT, nullable=False),
        sa.Column("updated_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_atlas_job_schedules")),
    )
    op.create_index(
        "ix_atlas_job_schedules_due",
        "atlas_job_schedules",
        ["next_at"],
        postgresql_where=sa.text("next_at IS NOT NULL AND enabled = 1"),
        sqlite_where=sa.text("next_at IS NOT NULL AND enabled = 1"),
    )
    op.create_index("uq_atlas_job_schedules_name", "atlas_job_schedules", ["tenant_id", "name"], unique=True)
    op.create_table(
        "atlas_job_queues",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("name", IDENTIFIER, nullable=False),
        sa.Column("paused", sa.SmallInteger(), nullable=False),
        sa.Column("rate", sa.Double(), nullable=True),
        sa.Column("burst", sa.Double(), nullable=True),
        sa.Column("tokens", sa.Double(), nullable=True),
        sa.Column("filled_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_atlas_job_queues")),
    )
    op.create_table(
        "atlas_job_workers",
        sa.Column("tenant_id", IDENTIFIER, nullable=False),
        sa.Column("id", IDENTIFIER, nullable=False),
        sa.Column("queues", JSON_TEXT, nullable=False),
        sa.Column("info", JSON_TEXT, nullable=False),
        sa.Column("running", sa.BigInteger(), nullable=False),
        sa.Column("started_at", INSTANT, nullable=False),
        sa.Column("seen_at", INSTANT, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "id", name=op.f("pk_atlas_job_workers")),
    )

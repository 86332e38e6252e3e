"""The outbox of the unit of work, and the keys of units that were applied.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Filled in by the change that brings its tables; this revision is not released yet."""

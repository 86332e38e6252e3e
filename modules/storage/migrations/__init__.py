"""The schema of the database, as Alembic revisions for SQLite and PostgreSQL alike.

    runner.py    what the manager and the command line call; imports Alembic only when there is something to migrate
    env.py       Alembic's entry: it takes the open connection from the runner
    versions/    the revisions; a released one is never changed (its tables are written out, not taken from the models)

Adding a revision: see docs/migrations.md.
"""

from __future__ import annotations

from modules.store_common.errors import StorageError

__all__ = ["HEAD", "VERSION_TABLE", "MigrationError"]

#: The newest revision. A start-up whose database is there already never imports Alembic; a test holds it to versions/.
HEAD = "0009"

#: Where the database says which revision it is at. Not `alembic_version`: users may have Alembic of their own here.
VERSION_TABLE = "atlas_alembic_version"


class MigrationError(StorageError):
    """The schema cannot be brought up to date; nothing was changed. The message says what to do."""

"""Alembic's entry point: configures a run with what the runner put into `config.attributes`, and runs it.

There is no ini file and no URL here: the connection, its transaction and its lock belong to `runner.upgrade`.
"""

from __future__ import annotations

from alembic import context

from modules.storage.migrations import VERSION_TABLE


def run() -> None:
    """Run the revisions on the runner's connection, or write them as SQL."""
    attributes = context.config.attributes
    options = {"version_table": VERSION_TABLE, "search_language": attributes["search_language"]}
    connection = attributes.get("connection")
    if connection is not None:
        context.configure(connection=connection, **options)
        context.run_migrations()  # inside the runner's transaction
        return
    # SQLite's DDL is transactional too; Alembic only does not count on the driver for it.
    context.configure(dialect_name=attributes["dialect"], as_sql=True, transactional_ddl=True, **options)
    with context.begin_transaction():
        context.run_migrations()


run()

"""Are the models and the migrated database the same? What `alembic check` asks, for tests and for `doctor`.

Only tables of ours are looked at; what users keep in the same database is theirs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, List, Set

from modules.storage.migrations import VERSION_TABLE

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["OUR_PREFIX", "differences"]

#: Every table of ours begins with this.
OUR_PREFIX = "atlas_"

# Made by SQL of our own and not modelled: see `DIALECT_DDL` of the stores, and `pgvector_schema` (its tables are many).
_UNMODELLED_TABLES = (
    "atlas_messages_search",
    "atlas_pgvector",
    "atlas_search_numbers",
    "atlas_search_pending",
    "atlas_task_search_numbers",
    "atlas_tasks_search",
)
_UNMODELLED_PARTS = frozenset(
    (
        ("atlas_messages", "search_vector"),
        ("atlas_messages", "ix_atlas_messages_search"),
        ("atlas_tasks", "search_vector"),
        ("atlas_tasks", "ix_atlas_tasks_search"),
    )
)


def differences(engine: Engine) -> List[str]:
    """Return what would have to change to make the database equal to the models; empty when they are equal."""
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    import modules.access_store.models
    import modules.conversation_store.backlog_models
    import modules.conversation_store.models
    import modules.job_store.models
    import modules.storage.outbox_models
    import modules.task_store.models
    import modules.Tools.Base_Tools.kv_models  # noqa: F401 - its tables join the metadata
    from modules.storage.schema import Base
    from modules.storage.vectors.sqlite_models import TABLES

    elsewhere = set() if engine.dialect.name == "sqlite" else {table.name for table in TABLES}
    options = {
        "version_table": VERSION_TABLE,
        "include_name": _include_name,
        "include_object": partial(_include_object, elsewhere),
        "compare_type": True,
    }
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        return [str(difference) for difference in compare_metadata(context, Base.metadata)]


def _include_name(name: Any, kind: str, parents: Any) -> bool:
    if kind != "table":
        return True
    unmodelled = any(name == table or name.startswith(f"{table}_") for table in _UNMODELLED_TABLES)
    return bool(name.startswith(OUR_PREFIX)) and not unmodelled


def _include_object(
    elsewhere: Set[str], item: Any, name: Any, kind: str, reflected: bool, compare_to: Any
) -> bool:
    if kind == "table" and not reflected:
        # a model of a table that only the other dialect has
        return name not in elsewhere
    if not reflected or kind not in ("column", "index"):
        return True
    return (item.table.name, name) not in _UNMODELLED_PARTS

"""What the manager does about the schema: look with one statement, load the migrations only when there is something to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, cast

from sqlalchemy import text
from sqlalchemy.types import Text

from modules.storage.migrations import HEAD, VERSION_TABLE
from modules.storage.opening import run_in_thread
from modules.storage.operations import Transaction, read
from modules.storage.statements import Statement
from modules.store_common.errors import StatementError

if TYPE_CHECKING:
    from modules.storage.backends.sqlite_executor import SQLiteExecutor
    from modules.storage.pool import SQLPool

__all__ = ["ensure_schema", "require_known_schema", "schema_revision"]

_TABLE_THERE = Statement(
    sqlite=text(
        "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'atlas_alembic_version'"
    ).columns(n=Text()),
    postgresql=text("SELECT count(to_regclass('atlas_alembic_version'))").columns(n=Text()),
)
_REVISION = Statement(text(f"SELECT version_num FROM {VERSION_TABLE}").columns(version_num=Text()))


@read(urgent=True)
async def _revision(tx: Transaction) -> Optional[str]:
    if (await tx.one(_TABLE_THERE))[0] == 0:
        return None
    row = await tx.first(_REVISION)
    return None if row is None else str(row[0])


async def schema_revision(pool: SQLPool) -> Optional[str]:
    """Return the schema revision of the database, None when it has no schema of ours."""
    return await pool.executor.run(_revision)


async def ensure_schema(pool: SQLPool) -> None:
    """Apply the migrations that are missing. When none is, this costs two small reads.

    Raises:
        MigrationError: the database is from a newer release, or a migration failed; nothing was changed.
    """
    revision = await schema_revision(pool)
    if revision == HEAD:
        return
    if revision is None and pool.settings.path == ":memory:":
        await _make_in_memory(pool)
    else:
        await _upgrade(pool)


async def _make_in_memory(pool: SQLPool) -> None:
    from modules.storage.backends.sqlite_images import fill_from_image, keep_image

    executor = cast("SQLiteExecutor", pool.executor)
    language = pool.settings.search_language
    if not await fill_from_image(executor, language):
        await _upgrade(pool)
        await keep_image(executor, language)


async def _upgrade(pool: SQLPool) -> None:
    # importing Alembic takes longer than everything else at start-up
    from modules.storage.migrations.runner import upgrade

    engine = pool.engine
    await run_in_thread(lambda: upgrade(engine, search_language=pool.settings.search_language))


async def require_known_schema(pool: SQLPool) -> None:
    """Refuse a database that is not at this release's schema, where migrating at start-up is switched off.

    Raises:
        MigrationError: the database is from a newer release.
        StatementError: it is behind.
    """
    revision = await schema_revision(pool)
    if revision == HEAD:
        return
    from modules.storage.migrations.runner import pending

    engine = pool.engine
    missing = await run_in_thread(lambda: pending(engine))
    raise StatementError(
        f"the database's schema is {len(missing)} revisions behind and sql.auto_migrate is off; run `atlas-storage migrate`"
    )

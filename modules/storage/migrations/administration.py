"""Looking at and changing the schema of a database given by settings: what the command line does, and nothing more.

A database that does not exist is not made by looking at it.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, List, Optional

from modules.storage.migrations import HEAD
from modules.storage.opening import run_in_thread
from modules.storage.pool import SQLPool

if TYPE_CHECKING:
    from modules.storage.settings import StorageSettings

__all__ = ["SchemaState", "database_exists", "migrate", "schema_state"]


@dataclass(frozen=True)
class SchemaState:
    """Where a database's schema stands.

    Attributes:
        current: Its revision, None when it has no schema of ours.
        head: The newest revision of this release.
        pending: The revisions that `migrate` would apply.
        from_future: Whether a newer release has migrated it.
        exists: Whether there is a database at all.
    """

    current: Optional[str]
    head: str
    pending: List[str]
    from_future: bool
    exists: bool = True

    @property
    def is_current(self) -> bool:
        """Whether nothing is missing."""
        return self.current == self.head

    @property
    def summary(self) -> str:
        """The state in one line, with what to do."""
        if self.is_current:
            return f"{self.current} (up to date)"
        if self.from_future:
            return f"{self.current}: from a newer release than this one, which knows {self.head}; upgrade atlas-storage"
        what = "no database yet" if not self.exists else self.current or "no schema yet"
        return f"{what}: {len(self.pending)} to apply ({', '.join(self.pending)}); run: atlas-storage migrate"

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "up_to_date": self.is_current}


def database_exists(settings: StorageSettings) -> bool:
    """Return False when the database is a file that is not there."""
    sql = settings.sql
    if sql.dialect.value != "sqlite" or sql.path == ":memory:":
        return True
    return Path(sql.path).expanduser().exists()


async def schema_state(settings: StorageSettings) -> SchemaState:
    """Return where the schema stands; changes nothing."""
    from modules.storage.migrations import runner

    if not database_exists(settings):
        return SchemaState(None, HEAD, [item.revision for item in runner.history()], False, exists=False)

    async with _opened(settings) as pool:
        engine = pool.engine
        revision = await run_in_thread(lambda: runner.current(engine))
        if runner.is_from_future(revision):
            return SchemaState(revision, HEAD, [], True)
        return SchemaState(revision, HEAD, await run_in_thread(lambda: runner.pending(engine)), False)


async def migrate(settings: StorageSettings) -> List[str]:
    """Create the database where it is a file that is missing, apply what is missing, return the revisions applied."""
    from modules.storage.migrations import runner

    async with _opened(settings) as pool:
        engine = pool.engine
        applied: List[str] = await run_in_thread(
            lambda: runner.upgrade(engine, search_language=settings.sql.search_language)
        )
        return applied


@asynccontextmanager
async def _opened(settings: StorageSettings) -> AsyncIterator[SQLPool]:
    pool = SQLPool(settings.sql)
    await pool.initialize()
    try:
        yield pool
    finally:
        await pool.shutdown()

"""Stores for code that still asks the configuration for them; all are the storage manager's.

The repositories are synchronous (`modules.storage.adapters`). Before the application has started every accessor raises
`NotInitializedError`, a `RuntimeError` with "not initialized".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Optional

from modules.storage import (
    create_conversation_repository,
    create_job_repository,
    create_kv_store,
    create_task_repository,
)
from modules.store_common.errors import NotInitializedError

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.orm import Session, sessionmaker

    from modules.storage import StorageManager
    from modules.storage.adapters import SyncRepository

__all__ = ["Persistence"]


class Persistence:
    """Thin accessors over one storage manager; `ATLAS` binds them when it has opened it."""

    def __init__(self) -> None:
        self._manager: Optional[StorageManager] = None
        self._verified: Dict[str, bool] = {}

    async def bind(self, manager: StorageManager) -> None:
        """Serve everything from `manager`, whose stores are verified first."""
        self._verified = await manager.verify_stores()
        self._manager = manager

    def unbind(self) -> None:
        """Forget the manager."""
        self._manager = None
        self._verified = {}

    @property
    def manager(self) -> StorageManager:
        """The storage manager."""
        if self._manager is None:
            raise NotInitializedError("the application's storage")
        return self._manager

    def is_conversation_store_verified(self) -> bool:
        """Return whether the conversation store's tables were there when the application started."""
        self.manager  # noqa: B018 - not initialized is an error, not False
        return self._verified.get("conversation_store", False)

    def get_conversation_store_engine(self) -> Engine:
        """Return a synchronous SQLAlchemy engine on the SQL database."""
        return self.manager.get_sql_engine()

    def get_conversation_store_session_factory(self) -> sessionmaker[Session]:
        """Return a synchronous `sessionmaker` on the SQL database."""
        return self.manager.get_session_factory()

    def get_conversation_repository(self) -> SyncRepository:
        """Return the conversation store for synchronous code."""
        return create_conversation_repository(self.manager)

    def get_task_repository(self) -> SyncRepository:
        """Return the task store for synchronous code."""
        return create_task_repository(self.manager)

    def get_job_repository(self) -> SyncRepository:
        """Return the job store for synchronous code."""
        return create_job_repository(self.manager)

    def get_kv_store(self) -> SyncRepository:
        """Return the key-value store for synchronous code."""
        return create_kv_store(self.manager)

    def get_conversation_retention_policies(self) -> Dict[str, Any]:
        """Return the limits that are set, by name; one that is missing means that conversations are kept.

        Names: "days" (without activity until a conversation is deleted), "history_message_limit" (messages kept of each).
        """
        retention = self.manager.get_settings().retention
        return _set_only(
            days=retention.conversation_days, history_message_limit=retention.conversation_history_limit
        )

    def get_task_retention_policies(self) -> Dict[str, Any]:
        """Return {"days": ...} until a finished task is deleted; empty: tasks are kept."""
        return _set_only(days=self.manager.get_settings().retention.task_days)

    def get_job_retention_policies(self) -> Dict[str, Any]:
        """Return {"days": ...} until a finished job is deleted; empty: jobs are kept."""
        return _set_only(days=self.manager.get_settings().retention.job_days)


def _set_only(**limits: int) -> Dict[str, Any]:
    return {name: limit for name, limit in limits.items() if limit}

"""The application's core: it reads the configuration, opens the storage and hands out the stores.

    async with ATLAS("config.yaml") as atlas:
        await atlas.conversations.add_message(conversation_id, role="user", content="hello")

All of them come from the one manager of the process (`get_storage_manager`), so code elsewhere that asks for it gets the
same one.
"""

from __future__ import annotations

import logging
import os
from types import TracebackType
from typing import TYPE_CHECKING, Any, List, Mapping, Optional, Type, Union

from ATLAS.config.persistence import Persistence
from modules.storage import (
    HealthStatus,
    StorageError,
    StorageSettings,
    get_storage_manager,
    reset_storage_manager,
)
from modules.store_common.errors import NotInitializedError

if TYPE_CHECKING:
    from modules.conversation_store.repository import ConversationStore
    from modules.storage import StorageHealthStatus, StorageManager
    from modules.storage.vectors.base import VectorProvider
    from modules.Tools.Base_Tools.kv_store import KeyValueStore

__all__ = ["ATLAS", "StartError"]

logger = logging.getLogger(__name__)


class StartError(StorageError):
    """The application could not start; nothing was left open.

    Attributes:
        stores: The components that failed, by their names in the health check.
    """

    def __init__(self, message: str, stores: Optional[List[str]] = None) -> None:
        super().__init__(message, stores)
        self.stores = list(stores or [])

    def __str__(self) -> str:
        return str(self.args[0])


class ATLAS:
    """The core of an ATLAS application. Owns the process's storage manager from `initialize` to `shutdown`.

    Args:
        config_path: YAML file with a `storage:` block; None: ./config.yaml if there is one. The environment overrules it.
        settings: Instead of both: these settings (or a mapping, as for `StorageSettings.from_dict`) and nothing else.
    """

    def __init__(
        self,
        config_path: Union[str, os.PathLike[str], None] = None,
        *,
        settings: Union[StorageSettings, Mapping[str, Any], None] = None,
    ) -> None:
        self._config_path = config_path
        self._settings = settings
        self._manager: Optional[StorageManager] = None
        self.persistence = Persistence()

    @property
    def is_initialized(self) -> bool:
        """Whether `initialize()` has succeeded and `shutdown()` was not called since."""
        return self._manager is not None

    async def initialize(self) -> None:
        """Open the storage and look at every configured store. Harmless when it is open.

        Raises:
            SettingsError: the configuration is wrong.
            StartError: a store cannot be used; says which and why. Nothing stays open, and it can be tried again.
        """
        if self._manager is not None:
            return
        settings = self._settings
        if settings is None:
            settings = StorageSettings.load(self._config_path)
        elif not isinstance(settings, StorageSettings):
            settings = StorageSettings.from_dict(settings)
        try:
            manager = await get_storage_manager(settings)
        except StorageError as exc:
            raise StartError(f"ATLAS could not start: the storage did not open: {exc}", ["sql"]) from exc
        try:
            await self._require_healthy(manager)
            await self.persistence.bind(manager)
        except BaseException:
            self.persistence.unbind()
            await reset_storage_manager()
            raise
        self._manager = manager
        logger.info("atlas.initialized", extra={"backend": settings.sql.dialect.value})

    async def shutdown(self) -> None:
        """Close the storage. Harmless when it is closed."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        self.persistence.unbind()
        await reset_storage_manager()
        logger.info("atlas.shutdown")

    async def __aenter__(self) -> ATLAS:
        await self.initialize()
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.shutdown()

    @property
    def storage_manager(self) -> StorageManager:
        """The process's storage manager."""
        if self._manager is None:
            raise NotInitializedError("ATLAS")
        return self._manager

    @property
    def conversations(self) -> ConversationStore:
        """Users, sessions, conversations and their messages."""
        return self.storage_manager.conversations

    @property
    def tasks(self) -> Any:
        """The task store."""
        return self.storage_manager.tasks

    @property
    def jobs(self) -> Any:
        """The job store."""
        return self.storage_manager.jobs

    @property
    def kv(self) -> KeyValueStore:
        """Values by namespace and key."""
        return self.storage_manager.kv

    @property
    def vectors(self) -> VectorProvider:
        """The vector store."""
        return self.storage_manager.vectors

    async def get_storage_health_async(self) -> StorageHealthStatus:
        """Check every configured store now. Never raises once the application runs."""
        return await self.storage_manager.health_check()

    async def _require_healthy(self, manager: StorageManager) -> None:
        health = await manager.health_check()
        broken = [
            component
            for component in health.components.values()
            if component.status in (HealthStatus.UNHEALTHY, HealthStatus.UNKNOWN)
        ]
        if broken:
            reasons = "; ".join(f"{item.name}: {item.message or 'it did not answer'}" for item in broken)
            raise StartError(f"ATLAS could not start: {reasons}", [item.name for item in broken])

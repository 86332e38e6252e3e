"""The one `StorageManager` of a process, for code that does not pass it around."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Mapping, Optional, Union

from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager
    from modules.storage.settings import StorageSettings

__all__ = ["get_storage_manager", "get_storage_manager_sync", "reset_storage_manager"]

_lock = threading.Lock()
_instance: Optional[StorageManager] = None
# Calls that are opening the instance. One that fails or is cancelled must not forget it while another goes on.
_opening = 0


def _shared(settings: Union[StorageSettings, Mapping[str, Any], None]) -> StorageManager:
    """Return the instance, made if there is none; not opened. `_opened` has to follow."""
    global _instance, _opening
    from modules.storage.manager import StorageManager
    from modules.storage.settings import StorageSettings

    with _lock:
        if _instance is None:
            _instance = StorageManager(StorageSettings.load() if settings is None else settings)
        elif settings is not None and StorageManager(settings).get_settings() != _instance.get_settings():
            raise StorageError(
                "the process's StorageManager exists with other settings; call `await reset_storage_manager()` first, "
                "or make a StorageManager of your own"
            )
        _opening += 1
        return _instance


def _serve_tools(instance: StorageManager) -> None:
    """Let the tools find the manager's stores; they do not import the manager (ARCHITECTURE section 2)."""
    from modules.Tools.Base_Tools.kv_store import KeyValueStoreAdapter, set_kv_store_provider
    from modules.Tools.Base_Tools.vector_store import VectorStoreAdapter, set_vector_store_provider

    async def provide() -> KeyValueStoreAdapter:
        return instance.kv

    async def provide_vectors(collection_prefix: str, default_dimension: int) -> VectorStoreAdapter:
        from modules.storage.vectors.adapter import VectorProviderAdapter

        return VectorProviderAdapter(
            instance.vectors, collection_prefix=collection_prefix, default_dimension=default_dimension
        )

    set_kv_store_provider(provide)
    set_vector_store_provider(provide_vectors)


def _opened(instance: StorageManager, failed: bool) -> None:
    """End what `_shared` began; when nobody could open the instance, the next call may make another one."""
    global _instance, _opening
    with _lock:
        _opening -= 1
        if failed and _opening == 0 and _instance is instance and not instance.is_initialized:
            _instance = None


async def get_storage_manager(
    settings: Union[StorageSettings, Mapping[str, Any], None] = None,
) -> StorageManager:
    """Return the process's manager, opened. Concurrent first calls get the same one; a failed one can be repeated.

    Args:
        settings: For the first call; None: the environment over ./config.yaml over the defaults. A later call with
            other settings is refused.

    Raises:
        StorageError: the manager could not be opened, or exists with other settings.
    """
    instance = _shared(settings)
    failed = True
    try:
        await instance.initialize()
        failed = False
    finally:
        _opened(instance, failed)
    _serve_tools(instance)
    return instance


def get_storage_manager_sync(
    settings: Union[StorageSettings, Mapping[str, Any], None] = None,
) -> StorageManager:
    """Return the process's manager, opened, to code without an event loop; the manager's own loop runs in a thread.

    Use its stores through `modules.storage.adapters` (`create_conversation_repository` and others).

    Raises:
        StorageError: as `get_storage_manager`, or called on an event loop.
    """
    from modules.storage.adapters import bridge

    instance = _shared(settings)
    failed = True
    try:
        if not instance.is_initialized:
            bridge().call(instance.initialize)
        failed = False
    finally:
        _opened(instance, failed)
    _serve_tools(instance)
    return instance


async def reset_storage_manager() -> None:
    """Close the process's manager and forget it. Harmless when there is none."""
    global _instance
    with _lock:
        instance, _instance = _instance, None
    if instance is not None:
        from modules.Tools.Base_Tools.kv_store import set_kv_store_provider
        from modules.Tools.Base_Tools.vector_store import set_vector_store_provider

        set_kv_store_provider(None)
        set_vector_store_provider(None)
        await instance.shutdown()

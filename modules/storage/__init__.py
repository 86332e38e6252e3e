"""ATLAS storage: one async manager for everything an agent application keeps.

    from modules.storage import StorageManager

    async with StorageManager() as storage:
        await storage.kv.set("settings", "greeting", "hello")

Importing this package imports no driver and no SQLAlchemy: each name is loaded from its room at first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Dict, List

if TYPE_CHECKING:
    from modules.storage.adapters import (
        DomainStoreFactory,
        create_conversation_repository,
        create_job_repository,
        create_kv_store,
        create_task_repository,
    )
    from modules.storage.health import (
        HealthStatus,
        StorageHealthStatus,
        StoreHealth,
        compute_overall_status,
    )
    from modules.storage.manager import StorageManager
    from modules.storage.pool import PoolError, PoolTimeoutError, SQLPool
    from modules.storage.settings import (
        KVStoreSettings,
        MongoBackendSettings,
        OutboxSettings,
        PoolSettings,
        RetentionSettings,
        SettingsError,
        SQLBackendSettings,
        SQLDialect,
        StorageSettings,
        VectorBackendSettings,
        VectorBackendType,
    )
    from modules.storage.singleton import get_storage_manager, get_storage_manager_sync, reset_storage_manager
    from modules.storage.unit_of_work import (
        OutcomeUnknownError,
        RollbackError,
        UnitOfWork,
        UnitOfWorkError,
        UnitOfWorkState,
        UnitOutcome,
    )
    from modules.storage.version import __version__
    from modules.store_common.deadlines import deadline
    from modules.store_common.errors import StorageError
    from modules.store_common.tenancy import tenant_context

_NAMES: Dict[str, List[str]] = {
    "modules.storage.adapters": [
        "DomainStoreFactory",
        "create_conversation_repository",
        "create_job_repository",
        "create_kv_store",
        "create_task_repository",
    ],
    "modules.storage.health": [
        "HealthStatus",
        "StorageHealthStatus",
        "StoreHealth",
        "compute_overall_status",
    ],
    "modules.storage.manager": ["StorageManager"],
    "modules.storage.pool": ["PoolError", "PoolTimeoutError", "SQLPool"],
    "modules.storage.settings": [
        "KVStoreSettings",
        "MongoBackendSettings",
        "OutboxSettings",
        "PoolSettings",
        "RetentionSettings",
        "SQLBackendSettings",
        "SQLDialect",
        "SettingsError",
        "StorageSettings",
        "VectorBackendSettings",
        "VectorBackendType",
    ],
    "modules.storage.singleton": ["get_storage_manager", "get_storage_manager_sync", "reset_storage_manager"],
    "modules.storage.unit_of_work": [
        "OutcomeUnknownError",
        "RollbackError",
        "UnitOfWork",
        "UnitOfWorkError",
        "UnitOfWorkState",
        "UnitOutcome",
    ],
    "modules.storage.version": ["__version__"],
    "modules.store_common.deadlines": ["deadline"],
    "modules.store_common.errors": ["StorageError"],
    "modules.store_common.tenancy": ["tenant_context"],
}
_ROOMS = {name: room for room, names in _NAMES.items() for name in names}

__all__ = [
    "DomainStoreFactory",
    "HealthStatus",
    "KVStoreSettings",
    "MongoBackendSettings",
    "OutboxSettings",
    "OutcomeUnknownError",
    "PoolError",
    "PoolSettings",
    "PoolTimeoutError",
    "RetentionSettings",
    "RollbackError",
    "SQLBackendSettings",
    "SQLDialect",
    "SQLPool",
    "SettingsError",
    "StorageError",
    "StorageHealthStatus",
    "StorageManager",
    "StorageSettings",
    "StoreHealth",
    "UnitOfWork",
    "UnitOfWorkError",
    "UnitOfWorkState",
    "UnitOutcome",
    "VectorBackendSettings",
    "VectorBackendType",
    "__version__",
    "compute_overall_status",
    "create_conversation_repository",
    "create_job_repository",
    "create_kv_store",
    "create_task_repository",
    "deadline",
    "get_storage_manager",
    "get_storage_manager_sync",
    "reset_storage_manager",
    "tenant_context",
]


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    return sorted(set(globals()) | set(__all__))

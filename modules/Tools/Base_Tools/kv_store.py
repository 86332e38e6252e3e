"""The key-value store as tools see it: a small protocol, a service on top of it, a registry, and four functions.

    service = build_kv_store_service("memory")
    await service.set_value("notes", "colour", "blue")
    await kv_get("notes", "colour", service=service)     # {"namespace": ..., "key": ..., "found": True, "value": "blue"}

Without a service the functions use the store of the configured storage manager, which the manager makes known here by
`set_kv_store_provider`: this room does not import the manager. The store itself, with versions, lists and quotas, is
`KeyValueStore` (kv_repository.py), in the application `storage.kv`.
"""

from __future__ import annotations

import base64
from typing import Any, Awaitable, Callable, Dict, Final, List, Mapping, Optional, Union

from typing_extensions import Protocol

from modules.store_common.errors import AlreadyExistsError, NotConfiguredError
from modules.store_common.values import check_identifier
from modules.Tools.Base_Tools.kv_errors import (
    CounterOverflowError,
    GlobalQuotaExceededError,
    InvalidValueTypeError,
    KeyNotFoundError,
    KeyValueStoreError,
    NamespaceQuotaExceededError,
    ValueSerializationError,
)
from modules.Tools.Base_Tools.kv_maintenance import KeyValueMaintenance
from modules.Tools.Base_Tools.kv_memory import MemoryAdapter
from modules.Tools.Base_Tools.kv_records import KeyValueEntry, KeyValuePage, NamespacePage
from modules.Tools.Base_Tools.kv_repository import ABSENT, KeyValueStore

__all__ = [
    "ABSENT",
    "AdapterFactory",
    "CounterOverflowError",
    "GlobalQuotaExceededError",
    "InvalidValueTypeError",
    "KeyNotFoundError",
    "KeyValueEntry",
    "KeyValueMaintenance",
    "KeyValuePage",
    "KeyValueStore",
    "KeyValueStoreAdapter",
    "KeyValueStoreError",
    "KeyValueStoreService",
    "MemoryAdapter",
    "NamespacePage",
    "NamespaceQuotaExceededError",
    "StoreProvider",
    "ValueSerializationError",
    "available_kv_store_adapters",
    "build_kv_store_service",
    "create_kv_store_adapter",
    "kv_delete",
    "kv_get",
    "kv_increment",
    "kv_set",
    "register_kv_store_adapter",
    "set_kv_store_provider",
]

_MISSING: Final = object()
_NOT_FOUND: Final = object()


class KeyValueStoreAdapter(Protocol):
    """What a store has to offer to tools. `KeyValueStore` offers it."""

    async def get(
        self, namespace: str, key: str, default: Any = None, *, tenant_id: Optional[str] = None
    ) -> Any:
        """Return the value under `key`, else `default`."""
        ...

    async def set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Store `value` and return its version."""
        ...

    async def delete(self, namespace: str, key: str, *, tenant_id: Optional[str] = None) -> bool:
        """Remove the entry and return whether it was there."""
        ...

    async def increment(
        self,
        namespace: str,
        key: str,
        amount: int = 1,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Add `amount` to the integer under `key`, 0 when there is none, and return the sum."""
        ...


#: Makes an adapter from its configuration.
AdapterFactory = Callable[[Mapping[str, Any]], KeyValueStoreAdapter]
#: Gives the store of the configured manager, opening it if need be.
StoreProvider = Callable[[], Awaitable[KeyValueStoreAdapter]]

_provider: Optional[StoreProvider] = None


def set_kv_store_provider(provider: Optional[StoreProvider]) -> None:
    """Say where the adapter "storage" finds its store; None forgets it. Called by the storage manager."""
    global _provider
    _provider = provider


class _ManagedAdapter:
    """The store of the configured manager, asked for anew at each call: it may be closed and opened meanwhile."""

    async def get(
        self, namespace: str, key: str, default: Any = None, *, tenant_id: Optional[str] = None
    ) -> Any:
        return await (await _managed_store()).get(namespace, key, default, tenant_id=tenant_id)

    async def set(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        store = await _managed_store()
        return await store.set(namespace, key, value, ttl_seconds=ttl_seconds, tenant_id=tenant_id)

    async def delete(self, namespace: str, key: str, *, tenant_id: Optional[str] = None) -> bool:
        return await (await _managed_store()).delete(namespace, key, tenant_id=tenant_id)

    async def increment(
        self,
        namespace: str,
        key: str,
        amount: int = 1,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        store = await _managed_store()
        return await store.increment(namespace, key, amount, ttl_seconds=ttl_seconds, tenant_id=tenant_id)


async def _managed_store() -> KeyValueStoreAdapter:
    if _provider is None:
        raise NotConfiguredError(
            "no storage manager is known to the key-value tools: call get_storage_manager() first, or pass service=..."
        )
    return await _provider()


_factories: Dict[str, AdapterFactory] = {
    "memory": lambda config: MemoryAdapter(),
    "storage": lambda config: _ManagedAdapter(),
}


def register_kv_store_adapter(name: str, factory: AdapterFactory, *, replace: bool = False) -> None:
    """Make an adapter known by `name`.

    Args:
        name: An identifier.
        factory: Gets the configuration mapping and returns the adapter; opens nothing.
        replace: Take the place of one of the same name.

    Raises:
        AlreadyExistsError: the name is taken and `replace` is False.
    """
    check_identifier(name, "the adapter's name")
    if name in _factories and not replace:
        raise AlreadyExistsError(
            f"there is a key-value adapter {name!r} already; pass replace=True to replace it"
        )
    _factories[name] = factory


def available_kv_store_adapters() -> List[str]:
    """Return the names of the adapters known, sorted."""
    return sorted(_factories)


def create_kv_store_adapter(
    name: str = "storage", config: Optional[Mapping[str, Any]] = None
) -> KeyValueStoreAdapter:
    """Return a new adapter.

    Args:
        name: One of `available_kv_store_adapters()`; "storage" is the configured manager's store, "memory" is for tests.
        config: What the adapter's factory gets.

    Raises:
        NotConfiguredError: no adapter has this name.
    """
    factory = _factories.get(name)
    if factory is None:
        raise NotConfiguredError(
            f"there is no key-value adapter {name!r}; known are {', '.join(available_kv_store_adapters())}"
        )
    return factory({} if config is None else config)


def build_kv_store_service(
    adapter: Union[str, KeyValueStoreAdapter] = "storage", config: Optional[Mapping[str, Any]] = None
) -> KeyValueStoreService:
    """Return a service over `adapter`: one of your own, or the name of a registered one with its `config`."""
    return KeyValueStoreService(
        create_kv_store_adapter(adapter, config) if isinstance(adapter, str) else adapter
    )


class KeyValueStoreService:
    """What tools call.

    Args:
        adapter: The store behind it.
    """

    def __init__(self, adapter: KeyValueStoreAdapter) -> None:
        self._adapter = adapter

    async def get_value(
        self, namespace: str, key: str, default: Any = _MISSING, *, tenant_id: Optional[str] = None
    ) -> Any:
        """Return the value under `key`.

        Args:
            namespace: Which namespace.
            key: Which key.
            default: What to return when there is none; without it that is an error.
            tenant_id: Whose data; see `tenant_context`.

        Raises:
            KeyNotFoundError: there is none, or it has expired, and no default was given.
        """
        value = await self._adapter.get(namespace, key, default, tenant_id=tenant_id)
        if value is _MISSING:
            raise KeyNotFoundError(f"there is no key {key!r} in namespace {namespace!r}")
        return value

    async def set_value(
        self,
        namespace: str,
        key: str,
        value: Any,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Store `value` (JSON or bytes) under `key` and return its version; see `KeyValueStore.set`."""
        return await self._adapter.set(namespace, key, value, ttl_seconds=ttl_seconds, tenant_id=tenant_id)

    async def delete_value(self, namespace: str, key: str, *, tenant_id: Optional[str] = None) -> bool:
        """Remove the entry under `key` and return whether it was there."""
        return await self._adapter.delete(namespace, key, tenant_id=tenant_id)

    async def increment_value(
        self,
        namespace: str,
        key: str,
        amount: int = 1,
        *,
        ttl_seconds: Optional[float] = None,
        tenant_id: Optional[str] = None,
    ) -> int:
        """Add `amount` to the integer under `key` and return the sum; see `KeyValueStore.increment`."""
        return await self._adapter.increment(
            namespace, key, amount, ttl_seconds=ttl_seconds, tenant_id=tenant_id
        )


def _service(service: Optional[KeyValueStoreService]) -> KeyValueStoreService:
    return build_kv_store_service() if service is None else service


async def kv_get(
    namespace: str,
    key: str,
    *,
    tenant_id: Optional[str] = None,
    service: Optional[KeyValueStoreService] = None,
) -> Dict[str, Any]:
    """Look up `key`, for an agent: a dict that can be written as JSON.

    Returns:
        `namespace`, `key`, `found`, and `value`; for bytes `value_base64` instead of `value`.
    """
    value = await _service(service).get_value(namespace, key, _NOT_FOUND, tenant_id=tenant_id)
    answer: Dict[str, Any] = {"namespace": namespace, "key": key, "found": value is not _NOT_FOUND}
    if isinstance(value, bytes):
        answer["value_base64"] = base64.b64encode(value).decode("ascii")
    else:
        answer["value"] = value if answer["found"] else None
    return answer


async def kv_set(
    namespace: str,
    key: str,
    value: Any,
    *,
    ttl_seconds: Optional[float] = None,
    tenant_id: Optional[str] = None,
    service: Optional[KeyValueStoreService] = None,
) -> Dict[str, Any]:
    """Store `value` under `key`; return `namespace`, `key` and the new `version`."""
    version = await _service(service).set_value(
        namespace, key, value, ttl_seconds=ttl_seconds, tenant_id=tenant_id
    )
    return {"namespace": namespace, "key": key, "version": version}


async def kv_delete(
    namespace: str,
    key: str,
    *,
    tenant_id: Optional[str] = None,
    service: Optional[KeyValueStoreService] = None,
) -> Dict[str, Any]:
    """Remove `key`; return `namespace`, `key` and whether it was `deleted` (False: it was not there)."""
    deleted = await _service(service).delete_value(namespace, key, tenant_id=tenant_id)
    return {"namespace": namespace, "key": key, "deleted": deleted}


async def kv_increment(
    namespace: str,
    key: str,
    amount: int = 1,
    *,
    ttl_seconds: Optional[float] = None,
    tenant_id: Optional[str] = None,
    service: Optional[KeyValueStoreService] = None,
) -> Dict[str, Any]:
    """Add `amount` to the integer under `key`; return `namespace`, `key` and the new `value`."""
    chosen = _service(service)
    value = await chosen.increment_value(namespace, key, amount, ttl_seconds=ttl_seconds, tenant_id=tenant_id)
    return {"namespace": namespace, "key": key, "value": value}

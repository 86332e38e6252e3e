"""Which vector providers there are, and which instances are open.

A provider is known by a name: ours by their room, others' by `@register_vector_provider("name")` or by an entry point of
the group `atlas_storage.vector_providers`, so that a package of a third party plugs in without touching our files.
"""

from __future__ import annotations

import importlib
import logging
from importlib.metadata import entry_points
from typing import Any, Callable, Dict, List, Optional, Type, TypeVar

from modules.storage.vectors.base import VectorProvider
from modules.store_common.errors import (
    AlreadyExistsError,
    MissingDependencyError,
    NotConfiguredError,
    StorageError,
)
from modules.store_common.values import check_identifier

__all__ = [
    "ENTRY_POINT_GROUP",
    "VectorStoreRegistry",
    "available_vector_providers",
    "get_vector_provider",
    "register_vector_provider",
]

logger = logging.getLogger(__name__)

ProviderClass = TypeVar("ProviderClass", bound=Type[VectorProvider])

ENTRY_POINT_GROUP = "atlas_storage.vector_providers"
_OURS: Dict[str, str] = {
    "chroma": "modules.storage.vectors.chroma:ChromaProvider",
    "in_memory": "modules.storage.vectors.in_memory:InMemoryProvider",
    "pgvector": "modules.storage.vectors.pgvector:PgvectorProvider",
    "pinecone": "modules.storage.vectors.pinecone:PineconeProvider",
    "sqlite": "modules.storage.vectors.sqlite:SQLiteVectorProvider",
}
_EXTRAS = {"chroma": "chroma", "pgvector": "postgres", "pinecone": "pinecone"}
_registered: Dict[str, Type[VectorProvider]] = {}


def register_vector_provider(name: str, *, replace: bool = False) -> Callable[[ProviderClass], ProviderClass]:
    """Make the decorated `VectorProvider` class known by `name`.

    Raises:
        AlreadyExistsError: the name is taken and `replace` is False.
    """
    check_identifier(name, "the provider's name")

    def register(provider: ProviderClass) -> ProviderClass:
        if not replace and (name in _registered or name in _OURS) and _registered.get(name) is not provider:
            if not (
                name in _OURS
                and name not in _registered
                and provider.__module__ == _OURS[name].partition(":")[0]
            ):
                raise AlreadyExistsError(
                    f"a vector provider {name!r} is known already; pass replace=True to replace it"
                )
        _registered[name] = provider
        return provider

    return register


def available_vector_providers() -> List[str]:
    """Return the names of all known providers, sorted; their packages need not be installed."""
    return sorted({*_OURS, *_registered, *_entry_points()})


def get_vector_provider(name: str) -> Type[VectorProvider]:
    """Return the provider class of `name`, loaded now.

    Raises:
        NotConfiguredError: nobody has registered it.
        MissingDependencyError: its package is not installed; names the extra.
    """
    found = _registered.get(name)
    if found is not None:
        return found
    if name in _OURS:
        room, _, attribute = _OURS[name].partition(":")
        try:
            loaded: Any = getattr(importlib.import_module(room), attribute)
        except ModuleNotFoundError as exc:
            if name not in _EXTRAS or str(exc.name).startswith("modules"):
                raise
            raise MissingDependencyError(str(exc.name), _EXTRAS[name]) from exc
    else:
        entry = _entry_points().get(name)
        if entry is None:
            raise NotConfiguredError(
                f"there is no vector provider {name!r}; known are {', '.join(available_vector_providers())}"
            )
        loaded = _load(name, entry)
    if not (isinstance(loaded, type) and issubclass(loaded, VectorProvider)):
        raise StorageError(f"the entry point of the vector provider {name!r} is not a VectorProvider class")
    return _registered.setdefault(name, loaded)


def _load(name: str, entry: Any) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as exc:
        # others' packages; their own names of extras are theirs to tell
        raise StorageError(
            f"the vector provider {name!r} of another package cannot be loaded ({type(exc).__name__}); "
            "install what that package needs"
        ) from exc


def _entry_points() -> Dict[str, Any]:
    found: Any = entry_points()
    # importlib.metadata of Python 3.9 returns a mapping of groups
    group = (
        found.select(group=ENTRY_POINT_GROUP)
        if hasattr(found, "select")
        else found.get(ENTRY_POINT_GROUP, ())
    )
    return {entry.name: entry for entry in group}


class VectorStoreRegistry:
    """Open providers by name; the first one registered is the default unless another is named so."""

    def __init__(self) -> None:
        self._instances: Dict[str, VectorProvider] = {}
        self._default: Optional[str] = None

    def register_instance(self, name: str, provider: VectorProvider, *, default: bool = False) -> None:
        """Keep `provider` under `name`.

        Raises:
            AlreadyExistsError: the name is taken.
        """
        check_identifier(name, "the instance's name")
        if name in self._instances:
            raise AlreadyExistsError(f"a vector store instance {name!r} is registered already")
        self._instances[name] = provider
        if default or self._default is None:
            self._default = name

    def get(self, name: str) -> VectorProvider:
        """Return the instance of `name`.

        Raises:
            NotConfiguredError: there is none.
        """
        if name not in self._instances:
            known = ", ".join(sorted(self._instances)) or "none"
            raise NotConfiguredError(f"there is no vector store instance {name!r}; registered: {known}")
        return self._instances[name]

    @property
    def default(self) -> VectorProvider:
        """The default instance.

        Raises:
            NotConfiguredError: none is registered.
        """
        if self._default is None:
            raise NotConfiguredError("no vector store is configured; set vectors.backend")
        return self._instances[self._default]

    def list_instances(self) -> List[str]:
        """Return the names of the instances, sorted."""
        return sorted(self._instances)

    async def shutdown_all(self) -> None:
        """Close every instance and forget them all; one that fails does not keep the others open."""
        instances, self._instances, self._default = self._instances, {}, None
        for name, provider in instances.items():
            try:
                await provider.shutdown()
            except StorageError:
                logger.exception("storage.vectors.shutdown_failed", extra={"store": name})

"""The life of a vector provider: how it is made, opened, lent to a unit of work, and asked for a sign of life."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar, Dict, Optional, Tuple

from modules.storage.opening import OpenOnce
from modules.storage.vectors.engine import VectorEngine
from modules.store_common.errors import NotConfiguredError, NotInitializedError, StorageError
from modules.store_common.tenancy import TenantPolicy

if TYPE_CHECKING:
    from modules.storage.operations import Executor
    from modules.storage.vectors.base import VectorProvider
    from modules.storage.vectors.checks import CollectionSpec
    from modules.storage.vectors.factory import VectorContext

__all__ = ["ProviderLifecycle"]


class ProviderLifecycle(VectorEngine):
    """What `base.VectorProvider` has of a life; its arguments are those of that class."""

    #: By which settings and errors know it.
    name: ClassVar[str] = ""

    def __init__(self, *, tenancy: Optional[TenantPolicy] = None) -> None:
        self._tenancy = tenancy if tenancy is not None else TenantPolicy()
        self._specs: Dict[Tuple[str, str], CollectionSpec] = {}
        self._first_use: Optional[OpenOnce] = None

    @property
    def place(self) -> str:
        """Which store this is, of those that the provider can open: two providers of one place see the same documents."""
        return self.name

    @classmethod
    def from_context(cls, context: VectorContext) -> VectorProvider:
        """Make a provider for a storage manager, without I/O; see docs/vectors.md, "Write your own provider".

        Args:
            context: What the manager has to give: settings, tenancy, executor, options.
        """
        raise NotConfiguredError(
            f"the vector provider {cls.name!r} cannot be made from settings: it has no from_context; "
            "make it yourself and register it with storage.vector_registry.register_instance()"
        )

    def within(self, executor: Executor) -> VectorProvider:
        """Return a provider whose calls join the transaction of `executor`, a unit of work's; it need not be closed.

        Raises:
            NotConfiguredError: this store keeps nothing in the SQL database.
        """
        raise NotConfiguredError(
            f"the vector store {self.name} cannot join this transaction: it is not in the SQL database; use uow.vectors of "
            "storage.unit_of_work(), which stages its writes"
        )

    def open_on_use(self, enabled: bool = True) -> None:
        """Have the first call open the store, so that it can be handed out before it is open; False: no longer."""
        self._first_use = OpenOnce() if enabled else None

    async def require_open(self) -> None:
        """Return when the store is open; opens it where that was left to the first use.

        Raises:
            NotInitializedError: it is closed, and stays so until `initialize()`.
            StorageError: it could not be opened.
        """
        if self.is_initialized:
            return
        once = self._first_use
        if once is None:
            raise NotInitializedError(f"the vector store {self.name}")
        await once.run(lambda: self.is_initialized, self.initialize)
        if self._first_use is None:
            # its owner was closed meanwhile
            await self.shutdown()
            raise NotInitializedError(f"the vector store {self.name}")

    async def health_check(self, timeout: float = 5.0) -> bool:
        """Return whether the store answers within `timeout` seconds. Raises nothing but cancellation."""
        if not self.is_initialized:
            return False
        try:
            await asyncio.wait_for(self._ping(), timeout)
        except (StorageError, asyncio.TimeoutError):
            return False
        return True

    async def _enter(self, tenant_id: Optional[str]) -> str:
        if not self.is_initialized:
            await self.require_open()
        return self._tenancy.resolve(tenant_id)

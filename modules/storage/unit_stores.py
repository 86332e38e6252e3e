"""What users see of a unit of work: its stores, bound to its transaction, what it stages, and its result."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Optional

from modules.storage.domain_stores import DomainStores
from modules.storage.unit_contracts import UnitOfWorkError, UnitOfWorkState
from modules.store_common.values import encode_json

if TYPE_CHECKING:
    from modules.storage.unit_documents import UnitDocuments
    from modules.storage.unit_staging import Staging
    from modules.storage.vectors.base import VectorProvider
    from modules.store_common.tenancy import TenantPolicy

__all__ = ["UnitStores"]


class UnitStores(DomainStores):
    """What `unit_of_work.UnitOfWork` has of stores."""

    _state: UnitOfWorkState
    _staging: Staging
    _tenancy: TenantPolicy
    _result: Any
    _result_json: Optional[str]
    _replayed: bool

    @abc.abstractmethod
    def _require_open(self) -> None:
        """Refuse what comes before or after the unit's block."""

    @property
    def vectors(self) -> VectorProvider:
        """The vector store, inside this unit.

        One in the SQL database (sqlite, pgvector) takes part in the transaction. Of any other, writes are staged: they are
        kept with the unit and applied by a relay after COMMIT; see docs/unit-of-work.md.
        """
        store: VectorProvider = self._store("vectors")
        return store

    @property
    def documents(self) -> UnitDocuments:
        """Documents of MongoDB, staged: kept with the unit and applied by a relay after COMMIT.

        Raises:
            NotConfiguredError: there is no target `mongo`.
        """
        store: UnitDocuments = self._store("documents")
        return store

    @property
    def result(self) -> Any:
        """What `set_result` was given, by this unit or by the first one with its key."""
        return self._result

    @property
    def replayed(self) -> bool:
        """Whether a unit with this key was committed before: nothing is done, and the block ends at its first operation."""
        return self._replayed

    def set_result(self, value: Any) -> None:
        """Keep a JSON value with the unit's key, for whoever comes with the same key again; see `result`."""
        self._require_open()
        self._result_json = encode_json(value, "the result")
        self._result = value

    def stage(
        self, target: str, kind: str, key: str, payload: Any = None, *, tenant_id: Optional[str] = None
    ) -> None:
        """Have a relay bring `key` of a registered target up to date after COMMIT; kept with the unit, or undone with it.

        Args:
            target: Name given to `storage.register_target`.
            kind: What kind of thing, for the target.
            key: Which one; changes of one key arrive in the order of the commits, and only the newest when it is late.
            payload: JSON value that goes along; None where the target reads the state where it is kept.
            tenant_id: Whose.
        """
        self._require_open()
        self._staging.add_checked(self._tenancy.resolve(tenant_id), target, kind, key, payload)

    async def applied(self, timeout: float = 10.0) -> None:
        """Return when everything that this unit staged is in its store; call it after COMMIT.

        Args:
            timeout: Seconds to wait.

        Raises:
            DeadlineExceededError: not within `timeout`; it goes on all the same.
            UnitOfWorkError: a target refused it too often and it is parked, or the unit was not committed.
        """
        if self._state is not UnitOfWorkState.COMMITTED:
            raise UnitOfWorkError(f"the unit of work is {self._state.value}: nothing of it will be applied")
        await self._staging.applied(timeout)

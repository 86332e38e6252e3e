"""The manager's units of work and its outbox: made when the manager opens, with a target for each store outside of SQL."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

from modules.storage.health import HealthStatus
from modules.storage.outbox import Outbox
from modules.storage.outbox_options import RelayOptions
from modules.storage.outbox_queue import OutboxEntry
from modules.storage.outbox_targets import Apply, DocumentTarget, Target
from modules.storage.staged_documents import COLLECTION_ID, read_many
from modules.storage.unit_documents import UnitDocuments
from modules.storage.unit_keys import make_key, probe_key
from modules.storage.unit_of_work import UnitOfWork, UnitOutcome
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import NotInitializedError
from modules.store_common.values import check_identifier

if TYPE_CHECKING:
    from modules.storage.backends.wakeups import Wakeups
    from modules.storage.manager_vectors import VectorStores
    from modules.storage.operations import Executor
    from modules.storage.settings import StorageSettings
    from modules.storage.vectors.base import VectorProvider
    from modules.store_common.tenancy import TenantPolicy

__all__ = ["UnitsOfWork", "check_outbox", "make_outbox"]

_RESOLVE_TIMEOUT_S = 30.0
#: The target of `uow.documents`.
_DOCUMENT_TARGET = "mongo"


def make_outbox(
    settings: StorageSettings, executor: Executor, vectors: VectorStores, wakeups: Optional[Wakeups] = None
) -> Outbox:
    """Return the outbox of a manager, with the configured vector store as a target where that is outside of SQL."""
    chosen = settings.outbox
    options = RelayOptions(
        poll_s=chosen.poll_interval_s,
        apply_timeout_s=chosen.apply_timeout_s,
        max_attempts=chosen.max_attempts,
        concurrency=chosen.concurrency,
        keep_done_s=chosen.keep_done_s,
        keep_keys_s=chosen.keep_keys_days * 86400.0,
    )
    outbox = Outbox(executor, options, wakeups)
    if vectors.is_remote:
        outbox.targets.register(_vector_target(vectors.backend, executor, lambda: vectors.default))

    def add(name: str, provider: VectorProvider) -> None:
        if not vectors.joins(provider) and name not in outbox.targets.names:
            outbox.targets.register(_vector_target(name, executor, lambda: provider))

    vectors.when_added(add)
    return outbox


def _vector_target(name: str, executor: Executor, provider: Any) -> Target:
    """Return a target that loads the vector stores' packages when there is something to apply."""
    made: List[DocumentTarget] = []

    def target() -> DocumentTarget:
        if not made:
            from modules.storage.vectors.staged_writer import VectorWriter

            async def home(tenant_id: str, collection: str) -> object:
                key = (tenant_id, name, collection, *COLLECTION_ID)
                return (await executor.run(read_many, [key]))[0]

            made.append(DocumentTarget(executor, VectorWriter(provider(), home)))
        return made[0]

    async def apply(entry: OutboxEntry) -> None:
        await target().apply(entry)

    async def apply_many(entries: Any) -> Any:
        return await target().apply_many(entries)

    return Target(name, apply, apply_many, writer=lambda: target().writer)


async def check_outbox(outbox: Outbox, settings: StorageSettings) -> Tuple[HealthStatus, str, Dict[str, Any]]:
    """Return the health of the outbox: degraded when deliveries are late or parked."""
    found = await outbox.stats()
    problems = []
    if found.lag_s > settings.outbox.degraded_lag_s:
        problems.append(
            f"the oldest of {found.pending} deliveries has waited {found.lag_s:.0f} s: is its target away, is a relay running?"
        )
    if found.parked >= settings.outbox.degraded_parked:
        problems.append(
            f"{found.parked} keys are parked; see `atlas-storage outbox list --state parked`, then redrive or discard them"
        )
    details = {**found.to_dict(), "relay": settings.outbox.relay}
    return (HealthStatus.DEGRADED if problems else HealthStatus.HEALTHY), "; ".join(problems), details


class UnitsOfWork(abc.ABC):
    """What `manager.StorageManager` has of units of work."""

    _outbox: Optional[Outbox] = None
    _executor: Any

    @property
    @abc.abstractmethod
    def _tenancy(self) -> TenantPolicy:
        """How the tenant of a call is found."""

    @abc.abstractmethod
    def _make_store(self, name: str, executor: Executor) -> Any:
        """Make a store on an executor."""

    def _documents(self, executor: Any) -> UnitDocuments:
        """Return the documents of MongoDB inside a unit of work."""
        self.outbox.targets.require(_DOCUMENT_TARGET)
        return UnitDocuments(executor, executor.staging, self._tenancy, _DOCUMENT_TARGET)

    @property
    def outbox(self) -> Outbox:
        """What units of work have staged for other stores: figures, parked keys, the relay."""
        if self._outbox is None:
            raise NotInitializedError("the StorageManager")
        return self._outbox

    def register_target(self, name: str, apply: Apply) -> None:
        """Add a target for `uow.stage(name, ...)`: `async def apply(entry)` brings `entry.key` up to date.

        It is called again after a failure or a crash, so it must be idempotent; see docs/unit-of-work.md.

        Args:
            name: Of the target; the same in every process that relays for it.
            apply: Called within `outbox.apply_timeout_s`; an exception is a failed attempt.

        Raises:
            AlreadyExistsError: the name is taken.
        """
        self.outbox.register(name, apply)

    def unit_of_work(
        self,
        key: Optional[str] = None,
        timeout: float = 30.0,
        *,
        body: Any = None,
        tenant_id: Optional[str] = None,
    ) -> UnitOfWork:
        """Return a unit of work: `async with storage.unit_of_work() as uow:`.

        Args:
            key: Makes the unit idempotent: with a key that was used before nothing is done, `uow.replayed` is True and
                `uow.result` is what the first one set. The block ends at its first operation.
            timeout: Seconds after which it is rolled back wherever it is.
            body: JSON value that says what the unit is asked to do; the same key with another body is refused.
            tenant_id: Whose key.

        Raises:
            IdempotencyConflictError: on entering; the key was used with another body.
        """
        outbox = self.outbox
        return UnitOfWork(
            self._executor,
            self._make_store,
            timeout_s=timeout,
            key=None if key is None else make_key(self._tenancy.resolve(tenant_id), key, body),
            tenancy=self._tenancy,
            outbox=outbox,
        )

    async def resolve(self, key: str, *, tenant_id: Optional[str] = None) -> UnitOutcome:
        """Say what became of the unit of work with this key, after `OutcomeUnknownError`; for certain.

        While a unit with this key is still under way it waits for its end.

        Args:
            key: The unit's.
            tenant_id: Whose key.
        """
        _ = self.outbox
        named = check_identifier(key, "the key of a unit of work")
        transaction = self._executor.unit(deadline_after(_RESOLVE_TIMEOUT_S))
        try:
            found = await transaction.run(probe_key, (self._tenancy.resolve(tenant_id), named), {})
        finally:
            await transaction.rollback()
        return UnitOutcome(named, found is not None, None if found is None else found.result)

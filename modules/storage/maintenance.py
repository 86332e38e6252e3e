"""What the manager does in the background: sweep expired keys, end turns whose process died, apply retention."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Awaitable, Callable, Dict, List, Optional, Tuple

from modules.store_common.clock import utc_now
from modules.store_common.errors import StorageError

if TYPE_CHECKING:
    from modules.conversation_store.records import RetentionPolicy
    from modules.storage.manager_vectors import VectorStores
    from modules.storage.operations import Executor
    from modules.storage.settings import StorageSettings
    from modules.store_common.tenancy import TenantPolicy

__all__ = ["Maintenance", "retention_policy"]

logger = logging.getLogger(__name__)

# Seconds between two rounds of each duty; the first round of all comes at start-up.
_TURNS_EVERY_S = 30.0
_SWEEP_EVERY_S = 60.0
_INDEX_EVERY_S = 5.0
_RETENTION_EVERY_S = 3600.0
_SWEEP_BATCH = 1000
_RESCUE_EVERY_S = 10.0

_Duty = Tuple[str, float, Callable[[], Awaitable[int]]]


def retention_policy(settings: StorageSettings) -> RetentionPolicy:
    """Return the conversation store's policy that `settings.retention` stands for; 0 keeps."""
    from modules.conversation_store.records import RetentionPolicy

    return RetentionPolicy(
        delete_after_days=settings.retention.conversation_days,
        history_limit=settings.retention.conversation_history_limit,
    )


class Maintenance:
    """Rounds of upkeep across all tenants. Any number of processes may do them at the same time."""

    def __init__(
        self,
        executor: Executor,
        settings: StorageSettings,
        tenancy: TenantPolicy,
        vectors: Optional[VectorStores] = None,
        wake: Optional[Callable[[str], None]] = None,
        *,
        conversations: Optional[Executor] = None,
        kv: Optional[Executor] = None,
        jobs: Optional[Executor] = None,
    ) -> None:
        self._vectors = vectors
        self._executor = executor
        # what runs the operations of these stores, where they are not in SQL
        self._conversations = executor if conversations is None else conversations
        self._kv = executor if kv is None else kv
        self._jobs = executor if jobs is None else jobs
        self._settings = settings
        self._tenancy = tenancy
        self._wake = wake

    async def run(self) -> None:
        """Do every duty when it is due, for ever; ended by cancelling its task."""
        duties: List[_Duty] = [
            ("turns", _TURNS_EVERY_S, self.recover_turns),
            ("sweep", _SWEEP_EVERY_S, self.sweep),
            ("jobs", _RESCUE_EVERY_S, self.rescue_jobs),
            ("results", _SWEEP_EVERY_S, self.sweep_jobs),
        ]
        if self._conversations.dialect == "sqlite":
            duties.append(("index", _INDEX_EVERY_S, self.index_messages))
        retention = self._settings.retention
        if any(
            (
                retention.conversation_days,
                retention.conversation_history_limit,
                retention.task_days,
                retention.vector_days,
            )
        ):
            duties.append(("retention", _RETENTION_EVERY_S, self._retain_all))
        if retention.job_days:
            duties.append(("job retention", _RETENTION_EVERY_S, self.purge_jobs))
        due = {name: 0.0 for name, _, _ in duties}
        while True:
            for name, every_s, duty in duties:
                if due[name] <= time.monotonic():
                    await self._do(name, duty)
                    due[name] = time.monotonic() + every_s
            await asyncio.sleep(max(0.05, min(due.values()) - time.monotonic()))

    async def _do(self, name: str, duty: Callable[[], Awaitable[int]]) -> None:
        try:
            count = await duty()
        except StorageError as exc:
            # the next round tries again; health shows a database that is away
            logger.warning(
                "storage.maintenance.failed", extra={"operation": name, "error_type": type(exc).__name__}
            )
        except Exception:
            logger.exception("storage.maintenance.defect", extra={"operation": name})
        else:
            if count:
                logger.info("storage.maintenance.done", extra={"operation": name, "count": count})

    async def recover_turns(self) -> int:
        """Mark the replies of turns whose process died as interrupted, of every tenant; return how many there were."""
        from modules.conversation_store.maintenance import ConversationMaintenance

        return await ConversationMaintenance(self._conversations).recover_turns()

    async def index_messages(self) -> int:
        """Put new messages into SQLite's full-text index, of every tenant; return how many there were."""
        from modules.conversation_store.maintenance import ConversationMaintenance

        return await ConversationMaintenance(self._conversations).index_pending()

    async def sweep(self) -> int:
        """Remove expired keys, of every tenant; return how many there were."""
        from modules.Tools.Base_Tools.kv_maintenance import KeyValueMaintenance

        maintenance = KeyValueMaintenance(self._kv)
        total = 0
        while True:
            count = await maintenance.sweep_expired(_SWEEP_BATCH)
            total += count
            if count < _SWEEP_BATCH:
                return total

    async def rescue_jobs(self) -> int:
        """Have jobs whose worker is gone run again, of every tenant; return how many there were."""
        from modules.job_store.maintenance import JobMaintenance

        return await JobMaintenance(self._jobs, wake=self._wake).rescue_expired()

    async def sweep_jobs(self) -> int:
        """Forget results of jobs whose time is over, and workers that are silent for a day; return how many results."""
        from modules.job_store.maintenance import JobMaintenance

        return await JobMaintenance(self._jobs).sweep()

    async def purge_jobs(self, tenant_id: Optional[str] = None) -> int:
        """Remove finished jobs that are older than `retention.job_days`, of every tenant or one; return how many."""
        from modules.job_store.maintenance import JobMaintenance

        days = self._settings.retention.job_days
        return await JobMaintenance(self._jobs).purge(days, tenant_id) if days else 0

    async def retain(self, tenant_id: Optional[str] = None) -> Dict[str, int]:
        """Apply the configured retention to every tenant, or to one; return what was done, in rows."""
        from modules.conversation_store.maintenance import ConversationMaintenance
        from modules.conversation_store.repository import ConversationStore

        policy = retention_policy(self._settings)
        totals: Dict[str, int] = {}
        complete = False
        while not complete:
            if tenant_id is None:
                result = await ConversationMaintenance(self._conversations).run_retention(policy)
            else:
                store = ConversationStore(self._conversations, self._tenancy)
                result = await store.run_retention(policy, tenant_id=tenant_id)
            counts = result.to_dict()
            complete = counts.pop("complete")
            for name, count in counts.items():
                totals[name] = totals.get(name, 0) + count
        totals["tasks_deleted"] = await self._retain_tasks(tenant_id)
        if self._settings.retention.vector_days:
            totals["deleted_vectors"] = await self.retain_vectors(tenant_id)
        return totals

    async def retain_vectors(self, tenant_id: Optional[str] = None) -> int:
        """Delete the vectors older than `retention.vector_days`, of every tenant or of one; return how many.

        In every vector store of the manager. Vectors of messages go with their messages instead.
        """
        days = self._settings.retention.vector_days
        if not days or self._vectors is None:
            return 0
        from modules.storage.vectors.retention import delete_older_everywhere

        before = utc_now() - timedelta(days=days)
        registry = self._vectors.registry
        return sum(
            [
                await delete_older_everywhere(registry.get(name), before, tenant_id)
                for name in registry.list_instances()
            ]
        )

    async def _retain_tasks(self, tenant_id: Optional[str]) -> int:
        from modules.task_store.maintenance import TaskMaintenance

        days = self._settings.retention.task_days
        return await TaskMaintenance(self._executor).run_retention(days, tenant_id=tenant_id)

    async def _retain_all(self) -> int:
        return sum((await self.retain()).values())

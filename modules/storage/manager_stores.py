"""How the manager makes each domain store on an executor: the pool's, or that of a unit of work.

The stores' packages are imported here, at first use, so that an application pays only for those it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional

from modules.storage.maintenance import retention_policy
from modules.store_common.errors import NotConfiguredError

if TYPE_CHECKING:
    from modules.storage.backends.wakeups import Wakeups
    from modules.storage.operations import Executor
    from modules.storage.semantic import SemanticIndex
    from modules.storage.settings import StorageSettings
    from modules.store_common.tenancy import TenantPolicy

__all__ = ["StoreParts", "make_store"]


@dataclass(frozen=True)
class StoreParts:
    """What stores are made of.

    Attributes:
        executor: Runs their operations.
        settings: Of the manager.
        tenancy: How the tenant of a call is found.
        semantic: What finds messages by meaning; None: nothing does.
        wake: Wakes those who wait on a channel; see `modules.storage.backends.wakeups`.
        wakeups: The same, and lets wait for it.
    """

    executor: Executor
    settings: StorageSettings
    tenancy: TenantPolicy
    semantic: Optional[SemanticIndex]
    wake: Optional[Callable[[str], None]] = None
    wakeups: Optional[Wakeups] = None


def make_store(name: str, parts: StoreParts) -> Any:
    """Make the store `name`.

    Raises:
        NotConfiguredError: this release has no such store.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        raise NotConfiguredError(
            f"the {name} store is not configured: this release of atlas-storage does not have it yet"
        )
    return maker(parts)


def _access(parts: StoreParts) -> Any:
    from modules.access_store.repository import AccessStore

    return AccessStore(parts.executor, parts.tenancy)


def _conversations(parts: StoreParts) -> Any:
    from modules.conversation_store.repository import ConversationStore

    return ConversationStore(
        parts.executor,
        parts.tenancy,
        search_language=parts.settings.sql.search_language,
        retention=retention_policy(parts.settings),
        semantic=parts.semantic,
    )


def _kv(parts: StoreParts) -> Any:
    from modules.Tools.Base_Tools.kv_store import KeyValueStore

    settings = parts.settings.kv
    return KeyValueStore(
        parts.executor,
        parts.tenancy,
        namespace_quota_bytes=settings.namespace_quota_bytes,
        global_quota_bytes=settings.global_quota_bytes,
        default_ttl_seconds=settings.default_ttl_seconds,
    )


def _tasks(parts: StoreParts) -> Any:
    from modules.task_store.repository import TaskStore

    language = parts.settings.sql.search_language
    return TaskStore(parts.executor, parts.tenancy, search_language=language, wakeups=parts.wakeups)


def _jobs(parts: StoreParts) -> Any:
    from modules.job_store.repository import JobStore

    return JobStore(parts.executor, parts.tenancy, wake=parts.wake)


def _job_queue(parts: StoreParts) -> Any:
    from modules.job_store.queue import JobQueue

    return JobQueue(parts.executor, wake=parts.wake)


_MAKERS: Dict[str, Callable[[StoreParts], Any]] = {
    "access": _access,
    "conversations": _conversations,
    "job_queue": _job_queue,
    "jobs": _jobs,
    "kv": _kv,
    "tasks": _tasks,
}

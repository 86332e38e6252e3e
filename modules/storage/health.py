"""Health: what is checked, how the results add up, and the monitor that keeps the last one."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Tuple

from modules.store_common.clock import utc_now
from modules.store_common.deadlines import within
from modules.store_common.errors import StorageError

__all__ = [
    "HealthCheck",
    "HealthListener",
    "HealthMonitor",
    "HealthStatus",
    "StorageHealthStatus",
    "StoreHealth",
    "check_all",
    "compute_overall_status",
]

logger = logging.getLogger(__name__)


class HealthStatus(str, enum.Enum):
    """How a component is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class StoreHealth:
    """One component.

    Attributes:
        name: "sql", "conversation_store", ...
        status: How it is.
        latency_ms: How long the check took, in milliseconds; None when it did not run.
        message: What is wrong and what to do; empty when healthy. Never holds a secret.
        details: Numbers and facts by name, JSON values.
        checked_at: When.
    """

    name: str
    status: HealthStatus
    latency_ms: Optional[float] = None
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    checked_at: Optional[datetime] = None

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "name": self.name,
            "status": self.status.value,
            "latency_ms": self.latency_ms,
            "message": self.message,
            "details": dict(self.details),
            "checked_at": None if self.checked_at is None else self.checked_at.isoformat(),
        }


@dataclass(frozen=True)
class StorageHealthStatus:
    """All components; those that are not part of the configuration are None."""

    overall: HealthStatus = HealthStatus.UNKNOWN
    sql: Optional[StoreHealth] = None
    mongo: Optional[StoreHealth] = None
    kv_store: Optional[StoreHealth] = None
    vector_store: Optional[StoreHealth] = None
    conversation_store: Optional[StoreHealth] = None
    task_store: Optional[StoreHealth] = None
    job_store: Optional[StoreHealth] = None
    outbox: Optional[StoreHealth] = None
    checked_at: Optional[datetime] = None

    @property
    def components(self) -> Dict[str, StoreHealth]:
        """The configured components by name."""
        found = (
            self.sql,
            self.mongo,
            self.kv_store,
            self.vector_store,
            self.conversation_store,
            self.task_store,
            self.job_store,
            self.outbox,
        )
        return {component.name: component for component in found if component is not None}

    @property
    def unhealthy_components(self) -> List[str]:
        """The names of the components that are unhealthy."""
        return [
            name for name, component in self.components.items() if component.status is HealthStatus.UNHEALTHY
        ]

    def to_dict(self) -> Dict[str, Any]:
        """Return it as JSON values."""
        return {
            "overall": self.overall.value,
            "checked_at": None if self.checked_at is None else self.checked_at.isoformat(),
            "components": {name: component.to_dict() for name, component in self.components.items()},
            "unhealthy_components": self.unhealthy_components,
        }


def compute_overall_status(components: Mapping[str, StoreHealth]) -> HealthStatus:
    """Return the worst of the components: unhealthy, else degraded, else unknown, else healthy; unknown for none."""
    found = {component.status for component in components.values()}
    for status in (HealthStatus.UNHEALTHY, HealthStatus.DEGRADED, HealthStatus.UNKNOWN):
        if status in found:
            return status
    return HealthStatus.HEALTHY if found else HealthStatus.UNKNOWN


#: Looks at one component: returns its status, what is wrong ("" when nothing is), and details.
HealthCheck = Callable[[], Awaitable[Tuple[HealthStatus, str, Dict[str, Any]]]]


async def check_all(checks: Mapping[str, HealthCheck], timeout_s: float) -> StorageHealthStatus:
    """Run `checks` side by side, each with a deadline of `timeout_s` seconds, and add the results up.

    Args:
        checks: By the name of the field of `StorageHealthStatus`.
        timeout_s: Deadline of each check, in seconds.
    """
    results = await asyncio.gather(*(_check(name, check, timeout_s) for name, check in checks.items()))
    components = {result.name: result for result in results}
    return StorageHealthStatus(overall=compute_overall_status(components), checked_at=utc_now(), **components)


async def _check(name: str, check: HealthCheck, timeout_s: float) -> StoreHealth:
    started = time.monotonic()
    details: Dict[str, Any] = {}
    try:
        status, message, details = await within(check(), timeout_s)
    except asyncio.TimeoutError:
        status, message = HealthStatus.UNHEALTHY, f"no answer within {timeout_s:g} s"
    except StorageError as exc:
        status, message = HealthStatus.UNHEALTHY, str(exc)
    except Exception as exc:
        # a defect of ours must show as an unhealthy component, not end the monitor
        logger.exception(
            "storage.health.check_failed", extra={"store": name, "error_type": type(exc).__name__}
        )
        status, message = (
            HealthStatus.UNHEALTHY,
            f"the check itself failed ({type(exc).__name__}); see the log",
        )
    latency_ms = round((time.monotonic() - started) * 1000, 2)
    return StoreHealth(name, status, latency_ms, message, details, utc_now())


#: Called with the result before (None at first) and the new one, when the status of anything changed.
HealthListener = Callable[[Optional[StorageHealthStatus], StorageHealthStatus], Any]


class HealthMonitor:
    """Checks at an interval, keeps the last result and tells listeners of changes.

    Args:
        check: Makes one result.
        interval_s: Time between checks, in seconds.
    """

    def __init__(self, check: Callable[[], Awaitable[StorageHealthStatus]], interval_s: float) -> None:
        self._check = check
        self.interval_s = interval_s
        self._listeners: List[HealthListener] = []
        self.last: Optional[StorageHealthStatus] = None

    def add_listener(self, listener: HealthListener) -> None:
        """Have `listener(before, now)` called, on the event loop, whenever a status changed."""
        self._listeners.append(listener)

    async def run(self) -> None:
        """Check for ever; ended by cancelling its task."""
        while True:
            self.record(await self._check())
            await asyncio.sleep(self.interval_s)

    def record(self, now: StorageHealthStatus) -> None:
        """Keep a result and tell the listeners if a status changed."""
        before, self.last = self.last, now
        if before is not None and _statuses(before) == _statuses(now):
            return
        if before is not None:
            logger.warning(
                "storage.health.changed",
                extra={
                    "detail": f"{before.overall.value} -> {now.overall.value}",
                    "count": len(now.unhealthy_components),
                },
            )
        for listener in self._listeners:
            try:
                listener(before, now)
            except Exception:
                logger.exception("storage.health.listener_failed")


def _statuses(health: StorageHealthStatus) -> Dict[str, HealthStatus]:
    return {name: component.status for name, component in health.components.items()}

"""Runs jobs: `Worker` for what is due, `Scheduler` for what comes back, `@handler` for what does the work.

    from modules.orchestration import Worker, handler

    @handler("mail.send")
    async def send(job):
        ...

    async with StorageManager() as storage:
        await storage.jobs.enqueue("mail.send", {"to": "a@example.org"})
        await Worker(storage).run()

Names are loaded from their rooms at first use (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Dict, List

if TYPE_CHECKING:
    from modules.orchestration.context import JobContext
    from modules.orchestration.errors import (
        GiveUpJobError,
        HandlerNameTakenError,
        HandlerNotFoundError,
        HandlersNotLoadedError,
        JobStoppedError,
        JobTimeoutError,
        OrchestrationError,
        RetryJobError,
    )
    from modules.orchestration.handlers import HandlerRegistry, handler
    from modules.orchestration.held import WorkerStatistics
    from modules.orchestration.scheduler import Scheduler
    from modules.orchestration.worker import Worker

_ROOMS: Dict[str, str] = {
    "GiveUpJobError": "modules.orchestration.errors",
    "HandlerNameTakenError": "modules.orchestration.errors",
    "HandlerNotFoundError": "modules.orchestration.errors",
    "HandlerRegistry": "modules.orchestration.handlers",
    "HandlersNotLoadedError": "modules.orchestration.errors",
    "JobContext": "modules.orchestration.context",
    "JobStoppedError": "modules.orchestration.errors",
    "JobTimeoutError": "modules.orchestration.errors",
    "OrchestrationError": "modules.orchestration.errors",
    "RetryJobError": "modules.orchestration.errors",
    "Scheduler": "modules.orchestration.scheduler",
    "Worker": "modules.orchestration.worker",
    "WorkerStatistics": "modules.orchestration.held",
    "handler": "modules.orchestration.handlers",
}

__all__ = [
    "GiveUpJobError",
    "HandlerNameTakenError",
    "HandlerNotFoundError",
    "HandlerRegistry",
    "HandlersNotLoadedError",
    "JobContext",
    "JobStoppedError",
    "JobTimeoutError",
    "OrchestrationError",
    "RetryJobError",
    "Scheduler",
    "Worker",
    "WorkerStatistics",
    "handler",
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

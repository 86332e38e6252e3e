"""The services of an application in one process: HTTP server, worker, scheduler; the manager's relay runs beside them.

They start together and end together: at the first SIGTERM or SIGINT nothing new is accepted or claimed, what is under way is
finished within the grace, then the storage is closed. A second signal ends the process at once. A service that dies ends the
others in the same orderly way, and the process with exit code 1.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, List, Optional, Sequence

from modules.orchestration import Worker
from modules.orchestration.signals import StopSignals

if TYPE_CHECKING:
    from ATLAS.ATLAS import ATLAS

__all__ = ["ServiceOptions", "run_services"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceOptions:
    """What to run.

    Attributes:
        server: Serve the HTTP API and the dashboard.
        worker: Run jobs.
        scheduler: Turn due schedules into jobs.
        queues: Queues of the worker.
        concurrency: Jobs at the same time.
        grace_s: Seconds that what is under way gets to end.
    """

    server: bool = True
    worker: bool = True
    scheduler: bool = True
    queues: Sequence[str] = ("default",)
    concurrency: int = 10
    grace_s: float = 30.0


@dataclass(frozen=True)
class _Service:
    """One that runs: its task, and how it is asked to end (which returns at once or when it has ended)."""

    task: asyncio.Task[Any]
    stop: Callable[[], Optional[Awaitable[None]]]


async def run_services(
    atlas: ATLAS, options: ServiceOptions, started: Optional[Callable[[Dict[str, str]], None]] = None
) -> int:
    """Run the services of an initialized application until a signal or until one of them dies.

    Args:
        atlas: Stays open; the caller's to close.
        options: What to run.
        started: Called when all run, with the name of each and a word on where or what.

    Returns:
        The exit code of the process: 0 after a signal, 1 when a service died.

    Raises:
        StorageError: a service could not start; those before it were ended.
    """
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    services: Dict[str, _Service] = {}

    def ask() -> None:
        loop.call_soon_threadsafe(asked.set)

    with StopSignals(ask, options.grace_s):
        try:
            words = await _start(atlas, options, services)
            logger.info("atlas.services_started", extra={"detail": ", ".join(services)})
            if started is not None:
                started(words)
            died = await _until_stopped(asked, services)
        finally:
            await _stop_all(services)
    return 1 if died else 0


async def _start(atlas: ATLAS, options: ServiceOptions, services: Dict[str, _Service]) -> Dict[str, str]:
    storage = atlas.storage_manager
    words: Dict[str, str] = {}
    if options.server:
        from modules.Server.serving import HttpServer

        server = HttpServer(storage)
        await server.start()
        services["server"] = _Service(asyncio.create_task(server.wait()), server.stop)
        words["server"] = server.url
    if options.worker:
        worker = Worker(
            storage, queues=options.queues, concurrency=options.concurrency, grace_s=options.grace_s
        )
        services["worker"] = _Service(asyncio.create_task(worker.run()), worker.stop)
        words["worker"] = f"{', '.join(options.queues)}; {options.concurrency} at a time"
    if options.scheduler:
        from modules.orchestration import Scheduler

        scheduler = Scheduler(storage)
        services["scheduler"] = _Service(asyncio.create_task(scheduler.run()), scheduler.stop)
        words["scheduler"] = "due schedules become jobs"
    words["relay"] = "on" if storage.get_settings().outbox.relay else "off by configuration"
    return words


async def _until_stopped(asked: asyncio.Event, services: Dict[str, _Service]) -> List[str]:
    """Wait for a signal or for a service that ends by itself; return the names of those that did."""
    waiting = asyncio.create_task(asked.wait())
    tasks = {service.task: name for name, service in services.items()}
    try:
        done, _ = await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    died = [tasks[task] for task in done if task in tasks]
    for name in died:
        _tell(name, services[name].task)
    return died


def _tell(name: str, task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    logger.error(
        "atlas.service_died",
        extra={"detail": name, "error_type": type(error).__name__ if error is not None else "none"},
        exc_info=error,
    )


async def _stop_all(services: Dict[str, _Service]) -> None:
    """Ask all to end, side by side, and wait until they have; an error of one keeps none of the others from ending."""
    await asyncio.gather(*(_stop(name, service) for name, service in services.items()))


async def _stop(name: str, service: _Service) -> None:
    try:
        stopping = service.stop()
        if stopping is not None:
            await stopping
        await service.task
    except Exception:
        logger.exception("atlas.service_stop_failed", extra={"detail": name})

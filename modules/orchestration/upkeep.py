"""What a worker does now and then: it tells that it is there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Dict, Tuple

from modules.orchestration.held import Holdings

if TYPE_CHECKING:
    from modules.job_store.queue import JobQueue

__all__ = ["Upkeep"]


class Upkeep:
    """Of one worker."""

    def __init__(
        self,
        queue: JobQueue,
        holdings: Holdings,
        *,
        name: str,
        queues: Tuple[str, ...],
        info: Dict[str, Any],
        every_s: float,
    ) -> None:
        self._queue = queue

    async def run(self) -> None:
        """Tell until cancelled."""
        await asyncio.Event().wait()

    async def leave(self, seconds: float) -> None:
        """Tell that the worker is gone."""

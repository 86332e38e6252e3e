"""Builds approximate indexes of the embedded vector store in the background, while searches go on exactly."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Set

from modules.storage.opening import run_in_thread
from modules.storage.vectors.sqlite_ann import AnnOptions, build
from modules.storage.vectors.sqlite_matrix import Matrix

__all__ = ["IndexBuilds", "RecallReport"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecallReport:
    """What an approximate index was measured to find.

    Attributes:
        rows: Documents in it.
        recall: Share of the 10 nearest, on a sample, against exact search.
        effort: Candidates that it follows (efSearch).
        is_used: Whether that is enough; if not, the namespace is searched exactly.
    """

    rows: int
    recall: float
    effort: int
    is_used: bool


class IndexBuilds:
    """The builds under way.

    Args:
        options: When an index is used.
    """

    def __init__(self, options: AnnOptions) -> None:
        self._options = options
        self._tasks: Set[asyncio.Task[None]] = set()

    def begin(self, matrix: Matrix) -> None:
        """Build an index of `matrix`; until it is there, searches are exact or use the one before."""
        matrix.is_building = True
        task = asyncio.get_running_loop().create_task(self._build(matrix))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for the builds of this event loop."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def cancel(self) -> None:
        """Take no more results; a thread that builds ends by itself."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _build(self, matrix: Matrix) -> None:
        started = time.monotonic()
        try:
            matrix.take_index(await run_in_thread(lambda: build(matrix.snapshot(), self._options)))
        except Exception as exc:
            # search goes on exactly
            logger.exception("storage.vectors.build_failed", extra={"error_type": type(exc).__name__})
            return
        finally:
            matrix.is_building = False
        duration_ms = round((time.monotonic() - started) * 1000, 1)
        logger.info("storage.vectors.built", extra={"store": "sqlite", "duration_ms": duration_ms})

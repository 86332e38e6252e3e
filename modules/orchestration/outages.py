"""What a loop does while the database cannot be reached: it waits, longer each time, and says so once."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Optional

from modules.store_common.backoff import full_jitter

if TYPE_CHECKING:
    from modules.orchestration.held import WorkerStatistics
    from modules.store_common.errors import StorageError

__all__ = ["Outages"]

logger = logging.getLogger(__name__)

_LEAST_S = 0.05
_BASE_S = 0.1
_CAP_S = 5.0


class Outages:
    """Of one loop.

    Args:
        operation: What the loop does, for the log.
        statistics: Where outages are counted; None: nowhere.
        cap_s: The longest wait in seconds.
    """

    def __init__(
        self, operation: str, statistics: Optional[WorkerStatistics] = None, cap_s: float = _CAP_S
    ) -> None:
        self._operation = operation
        self._statistics = statistics
        self._cap_s = cap_s
        self._attempts = 0

    async def wait(self, error: StorageError) -> None:
        """Wait after a call failed; the first time in a row is logged."""
        self._attempts += 1
        if self._attempts == 1:
            if self._statistics is not None:
                self._statistics.outages += 1
            logger.warning(
                "orchestration.database_away",
                extra={"operation": self._operation, "error_type": type(error).__name__},
            )
        await asyncio.sleep(_LEAST_S + full_jitter(self._attempts, base_s=_BASE_S, cap_s=self._cap_s))

    def over(self) -> None:
        """A call succeeded."""
        if self._attempts:
            logger.info(
                "orchestration.database_back", extra={"operation": self._operation, "attempt": self._attempts}
            )
            self._attempts = 0

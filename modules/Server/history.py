"""The last minutes of health and load, sampled while the server runs: what the charts of the overview show."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Deque, Dict, List, Optional

from modules.store_common.clock import utc_now

if TYPE_CHECKING:
    from modules.Server.gate import Traffic
    from modules.storage.health import StorageHealthStatus
    from modules.storage.manager import StorageManager

__all__ = ["History", "Sample"]

logger = logging.getLogger(__name__)

_EVERY_S = 5.0
_KEPT = 120


@dataclass(frozen=True)
class Sample:
    """One moment.

    Attributes:
        at: When.
        health: What the health check said.
        pool: Numbers of the SQL pool.
        requests: Requests answered so far.
    """

    at: datetime
    health: StorageHealthStatus
    pool: Dict[str, int]
    requests: int


@dataclass
class History:
    """Ten minutes of samples, one every five seconds."""

    storage: StorageManager
    traffic: Traffic
    samples: Deque[Sample] = field(default_factory=lambda: deque(maxlen=_KEPT))

    async def run(self) -> None:
        """Sample for ever; ended by cancelling its task."""
        while True:
            await self.sample()
            await asyncio.sleep(_EVERY_S)

    async def sample(self) -> Sample:
        """Take a sample now and return it."""
        health = await self.storage.health_check()
        pool = self.storage.sql_pool.statistics() if self.storage.is_initialized else {}
        taken = Sample(utc_now(), health, pool, self.traffic.answered)
        self.samples.append(taken)
        return taken

    async def latest(self) -> Sample:
        """Return the newest sample; takes the first one if need be."""
        return self.samples[-1] if self.samples else await self.sample()

    def latencies(self, component: str) -> List[Optional[float]]:
        """Return the milliseconds that the checks of a component took, oldest first; None: it was not there."""
        found = [sample.health.components.get(component) for sample in self.samples]
        return [None if one is None else one.latency_ms for one in found]

    def numbers(self, component: str, name: str) -> List[Optional[float]]:
        """Return a number that the checks of a component told, oldest first; None: they did not."""
        found = [sample.health.components.get(component) for sample in self.samples]
        return [None if one is None else one.details.get(name) for one in found]

    def rates(self) -> List[Optional[float]]:
        """Return the requests a second between samples, oldest first."""
        samples = list(self.samples)
        return [
            (after.requests - before.requests) / max(0.001, (after.at - before.at).total_seconds())
            for before, after in zip(samples, samples[1:])
        ]

    def pool_values(self, name: str) -> List[Optional[float]]:
        """Return a number of the pool over time."""
        return [sample.pool.get(name) for sample in self.samples]

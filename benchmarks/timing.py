"""The closed loop: tasks that each start their next call when the last one has ended, for a fixed time."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any, Awaitable, Callable, Dict, List, Sequence

__all__ = ["Call", "Sample", "Series", "closed_loop", "median_ratio", "ratios", "sample_of"]

#: An operation under test: gets the number of its task and of its call, so that tasks can keep out of each other's way.
Call = Callable[[int, int], Awaitable[Any]]

WARM_UP_S = 0.15


@dataclass(frozen=True)
class Sample:
    """One measurement of one operation.

    Attributes:
        calls: How many ended.
        seconds: How long the loop ran.
        mean_us, p50_us, p99_us: Latency of a call as its task saw it, in microseconds.
    """

    calls: int
    seconds: float
    mean_us: float
    p50_us: float
    p99_us: float

    @property
    def rate(self) -> float:
        """Calls a second, all tasks together."""
        return self.calls / self.seconds


class Series:
    """The repetitions of one operation by one contender."""

    def __init__(self) -> None:
        self.samples: List[Sample] = []

    def median(self, field: str) -> float:
        return statistics.median(getattr(sample, field) for sample in self.samples)

    def to_dict(self) -> Dict[str, Any]:
        medians = {name: round(self.median(name), 1) for name in ("rate", "mean_us", "p50_us", "p99_us")}
        return {**medians, "samples": [asdict(sample) for sample in self.samples]}


async def closed_loop(call: Call, tasks: int, seconds: float) -> Sample:
    """Run `call` in `tasks` tasks at once for about `seconds`; each keeps one call under way."""
    await _loop(call, tasks, min(WARM_UP_S, seconds / 2), 1_000_000)
    started = time.perf_counter()
    latencies = await _loop(call, tasks, seconds, 0)
    elapsed = time.perf_counter() - started
    return sample_of(latencies, elapsed)


def sample_of(latencies: List[float], seconds: float) -> Sample:
    """Return what `latencies` (of each call, in seconds) come to, of calls that took `seconds` together."""
    ordered = sorted(latencies)
    count = len(ordered)
    return Sample(
        calls=count,
        seconds=seconds,
        mean_us=sum(ordered) / count * 1e6,
        p50_us=ordered[count // 2] * 1e6,
        p99_us=ordered[min(count - 1, int(count * 0.99))] * 1e6,
    )


async def _loop(call: Call, tasks: int, seconds: float, first: int) -> List[float]:
    clock = time.perf_counter
    end = clock() + seconds
    latencies: List[float] = []

    async def work(number: int) -> None:
        done = first
        while True:
            started = clock()
            if started >= end:
                return
            await call(number, done)
            latencies.append(clock() - started)
            done += 1

    await asyncio.gather(*[work(number) for number in range(tasks)])
    return latencies


def ratios(ours: Series, theirs: Series, field: str = "rate") -> List[float]:
    """Return ours / theirs for each repetition: the two of a pair ran one right after the other."""
    return [getattr(a, field) / getattr(b, field) for a, b in zip(ours.samples, theirs.samples)]


def median_ratio(values: Sequence[float]) -> float:
    return statistics.median(values)

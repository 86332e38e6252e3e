"""What Prometheus is told of the stores: operations with their times, and the numbers of the last health check.

Reads what is in memory at the moment of a scrape; asks the database for nothing.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Tuple

from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from modules.storage.telemetry import BUCKETS_S

if TYPE_CHECKING:
    from modules.storage.manager import StorageManager

__all__ = ["StoresCollector"]

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_BOUNDS = (*(str(bound) for bound in BUCKETS_S), "+Inf")


class StoresCollector(Collector):
    """Gives `atlas_storage_operation_seconds` (with `telemetry` on) and `atlas_<component>_<number>`.

    Args:
        storage: Of the server.
    """

    def __init__(self, storage: StorageManager) -> None:
        self._storage = storage

    def collect(self) -> Iterator[Metric]:
        """Give the metrics."""
        yield self._operations()
        yield from self._details()

    def _operations(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(
            "atlas_storage_operation_seconds",
            "Seconds of each storage operation as its caller saw it; empty while telemetry is off.",
            labels=["store", "backend", "operation", "outcome"],
        )
        if not self._storage.is_initialized:
            return family
        for series in self._storage.metrics.snapshot():
            buckets = list(zip(_BOUNDS, accumulate(series.counts)))
            family.add_metric(
                [series.store, series.backend, series.operation, series.outcome],
                buckets,
                sum_value=series.total_s,
            )
        return family

    def _details(self) -> Iterator[Metric]:
        """Give the numbers of each component: backlogs, lags, counts by status."""
        last = self._storage.health_monitor.last
        if last is None:
            return
        for component, found in last.components.items():
            if component == "sql":
                continue  # the pool's own numbers are newer
            for name, values in _numbers(found.details).items():
                labelled = any(label for label, _ in values)
                family = GaugeMetricFamily(
                    f"atlas_{component}_{name}",
                    f"Of the last health check of {component}: {name}.",
                    labels=["which"] if labelled else [],
                )
                for label, value in values:
                    family.add_metric([label] if labelled else [], value)
                yield family


def _numbers(details: Mapping[str, Any]) -> Dict[str, List[Tuple[str, float]]]:
    """Return the numbers among `details` by name, each with a label; a mapping of numbers has one of each key."""
    found: Dict[str, List[Tuple[str, float]]] = {}
    for name, value in details.items():
        if not _NAME.match(name):
            continue
        if isinstance(value, (int, float)):
            found[name] = [("", float(value))]
        elif isinstance(value, Mapping):
            inner = [(str(key), float(item)) for key, item in value.items() if isinstance(item, (int, float))]
            if inner:
                found[name] = inner
    return found

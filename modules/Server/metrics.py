"""What Prometheus is told: the requests of this server, the pool and the health of the storage behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from modules.Server.metrics_storage import StoresCollector
from modules.storage.version import __version__

if TYPE_CHECKING:
    from modules.Server.feed import Feed
    from modules.Server.gate import Traffic
    from modules.storage.manager import StorageManager

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Numbers of `statistics()` that only grow; the others go up and down.
_COUNTERS = ("batches", "calls", "turns", "waits")
_STATES = {"healthy": 0, "degraded": 1, "unhealthy": 2, "unknown": 3}


class Metrics:
    """The metrics of one server; each has a registry of its own, so that several can live in a process."""

    def __init__(self, storage: StorageManager, traffic: Traffic, feed: Feed) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "atlas_http_requests",
            "Requests by method, route and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "atlas_http_request_seconds",
            "Seconds from the first byte of a request to the end of its answer.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_StorageCollector(storage, traffic, feed))
        self.registry.register(StoresCollector(storage))

    def observe(self, scope: Dict[str, Any], status: int, seconds: float) -> None:
        """Count a request that has ended."""
        route = getattr(scope.get("route"), "path_format", None) or getattr(scope.get("route"), "path", None)
        # paths of nobody are not named: whoever sends them must not make new time series
        name = route or "(none)"
        method = scope["method"] if route else "(any)"
        self.requests.labels(method, name, str(status or 499)).inc()
        self.seconds.labels(method, name).observe(seconds)

    def text(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self.registry)


class _StorageCollector(Collector):
    """Reads numbers at the moment of a scrape; asks the database for nothing."""

    def __init__(self, storage: StorageManager, traffic: Traffic, feed: Feed) -> None:
        self._storage = storage
        self._traffic = traffic
        self._feed = feed

    def collect(self) -> Iterator[Metric]:
        """Give the metrics."""
        info = GaugeMetricFamily("atlas_storage_info", "The running version.", labels=["version", "dialect"])
        if self._storage.is_initialized:
            info.add_metric([__version__, self._storage.sql_pool.dialect], 1)
        yield info
        yield _gauge("atlas_http_requests_in_flight", "Requests under way.", self._traffic.in_flight)
        yield _gauge("atlas_http_streams_open", "Event streams that are open.", self._feed.open_streams)
        yield _counter(
            "atlas_http_requests_refused",
            "Requests refused because there were too many.",
            self._traffic.refused,
        )
        if self._storage.is_initialized:
            yield from self._pool()
            yield from self._health()

    def _pool(self) -> Iterator[Metric]:
        for name, value in self._storage.sql_pool.statistics().items():
            if name.endswith("wait_ms"):
                # of PostgreSQL's pool, or of a thread of SQLite
                yield _counter(
                    f"atlas_sql_{name[:-3]}_seconds",
                    "Seconds for which calls waited for a connection, or in the queue; summed up.",
                    value / 1000,
                )
            elif name.endswith(_COUNTERS):
                yield _counter(f"atlas_sql_{name}", f"Of the SQL pool: {name}, so far.", value)
            else:
                yield _gauge(f"atlas_sql_{name}", f"Of the SQL pool: {name}, now.", value)

    def _health(self) -> Iterator[Metric]:
        last = self._storage.health_monitor.last
        if last is None:
            return
        state = GaugeMetricFamily(
            "atlas_health_state",
            "Last health check: 0 healthy, 1 degraded, 2 unhealthy, 3 unknown.",
            labels=["component"],
        )
        latency = GaugeMetricFamily(
            "atlas_health_latency_seconds", "Seconds that the last health check took.", labels=["component"]
        )
        for name, component in last.components.items():
            state.add_metric([name], _STATES[component.status.value])
            if component.latency_ms is not None:
                latency.add_metric([name], component.latency_ms / 1000)
        yield state
        yield latency
        size = {} if last.sql is None else last.sql.details
        for key, text in (
            ("database_bytes", "Size of the database."),
            ("wal_bytes", "Size of the write-ahead log."),
        ):
            if key in size:
                yield _gauge(f"atlas_sql_{key}", text, size[key])


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text)
    family.add_metric([], value)
    return family

"""What the storage tells monitoring: operations by store, name and outcome with a histogram of their times, and spans.

Off unless settings ask for it: then every operation costs two clock readings and one locked update (3.5 us here). Metrics
are plain numbers here; whoever serves them (Prometheus text, a dashboard) reads `Metrics.snapshot()`. Spans go through
OpenTelemetry's API package, so the application's own SDK decides where to; without that package there are none.
"""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Tuple, TypeVar

from typing_extensions import ParamSpec

from modules.store_common.errors import MissingDependencyError

if TYPE_CHECKING:
    from modules.storage.operations import Operation
    from modules.storage.settings import StorageSettings
    from modules.storage.unit_contracts import OpenTransaction, TransactionalExecutor

__all__ = [
    "BUCKETS_S",
    "Metrics",
    "ObservedExecutor",
    "OperationSeries",
    "Spans",
    "TracedExecutor",
    "observed",
    "outcome_of",
]

P = ParamSpec("P")
R = TypeVar("R")

#: Upper bounds of the histogram, in seconds; one more bucket holds what took longer.
BUCKETS_S: Tuple[float, ...] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
# The instrumentation scope that OpenTelemetry shows.
_SCOPE = "atlas_storage"
# Room of an operation -> name of its store.
_STORES = {
    "access_store": "access",
    "conversation_store": "conversations",
    "task_store": "tasks",
    "job_store": "jobs",
    "Tools": "kv",
    "vectors": "vectors",
}


@dataclass
class OperationSeries:
    """One operation with one outcome since the manager was made.

    Attributes:
        store: "conversations", "kv", ...; "storage" for the manager's own.
        operation: Name of the operation.
        outcome: "ok", "cancelled" or the class of the error.
        backend: "sqlite", "postgresql", "mongodb", or the name of a vector store outside of SQL ("chroma", "pinecone", ...).
        counts: Calls by bucket of `BUCKETS_S`, and one more for those that took longer.
        total_s: Sum of their times in seconds.
    """

    store: str
    operation: str
    outcome: str
    backend: str = ""
    counts: List[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_s: float = 0.0

    @property
    def calls(self) -> int:
        """How many there were."""
        return sum(self.counts)


class Metrics:
    """The numbers of one manager; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._series: Dict[Tuple[str, str, str, str], OperationSeries] = {}

    def record(self, store: str, operation: str, outcome: str, seconds: float, backend: str = "") -> None:
        """Count one call."""
        key = (store, operation, outcome, backend)
        with self._lock:
            series = self._series.get(key)
            if series is None:
                series = self._series[key] = OperationSeries(*key)
            series.counts[bisect_left(BUCKETS_S, seconds)] += 1
            series.total_s += seconds

    def snapshot(self) -> List[OperationSeries]:
        """Return a copy of every series, by store, operation, outcome and back end."""
        with self._lock:
            return [
                OperationSeries(*key, counts=list(series.counts), total_s=series.total_s)
                for key, series in sorted(self._series.items())
            ]


class Spans:
    """OpenTelemetry's face of the same: a span of each operation, and a histogram of their times.

    Raises:
        MissingDependencyError: opentelemetry-api is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import metrics, trace
        except ImportError as exc:
            raise MissingDependencyError("opentelemetry-api", "telemetry") from exc
        self.tracer: Any = trace.get_tracer(_SCOPE)
        self.durations: Any = metrics.get_meter(_SCOPE).create_histogram(
            "atlas.storage.operation.duration",
            unit="s",
            description="Time of a storage operation as its caller saw it.",
        )

    @contextmanager
    def of(self, store: str, operation: str, backend: str) -> Iterator[None]:
        """Make a span of what is done inside; an error is named by its class."""
        with self.tracer.start_as_current_span(
            f"{store}.{operation}",
            attributes={**_labels(store, operation), "db.system.name": backend},
            # the message of an error may name ids: its class is set below and has to be enough
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as exc:
                span.set_attribute("error.type", type(exc).__name__)
                raise

    def record(self, store: str, operation: str, outcome: str, seconds: float) -> None:
        """Add a call to the histogram."""
        self.durations.record(seconds, {**_labels(store, operation), "outcome": outcome})


class ObservedExecutor:
    """An executor that counts what another one runs.

    Args:
        executor: Runs them.
        metrics: Counts them.
    """

    def __init__(self, executor: TransactionalExecutor, metrics: Metrics) -> None:
        self._executor = executor
        self._metrics = metrics
        # by id, which is quicker to look up; the operation itself is kept, so that its id stays its own
        self._names: Dict[int, Tuple[str, str, Operation[Any, Any]]] = {}
        self.dialect = executor.dialect

    def __getattr__(self, name: str) -> Any:
        # whatever else the executor offers (statistics, sessions) is its own
        return getattr(self._executor, name)

    def unit(self, deadline: float, owner: Any = None) -> OpenTransaction:
        """Return a new transaction for a unit of work; it is counted as one, its operations are not."""
        counted: Any = _ObservedTransaction(self._executor.unit(deadline, owner), self._metrics, self.dialect)
        return counted  # type: ignore[no-any-return]

    async def run(self, operation: Operation[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `operation` and count it."""
        started = time.perf_counter()
        outcome = "ok"
        try:
            return await self._executor.run(operation, *args, **kwargs)
        except BaseException as exc:
            outcome = outcome_of(exc)
            raise
        finally:
            self._note(operation, outcome, time.perf_counter() - started)

    def _note(self, operation: Operation[Any, Any], outcome: str, seconds: float) -> None:
        store, name = self._names_of(operation)
        self._metrics.record(store, name, outcome, seconds, self.dialect)

    def _names_of(self, operation: Operation[Any, Any]) -> Tuple[str, str]:
        found = self._names.get(id(operation))
        if found is None:
            found = self._names[id(operation)] = (_store_of(operation), operation.name, operation)
        return found[0], found[1]


def outcome_of(exc: BaseException) -> str:
    """Return by which name a call that raised `exc` is counted."""
    return "cancelled" if isinstance(exc, asyncio.CancelledError) else type(exc).__name__


class _ObservedTransaction:
    """A transaction that is counted when it ends: as "ok", "rolled_back", or by what its COMMIT raised."""

    def __init__(self, transaction: OpenTransaction, metrics: Metrics, backend: str) -> None:
        self._transaction = transaction
        self._metrics = metrics
        self._backend = backend
        self._started = time.perf_counter()
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)

    async def commit(self) -> None:
        """Commit, and count how that ended."""
        outcome = "ok"
        try:
            await self._transaction.commit()
        except BaseException as exc:
            outcome = outcome_of(exc)
            raise
        finally:
            self._note(outcome)

    async def rollback(self) -> None:
        """Roll back, and count it unless it has ended."""
        self._note("rolled_back")
        await self._transaction.rollback()

    def _note(self, outcome: str) -> None:
        if not self._ended:
            self._ended = True
            seconds = time.perf_counter() - self._started
            self._metrics.record("storage", "transaction", outcome, seconds, self._backend)


class TracedExecutor(ObservedExecutor):
    """The same, and OpenTelemetry is told: a span of each operation, and its time.

    Args:
        executor: Runs them.
        metrics: Counts them.
        spans: Tells OpenTelemetry.
    """

    def __init__(self, executor: TransactionalExecutor, metrics: Metrics, spans: Spans) -> None:
        super().__init__(executor, metrics)
        self._spans = spans

    async def run(self, operation: Operation[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `operation` in a span of its own and count it."""
        store, name = self._names_of(operation)
        with self._spans.of(store, name, self.dialect):
            return await super().run(operation, *args, **kwargs)

    def _note(self, operation: Operation[Any, Any], outcome: str, seconds: float) -> None:
        super()._note(operation, outcome, seconds)
        self._spans.record(*self._names_of(operation), outcome, seconds)


def observed(executor: Any, settings: StorageSettings, metrics: Metrics) -> Any:
    """Return `executor` as `settings.telemetry` wants it: as it is, or counted into `metrics`, or told to OpenTelemetry too.

    Raises:
        MissingDependencyError: `telemetry` is opentelemetry, and its package is not installed.
    """
    mode = settings.telemetry.value
    if mode == "off":
        return executor
    return (
        TracedExecutor(executor, metrics, Spans())
        if mode == "opentelemetry"
        else ObservedExecutor(executor, metrics)
    )


def _labels(store: str, operation: str) -> Dict[str, str]:
    return {"atlas.store": store, "atlas.operation": operation}


def _store_of(operation: Operation[Any, Any]) -> str:
    rooms = operation.function.__module__.split(".")
    return next((store for room, store in _STORES.items() if room in rooms), "storage")

"""What monitoring is told of vector stores outside of the SQL database: their calls, counted as SQL's operations are.

A store inside the database is counted where its operations run (`telemetry.ObservedExecutor`), so it is left alone here.
What is counted are the hooks of `vectors.engine.VectorEngine`, which every provider has: whoever calls one, a caller, a
unit of work or the relay, it is one call of the store. They are wrapped on the provider that is watched, not on its
class: with `telemetry` off nothing is, and nothing stands in between.
"""

from __future__ import annotations

import functools
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, AsyncIterator, Callable, Iterator, Optional

from modules.storage.telemetry import Metrics, Spans, outcome_of

if TYPE_CHECKING:
    from modules.storage.settings import StorageSettings
    from modules.storage.vectors.base import VectorProvider

__all__ = ["VectorCalls", "vector_calls"]

_STORE = "vectors"
# What of a vector store is counted; a call has its method's name without the underscore.
_CALLS = (
    "initialize",
    "_count",
    "_create_collection",
    "_delete",
    "_delete_collection",
    "_delete_where",
    "_get",
    "_list_collections",
    "_list_tenants",
    "_ping",
    "_read_collection",
    "_rebuild_index",
    "_scroll",
    "_search",
    "_upsert",
)
# What works in steps, of which each is counted.
_STEPS = ("_delete_older",)


class VectorCalls:
    """Counts the calls of vector stores.

    Args:
        metrics: Counts them.
        spans: Tells OpenTelemetry; None: nobody does.
    """

    def __init__(self, metrics: Metrics, spans: Optional[Spans] = None) -> None:
        self._metrics = metrics
        self._spans = spans

    def watch(self, provider: VectorProvider, backend: str) -> None:
        """Count the calls of `provider` from now on, and those that open it.

        Args:
            provider: Watched by nobody yet.
            backend: By which name they are counted.
        """
        for wrap, methods in ((self._counted, _CALLS), (self._stepped, _STEPS)):
            for method in methods:
                setattr(provider, method, wrap(getattr(provider, method), method.lstrip("_"), backend))

    def _counted(self, hook: Callable[..., Any], name: str, backend: str) -> Callable[..., Any]:
        @functools.wraps(hook)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with self._watched(name, backend):
                return await hook(*args, **kwargs)

        return call

    def _stepped(self, hook: Callable[..., Any], name: str, backend: str) -> Callable[..., Any]:
        @functools.wraps(hook)
        async def steps(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            found = hook(*args, **kwargs)
            try:
                while True:
                    # what its reader does between two steps is not the store's time
                    with self._watched(name, backend):
                        step = await _next(found)
                    if step is None:
                        return
                    yield step
            finally:
                close = getattr(found, "aclose", None)
                if close is not None:
                    await close()

        return steps

    @contextmanager
    def _watched(self, name: str, backend: str) -> Iterator[None]:
        started = time.perf_counter()
        outcome = "ok"
        try:
            if self._spans is None:
                yield
            else:
                with self._spans.of(_STORE, name, backend):
                    yield
        except BaseException as exc:
            outcome = outcome_of(exc)
            raise
        finally:
            seconds = time.perf_counter() - started
            self._metrics.record(_STORE, name, outcome, seconds, backend)
            if self._spans is not None:
                self._spans.record(_STORE, name, outcome, seconds)


async def _next(items: AsyncIterator[Any]) -> Any:
    """Return the next of `items`, None at their end."""
    async for item in items:
        return item
    return None


def vector_calls(settings: StorageSettings, metrics: Metrics) -> Optional[VectorCalls]:
    """Return what counts vector stores as `settings.telemetry` wants it; None: nothing does.

    Raises:
        MissingDependencyError: `telemetry` is opentelemetry, and its package is not installed.
    """
    mode = settings.telemetry.value
    if mode == "off":
        return None
    return VectorCalls(metrics, Spans() if mode == "opentelemetry" else None)

"""Pinecone: the connection. Indexes found and made, every call with a deadline and patience, its errors made ours.

The SDK is imported here, when a provider opens. Its own retries are switched off: how long a call may take, and which
error ends it, is decided in one place (`call`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, field, replace
from typing import Any, Awaitable, Callable, Coroutine, Dict, List, Optional, Sequence, TypeVar

from modules.storage.vectors.errors import VectorRateLimitedError, VectorStoreError, VectorUnavailableError
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import MissingDependencyError

__all__ = ["Connection", "Index", "PineconeOptions", "in_parallel"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

#: The field of the vectors in an index made for the Vectors API.
_DENSE_FIELD = "_values"
_VERSION_HEADER = "X-Pinecone-Api-Version"
_PARALLEL = 8
_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 10.0
_POLL_S = 0.05
_LONGEST_POLL_S = 2.0


@dataclass(frozen=True)
class PineconeOptions:
    """How to reach Pinecone.

    Attributes:
        api_key: The project's key.
        host: Of the control plane; None: Pinecone's own.
        cloud: Of a new index: aws, gcp or azure.
        region: Of a new index, in the cloud's words.
        timeout_s: How long one call may take, retries and waits included.
        ready_timeout_s: How long a new index may take until it can be used.
        data_api_version: The API version that data calls ask for; None: the SDK's own.
    """

    api_key: str = field(repr=False)
    host: Optional[str] = None
    cloud: str = "aws"
    region: str = "us-east-1"
    timeout_s: float = 30.0
    ready_timeout_s: float = 300.0
    data_api_version: Optional[str] = "2026-04"


@dataclass(frozen=True)
class Index:
    """An index that is ready.

    Attributes:
        name: Pinecone's.
        dimension: Numbers in a vector.
        metric: Pinecone's name of it.
        data: The SDK's client for its records.
    """

    name: str
    dimension: int
    metric: str
    data: Any


class Connection:
    """An open control plane client and a data client for each index in use."""

    def __init__(self, options: PineconeOptions) -> None:
        try:
            import pinecone
        except ImportError as exc:
            raise MissingDependencyError("pinecone", "pinecone") from exc
        if not hasattr(pinecone, "AsyncPinecone"):
            raise MissingDependencyError("pinecone>=10", "pinecone")
        self._sdk: Any = pinecone
        self._options = options
        self._indexes: Dict[str, Index] = {}
        self._opening: Dict[str, asyncio.Lock] = {}
        try:
            self._control = pinecone.AsyncPinecone(
                api_key=options.api_key,
                host=options.host,
                timeout=options.timeout_s,
                retry_config=pinecone.RetryConfig(max_retries=0),
            )
        except pinecone.PineconeError as exc:
            raise VectorStoreError("Pinecone's SDK refuses the settings of the connection") from exc

    async def close(self) -> None:
        """Close every client."""
        opened, self._indexes = list(self._indexes.values()), {}
        for index in opened:
            await index.data.close()
        await self._control.close()

    # --- indexes ------------------------------------------------------------------------------------------------

    async def index(self, name: str, dimension: int, metric: str, *, create: bool = True) -> Optional[Index]:
        """Return the index `name`, made if need be (`create`), when it is ready; None when it is not there.

        Args:
            name: Pinecone's.
            dimension: Of a new index.
            metric: Of a new index, in Pinecone's words.
            create: Make it.

        Raises:
            VectorUnavailableError: it did not become ready in time.
        """
        known = self._indexes.get(name)
        if known is not None:
            return known
        async with self._opening.setdefault(name, asyncio.Lock()):
            if name not in self._indexes:
                model = await self._describe(name)
                if model is None:
                    if not create:
                        return None
                    await self._create(name, dimension, metric)
                self._indexes[name] = await self._open(name, await self._ready(name))
            return self._indexes[name]

    async def _describe(self, name: str) -> Any:
        return await self.call("describe_index", lambda: self._control.indexes.describe(name), missing="")

    async def _create(self, name: str, dimension: int, metric: str) -> None:
        async def create() -> None:
            try:
                await self._control.indexes.create(
                    name=name,
                    schema={
                        "fields": {
                            _DENSE_FIELD: {"type": "dense_vector", "dimension": dimension, "metric": metric}
                        }
                    },
                    deployment={
                        "deployment_type": "managed",
                        "cloud": self._options.cloud,
                        "region": self._options.region,
                    },
                    tags={"made_by": "atlas-storage"},
                    timeout=-1,
                )
            except self._sdk.ConflictError:
                # another process, or an attempt of ours whose answer was lost, made it
                logger.info("storage.vectors.index_exists", extra={"backend": "pinecone", "store": name})

        await self.call("create_index", create)

    async def _ready(self, name: str) -> Any:
        ends = time.monotonic() + self._options.ready_timeout_s
        pause = _POLL_S
        while True:
            model = await self._describe(name)
            if model is not None and model.status.ready and model.host:
                return model
            if model is not None and model.status.state in (
                "InitializationFailed",
                "Terminating",
                "Disabled",
            ):
                raise VectorStoreError(f"the Pinecone index {name!r} is not usable: {model.status.state}")
            if time.monotonic() + pause > ends:
                raise VectorUnavailableError(
                    f"the Pinecone index {name!r} is not ready after {self._options.ready_timeout_s:g} s"
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_POLL_S)

    async def _open(self, name: str, model: Any) -> Index:
        dense = [
            item for item in model.schema.fields.values() if isinstance(item, self._sdk.DenseVectorField)
        ]
        if len(dense) != 1 or len(model.schema.fields) != 1:
            raise VectorStoreError(
                f"the Pinecone index {name!r} is not a plain index of dense vectors; name another one"
            )
        version = self._options.data_api_version
        data = self._sdk.AsyncIndex(
            host=model.host,
            api_key=self._options.api_key,
            timeout=self._options.timeout_s,
            additional_headers={_VERSION_HEADER: version} if version else None,
        )
        _without_retries(data, self._sdk)
        return Index(name, dense[0].dimension, str(dense[0].metric), data)

    # --- calls --------------------------------------------------------------------------------------------------

    async def call(
        self,
        operation: str,
        send: Callable[[], Awaitable[Result]],
        *,
        missing: Optional[str] = None,
    ) -> Any:
        """Return what `send` gives; repeat it while Pinecone is busy or out of reach, until the deadline.

        Everything that is sent may be sent twice: upserts and deletes say what is to be, not what is to change.

        Args:
            operation: For messages.
            send: Sends one request.
            missing: Return None for an answer "not found" that has this word; None: that is an error.

        Raises:
            VectorRateLimitedError: it still asked to slow down.
            VectorUnavailableError: it did not answer.
            VectorStoreError: it refused.
        """
        ends = deadline_after(self._options.timeout_s)
        throttled = False
        wait = _FIRST_WAIT_S
        while True:
            try:
                return await asyncio.wait_for(send(), max(ends - time.monotonic(), 0.001))
            except self._sdk.NotFoundError as exc:
                if missing is not None and missing in str(exc.message).lower():
                    return None
                raise VectorStoreError(f"Pinecone's {operation} says: not found") from exc
            except self._sdk.RateLimitError as exc:
                failure: BaseException = exc
                throttled = True
                # full jitter on top of what was asked for, so that all who were sent away do not come back at once
                pause = (exc.retry_after or 0.0) + random.uniform(0, wait)  # noqa: S311
            except (
                self._sdk.ServiceError,
                self._sdk.PineconeConnectionError,
                self._sdk.PineconeTimeoutError,
                asyncio.TimeoutError,
            ) as exc:
                failure = exc
                throttled = throttled and isinstance(exc, asyncio.TimeoutError)
                pause = random.uniform(0, wait)  # noqa: S311
            except self._sdk.PineconeError as exc:
                raise self._refused(operation, exc) from exc
            if time.monotonic() + pause >= ends:
                raise _gave_up(operation, throttled) from failure
            await asyncio.sleep(pause)
            wait = min(wait * 2, _LONGEST_WAIT_S)

    def _refused(self, operation: str, exc: BaseException) -> VectorStoreError:
        if isinstance(exc, (self._sdk.UnauthorizedError, self._sdk.ForbiddenError)):
            return VectorStoreError(
                f"Pinecone refuses {operation}: the API key is wrong or may not do this; check vectors.pinecone_api_key"
            )
        status = getattr(exc, "status_code", None)
        shown = f"HTTP status {status}" if status is not None else type(exc).__name__
        return VectorStoreError(
            f"Pinecone refuses {operation} ({shown}); its answer is the cause of this error"
        )


def _gave_up(operation: str, throttled: bool) -> VectorStoreError:
    if throttled:
        return VectorRateLimitedError(
            f"Pinecone asks to slow down and {operation} would not end within its deadline; try again later"
        )
    return VectorUnavailableError(f"Pinecone did not answer {operation} within its deadline; try again later")


def _without_retries(data: Any, sdk: Any) -> None:
    """Switch off the retries that the SDK's data client does by itself; it has no argument for that.

    Where a later SDK keeps this elsewhere they stay on, and `call` still ends everything by its deadline.
    """
    http = getattr(data, "_http", None)
    config: Any = getattr(http, "_config", None)
    if http is not None and hasattr(config, "retry_config"):
        http._config = replace(config, retry_config=sdk.RetryConfig(max_retries=0))


async def in_parallel(
    calls: Sequence[Callable[[], Coroutine[Any, Any, Result]]], limit: int = _PARALLEL
) -> List[Result]:
    """Return the results of `calls` in their order, at most `limit` at a time; the first error ends the others."""
    if len(calls) == 1:
        return [await calls[0]()]
    results: Dict[int, Result] = {}
    waiting = iter(enumerate(calls))

    async def work() -> None:
        for place, one in waiting:
            results[place] = await one()

    workers = [asyncio.ensure_future(work()) for _ in range(min(limit, len(calls)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return [results[place] for place in range(len(calls))]

"""The index side of the pgvector provider: when it is built, how well it finds, and loading without it."""

from __future__ import annotations

import abc
import asyncio
import logging
import time
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Dict, List, Optional, Sequence, Set

import numpy as np

from modules.storage.operations import Executor
from modules.storage.vectors import pgvector_schema as schema
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.checks import CollectionSpec, prepare_matrix
from modules.storage.vectors.errors import VectorNotFoundError, VectorUnavailableError
from modules.storage.vectors.models import Vector
from modules.storage.vectors.pgvector_index import (
    IndexState,
    Pair,
    RecallReport,
    build_index,
    drop_index,
    fresh_queries,
    measure_recall,
    sample_size,
    sample_vectors,
)
from modules.storage.vectors.pgvector_statements import CollectionStatements
from modules.store_common.errors import (
    DeadlineExceededError,
    InvalidValueError,
    StatementError,
    StorageError,
    UnavailableError,
)

__all__ = ["IndexedProvider"]

logger = logging.getLogger(__name__)


class IndexedProvider(VectorProvider):
    """What `PgvectorProvider` does with indexes; it brings the executor and the collections."""

    _executor: Executor
    _auto_build: bool
    _build_threshold: int
    _build_quiet_s: float
    _build_memory_mb: int
    _build_timeout_s: float
    _states: Dict[str, IndexState]
    _believed_until: Dict[Any, float]
    _builds: Dict[str, asyncio.Task[None]]
    _build_after: Dict[str, float]

    @abc.abstractmethod
    def _enter_open(self) -> str:
        """Return the schema of the extension; raises when the store is not open."""

    @abc.abstractmethod
    def _table(self, spec: CollectionSpec) -> CollectionStatements:
        """Return the statements of a collection's table."""

    @abc.abstractmethod
    def _gone(self, tenant_id: str, spec: CollectionSpec) -> VectorNotFoundError:
        """Forget a collection and return the error that says so."""

    @abc.abstractmethod
    async def _run(self, operation: Any, *args: Any) -> Any:
        """Run an operation, with errors of this store."""

    @abc.abstractmethod
    async def _run_on(self, tenant_id: str, spec: CollectionSpec, operation: Any, *args: Any) -> Any:
        """Run an operation on a collection's table."""

    @abc.abstractmethod
    async def _current_state(self, tenant_id: str, spec: CollectionSpec) -> IndexState:
        """Return what is known of the index, read again when that was long ago."""

    async def _rebuild_index(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        table = self._table(spec)
        if table.options.type == "none":
            return spec
        started = time.monotonic()
        try:
            state = await build_index(self._executor, table, self._build_memory_mb, self._build_timeout_s)
        except (UnavailableError, DeadlineExceededError) as exc:
            raise VectorUnavailableError(
                "the index was not built: PostgreSQL did not answer in time"
            ) from exc
        except StatementError as exc:
            raise self._gone(tenant_id, spec) from exc
        logger.info(
            "storage.vectors.index_built",
            extra={
                "backend": "pgvector",
                "entity_id": table.physical,
                "count": state.rows,
                "duration_ms": round((time.monotonic() - started) * 1000),
            },
        )
        sample = sample_size(state.rows, spec.dimension)
        await self._measured(tenant_id, spec, state, None, sample, adapt=True)
        return spec

    async def recall(
        self,
        collection: str,
        sample: int = 50,
        *,
        top_k: int = 10,
        queries: Optional[Sequence[Vector]] = None,
        adapt: bool = True,
        tenant_id: Optional[str] = None,
    ) -> RecallReport:
        """Measure the index against exact search, and adapt the effort of searches to the collection's target.

        Args:
            collection: Name.
            sample: How many queries are made of stored vectors, 1 to 1,000.
            top_k: How many of the nearest are compared.
            queries: Real queries, shape (n, dimension), instead of made ones.
            adapt: False measures what is in use and changes nothing.
            tenant_id: Whose.
        """
        tenant, spec = await self._known(collection, tenant_id)
        if isinstance(sample, bool) or not isinstance(sample, int) or not 1 <= sample <= 1000:
            raise InvalidValueError("sample is a whole number of 1 to 1000")
        state = await self._current_state(tenant, spec)
        if not state.index:
            return RecallReport(1.0, 1.0, 0, state)
        return await self._measured(tenant, spec, state, queries, sample, adapt=adapt, top_k=top_k)

    async def _measured(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        state: IndexState,
        queries: Optional[Sequence[Vector]],
        sample: int,
        *,
        adapt: bool,
        top_k: int = 10,
    ) -> RecallReport:
        table, where = self._table(spec), self._enter_open()
        matrix = np.empty((0, spec.dimension), dtype=np.float32)
        if queries is None:
            drawn = await self._run_on(tenant_id, spec, sample_vectors, where, table, tenant_id, sample)
            made_of: List[Set[Pair]] = []
            if drawn:
                matrix, made_of = fresh_queries(drawn)
        else:
            matrix = prepare_matrix(queries, spec, "the query vector")
            made_of = [set() for _ in matrix]
        if len(matrix):
            state = await measure_recall(
                self._executor, where, table, tenant_id, state, matrix, made_of, top_k=top_k, adapt=adapt
            )
        await self._run(schema.save_state, table.physical, dict(state.to_json()))
        self._states[table.physical] = state
        recall = 1.0 if state.recall is None else state.recall
        filtered = 1.0 if state.filtered_recall is None else state.filtered_recall
        return RecallReport(recall, filtered, len(matrix), state)

    async def index_state(self, collection: str, *, tenant_id: Optional[str] = None) -> IndexState:
        """Return what is known of a collection's index now."""
        tenant, spec = await self._known(collection, tenant_id)
        self._believed_until.pop((tenant, collection), None)
        return await self._current_state(tenant, spec)

    @asynccontextmanager
    async def bulk_load(self, collection: str, *, tenant_id: Optional[str] = None) -> AsyncIterator[None]:
        """Load many documents inside the block: without the index, which is built when the block ends well.

        With an HNSW index in place PostgreSQL takes some hundred new rows a second, without it some ten thousand.
        Searches meanwhile are exact.
        """
        tenant, spec = await self._known(collection, tenant_id)
        table = self._table(spec)
        await self._run_on(tenant, spec, drop_index, table)
        await self._run(schema.save_state, table.physical, {})
        self._states[table.physical] = IndexState()
        self._build_after[table.physical] = float("inf")
        try:
            yield
        finally:
            self._build_after.pop(table.physical, None)
        await self.rebuild_index(collection, tenant_id=tenant)

    def _build_if_grown(self, tenant_id: str, spec: CollectionSpec, state: IndexState) -> None:
        table = self._table(spec)
        now = time.monotonic()
        if (
            state.index
            or not self._auto_build
            or table.options.type == "none"
            or table.physical in self._builds
        ):
            return
        if self._build_after.get(table.physical, 0.0) > now:
            return
        # whether it has grown is looked at once in a while, not at each search
        self._build_after[table.physical] = now + 2 * self._build_quiet_s
        build = asyncio.ensure_future(self._build_grown(tenant_id, spec))
        self._builds[table.physical] = build
        build.add_done_callback(lambda _: self._builds.pop(table.physical, None))

    async def _build_grown(self, tenant_id: str, spec: CollectionSpec) -> None:
        try:
            if await self._count(tenant_id, spec, None, None) >= self._build_threshold:
                await self._rebuild_index(tenant_id, spec)
        except StorageError:
            logger.exception(
                "storage.vectors.index_not_built",
                extra={"backend": "pgvector", "entity_id": self._table(spec).physical},
            )

"""The vector store on PostgreSQL with pgvector: one table for each kind of collection, on the pool of the other stores.

Give it the executor of a unit of work (or `provider.within(executor)`) and its writes join that transaction. Its rooms:
`pgvector_options` (names, options), `pgvector_schema` (registry, tables), `pgvector_statements`, `pgvector_filters`,
`pgvector_operations`, `pgvector_codec` (vectors on the wire), `pgvector_search` (how a search is answered),
`pgvector_index` and `pgvector_building` (build, recall).
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime
from typing import Any, AsyncIterator, Dict, List, Optional, Sequence, Tuple

from modules.storage.operations import Executor
from modules.storage.statements import Row
from modules.storage.vectors import pgvector_operations as operations
from modules.storage.vectors import pgvector_schema as schema
from modules.storage.vectors.checks import (
    CollectionSpec,
    PreparedDocument,
    require_no_options,
)
from modules.storage.vectors.engine import Query
from modules.storage.vectors.errors import VectorNotFoundError, VectorUnavailableError
from modules.storage.vectors.filters import Filter
from modules.storage.vectors.models import (
    Capabilities,
    DistanceMetric,
    SearchResults,
    VectorDocument,
)
from modules.storage.vectors.pgvector_building import IndexedProvider
from modules.storage.vectors.pgvector_codec import pack_vectors
from modules.storage.vectors.pgvector_filters import BoundFilter, bind_filter
from modules.storage.vectors.pgvector_index import (
    IndexState,
    RecallReport,
)
from modules.storage.vectors.pgvector_options import OPTION_NAMES, IndexOptions, index_options
from modules.storage.vectors.pgvector_search import (
    Plan,
    Scopes,
    make_results,
    search_exactly,
    search_first,
    search_index,
    search_index_forced,
)
from modules.storage.vectors.pgvector_statements import CollectionStatements
from modules.storage.vectors.registry import register_vector_provider
from modules.store_common.errors import (
    DeadlineExceededError,
    NotConfiguredError,
    NotInitializedError,
    StatementError,
    UnavailableError,
)
from modules.store_common.tenancy import TenantPolicy

__all__ = ["IndexOptions", "IndexState", "PgvectorProvider", "RecallReport"]

logger = logging.getLogger(__name__)

# Rows of one statement: about 3 MB of vectors, measured best at 384 and 1,536 dimensions.
_NUMBERS_PER_STATEMENT = 768_000
_MAX_ROWS_PER_STATEMENT = 2_000
# How long what the registry said of a collection is believed; another process may have built or dropped its index.
_BELIEVED_S = 30.0


@register_vector_provider("pgvector")
class PgvectorProvider(IndexedProvider):
    """Vectors in PostgreSQL.

    Args:
        executor: A PostgreSQL pool's, or a unit of work's.
        tenancy: How the tenant of a call is found.
        index: Options of collections whose creation names none.
        auto_build: Let a search start the index of a collection that has outgrown exact search, in the background.
        build_threshold: Rows from which on it does.
        build_quiet_s: Seconds without an upsert of ours before it does, so that a load is over first.
        build_memory_mb: `maintenance_work_mem` of a build.
        build_timeout_s: How long a build may take.
    """

    name = "pgvector"

    def __init__(
        self,
        executor: Executor,
        *,
        tenancy: Optional[TenantPolicy] = None,
        index: Optional[IndexOptions] = None,
        auto_build: bool = True,
        build_threshold: int = 20_000,
        build_quiet_s: float = 5.0,
        build_memory_mb: int = 512,
        build_timeout_s: float = 3600.0,
    ) -> None:
        super().__init__(tenancy=tenancy)
        self._executor = executor
        self._defaults = index
        self._auto_build = auto_build
        self._build_threshold = build_threshold
        self._build_quiet_s = build_quiet_s
        self._build_memory_mb = build_memory_mb
        self._build_timeout_s = build_timeout_s
        self._schema: Optional[str] = None
        self._tables: Dict[str, CollectionStatements] = {}
        self._states: Dict[str, IndexState] = {}
        self._believed_until: Dict[Tuple[str, str], float] = {}
        self._large = Scopes()
        self._sparse = Scopes()
        self._builds: Dict[str, asyncio.Task[None]] = {}
        self._build_after: Dict[str, float] = {}

    def within(self, executor: Executor) -> PgvectorProvider:
        """Return a provider on another executor, to join a unit of work's transaction; it need not be closed."""
        if self._schema is None and self._first_use is None:
            raise NotInitializedError("the vector store pgvector")
        joined = PgvectorProvider(
            executor,
            tenancy=self._tenancy,
            index=self._defaults,
            auto_build=False,
            build_memory_mb=self._build_memory_mb,
            build_timeout_s=self._build_timeout_s,
        )
        joined._schema = self._schema
        # what is known of the collections goes along: asking again would cost each unit a statement and their compilation
        joined._specs = dict(self._specs)
        joined._tables = dict(self._tables)
        joined._states = dict(self._states)
        joined._believed_until = dict(self._believed_until)
        if self._schema is None:
            # opened by its first call, in the unit's own transaction
            joined.open_on_use()
        return joined

    # --- lifecycle ----------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> Capabilities:
        """Approximate once a collection is large; filters, transactions and consistency are PostgreSQL's."""
        return Capabilities(
            exact_search=False,
            native_filters=True,
            transactional=True,
            immediately_consistent=True,
            persistent=True,
            deletes_by_age=True,
        )

    @property
    def is_initialized(self) -> bool:
        """Whether it is open."""
        return self._schema is not None

    async def initialize(self) -> None:
        """Make the extension and the registry where they are missing.

        Raises:
            NotConfiguredError: the database is not PostgreSQL, or pgvector is absent or older than 0.8.
            PermissionDeniedError: the extension is missing and the role may not create it.
        """
        if self._schema is not None:
            return
        if self._executor.dialect != "postgresql":
            raise NotConfiguredError(
                "the vector store pgvector needs PostgreSQL; set sql.url, or vectors.backend"
            )
        self._schema = await self._run(schema.open_database)

    async def shutdown(self) -> None:
        """End builds that are under way and forget what is known; the executor is its owner's."""
        self._schema = None
        builds, self._builds = list(self._builds.values()), {}
        for build in builds:
            build.cancel()
        await asyncio.gather(*builds, return_exceptions=True)
        self._specs.clear()
        self._states.clear()

    async def _ping(self) -> None:
        await self._run(schema.read_registration, "", "")

    async def _run(self, operation: Any, *args: Any) -> Any:
        try:
            return await self._executor.run(operation, *args)
        except (UnavailableError, DeadlineExceededError) as exc:
            raise VectorUnavailableError(f"the vector store pgvector did not answer: {exc}") from exc

    async def _run_on(self, tenant_id: str, spec: CollectionSpec, operation: Any, *args: Any) -> Any:
        """Run an operation on a collection's table; that it is gone is known by PostgreSQL's 42P01."""
        try:
            return await self._run(operation, *args)
        except StatementError as exc:
            if getattr(exc.__cause__, "sqlstate", None) != "42P01":
                raise
            raise self._gone(tenant_id, spec) from exc

    def _gone(self, tenant_id: str, spec: CollectionSpec) -> VectorNotFoundError:
        self._forget(tenant_id, spec.name)
        return VectorNotFoundError(
            f"there is no vector collection {spec.name!r} any more; create_collection makes one"
        )

    def _enter_open(self) -> str:
        if self._schema is None:
            raise NotInitializedError("the vector store pgvector")
        return self._schema

    # --- collections --------------------------------------------------------------------------------------------

    async def _create_collection(self, tenant_id: str, spec: CollectionSpec) -> CollectionSpec:
        require_no_options(spec, self.name, OPTION_NAMES)
        options = index_options(spec.options, spec.dimension, self._defaults)
        return self._learn(tenant_id, await self._run(schema.create_collection, tenant_id, spec, options))

    async def _delete_collection(self, tenant_id: str, name: str) -> bool:
        gone: bool = await self._run(schema.delete_collection, tenant_id, name)
        return gone

    async def _read_collection(self, tenant_id: str, name: str) -> Optional[CollectionSpec]:
        row = await self._run(schema.read_registration, tenant_id, name)
        return None if row is None else self._learn(tenant_id, row)

    async def _list_collections(self, tenant_id: str) -> List[Tuple[CollectionSpec, int]]:
        specs = [self._learn(tenant_id, row) for row in await self._run(schema.list_registrations, tenant_id)]
        found = []
        for spec in specs:
            try:
                found.append((spec, await self._count(tenant_id, spec, None, None)))
            except VectorNotFoundError:
                # deleted since the registry was read
                continue
        return found

    def _learn(self, tenant_id: str, row: Row) -> CollectionSpec:
        """Return the collection that a row of the registry describes, and remember its table and index."""
        name, physical, dimension, metric, options, metadata, state = row
        chosen = IndexOptions(**{**options, "index_metadata": tuple(options["index_metadata"])})
        if physical not in self._tables:
            self._tables[physical] = CollectionStatements(physical, dimension, DistanceMetric(metric), chosen)
        self._states[physical] = IndexState.from_json(state)
        self._believed_until[tenant_id, name] = time.monotonic() + _BELIEVED_S
        # not whether it is built: tenants that share the table must not see each other's doings
        kind = "exact" if chosen.type == "none" else chosen.type
        return CollectionSpec(
            name, dimension, DistanceMetric(metric), kind, metadata, {**options, "physical": physical}
        )

    def _table(self, spec: CollectionSpec) -> CollectionStatements:
        return self._tables[str(spec.options["physical"])]

    # --- documents ----------------------------------------------------------------------------------------------

    async def _upsert(
        self, tenant_id: str, spec: CollectionSpec, documents: Sequence[PreparedDocument]
    ) -> None:
        table = self._table(spec)
        # one order for all, so that two upserts of the same ids do not lock each other out
        ordered = sorted(documents, key=lambda item: (item.namespace, item.id))
        size = max(1, min(_MAX_ROWS_PER_STATEMENT, _NUMBERS_PER_STATEMENT // spec.dimension))
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        operation: Any = operations.upsert_part if len(parts) == 1 else operations.upsert_parts
        given: Any = parts[0] if len(parts) == 1 else parts
        stored = await self._run_on(
            tenant_id, spec, operation, self._enter_open(), table, tenant_id, spec.name, given
        )
        if not stored:
            raise self._gone(tenant_id, spec)
        self._build_after[table.physical] = time.monotonic() + self._build_quiet_s

    async def _delete(self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]) -> int:
        deleted: int = await self._run_on(
            tenant_id, spec, operations.delete_ids, self._table(spec), tenant_id, namespace, list(ids)
        )
        return deleted

    async def _delete_where(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, tree: Optional[Filter]
    ) -> int:
        table = self._table(spec)
        deleted: int = await self._run_on(
            tenant_id, spec, operations.delete_where, table, tenant_id, namespace, _bind(table, tree)
        )
        return deleted

    async def _delete_older(
        self, tenant_id: str, spec: CollectionSpec, before: datetime
    ) -> AsyncIterator[int]:
        table, after = self._table(spec), ("", "")
        while after is not None:
            gone, after = await self._run_on(
                tenant_id, spec, operations.delete_older, table, tenant_id, before, after
            )
            yield gone

    async def _list_tenants(self) -> List[str]:
        found: List[str] = await self._run(schema.list_tenants)
        return found

    async def _get(
        self, tenant_id: str, spec: CollectionSpec, namespace: str, ids: Sequence[str]
    ) -> List[VectorDocument]:
        rows = await self._run_on(
            tenant_id, spec, operations.get, self._table(spec), tenant_id, namespace, list(ids)
        )
        return [operations.to_document(row) for row in rows]

    async def _count(
        self, tenant_id: str, spec: CollectionSpec, namespace: Optional[str], tree: Optional[Filter]
    ) -> int:
        table = self._table(spec)
        counted: int = await self._run_on(
            tenant_id, spec, operations.count, table, tenant_id, namespace, _bind(table, tree)
        )
        return counted

    async def _scroll(
        self,
        tenant_id: str,
        spec: CollectionSpec,
        namespace: str,
        tree: Optional[Filter],
        after_id: Optional[str],
        limit: int,
    ) -> List[VectorDocument]:
        table = self._table(spec)
        rows = await self._run_on(
            tenant_id,
            spec,
            operations.scroll,
            table,
            tenant_id,
            namespace,
            _bind(table, tree),
            after_id,
            limit,
        )
        return [operations.to_document(row) for row in rows]

    # --- search -------------------------------------------------------------------------------------------------

    async def _search(self, spec: CollectionSpec, query: Query) -> List[SearchResults]:
        table = self._table(spec)
        state = await self._current_state(query.tenant_id, spec)
        plan = Plan(self._enter_open(), table, query, _bind(table, query.filter), state)
        self._build_if_grown(query.tenant_id, spec, state)
        results = []
        for packed in pack_vectors(query.vectors):
            rows, reason = await self._search_one(spec, plan, packed)
            results.append(make_results(plan, rows, reason))
        return results

    async def _search_one(self, spec: CollectionSpec, plan: Plan, packed: bytes) -> Tuple[List[Row], str]:
        tenant = plan.query.tenant_id

        async def run(operation: Any, *args: Any) -> Any:
            return await self._run_on(tenant, spec, operation, plan, packed, *args)

        if plan.always_exact:
            return await run(search_exactly, False), ""
        scope = (plan.table.physical, tenant, plan.query.namespace, plan.query.filter)
        if scope not in self._large:
            few = await run(search_exactly, True)
            if few is not None:
                return few, ""
            self._large.add(scope)
        if plan.first_look_may_do and scope not in self._sparse:
            rows = await run(search_first)
            if len(rows) == plan.query.top_k:
                return rows, plan.doubt
            self._sparse.add(scope)
        rows = await run(search_index if plan.bound is None else search_index_forced)
        if len(rows) < plan.query.top_k:
            return await run(search_exactly, False), ""
        return rows, plan.doubt

    async def _current_state(self, tenant_id: str, spec: CollectionSpec) -> IndexState:
        physical = str(spec.options["physical"])
        if self._believed_until.get((tenant_id, spec.name), 0.0) < time.monotonic():
            fresh = await self._read_collection(tenant_id, spec.name)
            if fresh is None or fresh.options["physical"] != physical:
                raise self._gone(tenant_id, spec)
            self._specs[tenant_id, spec.name] = fresh
        return self._states[physical]


def _bind(table: CollectionStatements, tree: Optional[Filter]) -> Optional[BoundFilter]:
    return None if tree is None else bind_filter(tree, table.indexed)

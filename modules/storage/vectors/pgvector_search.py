"""How a search on pgvector is answered: exactly over the rows that pass while they are few, else through the index.

Few is found out by doing it: the exact search stops at a bound of rows, and its answer counts when it did not get there.
That a scope (tenant, namespace, filter) has many rows is remembered for a minute. The index is asked with iterative
scans; when even so it gives fewer rows than wanted, every row is looked at. A search without a filter takes a look at the
index's first candidates before that: mostly they are enough, and it is the cheaper scan.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Text, text

from modules.storage.operations import Transaction, read
from modules.storage.statements import Row, Statement
from modules.storage.vectors.engine import Query
from modules.storage.vectors.models import (
    DistanceMetric,
    SearchResults,
    VectorDocument,
    VectorSearchResult,
    named_result,
)
from modules.storage.vectors.pgvector_codec import prepare_connection, unpack_vector
from modules.storage.vectors.pgvector_filters import BoundFilter
from modules.storage.vectors.pgvector_index import EXACT_NUMBERS, FILTERED_TARGET, IndexState, scan_limit
from modules.storage.vectors.pgvector_statements import CollectionStatements

__all__ = [
    "Plan",
    "Scopes",
    "make_results",
    "search_exactly",
    "search_first",
    "search_index",
    "search_index_forced",
]

#: Rows beyond those wanted, so that rounding in the engine cannot put a tie on the wrong side of the border.
_SPARE = 8
# Rows of a first look, at most: each number of them is a statement of its own.
_FIRST_LOOK = 64
_REMEMBERED_S = 60.0
_MAX_REMEMBERED = 1000
# Of a document whose vector was not asked for.
_NO_VECTOR: NDArray[np.float32] = np.empty(0, dtype=np.float32)

# The planner takes a filter on jsonb to be rarer than it is, and would sort all rows that pass.
_FORCE = Statement(
    text(
        "SELECT current_setting('enable_sort'), current_setting('enable_bitmapscan'),"
        " current_setting('plan_cache_mode'),"
        " set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true),"
        " set_config('plan_cache_mode', 'force_custom_plan', true)"
    ).columns(a=Text, b=Text, c=Text, d=Text, e=Text, f=Text)
)
_RESTORE = Statement(
    text(
        "SELECT set_config('enable_sort', :sort, true), set_config('enable_bitmapscan', :bitmap, true),"
        " set_config('plan_cache_mode', :cache, true)"
    ).columns(a=Text, b=Text, c=Text)
)


class Scopes:
    """Remembers for a minute what was found of scopes: that they are too large for one thing, or too small for another."""

    def __init__(self) -> None:
        self._found: OrderedDict[Any, float] = OrderedDict()

    def __contains__(self, scope: Any) -> bool:
        """Whether it was found of the scope within the last minute."""
        until = self._found.get(scope)
        return until is not None and until > time.monotonic()

    def add(self, scope: Any) -> None:
        """Remember it."""
        self._found[scope] = time.monotonic() + _REMEMBERED_S
        self._found.move_to_end(scope)
        if len(self._found) > _MAX_REMEMBERED:
            self._found.popitem(last=False)


@dataclass(frozen=True)
class Plan:
    """A search made ready: the statements' table, and what all its statements are given.

    Attributes:
        schema: Where the extension lies.
        table: The collection's.
        query: The call.
        bound: Its filter, ready.
        state: Of the index.
    """

    schema: str
    table: CollectionStatements
    query: Query
    bound: Optional[BoundFilter]
    state: IndexState

    @property
    def few(self) -> int:
        """How many rows are looked at one by one sooner than asking the index."""
        return max(500, min(20_000, 2_000_000 // self.table.dimension)) + 1

    @property
    def index_meets_target(self) -> bool:
        """Whether the measured recall of the index reaches the collection's target."""
        filtered = self.query.filter is not None
        target = FILTERED_TARGET if filtered else self.table.options.target_recall
        measured = self.state.filtered_recall if filtered else self.state.recall
        return measured is None or measured >= target

    @property
    def always_exact(self) -> bool:
        """Whether every row is looked at: there is no index, or none that is good enough and the rows can be afforded."""
        if not self.state.index:
            return True
        return not self.index_meets_target and self.state.rows * self.table.dimension <= EXACT_NUMBERS

    @property
    def first_look_may_do(self) -> bool:
        """Whether the index's first candidates can be enough: no filter takes any away, and they are as many as wanted."""
        limit = min(_FIRST_LOOK, self.state.effort) if self.table.options.type == "hnsw" else _FIRST_LOOK
        return self.query.filter is None and self.query.top_k <= limit

    @property
    def doubt(self) -> str:
        """Why a result through the index may miss matches; empty when it meets its target."""
        if self.index_meets_target:
            return ""
        recall = self.state.filtered_recall if self.query.filter is not None else self.state.recall
        return f"the index found {recall:.2f} of the true nearest when it was measured, below the collection's target"

    def params(self, vector: bytes) -> Dict[str, Any]:
        """Return the parameters of a query vector."""
        filters = {} if self.bound is None else self.bound.params
        return {"tenant": self.query.tenant_id, "space": self.query.namespace, "query": vector, **filters}


@read
async def search_exactly(tx: Transaction, plan: Plan, vector: bytes, bounded: bool) -> Optional[List[Row]]:
    """Return the nearest rows; None when `bounded` and more rows than that pass."""
    await prepare_connection(tx, plan.schema)
    statement = plan.table.exact(
        plan.bound, metadata=plan.query.include_metadata, vector=plan.query.include_vectors, bounded=bounded
    )
    more = {"bound": plan.few} if bounded else {}
    rows = await tx.all(statement, row_limit=plan.query.top_k + _SPARE, **more, **plan.params(vector))
    return None if rows and rows[0][0] >= plan.few else rows


@read
async def search_first(tx: Transaction, plan: Plan, vector: bytes) -> List[Row]:
    """Return what passes of the first candidates that the index finds; it may be fewer than wanted."""
    await prepare_connection(tx, plan.schema)
    query = plan.query
    statement = plan.table.first_look(
        query.top_k, metadata=query.include_metadata, vector=query.include_vectors
    )
    return await tx.all(statement, effort=str(plan.state.effort), **plan.params(vector))


@read
async def search_index(tx: Transaction, plan: Plan, vector: bytes) -> List[Row]:
    """Return what the index finds near the vector."""
    await prepare_connection(tx, plan.schema)
    statement = plan.table.indexed_search(
        plan.bound, metadata=plan.query.include_metadata, vector=plan.query.include_vectors
    )
    # no spare rows: what is on the other side of the border is approximate anyway
    wanted = plan.query.top_k
    filtered = plan.bound is not None
    return await tx.all(
        statement,
        effort=str(plan.state.filtered_effort if filtered else plan.state.effort),
        scan_limit=scan_limit(plan.table),
        row_limit=wanted * plan.state.filtered_fetch if filtered else wanted,
        bound=wanted,
        **plan.params(vector),
    )


@read(snapshot=True)
async def search_index_forced(tx: Transaction, plan: Plan, vector: bytes) -> List[Row]:
    """The same when a filter would make the planner leave the index; in a unit of work the settings are put back."""
    await prepare_connection(tx, plan.schema)
    before = await tx.one(_FORCE)
    rows = await search_index(tx, plan, vector)
    await tx.first(_RESTORE, sort=before[0], bitmap=before[1], cache=before[2])
    return rows


def make_results(plan: Plan, rows: Sequence[Row], reason: str) -> SearchResults:
    """Return rows as results: scored by the common formula, best first, ties by id, `top_k` of them."""
    query = plan.query
    scored = zip(_scores(plan.table.metric, rows), rows)
    ordered = sorted(scored, key=lambda item: (-item[0], item[1][2]))[: query.top_k]
    if query.ids_only:
        named = (named_result(row[2], row[3], score, float(row[1])) for score, row in ordered)
        return SearchResults(named, complete=not reason, reason=reason)
    metadata, vector = query.include_metadata, query.include_vectors
    return SearchResults(
        [
            VectorSearchResult(_document(row, metadata, vector), score, float(row[1]))
            for score, row in ordered
        ],
        complete=not reason,
        reason=reason,
    )


def _scores(metric: DistanceMetric, rows: Sequence[Row]) -> List[float]:
    """Return the score of each row by pgvector's distance, rounded to float32, which makes equal what rounding parted.

    Source: pgvector README; `<=>` is 1 - cosine, `<#>` is the negated product.
    """
    # not by NumPy: for ten rows its calls cost more than the numbers; NaN stays NaN
    if metric is DistanceMetric.COSINE:
        found = [min(max(1.0 - row[1], -1.0), 1.0) for row in rows]
    elif metric is DistanceMetric.EUCLIDEAN:
        found = [1.0 / (1.0 + row[1]) for row in rows]
    else:
        found = [-row[1] for row in rows]
    return array("f", found).tolist()


def _document(row: Row, metadata: bool, vector: bool) -> VectorDocument:
    return VectorDocument(
        id=row[2],
        namespace=row[3],
        created_at=row[4],
        content=row[5] if metadata else None,
        metadata=row[6] if metadata else {},
        vector=unpack_vector(row[-1]) if vector else _NO_VECTOR,
    )

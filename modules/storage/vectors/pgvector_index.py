"""The index of a collection's table: built after the rows, with progress in the log; its recall measured and answered for.

An approximate index finds what it finds. So each build is followed by a measurement against exact search, on queries
some way off the stored vectors, and the effort of a search (`hnsw.ef_search`, `ivfflat.probes`) is raised until the target
is met by a standard error of the measurement (the first effort that happens to meet it mostly does not). Where no effort
meets it, the collection is searched exactly while it is small enough for that; above, results say they are not complete.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, List, Mapping, Optional, Sequence, Set, Tuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import LargeBinary, Text, text
from sqlalchemy.types import BigInteger

from modules.storage.operations import Executor, Operation, Transaction, read, write
from modules.storage.statements import Statement
from modules.storage.vectors.pgvector_codec import pack_vectors, prepare_connection, unpack_vector
from modules.storage.vectors.pgvector_options import quote_identifier
from modules.store_common.deadlines import deadline_after
from modules.store_common.errors import StorageError, StorageFullError
from modules.store_common.ids import new_id

if TYPE_CHECKING:
    from modules.storage.vectors.pgvector_statements import CollectionStatements

__all__ = [
    "EXACT_NUMBERS",
    "FILTERED_TARGET",
    "IndexState",
    "Pair",
    "RecallReport",
    "build_index",
    "drop_index",
    "efforts",
    "fresh_queries",
    "measure_recall",
    "sample_size",
    "sample_vectors",
    "scan_limit",
]

logger = logging.getLogger(__name__)

#: Namespace and id of a document.
Pair = Tuple[str, str]

#: Filtered searches through the index shall find this share of the true nearest.
FILTERED_TARGET = 0.95
#: Above so many stored numbers a search does not fall back to looking at every row for the sake of recall.
EXACT_NUMBERS = 100_000_000
# Source: pgvector README, hnsw.ef_search: 1 to 1000
_EF_SEARCH = (40, 64, 100, 160, 250, 400, 640, 1000)
_FETCHES = (4, 8)
_NOISE_SEED = (7370, 11)
_SAMPLED_NUMBERS = 4_000_000_000  # that the exact answers of a measurement look at
_PROGRESS_EVERY_S = 2.0


@dataclass(frozen=True)
class IndexState:
    """What is known of a table's index; kept in the registry.

    Attributes:
        index: Its name; empty: there is none, every search is exact.
        rows: In the table when it was built.
        effort: `hnsw.ef_search` or `ivfflat.probes` of an unfiltered search.
        recall: Measured share of the true 10 nearest, None before.
        filtered_effort: The same for a search with a filter.
        filtered_fetch: How many times the wanted rows such a search takes from the index, to rank them again.
        filtered_recall: Measured under a filter that one row of ten passes.
    """

    index: str = ""
    rows: int = 0
    effort: int = 100
    recall: Optional[float] = None
    filtered_effort: int = 160
    filtered_fetch: int = 4
    filtered_recall: Optional[float] = None

    @staticmethod
    def from_json(given: Mapping[str, Any]) -> IndexState:
        """Return the state that `to_json` gave; unknown parts are left out."""
        return IndexState(**{name: given[name] for name in asdict(IndexState()) if name in given})

    def to_json(self) -> Mapping[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class RecallReport:
    """A measurement of a collection's index against exact search.

    Attributes:
        recall: Share of the true nearest that were found, 0 to 1; 1.0 where every search is exact.
        filtered_recall: The same under a filter that one row of ten passes.
        queries: How many were asked.
        state: What searches use now.
    """

    recall: float
    filtered_recall: float
    queries: int
    state: IndexState


_SETTINGS = Statement(
    text(
        "SELECT set_config('statement_timeout', '0', true), set_config('maintenance_work_mem', :memory, true),"
        " set_config('max_parallel_maintenance_workers', :workers, true)"
    ).columns(a=Text, b=Text, c=Text)
)
_LOCK = Statement(text("SELECT pg_advisory_xact_lock(hashtextextended(CAST(:physical AS text), 7370))"))
_INDEXES = Statement(
    text(
        "SELECT c.relname::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = to_regclass(CAST(:physical AS text)) AND c.relname LIKE CAST(:pattern AS text)"
    ).columns(name=Text)
)
_PROGRESS = Statement(
    text(
        "SELECT phase, blocks_done, blocks_total, tuples_done FROM pg_stat_progress_create_index"
        " WHERE relid = to_regclass(CAST(:physical AS text))"
    ).columns(phase=Text, done=BigInteger, total=BigInteger, tuples=BigInteger)
)


@write
async def _build(
    tx: Transaction, table: CollectionStatements, memory_mb: int, workers: int
) -> Tuple[str, int]:
    await tx.first(_SETTINGS, memory=f"{memory_mb}MB", workers=str(workers))
    await tx.first(_LOCK, physical=table.physical)
    before = await tx.all(_INDEXES, physical=table.physical, pattern=f"{table.physical}\\_a%")
    name = f"{table.physical}_a{new_id().replace('-', '')[-8:]}"
    await tx.run(_create_statement(table, name))
    for row in before:
        # last: it locks readers out until the commit
        await tx.run(Statement(text(f"DROP INDEX {quote_identifier(str(row[0]))}")))
    await tx.run(Statement(text(f"ANALYZE {quote_identifier(table.physical)}")))
    counted = text(f"SELECT count(*) FROM {quote_identifier(table.physical)}").columns(count=BigInteger)
    rows = await tx.one(Statement(counted))
    return name, int(rows[0])


def _create_statement(table: CollectionStatements, name: str) -> Statement:
    """Return the DDL of the index; a cast to the column's own type is no expression, PostgreSQL leaves it out."""
    options, dimension = table.options, table.dimension
    kind = options.indexed_type(dimension)
    operators = options.operator_class(table.metric, dimension)
    if options.type == "ivfflat":
        return Statement(
            text(
                f"CREATE INDEX {quote_identifier(name)} ON {quote_identifier(table.physical)} USING ivfflat"
                f" ((CAST(embedding AS {quote_identifier(kind)}({int(dimension)}))) {quote_identifier(operators)})"
                f" WITH (lists = {int(options.lists)})"
            )
        )
    return Statement(
        text(
            f"CREATE INDEX {quote_identifier(name)} ON {quote_identifier(table.physical)} USING hnsw"
            f" ((CAST(embedding AS {quote_identifier(kind)}({int(dimension)}))) {quote_identifier(operators)})"
            f" WITH (m = {int(options.m)}, ef_construction = {int(options.ef_construction)})"
        )
    )


@write
async def drop_index(tx: Transaction, table: CollectionStatements) -> None:
    """Remove the table's index; searches are exact then."""
    await tx.first(_LOCK, physical=table.physical)
    for row in await tx.all(_INDEXES, physical=table.physical, pattern=f"{table.physical}\\_a%"):
        await tx.run(Statement(text(f"DROP INDEX {quote_identifier(str(row[0]))}")))


async def build_index(
    executor: Executor, table: CollectionStatements, memory_mb: int, timeout_s: float
) -> IndexState:
    """Build the index anew; the old one serves until the new one is there. Writers wait, readers do not.

    Args:
        executor: A pool's, which can give a transaction its own deadline; or a unit of work's, with its own.
        table: Whose.
        memory_mb: `maintenance_work_mem` of the build.
        timeout_s: How long it may take.
    """
    progress = asyncio.ensure_future(_report_progress(executor, table)) if hasattr(executor, "unit") else None
    try:
        try:
            name, rows = await _run_long(executor, timeout_s, _build, table, memory_mb, 2)
        except StorageFullError:
            if progress is None:
                raise
            # parallel workers share the memory through /dev/shm, which is small in containers
            name, rows = await _run_long(executor, timeout_s, _build, table, memory_mb, 0)
    finally:
        if progress is not None:
            progress.cancel()
            await asyncio.gather(progress, return_exceptions=True)
    return IndexState(index=name, rows=rows)


async def _run_long(executor: Any, timeout_s: float, operation: Operation[Any, Any], *args: Any) -> Any:
    """Run an operation with a deadline longer than a call's; inside a unit of work with the unit's."""
    if not hasattr(executor, "unit"):
        return await executor.run(operation, *args)
    unit = executor.unit(deadline_after(timeout_s))
    try:
        result = await unit.run(operation, args, {})
        await unit.commit()
    except BaseException:
        await unit.rollback()
        raise
    return result


@read
async def _progress(tx: Transaction, physical: str) -> Optional[Tuple[Any, ...]]:
    return await tx.first(_PROGRESS, physical=physical)


async def _report_progress(executor: Executor, table: CollectionStatements) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_EVERY_S)
        try:
            row = await executor.run(_progress, table.physical)
        except StorageError:
            continue
        if row is not None:
            share = 100 * row[1] // row[2] if row[2] else 0
            logger.info(
                "storage.vectors.index_progress",
                extra={
                    "backend": "pgvector",
                    "entity_id": table.physical,
                    "count": row[3],
                    "detail": f"{row[0]}: {share} %",
                },
            )


# --- recall ---------------------------------------------------------------------------------------------------------


@read
async def sample_vectors(
    tx: Transaction, schema: str, table: CollectionStatements, tenant_id: str, count: int
) -> List[Tuple[Tuple[str, str], NDArray[np.float32]]]:
    """Return (namespace, id) and vector of documents of the tenant, drawn at random."""
    await prepare_connection(tx, schema)
    statement = Statement(
        text(
            f"SELECT namespace, id, vector_send(CAST(embedding AS vector({int(table.dimension)}))) AS v"
            f" FROM {quote_identifier(table.physical)}"
            " WHERE tenant_id = :tenant ORDER BY random() LIMIT :count"
        ).columns(namespace=Text, id=Text, v=LargeBinary)
    )
    rows = await tx.all(statement, tenant=tenant_id, count=count)
    return [((str(row[0]), str(row[1])), unpack_vector(row[2])) for row in rows]


def sample_size(rows: int, dimension: int) -> int:
    """Return how many queries a build is measured with: 100, fewer where each exact answer takes long, at least 30."""
    return max(30, min(100, _SAMPLED_NUMBERS // max(1, rows * dimension)))


def fresh_queries(
    drawn: Sequence[Tuple[Pair, NDArray[np.float32]]],
) -> Tuple[NDArray[np.float32], List[Set[Pair]]]:
    """Return queries as they come from outside, and the document that each was made of.

    To a stored vector is added a random one of the same length (cosine to the stored one about 0.7, as between a question
    and the text that answers it). Without that a query is too easy: on 5,000 clustered vectors of 1,536 numbers at
    `ef_search` 40 fresh queries of the same clusters found 0.970 of the nearest, these 0.935, and sums of a stored vector
    and half of another one 0.992.
    """
    matrix = np.stack([vector for _, vector in drawn])
    noise = np.random.default_rng(_NOISE_SEED).standard_normal(matrix.shape, dtype=np.float32)
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    noise *= np.where(lengths > 0, lengths, 1.0) / np.linalg.norm(noise, axis=1, keepdims=True)
    return (matrix + noise).astype(np.float32), [{pair} for pair, _ in drawn]


def efforts(table: CollectionStatements) -> Tuple[int, ...]:
    """Return the efforts that are tried, rising."""
    if table.options.type == "hnsw":
        return _EF_SEARCH
    lists = table.options.lists
    return tuple(
        sorted({min(lists, max(1, share * lists // 100)) for share in (1, 2, 5, 10, 20, 40, 70, 100)})
    )


@read
async def _found(
    tx: Transaction,
    schema: str,
    table: CollectionStatements,
    tenant_id: str,
    queries: Sequence[bytes],
    kind: str,
    top_k: int,
    effort: int,
    fetch: int,
) -> List[Set[Pair]]:
    """Return the (namespace, id) pairs that each query finds; effort 0: exactly."""
    await prepare_connection(tx, schema)
    results = []
    for query in queries:
        if effort == 0:
            statement = table.exact(None, metadata=False, vector=False, bounded=False, recall=kind)
            rows = await tx.all(statement, tenant=tenant_id, query=query, row_limit=top_k)
        else:
            statement = table.indexed_search(None, metadata=False, vector=False, recall=kind)
            rows = await tx.all(
                statement,
                tenant=tenant_id,
                query=query,
                effort=str(effort),
                scan_limit=scan_limit(table),
                row_limit=top_k * fetch if kind == "filtered" else top_k + 8,
                bound=top_k,
            )
        results.append({(str(row[3]), str(row[2])) for row in rows})
    return results


def scan_limit(table: CollectionStatements) -> str:
    """Return how far an iterative scan may go: `hnsw.max_scan_tuples` or `ivfflat.max_probes`."""
    return "200000" if table.options.type == "hnsw" else str(table.options.lists)


async def measure_recall(
    executor: Executor,
    schema: str,
    table: CollectionStatements,
    tenant_id: str,
    state: IndexState,
    queries: NDArray[np.float32],
    sources: Sequence[Set[Pair]],
    *,
    top_k: int = 10,
    adapt: bool = True,
) -> IndexState:
    """Return `state` with the recall measured; when `adapt`, with the least effort that meets the target.

    Args:
        executor: The database.
        schema: Where the extension lies.
        table: The collection's.
        tenant_id: Whose documents.
        state: Of the index.
        queries: Shape (queries, dimension).
        sources: Of each query the documents it was made of: too easy to find, so they do not count.
        top_k: How many of the nearest are compared.
        adapt: False measures the efforts in use.
    """
    packed = pack_vectors(queries)
    wanted = top_k + max((len(item) for item in sources), default=0)

    async def found(kind: str, effort: int, fetch: int = 1) -> List[Set[Pair]]:
        # in slices, so that no call comes near its deadline
        results: List[Set[Pair]] = []
        for start in range(0, len(packed), 5):
            part = packed[start : start + 5]
            results += await executor.run(_found, schema, table, tenant_id, part, kind, wanted, effort, fetch)
        return [pairs - made_of for pairs, made_of in zip(results, sources)]

    ladder = efforts(table) if adapt else (state.effort,)
    truth = await found("plain", 0)
    for effort in ladder:
        recall, error = _share(truth, await found("plain", effort))
        state = replace(state, effort=effort, recall=recall)
        if recall - error >= table.options.target_recall:
            break
    truth = await found("filtered", 0)
    steps = [(effort, fetch) for effort in ladder if effort >= state.effort for fetch in _FETCHES]
    if not adapt:
        steps = [(state.filtered_effort, state.filtered_fetch)]
    for effort, fetch in steps:
        recall, error = _share(truth, await found("filtered", effort, fetch))
        state = replace(state, filtered_effort=effort, filtered_fetch=fetch, filtered_recall=recall)
        if recall - error >= FILTERED_TARGET:
            break
    return state


def _share(truth: Sequence[Set[Any]], found: Sequence[Set[Any]]) -> Tuple[float, float]:
    """Return the share of the true nearest that was found, and its standard error."""
    shares = [len(near & got) / len(near) for near, got in zip(truth, found) if near]
    if not shares:
        return 1.0, 0.0
    return float(np.mean(shares)), float(np.std(shares)) / len(shares) ** 0.5

"""Each vector provider beside the direct use of its own client: `make bench BENCH_ARGS="--only vectors-chroma"`.

Documents are loaded in batches, ours and the client's by turns, into collections of the same kind; then both answer the
same queries by turns. Promised: a search costs at most 10 % + 0.2 ms more than the client's, a bulk upsert 20 %. Recall at 10
is measured against NumPy in float64 and stands beside the speed. "clustered" data is easy, as embeddings of text are;
"gaussian" is hard: independent numbers, where nothing is much nearer than the rest.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any, Awaitable, Callable, Dict, List, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import Report, Row
from modules.storage.vectors.models import VectorDocument

__all__ = ["TOP_K", "Peer", "Workload", "contest", "make_data", "workload"]

TOP_K = 10
#: A call that stores documents or finds ids.
Store = Callable[[Sequence[VectorDocument]], Awaitable[Any]]
Find = Callable[[NDArray[np.float32]], Awaitable[List[str]]]


@dataclass(frozen=True)
class Peer:
    """Two ways to one engine.

    Attributes:
        group: In the table.
        store: Ours, then the client's.
        find: Ours, then the client's; both find in what was stored by each.
        loaded: Called when everything is stored, for example to build the index.
        upsert_rows_per_s: Promised of ours; None: nothing.
        search_ratio: Promised instead of 10 % + 0.2 ms: ours to the peer's p50.
        exact: Recall is promised to be 1.
    """

    group: str
    store: Sequence[Store]
    find: Sequence[Find]
    loaded: Optional[Callable[[], Awaitable[None]]] = None
    upsert_rows_per_s: Optional[float] = None
    search_ratio: Optional[float] = None
    exact: bool = False


@dataclass(frozen=True)
class Workload:
    """What is stored and asked.

    Attributes:
        label: In the table.
        documents: To store.
        data: Their vectors, unit length, shape (rows, dimension).
        queries: Unit length, shape (queries, dimension).
        batch: Documents in an upsert.
    """

    label: str
    documents: List[VectorDocument]
    data: NDArray[np.float32]
    queries: NDArray[np.float32]
    batch: int


def make_data(kind: str, rows: int, dimension: int, seed: int) -> NDArray[np.float32]:
    """Return vectors of length 1, shape (rows, dimension)."""
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((rows, dimension), dtype=np.float32)
    if kind == "clustered":
        centres = np.random.default_rng(0).standard_normal((1000, dimension), dtype=np.float32)
        data = centres[rng.integers(0, 1000, rows)] + np.float32(0.5) * data
    lengths: NDArray[np.float32] = data / np.linalg.norm(data, axis=1, keepdims=True)
    return lengths


def workload(kind: str, rows: int, dimension: int, *, queries: int = 60, batch: int = 1000) -> Workload:
    """Return documents as an application has them: a short text, three fields of metadata."""
    data = make_data(kind, rows, dimension, 1)
    documents = [
        VectorDocument(
            f"d{n}", row, f"text {n}", {"hundred": n % 100, "lang": "en" if n % 2 else "de", "n": n}
        )
        for n, row in enumerate(data)
    ]
    return Workload(
        f"{kind}, {rows:,} x {dimension}", documents, data, make_data(kind, queries, dimension, 2), batch
    )


async def contest(report: Report, peer: Peer, load: Workload) -> None:
    """Measure and add the rows to `report`."""
    await _contest_upsert(report, peer, load)
    if peer.loaded is not None:
        await peer.loaded()
    await _contest_search(report, peer, load)


async def _contest_upsert(report: Report, peer: Peer, load: Workload) -> None:
    spent: List[List[float]] = [[], []]
    for number, start in enumerate(range(0, len(load.documents), load.batch)):
        part = load.documents[start : start + load.batch]
        # by turns, so that neither always meets the other's page cache or a busy moment
        for side in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            await peer.store[side](part)
            spent[side].append(time.perf_counter() - begun)
    ours, theirs = (len(load.documents) / sum(one) for one in spent)
    detail = f"{theirs:,.0f} rows/s to {ours:,.0f} rows/s"
    if peer.upsert_rows_per_s is not None:
        report.rows.append(
            Row(
                peer.group,
                f"bulk upsert, {load.label}",
                ">=",
                peer.upsert_rows_per_s,
                ours,
                "rows/s",
                f"plain client {theirs:,.0f} rows/s",
            )
        )
        return
    # the median of pairs: a batch that met a busy machine or a checkpoint does not decide
    over = [100 * (mine / its - 1) for mine, its in zip(*spent)]
    report.rows.append(
        Row(
            peer.group,
            f"bulk upsert over its client, {load.label}",
            "<=",
            20,
            statistics.median(over),
            "%",
            detail,
            (min(over), max(over)),
        )
    )


async def _contest_search(report: Report, peer: Peer, load: Workload) -> None:
    for side in (0, 1):
        await peer.find[side](load.queries[0])
    spent: List[List[float]] = [[], []]
    answers: List[List[List[str]]] = [[], []]
    for number, query in enumerate(load.queries):
        for side in (0, 1) if number % 2 else (1, 0):
            begun = time.perf_counter()
            found = await peer.find[side](query)
            spent[side].append((time.perf_counter() - begun) * 1000)
            answers[side].append(found)
    ours, theirs = (statistics.median(one) for one in spent)
    recalls = [_recall(load, found) for found in answers]
    detail = f"{theirs:.2f} ms to {ours:.2f} ms; recall@10 {recalls[1]:.3f} to {recalls[0]:.3f}"
    if peer.search_ratio is not None:
        report.rows.append(
            Row(
                peer.group,
                f"search p50 to the plain one, {load.label}",
                "<=",
                peer.search_ratio,
                ours / theirs,
                "x",
                detail,
            )
        )
    else:
        report.rows.append(
            Row(
                peer.group,
                f"search p50 above 1.1x its client, {load.label}",
                "<=",
                0.2,
                ours - 1.1 * theirs,
                "ms",
                detail,
            )
        )
    target = 1.0 if peer.exact else 0.99
    report.rows.append(
        Row(
            peer.group,
            f"recall@10, {load.label}",
            ">=",
            target,
            recalls[0],
            "",
            f"the client's own {recalls[1]:.3f}",
        )
    )


def _recall(load: Workload, answers: Sequence[Sequence[str]]) -> float:
    wide = load.data.astype(np.float64)
    hits = 0
    for query, found in zip(load.queries, answers):
        scores = wide @ query.astype(np.float64)
        nearest: Dict[str, bool] = {f"d{n}": True for n in np.argpartition(-scores, TOP_K)[:TOP_K]}
        hits += sum(item in nearest for item in found[:TOP_K])
    return hits / (TOP_K * len(answers))

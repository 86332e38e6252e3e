"""The measurement of an index on pgvector: its queries are as hard as real ones, and the effort that it chooses is enough."""

from __future__ import annotations

from typing import Any, AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from modules.storage.vectors.base import VectorDocument
from tests.support.pgvector import open_pgvector

pytest.importorskip("asyncpg", reason="no PostgreSQL driver")
from modules.storage.vectors.pgvector_index import fresh_queries, sample_size

ROWS, DIMENSION, CLUSTERS = 2_000, 512, 500


def clustered(rows: int, seed: int) -> Any:
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(5).standard_normal((CLUSTERS, DIMENSION), dtype=np.float32)
    noise = np.float32(0.5) * chance.standard_normal((rows, DIMENSION), dtype=np.float32)
    return centres[chance.integers(0, CLUSTERS, rows)] + noise


@pytest_asyncio.fixture
async def provider(databases: Any, postgres: Any) -> AsyncIterator[Any]:
    async with open_pgvector(databases.url("postgresql")) as opened:
        yield opened


async def build(provider: Any, **index: Any) -> None:
    """Fill a collection and give it a poor index, so that what is measured differs from 1."""
    await provider.create_collection("docs", DIMENSION, index={"m": 4, "ef_construction": 10, **index})
    stored = clustered(ROWS, 1)
    await provider.upsert("docs", [VectorDocument(f"d{n}", row) for n, row in enumerate(stored)])
    await provider.rebuild_index("docs")


@pytest.mark.postgresql
async def test_made_queries_are_no_easier_than_those_from_outside(provider: Any) -> None:
    await build(provider, target_recall=0.5)
    made = await provider.recall("docs", 400, adapt=False)
    outside = await provider.recall("docs", queries=list(clustered(400, 2)), adapt=False)
    assert outside.recall < 0.97, "this index finds everything, so nothing is compared"
    # queries between two stored vectors, which were used once, found 0.06 to 0.07 more than those from outside
    assert made.recall <= outside.recall + 0.05


@pytest.mark.postgresql
async def test_the_chosen_effort_is_enough_for_queries_from_outside(provider: Any) -> None:
    await build(provider, target_recall=0.9)
    state = await provider.index_state("docs")
    assert state.recall >= 0.9, "the index is not used, so nothing is compared"
    report = await provider.recall("docs", queries=list(clustered(300, 3)), adapt=False)
    assert report.state.effort == state.effort
    # 0.93 to 0.94 in 8 builds; by an unlucky sample the effort below is chosen, which gives 0.88
    assert report.recall >= 0.85


def test_made_queries_lie_some_way_off_what_they_were_made_of() -> None:
    stored = clustered(100, 1)
    stored[7] = 0
    drawn = [(("default", f"d{n}"), row) for n, row in enumerate(stored)]
    queries, made_of = fresh_queries(drawn)
    assert queries.shape == stored.shape
    assert queries.dtype == np.float32
    assert made_of == [{("default", f"d{n}")} for n in range(100)]
    assert np.isfinite(queries).all()
    assert np.linalg.norm(queries[7]) == pytest.approx(1, rel=1e-5)
    others = np.delete(np.arange(100), 7)
    products = np.sum(queries * stored, axis=1)[others]
    cosines = products / np.linalg.norm(queries, axis=1)[others] / np.linalg.norm(stored, axis=1)[others]
    assert cosines.min() > 0.5
    assert cosines.max() < 0.85
    assert cosines.mean() == pytest.approx(0.707, abs=0.03)


@pytest.mark.parametrize(
    ("rows", "dimension", "size"), [(0, 8, 100), (20_000, 1536, 100), (200_000, 384, 52), (10**7, 384, 30)]
)
def test_where_exact_answers_are_dear_fewer_are_asked_for(rows: int, dimension: int, size: int) -> None:
    assert sample_size(rows, dimension) == size

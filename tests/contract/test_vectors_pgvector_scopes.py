"""Searches without a filter on pgvector: the first look at the index, and what follows where that is not enough."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, AsyncIterator, List

import numpy as np
import pytest
import pytest_asyncio

from modules.storage.vectors.base import VectorDocument
from modules.store_common.deadlines import deadline_after
from tests.support.pgvector import open_pgvector

pytestmark = pytest.mark.postgresql

ROWS = 2000


@pytest_asyncio.fixture
async def provider(databases: Any, postgres: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """A provider that looks at no more than fifty rows one by one, so that small collections go through the index."""
    from modules.storage.vectors.pgvector_search import Plan

    monkeypatch.setattr(Plan, "few", 51)
    async with open_pgvector(databases.url("postgresql")) as opened:
        yield opened


def vectors(count: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)


async def fill(provider: Any, namespace: str, count: int, seed: int) -> Any:
    matrix = vectors(count, seed)
    documents = [VectorDocument(f"{namespace}{n:04d}", row) for n, row in enumerate(matrix)]
    await provider.upsert("docs", documents, namespace=namespace)
    return matrix


def nearest(matrix: Any, query: Any, namespace: str, top_k: int) -> List[str]:
    wide = matrix.astype(np.float64)
    order = np.argsort(-(wide @ query) / np.linalg.norm(wide, axis=1))
    return [f"{namespace}{n:04d}" for n in order[:top_k]]


@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
async def test_a_scope_with_a_small_part_of_the_table_is_answered_in_full(provider: Any, kind: str) -> None:
    await provider.create_collection("docs", 16, index={"type": kind, "lists": 20})
    whole = {"big": await fill(provider, "big", ROWS, 1), "rare": await fill(provider, "rare", 80, 2)}
    await provider.rebuild_index("docs")
    if kind == "hnsw":
        # not what was measured, which may be high enough for the small part as well
        physical, state = next(iter(provider._states.items()))
        provider._states[physical] = replace(state, effort=40)
    hits = {"big": 0, "rare": 0}
    for query in vectors(8, 3):
        for namespace, matrix in whole.items():
            # the second time it is known that the scope is a small part
            for _ in range(2):
                found = await provider.search("docs", query, top_k=10, namespace=namespace)
                assert len(found) == 10
                assert found.complete
                assert [hit.score for hit in found] == sorted((hit.score for hit in found), reverse=True)
                assert {hit.document.namespace for hit in found} == {namespace}
                hits[namespace] += len(
                    {hit.document.id for hit in found} & set(nearest(matrix, query, namespace, 10))
                )
    assert min(hits.values()) >= 0.75 * 8 * 2 * 10
    remembered = {scope[2] for scope in provider._sparse._found}
    assert remembered <= {"rare"}
    assert remembered or kind == "ivfflat"


async def test_more_rows_than_the_first_look_gives_are_all_there(provider: Any) -> None:
    await provider.create_collection("docs", 16)
    await fill(provider, "big", ROWS, 1)
    await provider.rebuild_index("docs")
    for top_k in (1, 40, 64, 65, 300):
        assert len(await provider.search("docs", vectors(1, 4)[0], top_k=top_k, namespace="big")) == top_k


async def test_the_kept_plan_scans_the_index_however_many_small_tenants_there_are(provider: Any) -> None:
    """Seen: 3 ms of a tenant with nine tenths of the table became 50 ms with the sixth search on a connection."""
    await provider.create_collection("docs", 16)
    await fill(provider, "big", ROWS, 1)
    await provider.rebuild_index("docs")
    physical = next(iter(provider._tables))
    index = (await provider.index_state("docs")).index
    async with provider._executor.pool().connection(deadline_after(60.0)) as raw:
        await raw.execute(
            f"INSERT INTO \"{physical}\" SELECT 't' || row_number() OVER (), namespace, id, embedding, content, metadata,"
            f' search, created_at FROM "{physical}" LIMIT 1000'
        )
        await raw.execute(f'ANALYZE "{physical}"')
    for query in vectors(12, 5):
        assert len(await provider.search("docs", query, top_k=10, namespace="big")) == 10
    async with provider._executor.pool().connection(deadline_after(60.0)) as raw:
        kept = await raw.fetch(
            "SELECT name, statement, generic_plans FROM pg_prepared_statements WHERE statement LIKE $1",
            f"%FROM {physical}%LIMIT 10",
        )
        assert [row["generic_plans"] > 0 for row in kept] == [True]
        vector = "[" + ",".join("1" for _ in range(16)) + "]"
        plan = await raw.fetch(f"EXPLAIN EXECUTE {kept[0]['name']} ('{vector}', '40', 'default', 'big')")
    told = "\n".join(row[0] for row in plan)
    assert f"Index Scan using {index}" in told
    assert "Sort" not in told

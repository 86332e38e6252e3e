"""The contract of the vector stores on pgvector, and what is pgvector's own: index, recall, options, shared tables."""

from __future__ import annotations

import asyncio
import time
from typing import Any, AsyncIterator, Callable, Dict, List, Optional

import numpy as np
import pytest
import pytest_asyncio

from modules.storage.vectors.base import VectorDocument, VectorProvider
from modules.storage.vectors.errors import VectorCollectionError, VectorNotFoundError
from modules.storage.vectors.models import DistanceMetric
from modules.storage.vectors.testing import VectorProviderContract
from modules.store_common.errors import InvalidValueError, NotConfiguredError
from modules.store_common.tenancy import TenantPolicy

pytestmark = pytest.mark.postgresql


@pytest_asyncio.fixture
async def pg_pool(databases: Any, postgres: Any) -> AsyncIterator[Any]:
    from modules.storage.pool import SQLPool
    from modules.storage.settings import StorageSettings

    made = SQLPool(StorageSettings.from_dict({"sql": {"url": databases.url("postgresql")}}).sql)
    await made.initialize()
    try:
        yield made
    finally:
        await made.shutdown()


class TestContract(VectorProviderContract):
    @pytest.fixture
    def make_provider(self, pg_pool: Any) -> Callable[..., VectorProvider]:
        from modules.storage.vectors.pgvector import PgvectorProvider

        def make(tenancy: Optional[TenantPolicy] = None) -> VectorProvider:
            return PgvectorProvider(pg_pool.executor, tenancy=tenancy)

        return make


@pytest_asyncio.fixture
async def provider(pg_pool: Any) -> AsyncIterator[Any]:
    from modules.storage.vectors.pgvector import PgvectorProvider

    made = PgvectorProvider(pg_pool.executor, build_threshold=1000, build_quiet_s=0.0)
    await made.initialize()
    try:
        yield made
    finally:
        await made.shutdown()


def documents(count: int, dimension: int = 16, seed: int = 1) -> List[VectorDocument]:
    matrix = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return [
        VectorDocument(
            f"d{number:05d}", row, metadata={"n": number, "ten": number % 10, "tags": [f"t{number % 3}"]}
        )
        for number, row in enumerate(matrix)
    ]


async def tables(pool: Any) -> List[str]:
    from modules.storage.backends.postgresql import PostgreSQLBackend

    names = await PostgreSQLBackend(pool).get_table_names()
    return [name for name in names if name.startswith("atlas_pgvector_c_")]


def truth(query: Any, given: List[VectorDocument], top_k: int) -> List[str]:
    matrix = np.stack([np.asarray(item.vector) for item in given]).astype(np.float64)
    values = matrix @ query / (np.linalg.norm(matrix, axis=1) * np.linalg.norm(query))
    return [given[position].id for position in np.argsort(-values)[:top_k]]


async def test_search_through_the_index_is_full_and_meets_its_target(provider: Any) -> None:
    given = documents(6000)
    await provider.create_collection("docs", 16)
    await provider.upsert("docs", given)
    info = await provider.rebuild_index("docs")
    assert info.index_type == "hnsw"
    state = await provider.index_state("docs")
    assert state.rows == 6000
    assert state.index
    for chosen, kept in (
        (None, given),
        ({"ten": {"$lt": 9}}, [item for item in given if item.metadata["ten"] < 9]),
        ({"n": {"$lt": 7}}, given[:7]),
    ):
        hits = 0
        for seed in range(10):
            query = np.random.default_rng(100 + seed).normal(size=16)
            found = await provider.search("docs", query, top_k=10, filter=chosen)
            assert len(found) == min(10, len(kept))
            assert found.complete
            hits += len({hit.document.id for hit in found} & set(truth(query, kept, 10)))
        assert hits >= (0.95 if len(kept) > 10 else 1.0) * 10 * min(10, len(kept))


async def test_recall_below_the_target_is_answered_exactly(provider: Any, pg_pool: Any) -> None:
    """The state of an index that finds too little makes searches exact; where that is too dear, results say so."""
    from dataclasses import replace

    from modules.storage.vectors import pgvector_search

    given = documents(25_000, dimension=8)
    await provider.create_collection("docs", 8, metric=DistanceMetric.EUCLIDEAN)
    await provider.upsert("docs", given)
    await provider.rebuild_index("docs")
    report = await provider.recall("docs", 10, adapt=False)
    assert 0.9 < report.recall <= 1.0
    known = await provider.get_collection("docs")
    assert known is not None
    assert known.count == 25_000
    physical = next(iter(provider._states))
    provider._states[physical] = replace(provider._states[physical], recall=0.5, effort=1)
    found = await provider.search("docs", given[7].vector, top_k=1)
    assert found.complete
    assert found[0].document.id == given[7].id
    provider._states[physical] = replace(provider._states[physical], rows=pgvector_search.EXACT_NUMBERS)
    doubtful = await provider.search("docs", given[7].vector, top_k=1)
    assert not doubtful.complete
    assert "0.50" in doubtful.reason


async def test_a_search_starts_the_index_of_a_grown_collection(provider: Any) -> None:
    await provider.create_collection("docs", 16)
    await provider.upsert("docs", documents(1500))
    await provider.search("docs", np.ones(16))
    build = next(iter(provider._builds.values()))
    await asyncio.wait_for(build, 60)
    assert (await provider.index_state("docs")).rows == 1500
    known = await provider.get_collection("docs")
    assert known is not None
    assert known.index_type == "hnsw"


async def test_a_bulk_load_builds_the_index_at_its_end(provider: Any) -> None:
    await provider.create_collection("docs", 16)
    async with provider.bulk_load("docs"):
        for start in range(0, 2000, 500):
            await provider.upsert("docs", documents(2000)[start : start + 500])
            assert (await provider.index_state("docs")).index == ""
    assert (await provider.index_state("docs")).rows == 2000


async def _until_scanned(pool: Any, index: str) -> None:
    """Wait until the server has counted a scan of the index: each of its processes tells what it did, later."""
    from modules.storage.backends.postgresql import PostgreSQLBackend

    backend, end = PostgreSQLBackend(pool), time.monotonic() + 60
    while True:
        await backend.execute_sql("SELECT pg_stat_force_next_flush()")
        rows = await backend.execute_sql(
            "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = :name", {"name": index}
        )
        if rows[0]["idx_scan"] > 0:
            return
        assert time.monotonic() < end, f"{index} was not used"
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
@pytest.mark.parametrize("metric", list(DistanceMetric))
async def test_the_index_is_of_the_metric_and_used(
    provider: Any, pg_pool: Any, kind: str, metric: DistanceMetric
) -> None:

    given = documents(3000)
    await provider.create_collection("docs", 16, metric=metric, index={"type": kind, "lists": 20})
    await provider.upsert("docs", given)
    await provider.rebuild_index("docs")
    name = (await provider.index_state("docs")).index
    query = np.random.default_rng(5).normal(size=16)
    before = {
        hit.document.id for hit in await provider.search("docs", query, top_k=10, filter={"n": {"$gte": 0}})
    }
    assert len(before) == 10
    await _until_scanned(pg_pool, name)


async def test_halfvec_by_option_and_above_2000_dimensions(provider: Any, pg_pool: Any) -> None:
    from modules.storage.backends.postgresql import PostgreSQLBackend

    small, wide = documents(50, 8), documents(20, 2500)
    await provider.create_collection("half", 8, index={"halfvec": True})
    await provider.upsert("half", small)
    await provider.rebuild_index("half")
    found = await provider.search("half", small[3].vector, top_k=1, include_vectors=True)
    assert found[0].document.id == small[3].id
    assert np.allclose(found[0].document.vector, small[3].vector, rtol=2e-3)
    await provider.create_collection("wide", 2500)
    await provider.upsert("wide", wide)
    assert (await provider.rebuild_index("wide")).index_type == "hnsw"
    got = await provider.get("wide", [wide[4].id])
    assert np.array_equal(got[0].vector, np.asarray(wide[4].vector))
    rows = await PostgreSQLBackend(pg_pool).execute_sql(
        "SELECT indexdef FROM pg_indexes WHERE indexdef LIKE '%halfvec_cosine_ops%'"
    )
    assert len(rows) == 2
    await provider.create_collection("huge", 5000)
    await provider.upsert("huge", documents(3, 5000))
    assert (await provider.rebuild_index("huge")).index_type == "exact"
    with pytest.raises(VectorCollectionError, match="4000"):
        await provider.create_collection("refused", 5000, index={"type": "hnsw"})


@pytest.mark.parametrize(
    "index",
    [
        {"type": "flat"},
        {"m": 1},
        {"m": True},
        {"m": 64, "ef_construction": 64},
        {"lists": 0},
        {"halfvec": 1},
        {"index_metadata": "key"},
        {"index_metadata": [""]},
        {"target_recall": 0.2},
    ],
)
async def test_wrong_options_are_refused(provider: Any, index: Dict[str, Any]) -> None:
    with pytest.raises((VectorCollectionError, InvalidValueError)):
        await provider.create_collection("docs", 4, index=index)
    assert await provider.list_collections() == []


@pytest.mark.parametrize("key", ["year", "it's", 'a"b', ":year", "back\\slash", "per%cent", "x$1", "naïve"])
async def test_an_indexed_key_gives_the_same_rows(provider: Any, pg_pool: Any, key: str) -> None:
    from modules.storage.vectors.filters import matches, parse_filter

    values: List[Any] = [
        1,
        1.0,
        2,
        -3,
        True,
        False,
        None,
        "1",
        "b",
        [],
        [1],
        [2, "b"],
        [[1]],
        {},
        {"x": 1},
        1e300,
    ]
    given = [VectorDocument(f"v{n:02d}", [1, n], metadata={key: value}) for n, value in enumerate(values)]
    given.append(VectorDocument("missing", [1, 1]))
    await provider.create_collection("docs", 2, index={"index_metadata": [key]})
    await provider.upsert("docs", given)
    filters: List[Dict[str, Any]] = [{key: value} for value in (1, 2.0, True, None, "b", "1")]
    filters += [{key: {op: 1}} for op in ("$ne", "$gt", "$gte", "$lt", "$lte")]
    filters += [{key: {"$lt": "b"}}, {key: {"$gte": "1"}}, {"$not": {key: 1}}, {key: {"$nin": [1, "b"]}}]
    for given_filter in filters:
        tree = parse_filter(given_filter)
        expected = sorted(item.id for item in given if matches(tree, item.metadata))
        page = await provider.scroll("docs", filter=given_filter)
        assert [item.id for item in page.items] == expected, given_filter


async def test_the_index_on_a_key_is_used(provider: Any, pg_pool: Any) -> None:
    from modules.storage.backends.postgresql import PostgreSQLBackend

    await provider.create_collection("docs", 16, index={"index_metadata": ["n"]})
    await provider.upsert("docs", documents(5000))
    backend = PostgreSQLBackend(pg_pool)
    table = (await tables(pg_pool))[0]
    await backend.execute_sql("ANALYZE")
    for _ in range(10):
        assert await provider.count("docs", namespace="default", filter={"n": {"$gte": 10, "$lt": 20}}) == 10
    await _until_scanned(pg_pool, f"{table}_k0")


async def test_large_numbers_and_nul_compare_as_python_does(provider: Any) -> None:
    from modules.storage.vectors.filters import matches, parse_filter

    values = [
        2**62,
        2.0**62,
        2**62 + 1,
        1e300,
        9007199254740993,
        9007199254740992.0,
        "a\x00",
        "a\x01",
        "a",
        "a\ue000",
    ]
    given = [VectorDocument(f"v{n}", [1, n], metadata={"k": value}) for n, value in enumerate(values)]
    await provider.create_collection("docs", 2)
    await provider.upsert("docs", given)
    for value in values:
        for operator in ("$eq", "$gt", "$lte"):
            tree = parse_filter({"k": {operator: value}})
            expected = [item.id for item in given if matches(tree, item.metadata)]
            page = await provider.scroll("docs", filter={"k": {operator: value}})
            assert [item.id for item in page.items] == expected, (operator, value)


async def test_tenants_share_a_table_until_the_last_has_left(pg_pool: Any) -> None:
    from modules.storage.vectors.pgvector import PgvectorProvider

    provider = PgvectorProvider(pg_pool.executor)
    await provider.initialize()
    for tenant in ("a", "b"):
        await provider.create_collection("docs", 16, tenant_id=tenant)
        await provider.upsert("docs", documents(10), tenant_id=tenant)
    assert len(await tables(pg_pool)) == 1
    assert await provider.delete_collection("docs", tenant_id="a")
    assert await provider.count("docs", tenant_id="b") == 10
    with pytest.raises(VectorNotFoundError):
        await provider.count("docs", tenant_id="a")
    assert await provider.delete_collection("docs", tenant_id="b")
    assert await tables(pg_pool) == []
    await provider.shutdown()


async def test_a_collection_deleted_elsewhere_takes_no_more_documents(pg_pool: Any) -> None:
    """Its table may live on with another tenant; an upsert by a provider that still knows it must not leave rows."""
    from modules.storage.vectors.pgvector import PgvectorProvider

    one, two = PgvectorProvider(pg_pool.executor), PgvectorProvider(pg_pool.executor)
    await one.initialize()
    await two.initialize()
    for tenant in ("a", "b"):
        await one.create_collection("docs", 16, tenant_id=tenant)
    await one.upsert("docs", documents(1), tenant_id="a")
    assert await two.delete_collection("docs", tenant_id="a")
    with pytest.raises(VectorNotFoundError):
        await one.upsert("docs", documents(3), tenant_id="a")
    await two.create_collection("docs", 16, tenant_id="a")
    assert await two.count("docs", tenant_id="a") == 0
    await one.shutdown()
    await two.shutdown()


@pytest.mark.parametrize("backend", ["postgresql"], indirect=True)
async def test_writes_join_a_unit_of_work(storage: Any) -> None:
    from modules.storage.vectors.pgvector import PgvectorProvider

    provider = PgvectorProvider(storage.executor)
    await provider.initialize()
    await provider.create_collection("docs", 16)
    with pytest.raises(ZeroDivisionError):
        async with storage.unit_of_work() as uow:
            joined = provider.within(uow.kv._executor)
            await joined.upsert("docs", documents(5))
            assert await joined.count("docs") == 5
            raise ZeroDivisionError
    assert await provider.count("docs") == 0
    async with storage.unit_of_work() as uow:
        await provider.within(uow.kv._executor).upsert("docs", documents(5))
    assert await provider.count("docs") == 5
    await provider.shutdown()


async def test_another_dialect_is_refused(tmp_path: Any) -> None:
    from modules.storage.pool import SQLPool
    from modules.storage.settings import StorageSettings
    from modules.storage.vectors.pgvector import PgvectorProvider

    pool = SQLPool(StorageSettings.from_dict({"sql": {"url": f"sqlite:///{tmp_path}/a.sqlite3"}}).sql)
    await pool.initialize()
    with pytest.raises(NotConfiguredError, match="PostgreSQL"):
        await PgvectorProvider(pool.executor).initialize()
    await pool.shutdown()


@pytest.mark.parametrize(
    ("version", "ok"), [("0.7.4", False), ("0.8.0", True), ("0.10.1", True), ("1.0", True), ("0.5", False)]
)
def test_old_versions_are_refused(version: str, ok: bool) -> None:
    from modules.storage.vectors.pgvector_schema import _check_version

    if ok:
        _check_version(version, version)
        return
    with pytest.raises(NotConfiguredError, match=r"0\.8 or newer"):
        _check_version(version, version)


@pytest.mark.parametrize("name", ["", "A", 'a"b', "a" * 64, "1a", "a;", "a\n"])
def test_the_quoter_refuses_what_is_not_a_plain_name(name: str) -> None:
    from modules.storage.vectors.pgvector_options import quote_identifier

    with pytest.raises(InvalidValueError):
        quote_identifier(name)

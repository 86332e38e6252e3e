"""The vector contract on Chroma, embedded and server, and what is Chroma's own: its clauses, rows and limits."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, Iterator, List, Mapping, Optional

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

pytest.importorskip("chromadb", minversion="1", reason="the package chromadb is not installed")

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.chroma import ChromaProvider
from modules.storage.vectors.chroma_filters import (
    MAX_FIELDS,
    Both,
    Either,
    Plan,
    candidate_plan,
    flat_fields,
)
from modules.storage.vectors.chroma_names import document_id, physical_name, split_id
from modules.storage.vectors.chroma_search import SearchLimits
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.filters import matches, parse_filter
from modules.storage.vectors.models import DistanceMetric, VectorDocument
from modules.storage.vectors.testing import VectorProviderContract
from modules.storage.vectors.testing_base import vectors_of
from modules.store_common.errors import InvalidValueError
from modules.store_common.tenancy import TenantPolicy
from tests.support.chroma import ChromaServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    running = ChromaServer(tmp_path_factory.mktemp("chroma-server"))
    running.start()
    yield running
    running.stop()


class TestChromaEmbedded(VectorProviderContract):
    @pytest.fixture
    def make_provider(self, tmp_path: Any) -> Callable[..., VectorProvider]:
        def make(tenancy: Optional[TenantPolicy] = None, **settings: Any) -> VectorProvider:
            return ChromaProvider(persist_directory=str(tmp_path / "chroma"), tenancy=tenancy, **settings)

        return make


class TestChromaServer(VectorProviderContract):
    # a collection of the server takes longer to make
    fuzz = 1000 if os.environ.get("ATLAS_TEST_FULL") else 200
    odd_names = 50

    @pytest.fixture
    def make_provider(self, server: ChromaServer) -> Callable[..., VectorProvider]:
        database = server.make_database()

        def make(tenancy: Optional[TenantPolicy] = None, **settings: Any) -> VectorProvider:
            return ChromaProvider(
                host="127.0.0.1",
                port=server.port,
                chroma_database=database,
                tenancy=tenancy,
                **settings,
            )

        return make


def _found(plan: Optional[Plan], fields: Mapping[str, Any]) -> bool:
    """What Chroma would say of a row: the plan, or the mark of a row with too many fields."""
    return "x" in fields or _passes(plan, fields)


def _passes(plan: Optional[Plan], fields: Mapping[str, Any]) -> bool:
    if plan is None:
        return True
    if isinstance(plan, Both):
        return all(_passes(part, fields) for part in plan.parts)
    if isinstance(plan, Either):
        return any(_passes(part, fields) for part in plan.parts)
    ((key, condition),) = plan.where.items()
    ((operator, operand),) = condition.items()
    if key not in fields:
        return False
    value = fields[key]
    if operator == "$eq":
        return type(value) is type(operand) and bool(value == operand)
    if operator == "$in":
        return value in operand
    return bool(value >= operand if operator == "$gte" else value <= operand)


_scalars = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -0.0, 1.0, 1.5, "", "1", "a", "~a", 2**53 + 1, 2.0**53, 1e308]),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
)
_keys = st.sampled_from(["a", "b", "a.b", "", "~x", "k" * 200])
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_keys, inner, max_size=3)),
    max_leaves=6,
)
_paths = st.sampled_from(["a", "b", "a.b", "a.a.b", "~x", "k" * 200])


def _conditions(draw: Any) -> Any:
    operator = draw(st.sampled_from(["$eq", "$ne", "$in", "$nin", "$exists", "$gt", "$gte", "$lt", "$lte"]))
    if operator in ("$in", "$nin"):
        return {operator: draw(st.lists(_scalars, max_size=4))}
    if operator == "$exists":
        return {operator: draw(st.booleans())}
    if operator in ("$eq", "$ne"):
        return {operator: draw(_scalars)}
    return {operator: draw(_scalars.filter(lambda v: v is not None and not isinstance(v, bool)))}


_leaves = st.composite(lambda draw: {draw(_paths): _conditions(draw)})()
_filters = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(lambda parts: {"$and": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: {"$or": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: {"$not": part}, inner),
    ),
    max_leaves=5,
)


@hypothesis_settings(max_examples=400)
@given(st.dictionaries(_keys, _values, max_size=4), _filters)
def test_every_match_is_a_candidate(metadata: Dict[str, Any], wanted: Dict[str, Any]) -> None:
    tree = parse_filter(wanted)
    if matches(tree, metadata):
        assert _found(candidate_plan(tree), flat_fields(metadata))


def test_a_row_with_too_many_fields_is_always_a_candidate() -> None:
    crowded = {f"k{n}": n for n in range(MAX_FIELDS + 1)}
    assert flat_fields(crowded) == {"x": "1"}
    assert _found(candidate_plan(parse_filter({"k7": 7})), flat_fields(crowded))
    long_list = flat_fields({"tags": [str(n) for n in range(100)]})
    assert _found(candidate_plan(parse_filter({"tags": "77"})), long_list)


def test_names_are_in_chromas_rules() -> None:
    names = ["x", "", "a" * 255, "Ünï", "../..", "a b", "a_b", "1.2.3.4", "-", "docs"]
    made = {physical_name(tenant, name) for tenant in ("t", "u") for name in names}
    assert len(made) == 2 * len(names)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9-]{1,510}[a-z0-9]", name) for name in made)
    assert split_id(document_id("space one", "id é")) == ("space one", "id é")


@pytest_asyncio.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[ChromaProvider]:
    provider = ChromaProvider(persist_directory=str(tmp_path / "chroma"))
    await provider.initialize()
    yield provider
    await provider.shutdown()


def _crowd(count: int, dimension: int = 8) -> List[VectorDocument]:
    return [
        VectorDocument(f"d{n:05d}", vector, f"text {n}", {"n": n, "mod": n % 50, "tags": [f"t{n % 7}"]})
        for n, vector in enumerate(vectors_of(count, dimension))
    ]


async def _ids(provider: ChromaProvider, query: Any, **arguments: Any) -> List[str]:
    results = await provider.search("crowd", query, **arguments)
    assert results.complete, results.reason
    return [hit.document.id for hit in results]


@pytest.mark.parametrize("limits", [SearchLimits(), SearchLimits(few=5), SearchLimits(few=10**6)])
async def test_every_way_of_searching_gives_the_nearest(tmp_path: Path, limits: SearchLimits) -> None:
    documents = _crowd(1500)
    provider = ChromaProvider(persist_directory=str(tmp_path / "chroma"), limits=limits)
    await provider.initialize()
    try:
        await provider.create_collection("crowd", 8, metric=DistanceMetric.EUCLIDEAN)
        await provider.upsert("crowd", documents)
        await provider.upsert("crowd", documents[:40], namespace="small")
        matrix = np.stack([np.asarray(document.vector) for document in documents])
        for query in vectors_of(5, 8, seed=9):
            order = np.argsort(np.linalg.norm(matrix - query, axis=1), kind="stable")
            ranked = [documents[position] for position in order]
            for wanted, condition in (
                (lambda m: True, None),
                (lambda m: m["mod"] == 7, {"mod": 7}),
                (lambda m: m["n"] < 600, {"n": {"$lt": 600}}),
                (lambda m: m["n"] % 7 == 3 and m["n"] > 100, {"tags": "t3", "n": {"$gt": 100}}),
                (lambda m: m["mod"] != 1, {"$not": {"mod": 1}}),
            ):
                expected = [document.id for document in ranked if wanted(document.metadata)][:10]
                found = await _ids(provider, query, filter=condition)
                assert len(found) == 10
                assert len(set(found) & set(expected)) >= 9
            small = [document.id for document in ranked if document.metadata["n"] < 40][:10]
            assert await _ids(provider, query, namespace="small") == small
    finally:
        await provider.shutdown()


async def test_too_many_to_score_is_said(tmp_path: Path) -> None:
    provider = ChromaProvider(persist_directory=str(tmp_path / "chroma"), limits=SearchLimits(few=5, many=20))
    await provider.initialize()
    try:
        await provider.create_collection("crowd", 8)
        await provider.upsert("crowd", [replace(item, vector=[1.0] * 8) for item in _crowd(300)])
        # all are equally near: which ten have the smallest ids only a look at all of them would tell
        results = await provider.search("crowd", [1.0] * 8, top_k=10)
        assert not results.complete
        assert "300 rows" in results.reason
    finally:
        await provider.shutdown()


async def test_distances_are_chromas_own_whoever_computed_them(embedded: ChromaProvider) -> None:
    query, one, two = [1.0, 0.0], [3.0, 4.0], [1.0, 2.0]
    expected = {"cosine": 0.4, "euclidean": 20.0, "dot_product": -2.0, "inner_product": -2.0}
    for metric in DistanceMetric:
        await embedded.create_collection(metric.value, 2, metric=metric)
        await embedded.upsert(metric.value, [VectorDocument("one", one), VectorDocument("two", two)])
        handle = await embedded._space.handle("default", embedded._specs["default", metric.value])
        theirs = await embedded._link.run("ask", partial(handle.query, [query], n_results=2))
        real = dict(zip(theirs["ids"][0], theirs["distances"][0]))
        hits = await embedded.search(metric.value, query)
        assert {h.document.id: pytest.approx(h.distance, abs=1e-5) for h in hits} == {
            split_id(item)[1]: distance for item, distance in real.items()
        }
        assert next(h for h in hits if h.document.id == "one").distance == pytest.approx(
            expected[metric.value]
        )


async def test_an_upsert_beyond_the_batch_limit_is_split(embedded: ChromaProvider) -> None:
    embedded._link.max_batch = 7
    await embedded.create_collection("crowd", 8)
    assert await embedded.upsert("crowd", _crowd(50)) == 50
    assert await embedded.count("crowd") == 50
    limit = await embedded._link.run("ask", embedded._link.client.get_max_batch_size)
    assert limit >= 1000, "Chroma takes less than we send"


async def test_the_calls_run_in_our_thread_and_without_telemetry(embedded: ChromaProvider) -> None:
    assert await embedded._link.run("ask", lambda: threading.current_thread().name) == "atlas-chroma"
    assert embedded._link.client.get_settings().anonymized_telemetry is False
    await embedded.create_collection("plain", 2)
    handle = await embedded._space.handle("default", embedded._specs["default", "plain"])
    assert handle._embedding_function is None


async def test_writers_of_one_id_leave_one_whole_document(embedded: ChromaProvider) -> None:
    await embedded.create_collection("crowd", 2)
    await asyncio.gather(
        *(
            embedded.upsert("crowd", [VectorDocument("same", [1, n], f"text {n}", {f"k{n}": n})])
            for n in range(1, 15)
        )
    )
    (found,) = await embedded.get("crowd", ["same"])
    n = int(list(found.vector)[1])
    assert (found.content, dict(found.metadata)) == (f"text {n}", {f"k{n}": n})
    handle = await embedded._space.handle("default", embedded._specs["default", "crowd"])
    raw = (await embedded._link.run("ask", handle.get))["metadatas"][0]
    assert {key for key in raw if key.startswith(("e:", "n:"))} == {f"e:k{n}", f"n:k{n}"}, (
        "old fields are left"
    )
    for other in range(1, 15):
        assert await embedded.count("crowd", filter={f"k{other}": other}) == int(other == n)


async def test_rebuild_keeps_every_row(embedded: ChromaProvider) -> None:
    await embedded.create_collection("crowd", 8, metadata={"a": 1}, index={"m": 8, "ef_search": 50})
    await embedded.upsert("crowd", _crowd(300))
    await embedded.upsert("crowd", [VectorDocument("none", [1.0] * 8, None, {})], namespace="b")
    before = [item.to_dict() for item in (await embedded.scroll("crowd", limit=1000)).items]
    info = await embedded.rebuild_index("crowd")
    assert (info.count, info.metadata) == (301, {"a": 1})
    assert [item.to_dict() for item in (await embedded.scroll("crowd", limit=1000)).items] == before
    assert (await embedded.get("crowd", ["none"], namespace="b"))[0].content is None
    assert [item.name for item in await embedded.list_collections()] == ["crowd"]


async def test_a_rebuild_that_died_before_the_new_name_is_finished(embedded: ChromaProvider) -> None:
    await embedded.create_collection("crowd", 8)
    await embedded.upsert("crowd", _crowd(20))
    spec = embedded._specs["default", "crowd"]
    handle = await embedded._space.handle("default", spec)
    copy = await embedded._space.create("default", spec, suffix="-rebuild")
    await embedded._space.copy(handle, copy)
    # until here the original counts
    assert [item.count for item in await embedded.list_collections()] == [20]
    await embedded._space.drop(physical_name("default", "crowd"))
    assert [item.count for item in await embedded.list_collections()] == [20]
    assert await embedded.count("crowd") == 20


async def test_wrong_settings_are_refused(embedded: ChromaProvider) -> None:
    for bad in ({"on_damage": "ignore"}, {"timeout_s": 0}):
        with pytest.raises(InvalidValueError):
            ChromaProvider(**bad)
    for index in ({"m": 1}, {"ef_search": "100"}, {"m": True}):
        with pytest.raises(InvalidValueError):
            await embedded.create_collection("bad", 2, index=index)


async def test_a_tenant_and_database_of_chroma(tmp_path: Path) -> None:
    path = str(tmp_path / "chroma")
    one = ChromaProvider(persist_directory=path, chroma_tenant="acme", chroma_database="docs")
    two = ChromaProvider(persist_directory=path)
    await one.initialize()
    await two.initialize()
    try:
        await one.create_collection("mine", 2)
        assert await two.list_collections() == []
        assert await two.get_collection("mine") is None
    finally:
        await one.shutdown()
        await two.shutdown()


async def test_a_database_that_the_server_does_not_have(server: ChromaServer) -> None:
    provider = ChromaProvider(host="127.0.0.1", port=server.port, chroma_database="nowhere")
    with pytest.raises(VectorCollectionError, match="no database 'nowhere'"):
        await provider.initialize()
    assert not provider.is_initialized


async def _check_numbers(provider: ChromaProvider) -> None:
    made = np.random.default_rng(4)
    numbers = (made.normal(size=60) * 10.0 ** made.integers(-300, 300, 60)).tolist()
    numbers += [0.1, 2.0**53, 1e308, 5e-324, -1.5]
    await provider.create_collection("numbers", 2)
    await provider.upsert(
        "numbers", [VectorDocument(f"d{n}", [1, n], None, {"v": v}) for n, v in enumerate(numbers)]
    )
    for n, value in enumerate(numbers):
        for condition in (value, {"$gte": value, "$lte": value}):
            (hit,) = await provider.search("numbers", [1, 1], filter={"v": condition})
            assert hit.document.id == f"d{n}"
            assert await provider.count("numbers", filter={"v": condition}) == 1
        assert await provider.count("numbers", filter={"v": {"$gt": value, "$lte": value}}) == 0


async def test_numbers_are_found_though_chroma_reads_them_inexactly(
    embedded: ChromaProvider, server: ChromaServer
) -> None:
    await _check_numbers(embedded)
    remote = ChromaProvider(host="127.0.0.1", port=server.port, chroma_database=server.make_database())
    await remote.initialize()
    try:
        await _check_numbers(remote)
    finally:
        await remote.shutdown()

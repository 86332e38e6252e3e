"""Pinecone when it is slow, busy, gone or late: what a caller sees, and that limits are kept before anything is sent."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, List, Tuple

import httpx
import numpy as np
import pytest
import pytest_asyncio

pytest.importorskip("pinecone", minversion="10", reason="the package pinecone (10 or later) is not installed")
pytest.importorskip("aiohttp", reason="the package aiohttp, for the emulator, is not installed")

from modules.storage.vectors import pinecone_search
from modules.storage.vectors.errors import (
    VectorCollectionError,
    VectorNotFoundError,
    VectorRateLimitedError,
    VectorStoreError,
    VectorUnavailableError,
)
from modules.storage.vectors.models import DistanceMetric, VectorDocument
from modules.storage.vectors.pinecone import PineconeProvider
from modules.store_common.deadlines import deadline
from modules.store_common.errors import InvalidValueError, MissingDependencyError
from tests.emulators.pinecone import PineconeEmulator
from tests.support.leaks import wait_until
from tests.support.timing import assert_in_time

MakeOpen = Callable[..., Awaitable[PineconeProvider]]


@pytest_asyncio.fixture
async def emulator() -> AsyncIterator[PineconeEmulator]:
    async with PineconeEmulator() as running:
        yield running
    running.check()


def new_provider(emulator: PineconeEmulator, **settings: Any) -> PineconeProvider:
    given: Dict[str, Any] = {"api_key": emulator.api_key, "host": emulator.host, "dimension": 2}
    return PineconeProvider(**{**given, **settings})


@pytest_asyncio.fixture
async def make(emulator: PineconeEmulator) -> AsyncIterator[MakeOpen]:
    opened: List[PineconeProvider] = []

    async def open_one(**settings: Any) -> PineconeProvider:
        provider = new_provider(emulator, **settings)
        await provider.initialize()
        opened.append(provider)
        return provider

    yield open_one
    for provider in opened:
        await provider.shutdown()


def documents(count: int, dimension: int = 2) -> List[VectorDocument]:
    matrix = np.random.default_rng(1).normal(size=(count, dimension))
    return [VectorDocument(f"d{n:05d}", row, metadata={"n": n}) for n, row in enumerate(matrix)]


async def filled(provider: PineconeProvider, count: int = 3) -> PineconeProvider:
    await provider.create_collection("docs", 2)
    await provider.upsert("docs", documents(count))
    return provider


# --- busy, gone, silent -------------------------------------------------------------------------------------------


async def test_a_throttled_call_waits_as_long_as_asked_and_succeeds(
    emulator: PineconeEmulator, make: MakeOpen
) -> None:
    provider = await filled(await make())
    emulator.fault("throttle", times=2, path="/query", retry_after="0.1")
    started = time.monotonic()
    assert len(await provider.search("docs", [1, 0])) == 3
    assert time.monotonic() - started >= 0.2
    assert emulator.count("/query") == 3


async def test_throttling_beyond_the_budget_is_told_at_once(
    emulator: PineconeEmulator, make: MakeOpen
) -> None:
    provider = await filled(await make())
    emulator.fault("throttle", times=50, path="/query", retry_after="30")
    started = time.monotonic()
    with pytest.raises(VectorRateLimitedError) as caught, deadline(5.0):
        await provider.search("docs", [1, 0])
    assert_in_time(started, 2.0, "waiting although the answer to come is known")
    assert caught.value.retryable
    assert emulator.count("/query") == 1


async def test_throttling_without_retry_after_is_repeated_until_the_budget_ends(
    emulator: PineconeEmulator, make: MakeOpen
) -> None:
    provider = await filled(await make())
    emulator.fault("throttle", times=1000, path="/query")
    with pytest.raises(VectorRateLimitedError), deadline(4.0):
        await provider.search("docs", [1, 0])
    assert 2 <= emulator.count("/query") <= 60


@pytest.mark.parametrize("kind", ["drop", "unavailable", "lose"])
async def test_a_passing_fault_is_not_seen(emulator: PineconeEmulator, make: MakeOpen, kind: str) -> None:
    provider = await filled(await make())
    emulator.fault(kind, times=2, path="/vectors/upsert")
    assert await provider.upsert("docs", [VectorDocument("again", [1, 1])]) == 1
    emulator.fault(kind, times=2, path="/query")
    assert len(await provider.search("docs", [1, 0])) == 4
    emulator.fault(kind, times=1, path="/vectors/delete")
    assert await provider.delete("docs", ["again"]) == 1
    assert await provider.count("docs") == 3


@pytest.mark.parametrize("kind", ["drop", "unavailable", "hang"])
async def test_a_lasting_fault_ends_within_the_deadline(
    emulator: PineconeEmulator, make: MakeOpen, kind: str
) -> None:
    provider = await filled(await make())
    emulator.fault(kind, times=1000, path="/query")
    started = time.monotonic()
    with pytest.raises(VectorUnavailableError) as caught, deadline(0.5):
        await provider.search("docs", [1, 0])
    assert_in_time(started, 3)
    assert caught.value.retryable and caught.value.__cause__ is not None  # noqa: PT018


async def test_the_health_check_answers_within_its_time(emulator: PineconeEmulator, make: MakeOpen) -> None:
    provider = await make()
    assert await provider.health_check(timeout=60) is True
    emulator.fault("hang", times=10, path="/describe_index_stats")
    started = time.monotonic()
    assert await provider.health_check(timeout=0.3) is False
    assert_in_time(started, 2)


async def test_nobody_listens() -> None:
    provider = PineconeProvider(api_key="k", host="http://127.0.0.1:9", timeout_s=0.4)
    with pytest.raises(VectorUnavailableError):
        await provider.initialize()
    assert not provider.is_initialized


@pytest.mark.parametrize("kind", ["garbage", "refuse"])
async def test_a_wrong_answer_is_our_error_and_tells_no_secret(
    emulator: PineconeEmulator, make: MakeOpen, kind: str
) -> None:
    provider = await filled(await make())
    emulator.fault(kind, path="/query")
    with pytest.raises(VectorStoreError) as caught:
        await provider.search("docs", [0.123456, 0])
    assert emulator.api_key not in f"{caught.value!r} {caught.value}"
    assert "0.123456" not in str(caught.value)


_READS: List[Tuple[str, Callable[[PineconeProvider], Awaitable[Any]]]] = [
    ("/vectors/fetch", lambda provider: provider.get("docs", ["d00000"])),
    ("/query", lambda provider: provider.search("docs", [1, 0])),
    ("/vectors/list", lambda provider: provider.clear_namespace("docs")),
    ("/vectors/fetch_by_metadata", lambda provider: provider.delete_where("docs", {"n": 1})),
]


@pytest.mark.parametrize(("path", "read"), _READS)
async def test_a_namespace_that_is_not_there_is_empty_but_an_index_is_an_error(
    emulator: PineconeEmulator,
    make: MakeOpen,
    path: str,
    read: Callable[[PineconeProvider], Awaitable[Any]],
) -> None:
    provider = await filled(await make())
    emulator.fault("no-namespace", path=path)
    assert not await read(provider)
    emulator.fault("no-index", path=path)
    with pytest.raises(VectorStoreError, match="not found"):
        await read(provider)


@pytest.mark.parametrize("kind", ["no-namespace", "no-index"])
async def test_an_upsert_that_is_not_found_is_never_a_success(
    emulator: PineconeEmulator, make: MakeOpen, kind: str
) -> None:
    provider = await filled(await make())
    emulator.fault(kind, path="/vectors/upsert")
    with pytest.raises(VectorStoreError, match="not found"):
        await provider.upsert("docs", documents(1))


async def test_a_wrong_key_is_told_and_leaves_nothing_open(emulator: PineconeEmulator) -> None:
    provider = new_provider(emulator, api_key="wrong-key-9876543210")
    with pytest.raises(VectorStoreError, match="API key") as caught:
        await provider.initialize()
    assert "wrong-key" not in f"{caught.value!r} {caught.value}"
    assert not provider.is_initialized


def test_settings_are_checked_without_io() -> None:
    wrong: List[Dict[str, Any]] = [
        {"api_key": " "}, {"index_name": "Upper"}, {"index_name": "-x"}, {"index_name": "x" * 46}, {"namespace": ""},
        {"namespace": "é"}, {"dimension": 0}, {"metric": "hamming"},
    ]  # fmt: skip
    for settings in wrong:
        with pytest.raises(InvalidValueError):
            PineconeProvider(**{"api_key": "k", **settings})
    assert "secret-key" not in repr(vars(PineconeProvider(api_key="secret-key")))


async def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pinecone", None)
    with pytest.raises(MissingDependencyError, match=r"atlas-storage\[pinecone\]"):
        await PineconeProvider(api_key="k").initialize()


# --- indexes ------------------------------------------------------------------------------------------------------


async def test_an_index_that_becomes_ready_is_waited_for() -> None:
    async with PineconeEmulator(ready_after_describes=3) as emulator:
        emulator.fault("lose", path="/indexes")  # it is made, the answer is lost, the second attempt finds it
        provider = new_provider(emulator)
        await provider.initialize()
        assert await provider.list_collections() == []
        await provider.shutdown()
        assert [
            item.status for item in emulator.seen if item.method == "POST" and item.path == "/indexes"
        ] == [201, 409]
        emulator.check()


async def test_an_index_that_does_not_become_ready_is_an_error() -> None:
    async with PineconeEmulator(ready_after_describes=10_000) as emulator:
        with pytest.raises(VectorUnavailableError, match="not ready"):
            await new_provider(emulator, ready_timeout_s=0.3).initialize()
        emulator.check()
    async with PineconeEmulator() as emulator:
        emulator.final_state = "InitializationFailed"
        with pytest.raises(VectorStoreError, match="InitializationFailed"):
            await new_provider(emulator).initialize()
        emulator.check()


async def test_one_index_for_each_dimension_and_metric(emulator: PineconeEmulator, make: MakeOpen) -> None:
    provider = await make(cloud="gcp", region="europe-west4")
    for name, dimension, metric in (
        ("a", 2, DistanceMetric.COSINE), ("b", 2, DistanceMetric.COSINE), ("c", 3, DistanceMetric.COSINE),
        ("d", 3, DistanceMetric.EUCLIDEAN), ("e", 3, DistanceMetric.DOT_PRODUCT), ("f", 3, DistanceMetric.INNER_PRODUCT),
    ):  # fmt: skip
        await provider.create_collection(name, dimension, metric=metric)
    async with httpx.AsyncClient() as client:
        headers = {"Api-Key": emulator.api_key, "X-Pinecone-Api-Version": "2026-04"}
        listed = (await client.get(f"{emulator.host}/indexes", headers=headers)).json()["indexes"]
    assert {(item["name"], item["dimension"], item["metric"]) for item in listed} == {
        ("atlas-vectors", 2, "cosine"),
        ("atlas-vectors-3-cosine", 3, "cosine"),
        ("atlas-vectors-3-euclidean", 3, "euclidean"),
        ("atlas-vectors-3-dotproduct", 3, "dotproduct"),
    }
    places = {(item["spec"]["serverless"]["cloud"], item["spec"]["serverless"]["region"]) for item in listed}
    assert places == {("gcp", "europe-west4")}


# --- eventual consistency -----------------------------------------------------------------------------------------


async def test_a_write_is_late_unless_one_waits(emulator: PineconeEmulator, make: MakeOpen) -> None:
    provider = await filled(await make())
    emulator.delay_visibility(reads=6)
    await provider.upsert("docs", [VectorDocument("late", [1, 0])])
    assert await provider.get("docs", ["late"]) == []
    await provider.upsert("docs", [VectorDocument("awaited", [1, 0])], wait=True)
    assert [item.id for item in await provider.get("docs", ["awaited", "late"])] == ["awaited", "late"]
    assert {hit.document.id for hit in await provider.search("docs", [1, 0], top_k=2)} == {"awaited", "late"}


async def test_waiting_is_for_searches_and_not_only_for_fetches(
    emulator: PineconeEmulator, make: MakeOpen
) -> None:
    provider = await filled(await make())
    emulator.delay_visibility(queries=3)
    await provider.upsert("docs", [VectorDocument("late", [1, 0])])
    assert len(await provider.get("docs", ["late"])) == 1
    assert "late" not in {hit.document.id for hit in await provider.search("docs", [1, 0])}
    await provider.upsert("docs", [VectorDocument("awaited", [1, 0])], wait=True)
    assert "awaited" in {hit.document.id for hit in await provider.search("docs", [1, 0])}


async def test_of_two_that_create_one_collection_the_earlier_is_told(
    emulator: PineconeEmulator, make: MakeOpen
) -> None:
    one, two = await make(), await make()
    emulator.delay_visibility(seconds=3600)
    both = [asyncio.ensure_future(item.create_collection("docs", 2)) for item in (one, two)]
    await wait_until(lambda: emulator.count("/vectors/upsert") == 2, 60)
    emulator.show()
    results = await asyncio.gather(*both, return_exceptions=True)
    assert sorted(type(item).__name__ for item in results) == ["CollectionInfo", "VectorCollectionError"]


async def test_what_a_failed_deletion_left_is_not_seen_by_a_successor(
    emulator: PineconeEmulator, make: MakeOpen
) -> None:
    provider = await filled(await make())
    emulator.fault("refuse", path="/namespaces/*")
    with pytest.raises(VectorStoreError):
        await provider.delete_collection("docs")
    assert await provider.get_collection("docs") is None
    await provider.create_collection("docs", 2)
    assert await provider.count("docs") == 0
    assert list(await provider.search("docs", [1, 0])) == []
    assert await provider.get("docs", ["d00000"]) == []


async def test_waiting_ends_with_an_error(emulator: PineconeEmulator, make: MakeOpen) -> None:
    provider = await filled(await make(visibility_timeout_s=0.3, wait_for_visibility=True))
    emulator.delay_visibility(seconds=3600)
    with pytest.raises(VectorUnavailableError, match="not show"):
        await provider.upsert("docs", [VectorDocument("never", [1, 0])])
    with pytest.raises(VectorUnavailableError, match="still shows"):
        await provider.delete("docs", ["d00000"])
    assert await provider.upsert("docs", [VectorDocument("not awaited", [1, 0])], wait=False) == 1


async def test_a_waiting_provider_reads_what_it_wrote(emulator: PineconeEmulator, make: MakeOpen) -> None:
    emulator.delay_visibility(reads=4)
    provider = await filled(await make(wait_for_visibility=True, keep_created_at=True), 12)
    assert len(await provider.search("docs", [1, 0], top_k=100)) == 12
    (first,) = await provider.get("docs", ["d00001"])
    await provider.upsert("docs", [VectorDocument("d00001", [5, 5], metadata={"n": -1})])
    (again,) = await provider.get("docs", ["d00001"])
    assert (again.created_at, dict(again.metadata)) == (first.created_at, {"n": -1})
    assert await provider.delete("docs", ["d00001", "d00002"]) == 2
    assert await provider.get("docs", ["d00001", "d00002"]) == []
    assert await provider.delete_where("docs", {"n": {"$gte": 10}}) == 2
    assert len(await provider.search("docs", [1, 0], top_k=100)) == 8


async def test_collections_are_always_waited_for(emulator: PineconeEmulator, make: MakeOpen) -> None:
    emulator.delay_visibility(reads=3)
    one, two = await make(), await make()
    await one.create_collection("docs", 2)
    assert [info.name for info in await two.list_collections()] == ["docs"]
    with pytest.raises(VectorCollectionError):
        await two.create_collection("docs", 2)
    assert await one.delete_collection("docs") is True
    assert await two.get_collection("docs") is None


async def test_another_process_deletes_and_makes_the_collection_anew(make: MakeOpen) -> None:
    one, two = await make(), await make(registry_ttl_s=0.0)
    await filled(one)
    assert len(await two.search("docs", [1, 0])) == 3
    await one.delete_collection("docs")
    with pytest.raises(VectorNotFoundError):
        await two.search("docs", [1, 0])
    await one.create_collection("docs", 2)
    assert list(await two.search("docs", [1, 0])) == []
    await one.delete_collection("docs")
    await one.create_collection("docs", 3)
    with pytest.raises(VectorCollectionError, match="anew"):
        await two.search("docs", [1, 0])
    assert await two.upsert("docs", [VectorDocument("x", [1, 2, 3])]) == 1


# --- limits -------------------------------------------------------------------------------------------------------


async def test_batches_keep_the_number_and_the_bytes(emulator: PineconeEmulator, make: MakeOpen) -> None:
    provider = await make()
    await provider.create_collection("docs", 2)
    assert await provider.upsert("docs", documents(2500)) == 2500
    assert emulator.count("/vectors/upsert") == 1 + 3
    assert await provider.count("docs") == 2500
    await provider.create_collection("wide", 1536)
    before = emulator.count("/vectors/upsert")
    wide = [VectorDocument(f"w{n}", row.vector, "x" * 20_000) for n, row in enumerate(documents(90, 1536))]
    assert await provider.upsert("wide", wide) == 90
    sizes = [item.size_bytes for item in emulator.seen if item.path == "/vectors/upsert"][before:]
    assert len(sizes) >= 3
    assert max(sizes) <= 2 * 1024 * 1024
    assert min(sorted(sizes)[1:]) > 1024 * 1024, "batches are much smaller than they may be"


async def test_metadata_over_40_kb_is_refused_before_anything_is_sent(
    emulator: PineconeEmulator, make: MakeOpen
) -> None:
    provider = await filled(await make())
    before = emulator.count("/vectors/upsert")
    for content, metadata in (
        ("x" * 41_000, {}),
        (None, {"long": "é" * 21_000}),
        ("x" * 21_000, {"y": "y" * 20_000}),
    ):
        with pytest.raises(InvalidValueError, match="document 1"):
            await provider.upsert(
                "docs", [VectorDocument("fine", [1, 0]), VectorDocument("big", [1, 0], content, metadata)]
            )
    assert emulator.count("/vectors/upsert") == before
    with pytest.raises(InvalidValueError, match="metadata"):
        await provider.create_collection("other", 2, metadata={"long": "x" * 41_000})
    assert [info.name for info in await provider.list_collections()] == ["docs"]


async def test_metadata_whose_tokens_do_not_fit_is_still_found(make: MakeOpen) -> None:
    provider = await filled(await make())
    many: Dict[str, Any] = {"tags": [str(number) for number in range(2000)]}
    await provider.upsert("docs", [VectorDocument("many", [1, 0], metadata=many)])
    for wanted in ({"tags": "1999"}, {"tags": {"$in": ["7", "x"]}}, {"$not": {"n": {"$gte": 0}}}):
        assert [hit.document.id for hit in await provider.search("docs", [1, 0], filter=wanted)] == ["many"]
    assert list(await provider.search("docs", [1, 0], filter={"tags": "2000"})) == []
    assert await provider.count("docs", filter={"tags": "5"}) == 1


async def test_a_large_answer_is_fetched_in_parts(emulator: PineconeEmulator, make: MakeOpen) -> None:
    provider = await make()
    await provider.create_collection("docs", 2)
    await provider.upsert(
        "docs", [VectorDocument(row.id, row.vector, "x" * 15_000) for row in documents(400)]
    )
    results = await provider.search("docs", [1, 0], top_k=400)
    assert results.complete
    assert len(results) == 400
    assert {len(hit.document.content or "") for hit in results} == {15_000}


async def test_a_filter_that_cannot_be_answered_fully_says_so(
    make: MakeOpen, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await make()
    await provider.create_collection("docs", 2)
    near = [VectorDocument(f"near{n:03d}", [1, n / 1000], metadata={"kind": "near"}) for n in range(300)]
    far = [VectorDocument(f"far{n}", [-1, n], metadata={"kind": "far"}) for n in range(5)]
    await provider.upsert("docs", near + far)
    wanted = {"$not": {"kind": "near"}}
    results = await provider.search("docs", [1, 0], top_k=3, filter=wanted)
    assert (len(results), results.complete) == (3, True)
    monkeypatch.setattr(pinecone_search, "MAX_TOP_K", 200)
    cut = await provider.search("docs", [1, 0], top_k=3, filter=wanted)
    assert (list(cut), cut.complete) == ([], False)
    assert "200" in cut.reason
    asked = await provider.search("docs", [1, 0], top_k=3, filter={"kind": "far"})
    assert (len(asked), asked.complete) == (3, True)

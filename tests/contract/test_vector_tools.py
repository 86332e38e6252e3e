"""The tools' vector store: the adapter over providers, the service, the registry and the three functions."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any, AsyncIterator, List

import pytest

from modules.storage import get_storage_manager, reset_storage_manager
from modules.storage.manager import StorageManager
from modules.storage.vectors.adapter import VectorProviderAdapter
from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorDimensionError, VectorFilterError
from modules.storage.vectors.in_memory import InMemoryProvider
from modules.store_common import vector_records
from modules.store_common.errors import AlreadyExistsError, InvalidValueError, NotConfiguredError
from modules.Tools.Base_Tools import vector_store
from modules.Tools.Base_Tools.vector_store import (
    QueryResponse,
    UpsertResponse,
    VectorRecord,
    VectorStoreAdapter,
    VectorStoreService,
    available_vector_store_adapters,
    build_vector_store_service,
    create_storage_manager_adapter,
    create_vector_store_adapter,
    delete_namespace,
    query_vectors,
    register_storage_manager_adapter,
    register_vector_store_adapter,
    set_vector_store_provider,
    upsert_vectors,
)


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_store, "_factories", dict(vector_store._factories))
    monkeypatch.setattr(vector_store, "_provider", None)


@pytest.fixture(params=["in_memory", "sqlite"])
async def provider(
    request: pytest.FixtureRequest, tmp_path: Path, leaks: Any
) -> AsyncIterator[VectorProvider]:
    if request.param == "in_memory":
        made = InMemoryProvider()
        await made.initialize()
        yield made
        await made.shutdown()
        return
    async with StorageManager({"sql": {"path": str(tmp_path / "db.sqlite3")}}) as storage:
        yield storage.vectors


@pytest.fixture
def adapter(provider: VectorProvider) -> VectorProviderAdapter:
    return VectorProviderAdapter(provider, collection_prefix="tools-")


RECORDS = [
    VectorRecord("a", (1.0, 0.0, 0.0), {"year": 2024, "tags": ["x", None]}, "about a"),
    VectorRecord("b", (0.8, 0.6, 0.0), {"year": 2019}),
    VectorRecord("c", (0.0, 0.0, 2.0)),
]


async def test_the_first_vectors_make_the_namespace(adapter: VectorProviderAdapter) -> None:
    assert await adapter.upsert_vectors("notes", []) == UpsertResponse("notes", (), 0)
    assert await adapter.provider.list_collections() == [], "nothing to know its dimension from"

    answer = await adapter.upsert_vectors("notes", RECORDS)

    assert answer == UpsertResponse("notes", ("a", "b", "c"), 3)
    [made] = await adapter.provider.list_collections()
    assert (made.name, made.dimension, made.count, made.metric.value) == ("tools-notes", 3, 3, "cosine")


async def test_a_query_finds_the_nearest(adapter: VectorProviderAdapter) -> None:
    await adapter.upsert_vectors("notes", RECORDS)

    answer = await adapter.query_vectors("notes", [2.0, 0.0, 0.0], top_k=2)

    assert [match.id for match in answer.matches] == ["a", "b"]
    assert answer.matches[0].score == pytest.approx(1.0, abs=1e-4)
    assert answer.matches[1].score == pytest.approx(0.8, abs=1e-4)
    assert answer.matches[0].metadata == {"year": 2024, "tags": ["x", None]}
    assert (answer.matches[0].content, answer.matches[0].values) == ("about a", None)
    assert (answer.top_k, answer.complete, answer.reason) == (2, True, "")

    filtered = await adapter.query_vectors(
        "notes", [2.0, 0.0, 0.0], metadata_filter={"year": {"$lt": 2020}}, include_values=True
    )
    assert [match.id for match in filtered.matches] == ["b"]
    assert filtered.matches[0].values == pytest.approx((0.8, 0.6, 0.0))


async def test_a_namespace_that_is_not_there(adapter: VectorProviderAdapter) -> None:
    assert await adapter.query_vectors("absent", [1.0], top_k=5) == QueryResponse("absent", (), 5)
    assert (await adapter.delete_namespace("absent")).deleted is False
    with pytest.raises(VectorFilterError):
        await adapter.query_vectors("absent", [1.0], metadata_filter={"$nonsense": 1})
    with pytest.raises(InvalidValueError):
        await adapter.query_vectors("absent", [1.0], top_k=0)


async def test_deleted_and_made_again_with_another_dimension(adapter: VectorProviderAdapter) -> None:
    await adapter.upsert_vectors("notes", RECORDS)
    with pytest.raises(VectorDimensionError):
        await adapter.upsert_vectors("notes", [VectorRecord("d", (1.0, 2.0))])
    assert (await adapter.delete_namespace("notes")).deleted is True
    await adapter.upsert_vectors("notes", [VectorRecord("d", (1.0, 2.0))])
    assert [match.id for match in (await adapter.query_vectors("notes", (1.0, 2.0))).matches] == ["d"]


@pytest.mark.parametrize(
    "wrong",
    [
        [VectorRecord("a", (1.0, 2.0)), VectorRecord("b", (1.0, 2.0, 3.0))],
        [VectorRecord("a", (math.nan, 1.0))],
        [VectorRecord("a", (0.0, 0.0))],
        [VectorRecord("a", ())],
        [VectorRecord("a", 7)],  # type: ignore[arg-type]
        [VectorRecord("a", (1.0,), {"bad": {1, 2}})],  # type: ignore[dict-item]
        [{"id": "a", "values": [1.0]}],
        "text",
    ],
    ids=str,
)
async def test_what_is_refused_makes_no_namespace(adapter: VectorProviderAdapter, wrong: Any) -> None:
    with pytest.raises(InvalidValueError):
        await adapter.upsert_vectors("notes", wrong)
    assert await adapter.provider.list_collections() == []


async def test_ids_of_the_answer(adapter: VectorProviderAdapter) -> None:
    records = [VectorRecord("a", (1.0,)), VectorRecord("", (2.0,)), VectorRecord("a", (-1.0,))]
    answer = await adapter.upsert_vectors("notes", records)
    assert answer.upserted_count == 2
    made, last = answer.ids
    assert last == "a"
    assert made
    found = await adapter.query_vectors("notes", [1.0])
    assert [match.id for match in found.matches] == [made, "a"], "the last of two with one id counts"


async def test_first_upserts_at_the_same_time(adapter: VectorProviderAdapter) -> None:
    answers = await asyncio.gather(
        *(adapter.upsert_vectors("notes", [VectorRecord(str(n), (1.0, float(n)))]) for n in range(20))
    )
    assert sum(answer.upserted_count for answer in answers) == 20
    assert len((await adapter.query_vectors("notes", [1.0, 0.0], top_k=50)).matches) == 20


async def test_prefixes_and_tenants_are_apart(provider: VectorProvider) -> None:
    one, other = (VectorProviderAdapter(provider, collection_prefix=prefix) for prefix in ("one-", "other-"))
    await one.upsert_vectors("notes", RECORDS, tenant_id="acme")
    await one.upsert_vectors("notes", [VectorRecord("z", (1.0,))], tenant_id="globex")
    assert (await other.query_vectors("notes", [1.0, 0.0, 0.0], tenant_id="acme")).matches == ()
    assert len((await one.query_vectors("notes", [1.0], tenant_id="globex")).matches) == 1
    assert (await one.delete_namespace("notes", tenant_id="globex")).deleted is True
    assert len((await one.query_vectors("notes", [1.0, 0.0, 0.0], tenant_id="acme")).matches) == 3


async def test_a_namespace_made_by_hand(provider: VectorProvider) -> None:
    adapter = VectorProviderAdapter(provider, default_dimension=7)
    assert await adapter.ensure_namespace("notes") is True
    assert await adapter.ensure_namespace("notes", dimension=9) is False
    assert await adapter.ensure_namespace("others", dimension=2) is True
    assert [made.dimension for made in await provider.list_collections()] == [7, 2]


@pytest.mark.parametrize(
    "wrong", [{"collection_prefix": 3}, {"default_dimension": 0}, {"collection_prefix": "\n"}]
)
def test_wrong_arguments(wrong: Any) -> None:
    with pytest.raises(InvalidValueError):
        VectorProviderAdapter(InMemoryProvider(), **wrong)


# --- service, registry, functions ---------------------------------------------------------------------------------


async def test_the_service_takes_mappings(adapter: VectorProviderAdapter) -> None:
    service = VectorStoreService(adapter)
    given: List[Any] = [
        {"id": "a", "values": [1.0, 0.0], "metadata": {"n": 1}},
        {"values": [0.0, 1.0], "content": "x"},
    ]
    answer = await service.upsert_vectors("notes", [*given, VectorRecord("c", (1.0, 1.0))])
    assert answer.upserted_count == 3
    for wrong in ([{"id": "a"}], [7], {"id": "a", "values": [1.0]}, [{"values": [1.0], "vector": [1.0]}]):
        with pytest.raises(InvalidValueError):
            await service.upsert_vectors("notes", wrong)  # type: ignore[arg-type]


async def test_the_functions_answer_in_json(adapter: VectorProviderAdapter) -> None:
    service = build_vector_store_service(adapter)
    stored = await upsert_vectors("notes", RECORDS, service=service)
    found = await query_vectors("notes", [1, 0, 0], top_k=1, include_values=True, service=service)
    gone = await delete_namespace("notes", service=service)
    assert json.loads(json.dumps([stored, found, gone])) == [
        {"namespace": "notes", "ids": ["a", "b", "c"], "upserted_count": 3},
        {
            "namespace": "notes",
            "matches": [
                {
                    "id": "a",
                    "score": pytest.approx(1.0),
                    "metadata": {"year": 2024, "tags": ["x", None]},
                    "content": "about a",
                    "values": [1.0, 0.0, 0.0],
                }
            ],
            "top_k": 1,
            "complete": True,
            "reason": "",
        },
        {"namespace": "notes", "deleted": True},
    ]


async def test_the_registry(adapter: VectorProviderAdapter) -> None:
    assert available_vector_store_adapters() == ["storage"]
    register_vector_store_adapter("mine", lambda config: adapter)
    assert create_vector_store_adapter("mine") is adapter
    with pytest.raises(AlreadyExistsError, match="mine"):
        register_vector_store_adapter("mine", lambda config: adapter)
    register_vector_store_adapter("mine", create_storage_manager_adapter, replace=True)
    register_storage_manager_adapter()
    register_storage_manager_adapter()
    assert available_vector_store_adapters() == ["mine", "storage", "storage_manager"]
    register_vector_store_adapter("theirs", lambda config: adapter)
    with pytest.raises(AlreadyExistsError):
        register_storage_manager_adapter("theirs")
    with pytest.raises(NotConfiguredError, match="known are mine, storage"):
        create_vector_store_adapter("nobody's")


async def test_without_a_manager_it_says_what_to_do() -> None:
    with pytest.raises(NotConfiguredError, match="get_storage_manager"):
        await query_vectors("notes", [1.0])
    with pytest.raises(InvalidValueError, match="collection_prefix, default_dimension"):
        create_storage_manager_adapter({"prefix": "x"})


async def test_the_managers_store(tmp_path: Path) -> None:
    await reset_storage_manager()
    try:
        storage = await get_storage_manager({"sql": {"path": str(tmp_path / "db.sqlite3")}})
        register_storage_manager_adapter()
        service = build_vector_store_service("storage_manager", {"collection_prefix": "tools-"})
        await service.upsert_vectors("notes", RECORDS)
        assert [made.name for made in await storage.vectors.list_collections()] == ["tools-notes"]
        await upsert_vectors("plain", RECORDS)
        assert (await query_vectors("plain", [0, 0, 1], top_k=1))["matches"][0]["id"] == "c"
    finally:
        await reset_storage_manager()
    with pytest.raises(NotConfiguredError, match="get_storage_manager"):
        await service.query_vectors("notes", [1.0, 0.0, 0.0])
    set_vector_store_provider(None)


def test_the_records_are_one_and_need_no_numpy() -> None:
    assert vector_store.VectorRecord is vector_records.VectorRecord
    program = "import sys, modules.Tools.Base_Tools.vector_store; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_adapter_keeps_the_protocol() -> None:
    kept: VectorStoreAdapter = VectorProviderAdapter(InMemoryProvider())
    assert kept

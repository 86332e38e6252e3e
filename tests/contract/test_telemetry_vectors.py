"""What monitoring is told of vector stores: those outside of the SQL database by their calls, those inside by its operations."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, List, Tuple

import pytest

from modules.storage import telemetry_vectors
from modules.storage.manager import StorageManager
from modules.storage.vectors.base import VectorDocument
from modules.storage.vectors.engine import VectorEngine
from modules.storage.vectors.errors import VectorCollectionError, VectorDimensionError
from modules.store_common.clock import utc_now

Calls = Dict[Tuple[str, str, str], int]
Opened = Callable[..., Any]


def calls_of(storage: StorageManager) -> Calls:
    """Return the calls of the vector stores by back end, operation and outcome."""
    return {
        (item.backend, item.operation, item.outcome): item.calls
        for item in storage.metrics.snapshot()
        if item.store == "vectors"
    }


@asynccontextmanager
async def in_memory(directory: Path, telemetry: str) -> AsyncIterator[StorageManager]:
    async with _manager(directory, telemetry, {"backend": "in_memory"}) as storage:
        yield storage


@asynccontextmanager
async def chroma(directory: Path, telemetry: str) -> AsyncIterator[StorageManager]:
    pytest.importorskip("chromadb", reason="the package chromadb is not installed")
    kept = {"backend": "chroma", "chroma_persist_directory": str(directory / "chroma")}
    async with _manager(directory, telemetry, kept) as storage:
        yield storage


@asynccontextmanager
async def pinecone(directory: Path, telemetry: str) -> AsyncIterator[StorageManager]:
    reason = "the packages pinecone (10 or later) and aiohttp are not installed"
    pytest.importorskip("pinecone", minversion="10", reason=reason)
    pytest.importorskip("aiohttp", reason=reason)
    from tests.emulators.pinecone import PineconeEmulator

    async with PineconeEmulator() as emulator:
        kept = {"backend": "none", "pinecone_api_key": emulator.api_key, "embedding_dimension": 2}
        async with _manager(directory, telemetry, kept) as storage:
            storage.add_vector_store("pinecone", options={"host": emulator.host, "wait_for_visibility": True})
            yield storage
    emulator.check()


def _manager(directory: Path, telemetry: str, vectors: Dict[str, Any]) -> StorageManager:
    sql = {"path": str(directory / "x.db")}
    # no upkeep or health check of its own: what is counted here is what a test does
    return StorageManager({"sql": sql, "vectors": vectors, "telemetry": telemetry}, background=False)


@pytest.fixture(params=[in_memory, chroma, pinecone], ids=lambda maker: maker.__name__)
def outside(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    """Opens a manager with a vector store outside of the SQL database."""

    def opened(telemetry: str = "metrics") -> Any:
        return request.param(tmp_path, telemetry)

    return opened


async def use(storage: StorageManager) -> None:
    """Call every hook that a caller can reach but `_delete_where` and `_rebuild_index`."""
    vectors = storage.vectors
    await vectors.create_collection("docs", 2)
    old = utc_now() - timedelta(days=2)
    documents = [
        VectorDocument("a", [1.0, 0.0], created_at=old),
        VectorDocument("b", [0.0, 1.0]),
        VectorDocument("c", [1.0, 1.0]),
    ]
    for document in documents:
        await vectors.upsert("docs", [document])
    assert [hit.document.id for hit in await vectors.search("docs", [1.0, 0.0], top_k=1)] == ["a"]
    assert await vectors.delete("docs", ["c"]) == 1
    assert await vectors.delete_older("docs", utc_now() - timedelta(days=1)) == 1
    assert [document.id for document in await vectors.get("docs", ["a", "b"])] == ["b"]
    assert len((await vectors.scroll("docs")).items) == 1
    assert [info.count for info in await vectors.list_collections()] == [1]
    assert await vectors.count("docs") == 1
    assert await vectors.health_check(timeout=60)


async def test_calls_are_counted_by_store_backend_and_outcome(outside: Opened) -> None:
    async with outside() as storage:
        await use(storage)
        with pytest.raises(VectorCollectionError):
            await storage.vectors.create_collection("docs", 2)
        with pytest.raises(VectorDimensionError):
            await storage.vectors.search("docs", [1.0])
        calls = calls_of(storage)
        name = storage.vectors.name

    assert {backend for backend, _, _ in calls} == {name}
    for operation in ("get", "scroll", "count", "list_collections", "search", "delete", "ping", "initialize"):
        assert calls[name, operation, "ok"] == 1, operation
    assert calls[name, "upsert", "ok"] == 3
    assert calls[name, "delete_older", "ok"] >= 1
    assert calls[name, "create_collection", "ok"] == 1
    assert calls[name, "create_collection", "VectorCollectionError"] == 1
    refused = [key for key in calls if key[2] == "VectorDimensionError"]
    assert refused == [], "what is refused before the store is asked is no call of it"


async def test_what_a_unit_of_work_and_the_relay_do_is_counted(outside: Opened) -> None:
    async with outside() as storage:
        await storage.vectors.create_collection("docs", 2)
        async with storage.unit_of_work() as uow:
            await uow.vectors.upsert("docs", [VectorDocument("a", [1.0, 0.0])])
            assert calls_of(storage).get((storage.vectors.name, "upsert", "ok")) is None, "it is staged"
        await storage.outbox.drain()
        assert [hit.document.id for hit in await storage.vectors.search("docs", [1.0, 0.0])] == ["a"]
        assert calls_of(storage)[storage.vectors.name, "upsert", "ok"] == 1


async def test_off_means_that_nothing_is_wrapped(outside: Opened) -> None:
    async with outside("off") as storage:
        await storage.vectors.create_collection("docs", 2)
        found = vars(storage.vectors)
        assert [name for name in found if callable(found[name]) and hasattr(VectorEngine, name)] == []
        assert storage.metrics.snapshot() == []


async def test_a_store_inside_the_database_is_counted_once(migrated_settings: Any) -> None:
    async with StorageManager(
        migrated_settings.merged_with({"telemetry": "metrics"}), background=False
    ) as storage:
        await storage.ensure_schemas()
        await storage.vectors.create_collection("docs", 2)
        before = calls_of(storage)
        await storage.vectors.upsert("docs", [VectorDocument("a", [1.0, 0.0])])
        after = calls_of(storage)
        dialect = storage.executor.dialect

    assert {found for found, _, _ in after} == {dialect}
    made = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert list(made.values()) == [1], made


async def test_one_in_another_database_is_counted_by_its_calls(tmp_path: Path) -> None:
    other = StorageManager({"sql": {"path": str(tmp_path / "other.db")}}, background=False)
    async with other, in_memory(tmp_path, "metrics") as storage:
        made = storage.add_vector_store("sqlite", options={"executor": other.executor})
        await made.create_collection("docs", 2)

        assert calls_of(storage)["sqlite", "create_collection", "ok"] == 1


async def test_a_call_that_is_cancelled_is_counted_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modules.storage.vectors.in_memory import InMemoryProvider

    begun = asyncio.Event()

    async def never(self: Any, tenant_id: str) -> List[Any]:
        begun.set()
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(InMemoryProvider, "_list_collections", never)
    async with in_memory(tmp_path, "metrics") as storage:
        asked = asyncio.ensure_future(storage.vectors.list_collections())
        await begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

        assert calls_of(storage)["in_memory", "list_collections", "cancelled"] == 1


async def test_spans_name_the_call_and_the_error_but_no_content(outside: Opened) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with outside("opentelemetry") as storage:
        storage._vector_stores()._calls._spans.tracer = provider.get_tracer("test")
        await storage.vectors.create_collection("s3cr3t", 2)
        with pytest.raises(VectorCollectionError):
            await storage.vectors.create_collection("s3cr3t", 2)
        name = storage.vectors.name

    spans: List[Any] = [span for span in exporter.get_finished_spans() if "create" in span.name]
    assert [span.name for span in spans] == ["vectors.create_collection"] * 2
    assert [span.attributes["db.system.name"] for span in spans] == [name, name]
    assert [span.attributes.get("error.type") for span in spans] == [None, "VectorCollectionError"]
    assert "s3cr3t" not in "".join(span.to_json() for span in spans)


def test_every_hook_of_a_vector_store_is_watched() -> None:
    hooks = {
        name
        for name, found in vars(VectorEngine).items()
        if inspect.isfunction(found) and name not in ("shutdown", "capabilities", "is_initialized")
    }

    assert hooks == {*telemetry_vectors._CALLS, *telemetry_vectors._STEPS}

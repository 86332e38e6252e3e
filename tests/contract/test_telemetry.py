"""What monitoring is told: operations by store, name and outcome; spans through OpenTelemetry; nothing when it is off."""

from __future__ import annotations

from typing import Any, AsyncIterator, Dict, List, Tuple

import pytest

from modules.storage.manager import StorageManager
from modules.storage.telemetry import BUCKETS_S, Metrics, ObservedExecutor
from modules.store_common.errors import ConcurrencyError


async def _with(settings: Any, mode: str) -> AsyncIterator[StorageManager]:
    async with StorageManager(settings.merged_with({"telemetry": mode}), background=False) as made:
        await made.ensure_schemas()
        yield made


@pytest.fixture
async def counted(migrated_settings: Any) -> AsyncIterator[StorageManager]:
    async for made in _with(migrated_settings, "metrics"):
        yield made


def _calls(storage: StorageManager) -> Dict[Tuple[str, str, str], int]:
    """Return the calls of each series; all are the one back end's."""
    found = storage.metrics.snapshot()
    assert {item.backend for item in found} <= {storage.executor.dialect}
    return {(item.store, item.operation, item.outcome): item.calls for item in found}


async def test_operations_are_counted_by_store_and_outcome(counted: StorageManager) -> None:
    await counted.kv.set("app", "k", 1)
    await counted.kv.set("app", "k", 2)
    with pytest.raises(ConcurrencyError):
        await counted.kv.set("app", "k", 3, expected_version=1)
    chat = await counted.conversations.create_conversation()
    await counted.conversations.add_message(chat.id, role="user", content="hello")

    calls = _calls(counted)

    assert calls["kv", "set_entry", "ok"] == 2
    assert calls["kv", "set_version", "ConcurrencyError"] == 1
    assert calls["conversations", "append", "ok"] == 1
    series = next(item for item in counted.metrics.snapshot() if item.operation == "set_entry")
    assert 0 < series.total_s < 60
    assert sum(series.counts) == series.calls == 2


async def test_units_of_work_go_through_as_they_are(counted: StorageManager) -> None:
    async with counted.unit_of_work() as uow:
        await uow.kv.set("app", "k", 1)
        async with uow.session() as session:
            assert session is not None

    assert await counted.kv.get("app", "k") == 1


async def test_units_of_work_are_counted_by_how_they_end(counted: StorageManager) -> None:
    for number in range(2):
        async with counted.unit_of_work() as uow:
            await uow.kv.set("app", "k", number)
    with pytest.raises(ConcurrencyError):
        async with counted.unit_of_work() as uow:
            await uow.kv.set("app", "k", 3, expected_version=9)

    calls = _calls(counted)

    assert calls["storage", "transaction", "ok"] == 2
    assert calls["storage", "transaction", "rolled_back"] == 1
    assert ("kv", "set_entry", "ok") not in calls, "what a unit does is a part of it"


async def test_off_means_that_nothing_stands_in_between(storage: StorageManager) -> None:
    await storage.kv.set("app", "k", 1)

    assert storage.metrics.snapshot() == []
    assert not isinstance(storage.executor, ObservedExecutor)


async def test_spans_name_the_operation_and_the_error_but_no_content(migrated_settings: Any) -> None:
    pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async for storage in _with(migrated_settings, "opentelemetry"):
        storage.executor._spans.tracer = provider.get_tracer("test")  # type: ignore[attr-defined]
        await storage.kv.set("app", "s3cr3t-key", "s3cr3t-value")
        with pytest.raises(ConcurrencyError):
            await storage.kv.set("app", "s3cr3t-key", 3, expected_version=7)
    assert trace.get_tracer_provider() is not provider, "the application's own provider is left alone"

    spans: List[Any] = [span for span in exporter.get_finished_spans() if span.name.startswith("kv.set")]
    assert [span.name for span in spans] == ["kv.set_entry", "kv.set_version"]
    assert spans[0].attributes["db.system.name"] in ("sqlite", "postgresql")
    assert spans[1].attributes["error.type"] == "ConcurrencyError"
    assert "s3cr3t" not in "".join(span.to_json() for span in spans)


def test_a_time_falls_into_its_bucket() -> None:
    metrics = Metrics()
    for seconds in (0.0, BUCKETS_S[0], 0.003, 1e9):
        metrics.record("kv", "get", "ok", seconds)

    (series,) = metrics.snapshot()

    assert series.counts[0] == 2
    assert series.counts[BUCKETS_S.index(0.005)] == 1
    assert series.counts[-1] == 1
    series.counts[0] = 99
    assert metrics.snapshot()[0].counts[0] == 2, "a snapshot is a copy"

"""What `/metrics` says of the stores: operations by outcome, and the numbers of the last health check."""

from __future__ import annotations

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from modules.Server.metrics_storage import StoresCollector
from modules.storage.manager import StorageManager


def _samples(storage: Any) -> Any:
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(StoresCollector(storage))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_operations_and_health_are_told(migrated_settings: Any) -> None:
    async with StorageManager(migrated_settings.merged_with({"telemetry": "metrics"})) as storage:
        await storage.ensure_schemas()
        for number in range(3):
            await storage.kv.set("app", "k", number)
        storage.health_monitor.record(await storage.health_check())

        found = _samples(storage)

    labels = (("backend", storage.get_settings().sql.dialect.value), ("operation", "set_entry"))
    labels += (("outcome", "ok"), ("store", "kv"))
    assert found["atlas_storage_operation_seconds_count", labels] == 3
    assert found["atlas_storage_operation_seconds_bucket", (*labels[:1], ("le", "+Inf"), *labels[1:])] == 3
    assert found["atlas_kv_store_tables", ()] >= 1


async def test_a_storage_that_is_closed_gives_no_numbers(migrated_settings: Any) -> None:
    assert _samples(StorageManager(migrated_settings)) == {}

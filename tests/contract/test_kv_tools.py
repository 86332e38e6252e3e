"""The tools' layer: the adapter contract over every adapter, the service, the registry and the four functions."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, AsyncIterator, Mapping

import pytest

from modules.store_common.errors import (
    AlreadyExistsError,
    InvalidValueError,
    NotConfiguredError,
    TenantContextError,
)
from modules.store_common.tenancy import TenantPolicy, tenant_context
from modules.Tools.Base_Tools import kv_store
from modules.Tools.Base_Tools.kv_store import (
    CounterOverflowError,
    InvalidValueTypeError,
    KeyNotFoundError,
    KeyValueStore,
    KeyValueStoreAdapter,
    KeyValueStoreService,
    MemoryAdapter,
    ValueSerializationError,
    available_kv_store_adapters,
    build_kv_store_service,
    create_kv_store_adapter,
    kv_delete,
    kv_get,
    kv_increment,
    kv_set,
    register_kv_store_adapter,
    set_kv_store_provider,
)
from tests.support import kv as support

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_store, "_factories", dict(kv_store._factories))
    monkeypatch.setattr(kv_store, "_provider", None)


@pytest.fixture(params=["memory", "store", "storage"])
async def adapter(request: pytest.FixtureRequest, kv: KeyValueStore) -> AsyncIterator[KeyValueStoreAdapter]:
    if request.param == "store":
        yield kv
        return

    async def provide() -> KeyValueStoreAdapter:
        return kv

    set_kv_store_provider(provide)
    yield create_kv_store_adapter(request.param)


class TestAdapterContract:
    async def test_values_come_back(self, adapter: KeyValueStoreAdapter) -> None:
        assert await adapter.set("notes", "k", {"a": [1, None, "x\x00"]}) == 1
        assert await adapter.set("notes", "k", b"raw") == 2
        assert await adapter.get("notes", "k") == b"raw"
        assert await adapter.set("notes", "none", None) == 1
        assert await adapter.get("notes", "none", "default") is None
        assert await adapter.get("notes", "other", "default") == "default"

    async def test_what_is_stored_does_not_change_with_the_callers_object(
        self, adapter: KeyValueStoreAdapter
    ) -> None:
        value = {"list": [1]}
        await adapter.set("notes", "k", value)
        value["list"].append(2)
        found = await adapter.get("notes", "k")
        found["list"].append(3)
        assert await adapter.get("notes", "k") == {"list": [1]}

    async def test_delete(self, adapter: KeyValueStoreAdapter) -> None:
        await adapter.set("notes", "k", 1)
        assert await adapter.delete("notes", "k") is True
        assert await adapter.delete("notes", "k") is False
        assert await adapter.set("notes", "k", 1) == 1

    async def test_increment(self, adapter: KeyValueStoreAdapter) -> None:
        assert await adapter.increment("notes", "n") == 1
        sums = await asyncio.gather(*[adapter.increment("notes", "n", 2) for _ in range(50)])
        assert sorted(sums) == list(range(3, 102, 2))
        await adapter.set("notes", "text", "1")
        with pytest.raises(InvalidValueTypeError):
            await adapter.increment("notes", "text")
        await adapter.set("notes", "n", 2**63 - 1)
        with pytest.raises(CounterOverflowError):
            await adapter.increment("notes", "n")
        assert await adapter.get("notes", "n") == 2**63 - 1

    async def test_time_to_live(self, adapter: KeyValueStoreAdapter) -> None:
        await adapter.set("notes", "k", 1, ttl_seconds=0.02)
        await adapter.increment("notes", "n", ttl_seconds=0.02)
        await adapter.set("notes", "stays", 1, ttl_seconds=0)
        end = time.monotonic() + 60
        for key in ("k", "n"):
            while await adapter.get("notes", key) is not None:
                assert time.monotonic() < end, "it never expired"
                await asyncio.sleep(0.005)
        assert await adapter.delete("notes", "k") is False
        assert await adapter.increment("notes", "n") == 1
        assert await adapter.get("notes", "stays") == 1

    async def test_refusals(self, adapter: KeyValueStoreAdapter) -> None:
        for call in (
            adapter.set("", "k", 1),
            adapter.get("notes", ""),
            adapter.delete("notes", "a\x00"),
            adapter.increment("notes", "k", 2**63),
            adapter.set("notes", "k", 1, ttl_seconds=-1),
        ):
            with pytest.raises(InvalidValueError):
                await call
        with pytest.raises(ValueSerializationError):
            await adapter.set("notes", "k", object())

    async def test_tenants(self, adapter: KeyValueStoreAdapter) -> None:
        await adapter.set("notes", "k", "theirs", tenant_id="theirs")
        with tenant_context("mine"):
            assert await adapter.get("notes", "k") is None
            assert await adapter.delete("notes", "k") is False
            assert await adapter.increment("notes", "k") == 1
        assert await adapter.get("notes", "k", tenant_id="theirs") == "theirs"


@pytest.fixture
def service() -> KeyValueStoreService:
    return build_kv_store_service("memory")


async def test_the_service(service: KeyValueStoreService) -> None:
    assert await service.set_value("notes", "k", {"a": 1}) == 1
    assert await service.get_value("notes", "k") == {"a": 1}
    with pytest.raises(KeyNotFoundError):
        await service.get_value("notes", "other")
    assert await service.get_value("notes", "other", None) is None
    assert await service.increment_value("notes", "n", 5) == 5
    assert await service.delete_value("notes", "k") is True
    assert await service.delete_value("notes", "k", tenant_id="other") is False


async def test_the_functions_answer_with_json(service: KeyValueStoreService) -> None:
    answers = [
        await kv_set("notes", "k", [1], service=service),
        await kv_get("notes", "k", service=service),
        await kv_get("notes", "other", service=service),
        await kv_increment("notes", "n", 4, service=service),
        await kv_set("notes", "raw", b"\xff", ttl_seconds=100, service=service),
        await kv_get("notes", "raw", service=service),
        await kv_delete("notes", "k", service=service),
        await kv_delete("notes", "k", tenant_id="other", service=service),
    ]
    place = {"namespace": "notes", "key": "k"}
    assert json.loads(json.dumps(answers)) == [
        {**place, "version": 1},
        {**place, "found": True, "value": [1]},
        {**place, "key": "other", "found": False, "value": None},
        {**place, "key": "n", "value": 4},
        {**place, "key": "raw", "version": 1},
        {**place, "key": "raw", "found": True, "value_base64": "/w=="},
        {**place, "deleted": True},
        {**place, "deleted": False},
    ]


async def test_without_a_service_the_managers_store_is_used(kv: KeyValueStore) -> None:
    with pytest.raises(NotConfiguredError, match="get_storage_manager"):
        await kv_get("notes", "k")

    async def provide() -> KeyValueStoreAdapter:
        return kv

    set_kv_store_provider(provide)
    await kv_set("notes", "k", 1)
    assert await kv.get("notes", "k") == 1
    set_kv_store_provider(None)
    with pytest.raises(NotConfiguredError):
        await kv_delete("notes", "k")


def test_the_registry() -> None:
    assert available_kv_store_adapters() == ["memory", "storage"]
    seen = []

    def factory(config: Mapping[str, Any]) -> KeyValueStoreAdapter:
        seen.append(config)
        return MemoryAdapter()

    register_kv_store_adapter("mine", factory)
    assert available_kv_store_adapters() == ["memory", "mine", "storage"]
    with pytest.raises(AlreadyExistsError):
        register_kv_store_adapter("mine", factory)
    register_kv_store_adapter("mine", factory, replace=True)
    assert isinstance(create_kv_store_adapter("mine", {"size": 5}), MemoryAdapter)
    build_kv_store_service("mine")
    assert seen == [{"size": 5}, {}]
    assert isinstance(build_kv_store_service(MemoryAdapter()), KeyValueStoreService)
    with pytest.raises(NotConfiguredError, match="memory, mine, storage"):
        create_kv_store_adapter("other")
    with pytest.raises(InvalidValueError):
        register_kv_store_adapter("", factory)


async def test_the_memory_adapter_uses_its_clock_and_tenancy() -> None:
    now = [0.0]
    memory = MemoryAdapter(TenantPolicy(required=True), clock=lambda: now[0])
    with pytest.raises(TenantContextError):
        await memory.get("notes", "k")
    await memory.set("notes", "k", 1, ttl_seconds=10, tenant_id="t")
    now[0] = 9.9
    assert await memory.get("notes", "k", tenant_id="t") == 1
    now[0] = 10.0
    assert await memory.get("notes", "k", tenant_id="t") is None

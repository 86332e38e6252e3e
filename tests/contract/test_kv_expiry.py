"""Times to live: expired entries are invisible at once, by the database's clock, and swept in the background."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from modules.store_common.errors import ConcurrencyError, InvalidValueError
from modules.store_common.tenancy import TenantPolicy
from modules.Tools.Base_Tools.kv_store import ABSENT, KeyNotFoundError, KeyValueMaintenance, KeyValueStore
from tests.support import kv as support
from tests.support.kv import count_rows, expire

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend


async def test_ttl_counts_down(kv: KeyValueStore) -> None:
    await kv.set("app", "k", 1, ttl_seconds=100)
    left = await kv.ttl("app", "k")
    assert left is not None
    assert 90 < left <= 100
    entry = await kv.get_entry("app", "k")
    assert entry is not None
    assert entry.expires_at is not None
    assert 99 <= (entry.expires_at - entry.updated_at).total_seconds() <= 101

    await kv.set("app", "k", 2)
    assert await kv.ttl("app", "k") is None, "a write replaces the time to live"
    with pytest.raises(KeyNotFoundError):
        await kv.ttl("app", "other")


async def test_touch_changes_the_time_to_live_alone(kv: KeyValueStore) -> None:
    await kv.set("app", "k", 1, ttl_seconds=10)
    assert await kv.touch("app", "k", ttl_seconds=1000)
    left = await kv.ttl("app", "k")
    assert left is not None
    assert left > 900
    assert await kv.touch("app", "k")
    assert await kv.ttl("app", "k") is None
    entry = await kv.get_entry("app", "k")
    assert entry is not None
    assert (entry.value, entry.version) == (1, 1)
    assert not await kv.touch("app", "other", ttl_seconds=5)


async def test_the_default_time_to_live(kv_pool: Any) -> None:
    kv = KeyValueStore(kv_pool.executor, TenantPolicy(), default_ttl_seconds=50)
    await kv.set("app", "default", 1)
    await kv.set("app", "longer", 1, ttl_seconds=500)
    await kv.set("app", "for-ever", 1, ttl_seconds=0)
    await kv.set_many("app", {"many": 1})
    await kv.increment("app", "counter")
    await kv.compare_and_set("app", "swapped", 1, expected=ABSENT)

    for key in ("default", "many", "counter", "swapped"):
        left = await kv.ttl("app", key)
        assert left is not None, key
        assert 40 < left <= 50
    assert (await kv.ttl("app", "longer") or 0) > 400
    assert await kv.ttl("app", "for-ever") is None
    await kv.touch("app", "for-ever")
    assert (await kv.ttl("app", "for-ever") or 0) > 40


async def test_a_counter_keeps_its_time_to_live(kv: KeyValueStore) -> None:
    assert await kv.increment("app", "n", ttl_seconds=1000) == 1
    assert await kv.increment("app", "n", ttl_seconds=5) == 2
    assert (await kv.ttl("app", "n") or 0) > 900
    assert await kv.increment("app", "n") == 3
    assert (await kv.ttl("app", "n") or 0) > 900


async def test_the_database_lets_a_short_one_expire(kv: KeyValueStore) -> None:
    await kv.set("app", "k", 1, ttl_seconds=0.05)
    end = time.monotonic() + 60
    while await kv.exists("app", "k"):
        assert time.monotonic() < end, "it never expired"
        await asyncio.sleep(0.01)
    assert await kv.get("app", "k") is None


async def test_expired_is_invisible_to_every_method(kv: KeyValueStore) -> None:
    async def fresh(value: Any = "old") -> None:
        await kv.set("app", "k", value, ttl_seconds=1000)
        await kv.set("app", "k", value, ttl_seconds=1000)
        await expire(kv, "app", "k")

    await fresh()
    assert await kv.get("app", "k", "gone") == "gone"
    assert await asyncio.gather(*[kv.get("app", "k", "gone") for _ in range(20)]) == ["gone"] * 20
    assert await kv.get_entry("app", "k") is None
    assert await kv.get_many("app", ["k"]) == {}
    assert not await kv.exists("app", "k")
    with pytest.raises(KeyNotFoundError):
        await kv.ttl("app", "k")
    assert not await kv.touch("app", "k", ttl_seconds=5)
    assert (await kv.list("app")).entries == []
    assert (await kv.list_namespaces()).namespaces == []
    assert await kv.compare_and_set("app", "k", 1, expected="old") == 0
    assert await kv.compare_and_set("app", "k", 1, expected_version=2) == 0
    with pytest.raises(ConcurrencyError) as found:
        await kv.set("app", "k", 1, expected_version=2)
    assert found.value.actual == 0
    with pytest.raises(ConcurrencyError):
        await kv.delete("app", "k", expected_version=2)
    assert await kv.delete("app", "k") is False
    await fresh()
    assert await kv.clear("app") == 0
    assert await count_rows(kv) == 0


async def test_writing_over_an_expired_entry_starts_anew(kv: KeyValueStore) -> None:
    async def expired(key: str, value: Any) -> Any:
        await kv.set("app", key, value, ttl_seconds=1000)
        await kv.set("app", key, value, ttl_seconds=1000)
        old = await kv.get_entry("app", key)
        await expire(kv, "app", key)
        return old

    olds = {key: await expired(key, value) for key, value in zip("abcdefg", [1, 1, 1, b"1", "x", 7, 1])}
    assert await kv.set("app", "a", 2) == 1
    assert await kv.set("app", "b", 2, only_if_absent=True) == 1
    assert await kv.set("app", "c", 2, expected_version=0) == 1
    assert await kv.increment("app", "d", 2) == 2
    assert await kv.increment("app", "e", 2, initial=5, ttl_seconds=100) == 7
    assert await kv.compare_and_set("app", "f", 2, expected=ABSENT) == 1
    assert await kv.set_many("app", {"g": 2}) == 1

    for key, old in olds.items():
        new = await kv.get_entry("app", key)
        assert new is not None
        assert new.version == 1, key
        assert new.created_at == new.updated_at >= old.updated_at
        assert (new.expires_at is None) == (key != "e")
        assert new.size_bytes == 2


async def test_many_expired_ones_do_not_shorten_a_page(kv: KeyValueStore) -> None:
    await kv.set_many("app", {f"k{i}": i for i in range(10)})
    for i in range(0, 10, 2):
        await expire(kv, "app", f"k{i}")
    page = await kv.list("app", limit=4)
    assert [entry.key for entry in page.entries] == ["k1", "k3", "k5", "k7"]
    rest = await kv.list("app", limit=4, cursor=page.next_cursor)
    assert ([entry.key for entry in rest.entries], rest.next_cursor) == (["k9"], None)


async def test_the_sweep_removes_what_expired_of_every_tenant(kv: KeyValueStore, kv_pool: Any) -> None:
    maintenance = KeyValueMaintenance(kv_pool.executor)
    for tenant in ("a", "b", "c", "d"):
        await kv.set("app", "for-ever", 1, tenant_id=tenant)
        await kv.set("app", "later", 1, ttl_seconds=1000, tenant_id=tenant)
        for i in range(3):
            await kv.set("app", f"k{i}", 1, ttl_seconds=1000, tenant_id=tenant)
            if tenant != "c":
                await expire(kv, "app", f"k{i}", tenant_id=tenant)

    assert await maintenance.sweep_expired(limit=4) == 4
    assert await maintenance.sweep_expired(limit=4) == 4
    assert await maintenance.sweep_expired(limit=4) == 1
    assert await maintenance.sweep_expired() == 0
    assert await count_rows(kv) == 4 * 2 + 3
    assert await kv.get_many("app", ["k0", "later", "for-ever"], tenant_id="c") == {
        "k0": 1,
        "later": 1,
        "for-ever": 1,
    }
    for limit in (0, 100_001, True):
        with pytest.raises(InvalidValueError):
            await maintenance.sweep_expired(limit)


async def test_sweeps_and_writers_at_once_lose_nothing(kv: KeyValueStore, kv_pool: Any) -> None:
    maintenance = KeyValueMaintenance(kv_pool.executor)
    keys = [f"k{i}" for i in range(40)]
    await kv.set_many("app", dict.fromkeys(keys, "old"), ttl_seconds=1000)
    for key in keys:
        await expire(kv, "app", key)

    swept = await asyncio.gather(
        *[maintenance.sweep_expired(5) for _ in range(8)], *[kv.set("app", key, "new") for key in keys]
    )
    assert await kv.get_many("app", keys) == dict.fromkeys(keys, "new")
    assert sum(swept[:8]) <= 40
    assert swept[8:] == [1] * 40

"""Quotas: exact under concurrency, and nothing of a refused write stays."""

from __future__ import annotations

import asyncio
from typing import Any, List

import pytest

from modules.store_common.errors import QuotaExceededError
from modules.store_common.tenancy import TenantPolicy
from modules.Tools.Base_Tools.kv_store import (
    GlobalQuotaExceededError,
    KeyValueMaintenance,
    KeyValueStore,
    NamespaceQuotaExceededError,
)
from tests.support import kv as support
from tests.support.kv import expire, open_pool, usage

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend


def limited(pool: Any, namespace: int = 0, total: int = 0) -> KeyValueStore:
    return KeyValueStore(
        pool.executor, TenantPolicy(), namespace_quota_bytes=namespace, global_quota_bytes=total
    )


async def _keys(kv: KeyValueStore, namespace: str, **tenant: Any) -> List[str]:
    return [entry.key for entry in (await kv.list(namespace, limit=1000, **tenant)).entries]


async def test_a_namespace_is_filled_to_the_byte(kv_pool: Any) -> None:
    kv = limited(kv_pool, namespace=100)
    await kv.set("a", "k1", b"x" * 48)
    await kv.set("a", "k2", b"x" * 48)
    with pytest.raises(NamespaceQuotaExceededError) as found:
        await kv.set("a", "3", b"")
    assert (found.value.limit_bytes, found.value.used_bytes, found.value.needed_bytes) == (100, 100, 1)
    assert "100" in str(found.value)
    assert isinstance(found.value, QuotaExceededError)
    assert await kv.set("b", "k1", b"x" * 98) == 1, "another namespace has its own limit"
    assert await kv.set("a", "k1", b"x" * 98, tenant_id="other") == 1, "and so has another tenant"
    assert await kv.set("a", "k1", b"y" * 40) == 2
    assert await kv.set("a", "3", b"1234567") == 1
    await usage(kv)


async def test_the_total_counts_all_namespaces_of_a_tenant(kv_pool: Any) -> None:
    kv = limited(kv_pool, total=100)
    await kv.set("a", "k", b"x" * 49)
    await kv.set("b", "k", b"x" * 49)
    with pytest.raises(GlobalQuotaExceededError) as found:
        await kv.set("c", "k", b"")
    assert (found.value.limit_bytes, found.value.used_bytes, found.value.needed_bytes) == (100, 100, 1)
    assert not await kv.exists("c", "k")
    await kv.set("a", "k", b"x" * 99, tenant_id="other")
    assert await kv.delete("a", "k")
    await kv.set("c", "k", b"x" * 49)
    await usage(kv)


@pytest.mark.parametrize("limits", [(1000, 0), (0, 1000), (1000, 1000), (1000, 5000)])
async def test_writers_at_once_fill_it_exactly(kv_pool: Any, limits: Any) -> None:
    kv = limited(kv_pool, *limits)
    outcomes = await asyncio.gather(
        *[kv.set("a", f"k{i:02}", b"x" * 97) for i in range(60)], return_exceptions=True
    )

    assert sum(outcome == 1 for outcome in outcomes) == 10
    refused = [outcome for outcome in outcomes if outcome != 1]
    assert all(isinstance(outcome, QuotaExceededError) for outcome in refused), refused
    assert len(await _keys(kv, "a")) == 10
    await usage(kv)


async def test_namespaces_opened_at_once_share_the_total(kv_pool: Any) -> None:
    kv = limited(kv_pool, 500, 1000)
    outcomes = await asyncio.gather(
        *[kv.set(f"n{i % 4}", f"k{i:02}", b"x" * 97) for i in range(60)], return_exceptions=True
    )

    assert sum(outcome == 1 for outcome in outcomes) == 10, outcomes
    assert all(outcome == 1 or isinstance(outcome, QuotaExceededError) for outcome in outcomes), outcomes
    await usage(kv)


async def test_every_way_of_growing_is_limited(kv_pool: Any) -> None:
    kv = limited(kv_pool, namespace=20)
    await kv.set("a", "n", 9)
    await kv.set("a", "text", "0123456789ab")  # 2 bytes for n, 18 for this
    before = {entry.key: (entry.value, entry.version) for entry in (await kv.list("a")).entries}
    for call in (
        kv.set("a", "new", 1),
        kv.set("a", "new", 1, only_if_absent=True),
        kv.set("a", "new", 1, expected_version=0),
        kv.set("a", "n", 12345, expected_version=1),
        kv.set_many("a", {"x": 1, "y": 2}),
        kv.increment("a", "m"),
        kv.compare_and_set("a", "n", "longer", expected=9),
        kv.compare_and_set("a", "n", "longer", expected_version=1),
    ):
        with pytest.raises(NamespaceQuotaExceededError):
            await call
    assert {entry.key: (entry.value, entry.version) for entry in (await kv.list("a")).entries} == before
    await usage(kv)


async def test_a_counter_that_grows_by_a_digit_is_limited(kv_pool: Any) -> None:
    kv = limited(kv_pool, namespace=2)
    await kv.increment("a", "n", 9)
    with pytest.raises(NamespaceQuotaExceededError):
        await kv.increment("a", "n")
    assert await kv.get("a", "n") == 9
    assert await kv.increment("a", "n", -4) == 5


async def test_expired_entries_make_room(kv_pool: Any) -> None:
    kv = limited(kv_pool, 100, 150)
    for namespace in ("a", "b"):
        await kv.set(namespace, "k", b"x" * 74, ttl_seconds=1000)
    with pytest.raises(NamespaceQuotaExceededError):
        await kv.set("a", "new", b"x" * 47)
    await expire(kv, "a", "k")
    await kv.set("a", "new", b"x" * 47)
    with pytest.raises(GlobalQuotaExceededError):
        await kv.set("c", "new", b"x" * 47)
    await expire(kv, "b", "k")
    await kv.set("c", "new", b"x" * 47)
    await usage(kv)


async def test_expired_entries_of_a_namespace_make_room_in_it(kv_pool: Any) -> None:
    kv = limited(kv_pool, namespace=100)
    for namespace in ("a", "b"):
        await kv.set(namespace, "k", b"x" * 74, ttl_seconds=1000)
    await expire(kv, "b", "k")
    with pytest.raises(NamespaceQuotaExceededError):
        await kv.set("a", "new", b"x" * 47)
    await expire(kv, "a", "k")
    assert await kv.set("a", "new", b"x" * 47) == 1
    await usage(kv)


async def test_sweep_clear_and_delete_give_back(kv_pool: Any) -> None:
    kv = limited(kv_pool, 1000, 3000)
    for namespace in ("a", "b", "c"):
        await kv.set_many(namespace, {f"k{i}": b"x" * 98 for i in range(10)}, ttl_seconds=1000)
    for i in range(5):
        await expire(kv, "a", f"k{i}")
    assert await KeyValueMaintenance(kv_pool.executor).sweep_expired() == 5
    await usage(kv)
    assert await kv.clear("b") == 10
    assert await kv.delete("c", "k0")
    await usage(kv)
    await kv.set_many("a", {f"n{i}": b"x" * 98 for i in range(5)})
    await usage(kv)


async def test_a_lowered_limit_lets_nothing_grow(kv_pool: Any) -> None:
    await limited(kv_pool, namespace=100).set("a", "k", b"x" * 90)
    kv = limited(kv_pool, namespace=50)
    with pytest.raises(NamespaceQuotaExceededError):
        await kv.set("a", "new", 1)
    assert await kv.set("a", "k", b"y" * 90) == 2, "what makes nothing larger may be written"
    assert await kv.set("a", "k", b"y" * 80) == 3
    assert await kv.delete("a", "k")


async def test_accounts_follow_writers_without_limits(kv: KeyValueStore, kv_pool: Any) -> None:
    """A process with other settings works on the same database; what it does is counted all the same."""
    strict = limited(kv_pool, 1000, 2000)
    await kv.set_many("a", {f"old{i}": b"x" * 96 for i in range(3)})
    await strict.set("a", "one", b"x" * 97)
    await kv.set("a", "two", b"x" * 97)
    await kv.set("a", "two", b"x" * 197)
    await kv.set_many("a", {"m1": 1, "m2": b"22"})
    await kv.increment("a", "n", 99)
    await kv.increment("a", "n")
    await kv.touch("a", "n", ttl_seconds=1000)
    await kv.delete("a", "one")
    await kv.set("other", "k", 1)
    await usage(strict)
    with pytest.raises(NamespaceQuotaExceededError):
        await strict.set("a", "big", b"x" * 600)
    await expire(kv, "a", "n")
    await kv.clear("a")
    await usage(strict)


@pytest.mark.needs("sql")
async def test_accounts_opened_while_others_write_miss_nothing(
    migrated_settings: Any, kv: KeyValueStore, kv_pool: Any, backend: str
) -> None:
    pool = kv_pool if backend == "sqlite-memory" else await open_pool(migrated_settings)
    try:
        strict = limited(pool, 100_000, 300_000)
        for turn in range(5):
            await asyncio.gather(
                *[kv.set(f"n{turn}", f"k{i}", b"x" * i) for i in range(40)],
                *[kv.set(f"n{turn}", f"k{i}", b"y") for i in range(40)],
                *[strict.set(f"n{turn}", f"s{i}", b"z" * i) for i in range(10)],
                *[kv.delete(f"n{turn}", f"k{i}") for i in range(10)],
            )
            await usage(strict)
    finally:
        if pool is not kv_pool:
            await pool.shutdown()


@pytest.mark.needs("sql")
async def test_a_unit_of_work_counts_what_it_has_not_committed(storage: Any) -> None:
    from modules.storage.unit_of_work import UnitOfWork  # noqa: F401 - the manager has one

    strict = limited(storage.sql_pool, 100)
    await strict.set("a", "kept", b"x" * 46)
    with pytest.raises(NamespaceQuotaExceededError):
        async with storage.unit_of_work() as uow:
            bound = KeyValueStore(uow.kv._executor, TenantPolicy(), namespace_quota_bytes=100)
            await bound.set("a", "k1", b"x" * 40)
            await bound.set("a", "k2", b"x" * 40)
    assert await strict.get_many("a", ["kept", "k1", "k2"]) == {"kept": b"x" * 46}
    await usage(strict)

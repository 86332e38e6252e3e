"""P19 for the key-value store: no lost update, whoever writes at the same time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, List

import pytest

from modules.store_common.errors import ConcurrencyError
from modules.store_common.tenancy import TenantPolicy
from modules.Tools.Base_Tools.kv_store import ABSENT, KeyValueStore
from tests.support import kv as support
from tests.support.kv import open_pool

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend


async def test_400_increments_give_400(kv: KeyValueStore) -> None:
    sums = await asyncio.gather(*[kv.increment("app", "n") for _ in range(400)])

    assert sorted(sums) == list(range(1, 401))
    assert await kv.get("app", "n") == 400


async def test_increments_of_two_pools_add_up(
    migrated_settings: Any, kv: KeyValueStore, backend: str
) -> None:
    if backend == "sqlite-memory":
        return  # an in-memory database belongs to its pool
    pool = await open_pool(migrated_settings)
    try:
        other = KeyValueStore(pool.executor, TenantPolicy())
        await asyncio.gather(*[store.increment("app", "n", 2) for store in (kv, other) for _ in range(100)])
        assert await kv.get("app", "n") == 400
    finally:
        await pool.shutdown()


async def test_of_50_rivals_one_wins_each_round(kv: KeyValueStore) -> None:
    assert await kv.compare_and_set("app", "leader", "nobody", expected=ABSENT) == 1
    current: Any = "nobody"
    for turn in range(6):
        won = await asyncio.gather(
            *[kv.compare_and_set("app", "leader", f"{turn}-{i}", expected=current) for i in range(50)]
        )
        assert [version for version in won if version] == [turn + 2]
        current = f"{turn}-{[bool(version) for version in won].index(True)}"
        assert await kv.get("app", "leader") == current


async def test_of_50_rivals_one_wins_each_version(kv: KeyValueStore) -> None:
    for version in range(6):
        outcomes = await asyncio.gather(
            *[kv.set("app", "k", i, expected_version=version) for i in range(50)], return_exceptions=True
        )
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["ConcurrencyError"] * 49 + ["int"]
        assert all(o.expected == version for o in outcomes if isinstance(o, ConcurrencyError))
        winner = [isinstance(outcome, int) for outcome in outcomes].index(True)
        assert await kv.get("app", "k") == winner


async def test_of_50_rivals_one_takes_the_lock(kv: KeyValueStore) -> None:
    won = await asyncio.gather(*[kv.set("app", "lock", i, only_if_absent=True) for i in range(50)])
    assert sum(won) == 1
    assert await kv.get("app", "lock") == won.index(1)


async def test_read_modify_write_by_compare_and_set_loses_nothing(kv: KeyValueStore) -> None:
    await kv.set("app", "list", [])

    async def add(number: int) -> None:
        while True:
            entry = await kv.get_entry("app", "list")
            assert entry is not None
            if await kv.compare_and_set(
                "app", "list", [*entry.value, number], expected_version=entry.version
            ):
                return

    await asyncio.gather(*[add(i) for i in range(25)])
    assert sorted(await kv.get("app", "list")) == list(range(25))


async def test_every_write_raises_the_version_by_one(kv: KeyValueStore) -> None:
    keys = [f"k{i % 7}" for i in range(210)]
    versions = await asyncio.gather(*[kv.set("app", key, i) for i, key in enumerate(keys)])

    for key in set(keys):
        assert sorted(v for k, v in zip(keys, versions) if k == key) == list(range(1, 31))
        entry = await kv.get_entry("app", key)
        assert entry is not None
        assert versions[entry.value] == entry.version == 30


async def test_calls_that_wait_together_get_their_own_answers(kv: KeyValueStore) -> None:
    tenants = [f"t{i % 3}" for i in range(90)]
    spaces = [f"n{i % 5}" for i in range(90)]
    await asyncio.gather(
        *[kv.set(s, f"k{i}", [t, s, i], tenant_id=t) for i, (t, s) in enumerate(zip(tenants, spaces))]
    )
    asked: List[Any] = await asyncio.gather(
        *[kv.get(s, f"k{i}", "none", tenant_id=t) for i, (t, s) in enumerate(zip(tenants, spaces))],
        *[kv.get("n0", f"k{i}", "none", tenant_id="t0") for i in range(90)],
        *[kv.get("n0", "k0", "none", tenant_id=t) for t in tenants],
    )
    assert asked[:90] == [[t, s, i] for i, (t, s) in enumerate(zip(tenants, spaces))]
    assert Counter(map(str, asked[90:180]))["none"] == 84
    assert asked[90] == ["t0", "n0", 0]
    assert asked[180:] == [["t0", "n0", 0] if t == "t0" else "none" for t in tenants]


@pytest.mark.needs("fast")
async def test_large_writes_that_cross_do_not_block_each_other(kv: KeyValueStore) -> None:
    keys = [f"k{i:03}" for i in range(300)]
    await asyncio.gather(
        *[kv.set_many("app", dict.fromkeys(keys if n % 2 else reversed(keys), n)) for n in range(8)],
        *[kv.set("app", key, "single") for key in keys],
    )
    assert len((await kv.list("app", limit=1000)).entries) == 300

"""What the key-value store refuses before it touches anything, and the longest that it takes."""

from __future__ import annotations

from typing import Any, List

import pytest

from modules.store_common.errors import InvalidValueError
from modules.Tools.Base_Tools.kv_store import KeyValueStore, ValueSerializationError
from tests.support import kv as support

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend

_BAD_NAMES: List[Any] = ["", " a", "a\n", "a\x00b", "\ud800", 5, None, b"a"]


@pytest.mark.parametrize("bad", [*_BAD_NAMES, "n" * 256])
async def test_bad_namespaces_are_refused(kv: KeyValueStore, bad: Any) -> None:
    for call in (
        kv.get(bad, "k"),
        kv.get_entry(bad, "k"),
        kv.get_many(bad, ["k"]),
        kv.exists(bad, "k"),
        kv.ttl(bad, "k"),
        kv.list(bad),
        kv.set(bad, "k", 1),
        kv.set_many(bad, {"k": 1}),
        kv.delete(bad, "k"),
        kv.increment(bad, "k"),
        kv.compare_and_set(bad, "k", 1, expected=1),
        kv.touch(bad, "k"),
        kv.clear(bad),
    ):
        with pytest.raises(InvalidValueError):
            await call


@pytest.mark.parametrize("bad", [*_BAD_NAMES, "k" * 1025, "é" * 513])
async def test_bad_keys_are_refused(kv: KeyValueStore, bad: Any) -> None:
    for call in (
        kv.get("app", bad),
        kv.get_entry("app", bad),
        kv.get_many("app", [bad]),
        kv.exists("app", bad),
        kv.ttl("app", bad),
        kv.set("app", bad, 1),
        kv.set_many("app", {bad: 1}),
        kv.delete("app", bad),
        kv.increment("app", bad),
        kv.compare_and_set("app", bad, 1, expected=1),
        kv.touch("app", bad),
    ):
        with pytest.raises(InvalidValueError):
            await call


async def test_other_bad_arguments_are_refused(kv: KeyValueStore) -> None:
    for call in (
        kv.set("app", "k", 1, only_if_absent=True, expected_version=0),
        kv.set("app", "k", 1, expected_version=-1),
        kv.set("app", "k", 1, expected_version=True),
        kv.set("app", "k", 1, ttl_seconds=-1),
        kv.set("app", "k", 1, ttl_seconds=float("nan")),
        kv.set("app", "k", 1, ttl_seconds=1e12),
        kv.set("app", "k", 1, ttl_seconds=True),
        kv.set("app", "k", 1, ttl_seconds="5"),  # type: ignore[arg-type]
        kv.touch("app", "k", ttl_seconds=float("inf")),
        kv.delete("app", "k", expected_version=0),
        kv.increment("app", "k", 2**63),
        kv.increment("app", "k", 1.5),  # type: ignore[arg-type]
        kv.increment("app", "k", True),
        kv.list("app", limit=0),
        kv.list("app", limit=1001),
        kv.list("app", "a\x00"),
        kv.list("app", "\ud800"),
        kv.list("app", 5),  # type: ignore[arg-type]
        kv.get_many("app", "keys"),
        kv.set_many("app", [("a", 1)]),  # type: ignore[arg-type]
        kv.set("app", "k", 1, tenant_id=""),
    ):
        with pytest.raises(InvalidValueError):
            await call
    assert not await kv.exists("app", "k")


async def test_the_longest_names_and_a_long_value_fit(kv: KeyValueStore) -> None:
    tenant_id, namespace, key = "t" * 255, "é" * 127, "\U0010ffff" * 256
    value = {"text": "x" * 3_000_000}
    await kv.set(namespace, key, value, tenant_id=tenant_id)

    assert await kv.get(namespace, key, tenant_id=tenant_id) == value
    assert (await kv.list(namespace, key[:255], tenant_id=tenant_id)).entries[0].key == key


@pytest.mark.parametrize("value", [object(), {1: 2}, (1,), float("nan"), 2**63, "\ud800", {"a": b"x"}, {1}])
async def test_other_values_are_refused(kv: KeyValueStore, value: Any) -> None:
    for call in (
        kv.set("app", "k", value),
        kv.set_many("app", {"k": value}),
        kv.compare_and_set("app", "k", value, expected=1),
        kv.compare_and_set("app", "k", 1, expected=value),
    ):
        with pytest.raises(ValueSerializationError) as found:
            await call
        assert isinstance(found.value, InvalidValueError)


async def test_values_that_are_too_long_are_refused(kv: KeyValueStore) -> None:
    for value in (b"x" * (16 * 1024 * 1024 + 1), "x" * (16 * 1024 * 1024)):
        with pytest.raises(ValueSerializationError):
            await kv.set("app", "k", value)

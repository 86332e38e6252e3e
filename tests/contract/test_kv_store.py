"""The key-value store's contract: one suite for every SQL backend."""

from __future__ import annotations

import pickle
from datetime import datetime, timezone
from typing import Any, List

import pytest

from modules.store_common.errors import (
    ConcurrencyError,
    InvalidCursorError,
    InvalidValueError,
    NotFoundError,
    QuotaExceededError,
    StorageError,
)
from modules.Tools.Base_Tools import kv_store
from modules.Tools.Base_Tools.kv_arguments import upper_bound
from modules.Tools.Base_Tools.kv_store import (
    ABSENT,
    CounterOverflowError,
    GlobalQuotaExceededError,
    InvalidValueTypeError,
    KeyNotFoundError,
    KeyValueStore,
    KeyValueStoreError,
    NamespaceQuotaExceededError,
    ValueSerializationError,
)
from tests.support import kv as support

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend


async def test_a_value_comes_back_with_its_version(kv: KeyValueStore) -> None:
    assert await kv.set("app", "colour", {"name": "blue"}) == 1
    assert await kv.set("app", "colour", ["red", None, 1.5]) == 2

    assert await kv.get("app", "colour") == ["red", None, 1.5]
    entry = await kv.get_entry("app", "colour")
    assert entry is not None
    assert (entry.namespace, entry.key, entry.version, entry.expires_at) == ("app", "colour", 2, None)
    assert entry.size_bytes == len("colour") + len(b'["red",null,1.5]')
    assert entry.created_at <= entry.updated_at <= datetime.now(timezone.utc)
    assert entry.created_at.tzinfo is timezone.utc or entry.created_at.utcoffset() == timezone.utc.utcoffset(
        None
    )
    assert entry.to_dict()["value"] == ["red", None, 1.5]


async def test_absence_and_a_stored_none_are_told_apart(kv: KeyValueStore) -> None:
    missing = object()
    await kv.set("app", "none", None)

    assert await kv.get("app", "none", missing) is None
    assert await kv.get("app", "other", missing) is missing
    assert await kv.get("app", "other") is None
    assert await kv.get_entry("app", "other") is None
    assert await kv.exists("app", "none")
    assert not await kv.exists("app", "other")
    assert await kv.get_many("app", ["none", "other"]) == {"none": None}


@pytest.mark.parametrize("value", [b"", b"\x00\xff", bytearray(b"abc"), memoryview(b"abcdef")[::2]])
async def test_bytes_come_back_as_bytes(kv: KeyValueStore, value: Any) -> None:
    await kv.set("app", "raw", value)

    found = await kv.get("app", "raw")
    assert type(found) is bytes
    assert found == bytes(value)
    entry = await kv.get_entry("app", "raw")
    assert entry is not None
    assert entry.value == bytes(value)
    assert entry.size_bytes == 3 + len(bytes(value))
    assert (await kv.get_many("app", ["raw"]))["raw"] == bytes(value)
    assert (await kv.list("app")).entries[0].value == bytes(value)


async def test_json_and_bytes_replace_each_other(kv: KeyValueStore) -> None:
    for value in (b"1", 1, b"2", "2"):
        await kv.set("app", "k", value)
        assert await kv.get("app", "k") == value


async def test_only_if_absent_writes_once(kv: KeyValueStore) -> None:
    assert await kv.set("app", "lock", "a", only_if_absent=True) == 1
    assert await kv.set("app", "lock", "b", only_if_absent=True) == 0
    assert await kv.get("app", "lock") == "a"


async def test_expected_version(kv: KeyValueStore) -> None:
    assert await kv.set("app", "k", 1, expected_version=0) == 1
    with pytest.raises(ConcurrencyError) as found:
        await kv.set("app", "k", 2, expected_version=0)
    assert (found.value.expected, found.value.actual) == (0, 1)
    assert await kv.set("app", "k", 2, expected_version=1) == 2
    with pytest.raises(ConcurrencyError) as found:
        await kv.set("app", "k", 3, expected_version=1)
    assert (found.value.expected, found.value.actual) == (1, 2)
    with pytest.raises(ConcurrencyError) as found:
        await kv.set("app", "other", 3, expected_version=4)
    assert (found.value.expected, found.value.actual) == (4, 0)
    assert await kv.get("app", "k") == 2
    assert not await kv.exists("app", "other")


async def test_delete_says_whether_it_was_there(kv: KeyValueStore) -> None:
    await kv.set("app", "k", 1)
    with pytest.raises(ConcurrencyError):
        await kv.delete("app", "k", expected_version=2)
    assert await kv.delete("app", "k", expected_version=1) is True
    assert await kv.delete("app", "k") is False
    with pytest.raises(ConcurrencyError):
        await kv.delete("app", "k", expected_version=1)
    assert await kv.set("app", "k", b"1") == 1, "versions start again"
    assert await kv.delete("app", "k") is True
    await kv.set("app", "k", 1, ttl_seconds=1000)
    assert await kv.delete("app", "k") is True


async def test_compare_and_set_by_value(kv: KeyValueStore) -> None:
    assert await kv.compare_and_set("app", "k", "first", expected=ABSENT) == 1
    assert await kv.compare_and_set("app", "k", "again", expected=ABSENT) == 0
    assert await kv.compare_and_set("app", "k", "x", expected="no") == 0
    assert await kv.compare_and_set("app", "k", {"a": 1, "b": 2}, expected="first") == 2
    assert await kv.compare_and_set("app", "k", 1, expected={"b": 2, "a": 1}) == 3, (
        "key order does not matter"
    )
    assert await kv.compare_and_set("app", "k", 0, expected=True) == 0
    assert await kv.compare_and_set("app", "k", 0, expected=1.0) == 0
    assert await kv.compare_and_set("app", "k", 0, expected=b"1") == 0
    assert await kv.compare_and_set("app", "k", b"raw", expected=1) == 4
    assert await kv.compare_and_set("app", "k", None, expected=b"raw") == 5
    assert await kv.compare_and_set("app", "k", 1, expected=None) == 6
    assert await kv.compare_and_set("app", "gone", 1, expected=None) == 0
    assert await kv.get("app", "k") == 1


async def test_compare_and_set_by_version(kv: KeyValueStore) -> None:
    assert await kv.compare_and_set("app", "k", "a", expected_version=0) == 1
    assert await kv.compare_and_set("app", "k", "b", expected_version=0) == 0
    assert await kv.compare_and_set("app", "k", "b", expected_version=2) == 0
    assert await kv.compare_and_set("app", "k", "b", expected_version=1) == 2
    assert await kv.compare_and_set("app", "k", "c", expected="b", expected_version=1) == 0
    assert await kv.compare_and_set("app", "k", "c", expected="a", expected_version=2) == 0
    assert await kv.compare_and_set("app", "k", "c", expected="b", expected_version=2) == 3
    assert await kv.compare_and_set("app", "k", "d", expected=ABSENT, expected_version=3) == 0
    assert await kv.get("app", "k") == "c"
    with pytest.raises(InvalidValueError):
        await kv.compare_and_set("app", "k", "d")


async def test_increment(kv: KeyValueStore) -> None:
    assert await kv.increment("app", "n") == 1
    assert await kv.increment("app", "n", 41) == 42
    assert await kv.increment("app", "n", -100) == -58
    assert await kv.increment("app", "from", 5, initial=100) == 105
    assert await kv.increment("app", "from", 5, initial=100) == 110
    assert await kv.get("app", "n") == -58
    entry = await kv.get_entry("app", "n")
    assert entry is not None
    assert entry.version == 3
    assert entry.size_bytes == len("n") + len("-58")


@pytest.mark.parametrize("value", ["12", 1.0, 1e300, True, None, [1], {"n": 1}, b"1", "", -0.0])
async def test_only_an_int_is_incremented(kv: KeyValueStore, value: Any) -> None:
    await kv.set("app", "k", value)

    with pytest.raises(InvalidValueTypeError):
        await kv.increment("app", "k")
    entry = await kv.get_entry("app", "k")
    assert entry is not None
    assert entry.version == 1
    assert entry.value == value
    assert type(entry.value) is type(value)


async def test_a_counter_stays_within_64_bits(kv: KeyValueStore) -> None:
    top, bottom = 2**63 - 1, -(2**63)
    assert await kv.increment("app", "top", top) == top
    assert await kv.increment("app", "bottom", bottom) == bottom
    for key, amount in (("top", 1), ("top", top), ("bottom", -1), ("bottom", bottom)):
        with pytest.raises(CounterOverflowError):
            await kv.increment("app", key, amount)
    with pytest.raises(CounterOverflowError):
        await kv.increment("app", "new", top, initial=1)
    assert await kv.increment("app", "top", -1) == top - 1
    assert await kv.increment("app", "top", bottom) == -2
    assert await kv.increment("app", "bottom", top) == -1
    assert not await kv.exists("app", "new")


@pytest.mark.needs("fast")
async def test_many_at_once(kv: KeyValueStore) -> None:
    items = {f"k{i}": {"n": i} for i in range(2500)}
    items["raw"] = b"bytes"  # type: ignore[assignment]
    assert await kv.set_many("bulk", items) == 2501
    assert await kv.set_many("bulk", {"k0": "new"}) == 1
    assert await kv.set_many("bulk", {}) == 0
    assert await kv.get_many("bulk", []) == {}

    found = await kv.get_many("bulk", [*reversed(list(items)), "missing", "k0"])
    assert list(found) == list(reversed(list(items)))
    assert found == {**items, "k0": "new"}
    entry = await kv.get_entry("bulk", "k0")
    assert entry is not None
    assert entry.version == 2


async def test_set_many_is_all_or_nothing(kv: KeyValueStore) -> None:
    with pytest.raises(ValueSerializationError):
        await kv.set_many("bulk", {"a": 1, "b": object()})
    with pytest.raises(InvalidValueError):
        await kv.set_many("bulk", {"a": 1, "": 2})
    assert await kv.get_many("bulk", ["a", "b"]) == {}


async def test_list_pages_by_prefix(kv: KeyValueStore) -> None:
    keys = [f"user:{i:03}" for i in range(25)] + ["user", "user;", "usf", "a"]
    await kv.set_many("app", {key: key for key in keys})
    await kv.set("other", "user:999", 1)

    seen: List[str] = []
    cursor = None
    pages = 0
    while True:
        page = await kv.list("app", "user:", limit=10, cursor=cursor)
        seen += [entry.key for entry in page.entries]
        pages += 1
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"user:{i:03}" for i in range(25)]
    assert pages == 3
    assert [entry.key for entry in (await kv.list("app")).entries] == sorted(keys)
    assert (await kv.list("app", "zzz")).entries == []
    assert (await kv.list("app", "a", limit=1)).next_cursor is None, "a full last page has nothing after it"


async def test_a_list_is_stable_while_others_write(kv: KeyValueStore) -> None:
    await kv.set_many("app", {f"k{i}": i for i in range(6)})
    first = await kv.list("app", limit=3)
    await kv.set("app", "k0a", "before the cursor")
    await kv.delete("app", "k2")
    await kv.set("app", "k3a", "after it")

    rest = await kv.list("app", limit=10, cursor=first.next_cursor)
    assert [entry.key for entry in first.entries + rest.entries] == [
        "k0",
        "k1",
        "k2",
        "k3",
        "k3a",
        "k4",
        "k5",
    ]


_HARD_KEYS = [
    "a",
    "a%b",
    "a_b",
    "ab",
    "a'b",
    "A",
    "é",
    "e\u0301",
    "\ud7ff",
    "\ud7ffz",
    "\ue000",
    "\ue000x",
    "\uffff",
    "\uffff\uffff",
    "\U00010000",
    "\U0010ffff",
    "\U0010ffff\U0010ffff",
    "\U0010ffffa",
    "a\U0010ffff",
    "a\U0010ffffz",
    "b",
]


@pytest.mark.parametrize("prefix", [*_HARD_KEYS, "", "%", "_", "a ", "\U0010fffe", "\x80"])
async def test_prefixes_are_literal_and_in_code_point_order(kv: KeyValueStore, prefix: str) -> None:
    await kv.set_many("app", dict.fromkeys(_HARD_KEYS))

    seen: List[str] = []
    cursor = None
    while True:
        page = await kv.list("app", prefix, limit=2, cursor=cursor)
        seen += [entry.key for entry in page.entries]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == sorted(key for key in _HARD_KEYS if key.startswith(prefix))


def test_the_bound_of_a_prefix() -> None:
    assert upper_bound("ab") == "ac"
    assert upper_bound("a\U0010ffff") == "b"
    assert upper_bound("\ud7ff") == "\ue000"
    assert upper_bound("\U0010fffe") == "\U0010ffff"
    assert upper_bound("\U0010ffff") is None
    assert upper_bound("") is None


async def test_cursors_are_bound_to_their_list(kv: KeyValueStore) -> None:
    await kv.set_many("app", {f"k{i}": i for i in range(5)})
    cursor = (await kv.list("app", "k", limit=2)).next_cursor
    assert cursor is not None

    for call in (
        kv.list("app", limit=2, cursor=cursor),
        kv.list("other", "k", limit=2, cursor=cursor),
        kv.list("app", "k", limit=2, cursor=cursor, tenant_id="evil"),
        kv.list("app", "k", limit=2, cursor=cursor[:-2]),
        kv.list("app", "k", limit=2, cursor="%%%"),
        kv.list_namespaces(cursor=cursor),
    ):
        with pytest.raises(InvalidCursorError):
            await call


async def test_namespaces(kv: KeyValueStore) -> None:
    for namespace in ("b", "a", "ä", "\U0010ffff", "c d"):
        await kv.set_many(namespace, {"x": 1, "y": 2})
    await kv.set("gone", "x", 1)
    await kv.delete("gone", "x")

    first = await kv.list_namespaces(limit=2)
    assert first.namespaces == ["a", "b"]
    rest = await kv.list_namespaces(limit=10, cursor=first.next_cursor)
    assert rest.namespaces == ["c d", "ä", "\U0010ffff"]
    assert rest.next_cursor is None


async def test_clear_removes_one_namespace(kv: KeyValueStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from modules.Tools.Base_Tools import kv_repository

    monkeypatch.setattr(kv_repository, "_CLEAR_BATCH", 7)
    await kv.set_many("app", {f"k{i}": i for i in range(30)})
    await kv.set("keep", "k1", "kept")

    assert await kv.clear("app") == 30
    assert await kv.clear("app") == 0
    assert (await kv.list("app")).entries == []
    assert await kv.get("keep", "k1") == "kept"


@pytest.mark.needs("sql")
async def test_a_failed_unit_of_work_leaves_nothing(storage: Any) -> None:
    await storage.kv.set("app", "kept", 1)
    with pytest.raises(RuntimeError, match="on purpose"):
        async with storage.unit_of_work() as uow:
            await uow.kv.set("app", "new", 1)
            await uow.kv.increment("app", "kept", 5)
            assert await uow.kv.get("app", "kept") == 6
            assert await uow.kv.set_many("app", {"a": 1, "b": 2}) == 2
            raise RuntimeError("on purpose")
    assert await storage.kv.get("app", "kept") == 1
    assert [entry.key for entry in (await storage.kv.list("app")).entries] == ["kept"]


def test_errors_say_what_they_are_and_travel() -> None:
    for kind, parent in (
        (KeyNotFoundError, NotFoundError),
        (NamespaceQuotaExceededError, QuotaExceededError),
        (GlobalQuotaExceededError, QuotaExceededError),
        (InvalidValueTypeError, KeyValueStoreError),
        (ValueSerializationError, InvalidValueError),
        (CounterOverflowError, InvalidValueError),
    ):
        assert issubclass(kind, KeyValueStoreError)
        assert issubclass(kind, parent)
        assert issubclass(kind, StorageError)
        copy = pickle.loads(pickle.dumps(kind("message")))
        assert (type(copy), str(copy)) == (kind, "message")
    quota = pickle.loads(pickle.dumps(NamespaceQuotaExceededError("m", 10, 8, 3)))
    assert (quota.limit_bytes, quota.used_bytes, quota.needed_bytes) == (10, 8, 3)
    assert all(hasattr(kv_store, name) for name in kv_store.__all__)

"""P27 and P33 for the key-value store: a value comes back identical or is refused; no caller's text becomes SQL."""

from __future__ import annotations

import sys
from typing import Any, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.store_common.errors import InvalidValueError
from modules.Tools.Base_Tools.kv_store import InvalidValueTypeError, KeyValueStore, ValueSerializationError
from tests.support import kv as support
from tests.support.values import any_values, contract_values, same, texts

kv, kv_pool, backend = support.kv, support.kv_pool, support.backend


@pytest.fixture(autouse=True)
def long_integers_can_be_shown() -> Iterator[None]:
    """Let Hypothesis print its examples: Python refuses to write an int of 5,000 digits."""
    if not hasattr(sys, "set_int_max_str_digits"):
        yield
        return
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(limit)


_RAW = st.one_of(st.binary(max_size=200), st.binary(max_size=20).map(bytearray))


@pytest.mark.needs("fast")
@settings(max_examples=500)
@given(value=st.one_of(contract_values(), any_values(), _RAW))
async def test_identical_or_refused(kv: KeyValueStore, value: Any) -> None:
    await _identical_or_refused(kv, value)


@settings(max_examples=40)
@given(value=st.one_of(contract_values(), any_values(), _RAW))
async def test_identical_or_refused_fewer(kv: KeyValueStore, value: Any) -> None:
    await _identical_or_refused(kv, value)


async def _identical_or_refused(kv: KeyValueStore, value: Any) -> None:
    await kv.set("p27", "k", "former")
    try:
        await kv.set("p27", "k", value)
    except ValueSerializationError:
        assert await kv.get("p27", "k") == "former"
        return
    expected = bytes(value) if isinstance(value, bytearray) else value
    assert same(await kv.get("p27", "k"), expected)
    entry = await kv.get_entry("p27", "k")
    assert entry is not None
    assert same(entry.value, expected)
    assert same((await kv.get_many("p27", ["k"]))["k"], expected)
    assert same((await kv.list("p27")).entries[0].value, expected)
    assert await kv.compare_and_set("p27", "k", "next", expected=value) == entry.version + 1


@pytest.mark.needs("fast")
@settings(max_examples=100)
@given(values=st.dictionaries(st.integers(0, 50).map(str), st.one_of(contract_values(max_leaves=4), _RAW)))
async def test_many_are_identical(kv: KeyValueStore, values: Any) -> None:
    await _many_are_identical(kv, values)


@settings(max_examples=10)
@given(values=st.dictionaries(st.integers(0, 50).map(str), st.one_of(contract_values(max_leaves=4), _RAW)))
async def test_many_are_identical_fewer(kv: KeyValueStore, values: Any) -> None:
    await _many_are_identical(kv, values)


async def _many_are_identical(kv: KeyValueStore, values: Any) -> None:
    await kv.clear("many")
    await kv.set_many("many", values)
    found = await kv.get_many("many", list(values))
    assert list(found) == list(values)
    assert all(same(found[key], bytes(v) if isinstance(v, bytearray) else v) for key, v in values.items())


# Text that would do something if it became part of a statement, a pattern or a JSON path.
_HOSTILE = [
    "'; DROP TABLE atlas_kv_entries; --",
    '"; DELETE FROM atlas_kv_entries; --',
    "' OR '1'='1",
    "%",
    "_%",
    "\\",
    "$[0]",
    "$.a",
    "{1,2}",
    "NULL",
    "null",
    '","x","',
    '["a"]',
    ":tenant",
    "$1",
    "?",
    "%s",
    "{}",
    "COLLATE",
    "$where",
    "$gt",
    "a.b",
    "_id",
    "\u007fx",
    "\u0660",
    "\ufeff",
]
_names = st.one_of(st.sampled_from(_HOSTILE), texts(max_size=20))


@pytest.mark.needs("fast")
@settings(max_examples=200)
@given(namespace=_names, key=_names, prefix=_names, tenant=_names)
async def test_names_are_only_names(
    kv: KeyValueStore, namespace: str, key: str, prefix: str, tenant: str
) -> None:
    await _names_are_only_names(kv, namespace, key, prefix, tenant)


@settings(max_examples=25)
@given(namespace=_names, key=_names, prefix=_names, tenant=_names)
async def test_names_are_only_names_fewer(
    kv: KeyValueStore, namespace: str, key: str, prefix: str, tenant: str
) -> None:
    await _names_are_only_names(kv, namespace, key, prefix, tenant)


async def _names_are_only_names(
    kv: KeyValueStore, namespace: str, key: str, prefix: str, tenant: str
) -> None:
    await kv.set("witness", "k", "safe", tenant_id="witness")
    try:
        await kv.clear(namespace, tenant_id=tenant)
        await kv.set(namespace, key, 1, tenant_id=tenant)
    except InvalidValueError:
        return
    assert await kv.get(namespace, key, tenant_id=tenant) == 1
    assert await kv.get_many(namespace, [key, key + "x"], tenant_id=tenant) == {key: 1}
    assert await kv.increment(namespace, key, tenant_id=tenant) == 2
    assert namespace in (await kv.list_namespaces(limit=1000, tenant_id=tenant)).namespaces
    try:
        page = await kv.list(namespace, prefix, tenant_id=tenant)
        assert [entry.key for entry in page.entries] == ([key] if key.startswith(prefix) else [])
    except InvalidValueError:
        assert any(character < " " or character == "\x7f" for character in prefix)
    await kv.set(namespace, key, key, tenant_id=tenant)
    try:
        await kv.increment(namespace, key, tenant_id=tenant)
        raise AssertionError("text was incremented")
    except InvalidValueTypeError:
        pass
    assert await kv.delete(namespace, key, tenant_id=tenant) is True
    assert await kv.get("witness", "k", tenant_id="witness") == "safe"

"""The vector contract on Pinecone: our provider, Pinecone's SDK, and the emulator that checks what they say."""

from __future__ import annotations

from typing import Any, AsyncIterator, Callable, Dict, List, Optional

import pytest
import pytest_asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("pinecone", minversion="10", reason="the package pinecone (10 or later) is not installed")
pytest.importorskip("aiohttp", reason="the package aiohttp, for the emulator, is not installed")

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.filters import matches, parse_filter
from modules.storage.vectors.pinecone import PineconeProvider
from modules.storage.vectors.pinecone_filters import compile_filter, filter_fields
from modules.storage.vectors.pinecone_names import from_record_id, index_name_for, to_record_id
from modules.storage.vectors.pinecone_records import batches, fetch_groups
from modules.storage.vectors.testing import VectorProviderContract
from modules.store_common.tenancy import TenantPolicy
from tests.emulators.pinecone import PineconeEmulator
from tests.emulators.pinecone_index import passes


@pytest_asyncio.fixture
async def emulator() -> AsyncIterator[PineconeEmulator]:
    async with PineconeEmulator() as running:
        yield running
    running.check()


class TestPineconeContract(VectorProviderContract):
    @pytest.fixture
    def make_provider(self, emulator: PineconeEmulator) -> Callable[..., VectorProvider]:
        def make(tenancy: Optional[TenantPolicy] = None, **settings: Any) -> VectorProvider:
            return PineconeProvider(
                api_key=emulator.api_key, host=emulator.host, dimension=4, tenancy=tenancy, **settings
            )

        return make


def test_the_specification_was_there() -> None:
    if not PineconeEmulator().specification.found:
        pytest.skip(
            "no OpenAPI files in ../shared/spec/pinecone: nothing was checked against the specification"
        )


_ids = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), min_size=1, max_size=60)


@given(st.lists(st.one_of(_ids, st.text("a~}\x7f\x80é", min_size=1, max_size=12)), min_size=2, max_size=8))
def test_record_ids_are_one_to_one_and_keep_the_order(ids: List[str]) -> None:
    made = [to_record_id(item) for item in ids]
    assert [from_record_id(item) for item in made] == ids
    assert all(item.isascii() and 1 <= len(item) <= 512 for item in made)
    assert sorted(ids) == [from_record_id(item) for item in sorted(made)]


def test_the_longest_id_fits() -> None:
    for longest in ("é" * 127 + "x", "\U0001f600" * 63 + "abc", "x" * 255, "~" * 255):
        assert len(longest.encode()) == 255
        assert len(to_record_id(longest)) <= 512


def test_index_names_fit_and_differ() -> None:
    bases = ["x" * 45, "x" * 44 + "y", "a", "x" * 28 + "-" + "y" * 16]
    names = {
        index_name_for(base, dimension, metric)
        for base in bases
        for dimension in (1, 16_000)
        for metric in ("cosine", "euclidean", "dotproduct")
    }
    assert len(names) == len(bases) * 6
    assert all(len(name) <= 45 and not name.startswith("-") for name in names)


def test_splitting() -> None:
    assert list(batches([])) == []
    assert [len(group) for group in fetch_groups([f"id{n}" for n in range(250)])] == [100, 100, 50]
    assert max(len(group) for group in fetch_groups(["~" * 250] * 250)) < 24


_keys = st.sampled_from(["a", "b", "a.b", "c.a", "é"])
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, -0.0, 1.0, 2.0**53, 2**53 + 1, 1e308, "", "1", "a", "\x00"]),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=5,
)
_orders = st.one_of(st.integers(-3, 3), st.sampled_from([0.5, 2**53, 2**53 + 1, 1e308, "a", ""]))
_conditions = st.one_of(
    st.dictionaries(st.sampled_from(["$eq", "$ne"]), _scalars, min_size=1),
    st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), _orders, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(_scalars, max_size=3), min_size=1),
    st.fixed_dictionaries({"$exists": st.booleans()}),
)
_filters: st.SearchStrategy[Dict[str, Any]] = st.recursive(
    st.dictionaries(_keys, _conditions, min_size=1, max_size=2),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=5,
)


@settings(max_examples=400)
@example({"a": {"$nin": [1]}}, {"a": 2})
@example({"a": {"$ne": 1}}, {"a": 2})
@example({"a": {"$gt": 2}}, {"a": [1, "x", 3]})
@example({"a": {"$lt": 1}}, {"a": [1, 0, 3]})
@given(_filters, st.dictionaries(st.sampled_from("abc\u00e9"), _values, max_size=3))
def test_a_compiled_filter_lets_every_match_through(wanted: Dict[str, Any], metadata: Dict[str, Any]) -> None:
    tree = parse_filter(wanted)
    compiled = compile_filter(tree)
    let_through = compiled.native is None or passes(compiled.native, filter_fields(metadata))
    if matches(tree, metadata):
        assert let_through
    elif compiled.exact:
        assert not let_through or _crosses_precision(wanted)


def _crosses_precision(wanted: Any) -> bool:
    """2**53 and 2**53 + 1 are one double: there a range lets a neighbour through, which the search then removes."""
    return "9007199254740" in repr(wanted)

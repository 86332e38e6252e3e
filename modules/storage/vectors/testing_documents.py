"""The vector contract: documents in and out, namespaces, scroll."""

# ruff: noqa: D102, S101

from __future__ import annotations

import uuid
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List, Optional

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.testing_base import ContractBase, identical, vectors_of
from modules.store_common.errors import InvalidCursorError

__all__ = ["DocumentContract"]

_HARD_TEXTS = [
    "\x00",
    "a\x00b",
    "\ue000",
    "\ue0000",
    "\ue0001",
    "\\u0000",
    "'",
    '"',
    "\\",
    "%",
    "\u2028",
    "\U0001f600",
    "",
]
_texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20), st.sampled_from(_HARD_TEXTS)
)
_scalars = st.one_of(
    st.sampled_from(
        [0, -0.0, 0.0, 2**63 - 1, -(2**63), 2**53 + 1, 1e308, 5e-324, 1e16, 1.0, True, False, None]
    ),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    _texts,
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=4)),
    max_leaves=10,
)
_metadata = st.dictionaries(_texts, _values, max_size=5)
_quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]

#: Metadata that some engine changes, drops or refuses when it is handed over as it is.
_HARD_METADATA: List[Dict[str, Any]] = [
    {},
    {"": ""},
    {"a": None},
    {"a": []},
    {"a": {}},
    {"a": [[]], "b": [{}], "c": {"d": {}}},
    {"a": [1, "1", 1.0, True, None, [1], {"a": 1}]},
    {"zero": -0.0, "plain": 0.0, "int": 0},
    {"big": 2**63 - 1, "small": -(2**63), "odd": 2**53 + 1, "float": 1e16, "tiny": 5e-324, "huge": 1.7e308},
    {"t": True, "f": False, "one": 1, "one_float": 1.0},
    {"nul": "a\x00b", "\x00": "key", "private": "\ue000\ue0000\ue0001", "escaped": "\\u0000"},
    {"z": 1, "a": 2, "m": 3},
    {
        "dotted.key": {"a.b": 1},
        "$key": 1,
        "_id": 2,
        "document": 3,
        "chroma:document": 4,
        "namespace": 5,
        "id": 6,
    },
    {"long": "x" * 10_000},
    {"quote'\"`\\": "'\"`\\", "名前": "値", "emoji \U0001f600": "\U0001f600"},
    {"date": "2024-01-01T00:00:00Z", "uuid": str(uuid.UUID(int=5)), "number": "1e5"},
]


class DocumentContract(ContractBase):
    """Documents in and out, namespaces, scroll."""

    async def test_upsert_get_delete_and_count_say_how_many(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        assert await provider.upsert(name, []) == 0
        assert await provider.get(name, []) == []
        assert await provider.delete(name, []) == 0
        documents = [VectorDocument(f"d{n}", [1, n], f"text {n}", {"n": n}) for n in range(5)]
        assert await provider.upsert(name, documents) == 5
        await self.settle(provider)
        assert await provider.count(name) == 5
        assert await provider.upsert(name, documents[:2]) == 2
        await self.settle(provider)
        assert await provider.count(name) == 5
        assert await provider.count(name, filter={"n": {"$gte": 3}}) == 2
        found = await provider.get(name, ["d3", "missing", "d0", "d3"])
        assert [document.id for document in found] == ["d3", "d0"]
        assert found[0].content == "text 3"
        assert np.array_equal(np.asarray(found[0].vector), np.array([1, 3], dtype=np.float32))
        assert np.asarray(found[0].vector).dtype == np.float32
        assert await provider.delete(name, ["d0", "d1", "missing", "d0"]) == 2
        await self.settle(provider)
        assert await provider.delete(name, ["d0"]) == 0
        assert await self.ids(provider, name) == ["d2", "d3", "d4"]

    async def test_the_last_of_several_with_one_id_counts(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        documents = [
            VectorDocument("same", [1, 0], "first", {"n": 1}),
            VectorDocument("other", [0, 1], "other"),
            VectorDocument("same", [5, 5], "last", {"n": 2}),
            VectorDocument("same", [0, 1], "elsewhere", namespace="space"),
        ]
        assert await provider.upsert(name, documents) == 3
        await self.settle(provider)
        (found,) = await provider.get(name, ["same"])
        assert (found.content, dict(found.metadata), list(found.vector)) == ("last", {"n": 2}, [5, 5])
        assert await provider.count(name) == 3

    async def test_an_upsert_replaces_the_whole_document(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        await provider.upsert(name, [VectorDocument("x", [1, 0], "before", {"a": 1, "b": 2})])
        await provider.upsert(name, [VectorDocument("x", [0, 1], None, {"b": 3})])
        await self.settle(provider)
        (found,) = await provider.get(name, ["x"])
        assert (found.content, dict(found.metadata), list(found.vector)) == (None, {"b": 3}, [0, 1])
        assert await provider.count(name, filter={"a": {"$exists": True}}) == 0
        assert (await provider.search(name, [0, 1]))[0].score == pytest.approx(1.0, abs=1e-4)

    async def test_a_blank_id_becomes_a_uuid_of_version_7(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        assert await provider.upsert(name, [VectorDocument("", [1, 0]), VectorDocument("  ", [1, 1])]) == 2
        await self.settle(provider)
        ids = await self.ids(provider, name)
        assert [uuid.UUID(item).version for item in ids] == [7, 7]

    async def test_created_at_is_set_once_and_kept(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        before = datetime.now(timezone.utc) - timedelta(minutes=1)
        given_at = datetime(2001, 2, 3, 4, 5, 6, 789012, tzinfo=timezone(timedelta(hours=5)))
        await provider.upsert(
            name, [VectorDocument("own", [1, 0]), VectorDocument("told", [1, 1], created_at=given_at)]
        )
        await self.settle(provider)
        own, told = await provider.get(name, ["own", "told"])
        assert own.created_at is not None
        assert told.created_at == given_at
        assert own.created_at.utcoffset() == told.created_at.utcoffset() == timedelta(0)
        assert before < own.created_at < datetime.now(timezone.utc) + timedelta(minutes=1)
        await provider.upsert(name, [VectorDocument("own", [0, 1]), VectorDocument("told", [0, 1])])
        await self.settle(provider)
        again = await provider.get(name, ["own", "told"])
        if provider.capabilities.keeps_created_at:
            assert [document.created_at for document in again] == [own.created_at, told.created_at]
        else:
            times = [document.created_at for document in again]
            assert all(at is not None and at >= own.created_at for at in times)
        await provider.upsert(name, [VectorDocument("own", [0, 1], created_at=given_at)])
        await self.settle(provider)
        assert (await provider.get(name, ["own"]))[0].created_at == given_at

    async def test_vectors_of_every_kind_come_back_as_float32(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=3)
        given_vectors: List[Any] = [
            [1, 2, 3], (1.5, 2, 3), np.array([1, 2, 3]), np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.2, 0.3], dtype=np.float32),
            np.arange(6, dtype=np.float64)[1::2], np.array([1, 2, 3], dtype=">f4"), [1e-7, 2.5e7, -3.25],
        ]  # fmt: skip
        await provider.upsert(
            name, [VectorDocument(f"d{n}", vector) for n, vector in enumerate(given_vectors)]
        )
        await self.settle(provider)
        for n, vector in enumerate(given_vectors):
            (found,) = await provider.get(name, [f"d{n}"])
            assert np.array_equal(np.asarray(found.vector), np.asarray(vector, dtype=np.float32))

    async def test_hard_metadata_and_content_come_back_identical(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        contents: List[Optional[str]] = [None, *_HARD_TEXTS, "x" * 20_000]
        documents = [
            VectorDocument(f"d{n:03d}", [1, n], contents[n % len(contents)], value)
            for n, value in enumerate(_HARD_METADATA)
        ]
        await provider.upsert(name, documents)
        await self.settle(provider)
        ids = [document.id for document in documents]
        page = (await provider.scroll(name)).items
        hits = {hit.document.id: hit.document for hit in await provider.search(name, [1, 0], top_k=100)}
        for found in (await provider.get(name, ids), page, [hits[item] for item in ids]):
            for stored, document in zip(found, documents):
                assert stored.content == document.content
                assert identical(dict(stored.metadata), dict(document.metadata)), document.id

    async def test_any_metadata_and_content_come_back_identical(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)

        @settings(max_examples=20, deadline=None, suppress_health_check=_quiet, database=None)
        @given(st.lists(st.tuples(st.one_of(st.none(), _texts), _metadata), min_size=1, max_size=8))
        def collect(batch: List[Any]) -> None:
            batches.append(batch)

        batches: List[List[Any]] = []
        collect()
        for batch in batches:
            documents = [VectorDocument(f"d{n}", [1, n], *item) for n, item in enumerate(batch)]
            await provider.upsert(name, documents)
            await self.settle(provider)
            found = await provider.get(name, [document.id for document in documents])
            assert len(found) == len(documents)
            for stored, document in zip(found, documents):
                assert stored.content == document.content
                assert identical(dict(stored.metadata), dict(document.metadata))

    async def test_what_is_handed_out_is_the_callers_own(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        metadata, vector = {"list": [1]}, np.array([1, 2], dtype=np.float32)
        await provider.upsert(name, [VectorDocument("x", vector, "text", metadata)])
        await self.settle(provider)
        metadata["list"].append(2)
        vector[0] = 9
        (found,) = await provider.get(name, ["x"])
        assert dict(found.metadata) == {"list": [1]}
        found.metadata["list"].append(3)
        np.asarray(found.vector)[:] = 7
        (again,) = await provider.get(name, ["x"])
        assert (dict(again.metadata), list(again.vector)) == ({"list": [1]}, [1, 2])
        (hit,) = await provider.search(name, [1, 2], include_vectors=True)
        hit.document.metadata["list"].append(3)
        np.asarray(hit.document.vector)[:] = 7
        assert (await provider.search(name, [1, 2]))[0].score == pytest.approx(1.0, abs=1e-4)

    async def test_namespaces_isolate(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        spaces: List[Optional[str]] = [None, "a", "b", "A", "a b", "default "[:-1] + "x", "名前"]
        for position, space in enumerate(spaces):
            document = VectorDocument("same", [1, position], f"in {space}", {"position": position})
            assert await provider.upsert(name, [document], namespace=space) == 1
        await self.settle(provider)
        assert await provider.count(name) == len(spaces)
        for position, space in enumerate(spaces):
            assert await provider.count(name, namespace=space if space else "default") == 1
            (found,) = await provider.get(name, ["same"], namespace=space)
            assert (found.content, found.namespace) == (f"in {space}", space or "default")
            (hit,) = await provider.search(name, [1, 0], namespace=space)
            assert hit.document.content == f"in {space}"
            assert await self.ids(provider, name, namespace=space) == ["same"]
            assert (
                list(await provider.search(name, [1, 0], namespace=space, filter={"position": position + 1}))
                == []
            )
        assert await provider.delete(name, ["same"], namespace="a") == 1
        assert await provider.delete_where(name, {"position": {"$gte": 0}}, namespace="b") == 1
        assert await provider.clear_namespace(name, "A") == 1
        assert await provider.clear_namespace(name, "never written") == 0
        await self.settle(provider)
        assert await provider.count(name) == len(spaces) - 3
        assert list(await provider.search(name, [1, 0], namespace="a")) == []
        assert len(await provider.search(name, [1, 0])) == 1

    async def test_a_documents_own_namespace_counts(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        documents = [VectorDocument("x", [1, 0], namespace="own"), VectorDocument("x", [0, 1])]
        assert await provider.upsert(name, documents) == 2
        await self.settle(provider)
        assert await provider.count(name, namespace="own") == 1
        assert await provider.count(name, namespace="default") == 1

    async def test_delete_where(self, provider: VectorProvider) -> None:
        name = await self.collection(provider)
        await self.fill(provider, name, {f"d{n:03d}": {"n": n, "even": n % 2 == 0} for n in range(50)})
        assert await provider.delete_where(name, {"even": True, "n": {"$lt": 20}}) == 10
        await self.settle(provider)
        assert await provider.delete_where(name, {"even": True, "n": {"$lt": 20}}) == 0
        assert await provider.count(name) == 40
        hits = await provider.search(name, [1, 1, 1, 1], top_k=100)
        assert len(hits) == 40
        assert not [hit for hit in hits if hit.document.metadata["even"] and hit.document.metadata["n"] < 20]
        assert await provider.clear_namespace(name) == 40

    async def test_scroll_gives_every_document_once_in_order(self, provider: VectorProvider) -> None:
        name = await self.collection(provider)
        metadata = {f"d{n:03d}": {"n": n} for n in range(25)}
        metadata.update({"Z": {"n": 100}, "é": {"n": 101}, "\U0001f600": {"n": 102}, "\ue000": {"n": 103}})
        vectors = await self.fill(provider, name, metadata)
        expected = sorted(metadata)
        assert await self.ids(provider, name) == expected
        for limit in (1, 7, 28, 29, 30):
            found, cursor = [], None
            while True:
                page = await provider.scroll(name, limit=limit, cursor=cursor)
                assert len(page.items) <= limit
                found += page.items
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert [item.id for item in found] == expected
        assert all(np.array_equal(np.asarray(item.vector), vectors[item.id]) for item in found)
        some = await self.ids(provider, name, filter={"n": {"$gte": 20}})
        assert some == [item for item in expected if metadata[item]["n"] >= 20]

    async def test_a_cursor_is_stable_and_bound(self, provider: VectorProvider) -> None:
        name = await self.collection(provider)
        await self.fill(provider, name, {f"d{n}": {"n": n} for n in range(8)})
        other = await self.collection(provider, "other")
        await self.fill(provider, other, {f"d{n}": {"n": n} for n in range(8)})
        page = await provider.scroll(name, limit=3)
        assert page.next_cursor is not None
        cursor = page.next_cursor
        extra = vectors_of(2, 4)
        await provider.upsert(name, [VectorDocument("d0a", extra[0]), VectorDocument("d2a", extra[1])])
        await provider.delete(name, ["d2", "d3"])
        await self.settle(provider)
        following = await provider.scroll(name, limit=3, cursor=cursor)
        assert [item.id for item in following.items] == ["d2a", "d4", "d5"]
        wrong: List[Dict[str, Any]] = [
            {"namespace": "elsewhere"}, {"filter": {"n": 1}}, {"tenant_id": "another"},
        ]  # fmt: skip
        await provider.create_collection(name, 4, tenant_id="another")
        for arguments in wrong:
            with pytest.raises(InvalidCursorError):
                await provider.scroll(name, cursor=cursor, **arguments)
        for given_cursor in ("", "x", "!!!", cursor[:-4], cursor[::-1], "é"):
            with pytest.raises(InvalidCursorError):
                await provider.scroll(name, cursor=given_cursor)
        with pytest.raises(InvalidCursorError):
            await provider.scroll(other, cursor=cursor)

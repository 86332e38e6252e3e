"""The vector contract: what is refused before the store is touched, and that no tenant reaches another's data."""

# ruff: noqa: D102, DTZ001, E501, S101, S105

from __future__ import annotations

import inspect
from datetime import datetime, timezone
from typing import Any, Awaitable, Callable, Dict, List, Type

import numpy as np
import pytest

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorDimensionError, VectorNotFoundError
from modules.storage.vectors.models import DistanceMetric, VectorDocument
from modules.storage.vectors.testing_base import ContractBase
from modules.store_common.errors import InvalidValueError, NotInitializedError, TenantContextError
from modules.store_common.tenancy import TenantPolicy, tenant_context

__all__ = ["RefusalContract"]

_NAN, _INF = float("nan"), float("inf")
_SECRET = "secret of a"

#: Vectors for a collection of dimension 3, and what refuses them.
_BAD_VECTORS: List[Any] = [
    [], [1, 2], [1, 2, 3, 4], [1, 2, _NAN], [1, 2, _INF], [1, 2, -_INF], [1, 2, 1e300], [3e38, 3e38, 3e38], ["a", "b", "c"],
    ["1", "2", "3"], [1, 2, "3"], [1, 2, None], None, "abc", "", 5, {"a": 1}, [[1, 2, 3]], [[1], [2], [3]], [[1, 2], [3], 4],
    np.zeros((3, 2)), np.array([1, 2, _NAN]), np.array(["a", "b", "c"]), np.array(5.0),
    [1j, 2, 3], [b"1", b"2", b"3"], object(),
]  # fmt: skip
_BAD_NAMES: List[Any] = [
    "",
    " ",
    " a",
    "a ",
    "\n",
    "a\x00b",
    "a\tb",
    "\x7f",
    "\ud800",
    "x" * 256,
    "é" * 128,
    None,
    5,
    b"a",
    ["a"],
    {},
]
_BAD_DOCUMENTS: List[Any] = [
    "text", {"id": "x", "vector": [1, 2, 3]}, None, 5,
    VectorDocument("x" * 256, [1, 2, 3]), VectorDocument(" a", [1, 2, 3]), VectorDocument("a\x00", [1, 2, 3]), VectorDocument(5, [1, 2, 3]),  # type: ignore[arg-type]
    VectorDocument("x", [1, 2, 3], content=5), VectorDocument("x", [1, 2, 3], content="\ud800"), VectorDocument("x", [1, 2, 3], content="x" * (2**20 + 1)),  # type: ignore[arg-type]
    VectorDocument("x", [1, 2, 3], metadata=[1]), VectorDocument("x", [1, 2, 3], metadata={1: 2}), VectorDocument("x", [1, 2, 3], metadata={"a": _NAN}),  # type: ignore[arg-type,dict-item]
    VectorDocument("x", [1, 2, 3], metadata={"a": 2**63}), VectorDocument("x", [1, 2, 3], metadata={"a": {1, 2}}), VectorDocument("x", [1, 2, 3], metadata={"a": "\ud800"}),
    VectorDocument("x", [1, 2, 3], metadata={"a": "x" * 2**21}), VectorDocument("x", [1, 2, 3], namespace=""), VectorDocument("x", [1, 2, 3], namespace="a\x00"),
    VectorDocument("x", [1, 2, 3], created_at="2020"), VectorDocument("x", [1, 2, 3], created_at=datetime(2020, 1, 1)),  # type: ignore[arg-type]
]  # fmt: skip

_Call = Callable[[VectorProvider, Dict[str, Any]], Awaitable[Any]]

#: How each public method with a tenant is called by the wrong one. A method that is missing here fails the suite.
_CALLS: Dict[str, _Call] = {
    "create_collection": lambda p, t: p.create_collection("fresh", 3, **t),
    "delete_collection": lambda p, t: p.delete_collection("docs", **t),
    "list_collections": lambda p, t: p.list_collections(**t),
    "get_collection": lambda p, t: p.get_collection("docs", **t),
    "rebuild_index": lambda p, t: p.rebuild_index("docs", **t),
    "upsert": lambda p, t: p.upsert("docs", [VectorDocument("x", [9, 9, 9], "overwritten")], **t),
    "delete": lambda p, t: p.delete("docs", ["x", "y"], **t),
    "delete_where": lambda p, t: p.delete_where("docs", {"n": {"$gte": 0}}, **t),
    "delete_older": lambda p, t: _delete_older(p, t),
    "clear_namespace": lambda p, t: p.clear_namespace("docs", "default", **t),
    "get": lambda p, t: p.get("docs", ["x", "y"], **t),
    "count": lambda p, t: p.count("docs", **t),
    "scroll": lambda p, t: p.scroll("docs", **t),
    "search": lambda p, t: p.search("docs", [1, 0, 0], top_k=100, **t),
    "search_many": lambda p, t: p.search_many("docs", [[1, 0, 0]], top_k=100, **t),
    "search_by_text": lambda p, t: p.search_by_text("docs", "text", embed_fn=lambda text: [1, 0, 0], **t),
}


async def _delete_older(provider: VectorProvider, tenant: Dict[str, Any]) -> int:
    if not provider.capabilities.deletes_by_age:
        return await provider.count("docs", **tenant)
    return await provider.delete_older("docs", datetime(2999, 1, 1, tzinfo=timezone.utc), **tenant)


def _tenant_methods() -> List[str]:
    return [
        name
        for name, method in inspect.getmembers(VectorProvider, inspect.iscoroutinefunction)
        if not name.startswith("_") and "tenant_id" in inspect.signature(method).parameters
    ]


class RefusalContract(ContractBase):
    """Refusals and tenants."""

    async def test_bad_vectors_are_refused_and_nothing_is_touched(
        self, provider: VectorProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = await self.collection(provider, dimension=3)
        await provider.upsert(name, [VectorDocument("kept", [1, 2, 3])])
        await self.settle(provider)
        with monkeypatch.context() as patch:
            _forbid(patch, provider, "_upsert", "_search")
            for bad in [*_BAD_VECTORS, [0, 0, 0], np.zeros(3), [1e-30, 0, 0]]:
                batch = [VectorDocument("good", [1, 1, 1]), VectorDocument("bad", bad)]
                with pytest.raises(VectorDimensionError):
                    await provider.upsert(name, batch)
                with pytest.raises(VectorDimensionError):
                    await provider.search(name, bad)
                with pytest.raises(VectorDimensionError):
                    await provider.search_many(name, [[1, 1, 1], bad])
            for bad in (5, "abc", iter([[1, 2, 3]]), [1, 2, 3]):
                with pytest.raises(VectorDimensionError):
                    await provider.search_many(name, bad)  # type: ignore[arg-type]
        assert await self.ids(provider, name) == ["kept"]

    async def test_zero_is_a_vector_where_it_has_a_meaning(self, provider: VectorProvider) -> None:
        for metric in provider.capabilities.metrics:
            if metric is DistanceMetric.COSINE:
                continue
            name = await self.collection(provider, f"zero {metric.value}", dimension=2, metric=metric)
            await provider.upsert(name, [VectorDocument("zero", [0, 0]), VectorDocument("one", [1, 0])])
            await self.settle(provider)
            stored = {"zero": np.zeros(2), "one": np.array([1.0, 0.0])}
            for query in ([0, 0], [0, 2]):
                results = await provider.search(name, query)
                self.check_results(provider, results, metric, query, stored, 10)

    async def test_bad_documents_are_refused_and_nothing_is_touched(
        self, provider: VectorProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = await self.collection(provider, dimension=3)
        with monkeypatch.context() as patch:
            _forbid(patch, provider, "_upsert")
            for bad in _BAD_DOCUMENTS:
                with pytest.raises(InvalidValueError):
                    await provider.upsert(name, [VectorDocument("good", [1, 1, 1]), bad])
            for batch in (None, 5, "abc", b"abc"):
                with pytest.raises(InvalidValueError):
                    await provider.upsert(name, batch)  # type: ignore[arg-type]
            with pytest.raises(InvalidValueError):
                await provider.upsert(name, [VectorDocument("x", [1, 1, 1], namespace="a")], namespace="b")
        assert await provider.count(name) == 0

    async def test_bad_names_and_numbers_are_refused(
        self, provider: VectorProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = await self.collection(provider, dimension=3)
        vector = [1, 2, 3]
        with monkeypatch.context() as patch:
            hooks = [
                hook
                for hook in dir(VectorProvider)
                if getattr(getattr(VectorProvider, hook), "__isabstractmethod__", False)
            ]
            _forbid(patch, provider, *(hook for hook in hooks if hook.startswith("_")))
            for bad in _BAD_NAMES:
                calls: List[Callable[[], Awaitable[Any]]] = [
                    lambda bad=bad: provider.create_collection(bad, 3),  # type: ignore[misc]
                    lambda bad=bad: provider.delete_collection(bad),  # type: ignore[misc]
                    lambda bad=bad: provider.get_collection(bad),  # type: ignore[misc]
                    lambda bad=bad: provider.search(bad, vector),  # type: ignore[misc]
                    lambda bad=bad: provider.get(name, [bad]),  # type: ignore[misc]
                    lambda bad=bad: provider.delete(name, ["x", bad]),  # type: ignore[misc]
                ]
                if bad is not None:
                    calls += [
                        lambda bad=bad: provider.search(name, vector, namespace=bad),  # type: ignore[misc]
                        lambda bad=bad: provider.upsert(name, [VectorDocument("x", vector)], namespace=bad),  # type: ignore[misc]
                        lambda bad=bad: provider.count(name, namespace=bad),  # type: ignore[misc]
                        lambda bad=bad: provider.scroll(name, namespace=bad),  # type: ignore[misc]
                        lambda bad=bad: provider.clear_namespace(name, bad),  # type: ignore[misc]
                        lambda bad=bad: provider.count(name, tenant_id=bad),  # type: ignore[misc]
                    ]
                for call in calls:
                    with pytest.raises(InvalidValueError):
                        await call()
            await self._check_bad_numbers(provider, name)
        assert [info.name for info in await provider.list_collections()] == [name]

    @staticmethod
    async def _check_bad_numbers(provider: VectorProvider, name: str) -> None:
        bad: Any
        for bad in (0, -1, provider.capabilities.max_top_k + 1, 1.5, "5", None, True):
            with pytest.raises(InvalidValueError):
                await provider.search(name, [1, 2, 3], top_k=bad)
        for bad in (0, -1, 10_001, 1.5, "5", None, True):
            with pytest.raises(InvalidValueError):
                await provider.scroll(name, limit=bad)
        for bad in (0, -1, 16_001, 1.5, "3", None, True):
            with pytest.raises(VectorDimensionError):
                await provider.create_collection("new", bad)
        for bad in ("manhattan", 5, None):
            with pytest.raises(InvalidValueError):
                await provider.create_collection("new", 3, metric=bad)
        for bad in ({"a": _NAN}, {1: 2}, {"a": object()}):
            with pytest.raises(InvalidValueError):
                await provider.create_collection("new", 3, metadata=bad)
        for bad in ("abc", 5, None):
            with pytest.raises(InvalidValueError):
                await provider.get(name, bad)

    async def test_no_tenant_reaches_anothers_data(self, provider: VectorProvider) -> None:
        await self._fill_tenant(provider, "a", _SECRET)
        before = await self._state(provider, "a")
        for same_name in (False, True):
            if same_name:
                await self._fill_tenant(provider, "b", "of b")
            for method in _tenant_methods():
                assert method in _CALLS, f"{method} is new: give it a case in _CALLS"
                try:
                    given = await _CALLS[method](provider, {"tenant_id": "b"})
                except VectorNotFoundError:
                    assert not same_name or method != "search"
                    given = None
                assert _SECRET not in _shown(given), f"{method} shows another tenant's data"
                await self.settle(provider)
                assert await self._state(provider, "a") == before, f"{method} changed another tenant's data"
                await self._drop_tenant(provider, "b")
                if same_name:
                    await self._fill_tenant(provider, "b", "of b")

    async def test_a_tenant_may_have_another_collection_of_the_same_name(
        self, provider: VectorProvider
    ) -> None:
        await provider.create_collection("same", 2, tenant_id="a")
        await provider.create_collection("same", 5, tenant_id="b", metric=provider.capabilities.metrics[-1])
        await provider.upsert("same", [VectorDocument("x", [1, 2])], tenant_id="a")
        await provider.upsert("same", [VectorDocument("x", [1, 2, 3, 4, 5])], tenant_id="b")
        await self.settle(provider)
        assert len((await provider.get("same", ["x"], tenant_id="a"))[0].vector) == 2
        with tenant_context("b"):
            assert len((await provider.get("same", ["x"]))[0].vector) == 5
            assert await provider.delete_collection("same") is True
        assert await provider.count("same", tenant_id="a") == 1

    async def test_a_required_tenant_must_be_named(
        self, make_provider: Callable[..., VectorProvider]
    ) -> None:
        provider = make_provider(tenancy=TenantPolicy(required=True))
        await provider.initialize()
        try:
            await self._fill_tenant(provider, "a", _SECRET)
            for method in _tenant_methods():
                with pytest.raises(TenantContextError):
                    await _CALLS[method](provider, {})
            with tenant_context("a"):
                assert await provider.count("docs") == 2
            with tenant_context("b"), pytest.raises(VectorNotFoundError):
                await provider.count("docs")
        finally:
            await provider.shutdown()

    async def test_every_method_says_that_it_is_not_initialized(
        self, make_provider: Callable[..., VectorProvider]
    ) -> None:
        provider = make_provider()
        for method in _tenant_methods():
            with pytest.raises(NotInitializedError, match="not initialized"):
                await _CALLS[method](provider, {})

    async def _fill_tenant(self, provider: VectorProvider, tenant: str, text: str) -> None:
        await provider.create_collection("docs", 3, tenant_id=tenant, metadata={"note": text})
        documents = [
            VectorDocument("x", [1, 0, 0], text, {"n": 1}),
            VectorDocument("y" if tenant == "a" else "z", [0, 1, 0], text, {"n": 2, "note": text}),
        ]
        await provider.upsert("docs", documents, tenant_id=tenant)
        await self.settle(provider)

    @staticmethod
    async def _drop_tenant(provider: VectorProvider, tenant: str) -> None:
        for info in await provider.list_collections(tenant_id=tenant):
            await provider.delete_collection(info.name, tenant_id=tenant)

    @staticmethod
    async def _state(provider: VectorProvider, tenant: str) -> Any:
        collections = [info.to_dict() for info in await provider.list_collections(tenant_id=tenant)]
        page = await provider.scroll("docs", tenant_id=tenant)
        return collections, [item.to_dict() for item in page.items]


def _shown(given: Any) -> str:
    if isinstance(given, list):
        return " ".join(_shown(item) for item in given)
    if hasattr(given, "items") and isinstance(given.items, list):
        return _shown(given.items)
    return repr(given.to_dict() if hasattr(given, "to_dict") else given)


def _forbid(patch: pytest.MonkeyPatch, provider: VectorProvider, *hooks: str) -> None:
    """Let any use of these hooks fail: the store must not be touched."""
    known: Type[BaseException] = AssertionError

    async def touched(*arguments: Any, **named: Any) -> Any:
        raise known("the store was touched")

    for hook in hooks:
        patch.setattr(provider, hook, touched)

"""What all parts of the vector contract stand on: the fixtures a provider supplies, documents, and the oracle."""

# ruff: noqa: S101

from __future__ import annotations

import random
from typing import Any, AsyncIterator, Callable, Dict, List, Mapping, Optional

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.models import DistanceMetric, SearchResults, VectorDocument

__all__ = ["ContractBase", "identical", "oracle_scores", "vectors_of"]


def vectors_of(count: int, dimension: int, seed: int = 1) -> NDArray[np.float32]:
    """Return independent normal vectors, shape (count, dimension)."""
    made: NDArray[np.float32] = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return made


def oracle_scores(metric: DistanceMetric, query: Any, matrix: Any) -> NDArray[np.float64]:
    """Return the scores by the formulas of `DistanceMetric`, in float64."""
    wide, one = np.asarray(matrix, dtype=np.float64), np.asarray(query, dtype=np.float64)
    if metric is DistanceMetric.EUCLIDEAN:
        near: NDArray[np.float64] = 1.0 / (1.0 + np.sqrt(((wide - one) ** 2).sum(axis=1)))
        return near
    products: NDArray[np.float64] = (wide * one).sum(axis=1)
    if metric is DistanceMetric.COSINE:
        products = products / (np.sqrt((wide**2).sum(axis=1)) * np.sqrt((one**2).sum()))
    return products


def identical(a: Any, b: Any) -> bool:
    """Whether two JSON values are equal in type, order of keys and sign of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bool(a.hex() == b.hex())
    if isinstance(a, list):
        return len(a) == len(b) and all(identical(x, y) for x, y in zip(a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[key], b[key]) for key in a)
    return bool(a == b)


class ContractBase:
    """Fixtures and helpers; see `testing.VectorProviderContract`."""

    #: Collection names and filter keys that the fuzz tests try, each.
    fuzz = 1000
    #: Collections with odd names that live side by side in one test.
    odd_names = 200
    #: Documents of the selectivity test.
    crowd = 1000

    @pytest.fixture
    def make_provider(self) -> Callable[..., VectorProvider]:
        """Return a function `(tenancy: Optional[TenantPolicy] = None) -> VectorProvider`; override this.

        Each call gives a provider that is not initialised yet. Where the engine is persistent, all of one test work on
        the same store, which is empty when the test begins.
        """
        raise NotImplementedError("a subclass of VectorProviderContract overrides the fixture make_provider")

    @pytest_asyncio.fixture
    async def provider(self, make_provider: Callable[..., VectorProvider]) -> AsyncIterator[VectorProvider]:
        """An open provider on an empty store."""
        made = make_provider()
        await made.initialize()
        try:
            yield made
        finally:
            await made.shutdown()

    async def settle(self, provider: VectorProvider) -> None:
        """Wait until what was written is visible; override where the engine is not immediately consistent."""

    async def collection(
        self,
        provider: VectorProvider,
        name: str = "docs",
        *,
        dimension: int = 4,
        metric: DistanceMetric = DistanceMetric.COSINE,
        tenant_id: Optional[str] = None,
    ) -> str:
        """Create a collection and return its name."""
        if metric not in provider.capabilities.metrics:
            pytest.skip(f"capabilities.metrics has no {metric.value}")
        await provider.create_collection(name, dimension, metric=metric, tenant_id=tenant_id)
        return name

    async def fill(
        self,
        provider: VectorProvider,
        collection: str,
        metadata: Mapping[str, Mapping[str, Any]],
        *,
        dimension: int = 4,
        namespace: Optional[str] = None,
        tenant_id: Optional[str] = None,
    ) -> Dict[str, NDArray[np.float32]]:
        """Store a document for each id of `metadata` and return their vectors."""
        matrix = vectors_of(len(metadata), dimension)
        documents = [
            VectorDocument(key, vector, metadata=value)
            for (key, value), vector in zip(metadata.items(), matrix)
        ]
        random.Random(1).shuffle(documents)  # noqa: S311 - order of arrival must not matter
        await provider.upsert(collection, documents, namespace=namespace, tenant_id=tenant_id)
        await self.settle(provider)
        return dict(zip(metadata, matrix))

    async def ids(
        self,
        provider: VectorProvider,
        collection: str,
        *,
        filter: Optional[Mapping[str, Any]] = None,
        namespace: Optional[str] = None,
    ) -> List[str]:
        """Return the ids that a scroll gives, all pages."""
        found: List[str] = []
        cursor: Optional[str] = None
        while True:
            page = await provider.scroll(
                collection, limit=100, cursor=cursor, filter=filter, namespace=namespace
            )
            found += [item.id for item in page.items]
            cursor = page.next_cursor
            if cursor is None:
                return found

    def check_results(
        self,
        provider: VectorProvider,
        results: SearchResults,
        metric: DistanceMetric,
        query: Any,
        stored: Mapping[str, Any],
        top_k: int,
    ) -> None:
        """Compare one answer with the oracle over `stored`, which holds what passes the filter."""
        ids = [hit.document.id for hit in results]
        assert len(set(ids)) == len(ids)
        assert set(ids) <= set(stored)
        wanted = min(top_k, len(stored))
        assert len(ids) <= wanted
        if results.complete:
            assert len(ids) == wanted, "fewer than min(top_k, matches), silently"
            assert results.reason == ""
        else:
            assert results.reason
        if not stored:
            return
        names = sorted(stored)
        truth = dict(
            zip(names, oracle_scores(metric, query, np.stack([stored[name] for name in names])).tolist())
        )
        for hit in results:
            expected = truth[hit.document.id]
            assert hit.score == pytest.approx(expected, abs=1e-4 * max(1.0, abs(expected)))
        self._check_order(results, stored)
        best = sorted(truth.values(), reverse=True)[:wanted]
        border = best[-1] - 1e-5 * max(1.0, abs(best[-1]))
        near_enough = sum(truth[name] >= border for name in ids)
        if provider.capabilities.exact_search:
            assert near_enough == wanted, "an exact search missed a nearer document"
        elif results.complete:
            assert near_enough >= 0.9 * wanted

    @staticmethod
    def _check_order(results: SearchResults, stored: Mapping[str, Any]) -> None:
        for one, two in zip(results, results[1:]):
            assert one.score >= two.score, "not best first"
            if np.array_equal(stored[one.document.id], stored[two.document.id]):
                assert one.document.id < two.document.id, "a tie is not in the order of ids"

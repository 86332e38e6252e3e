"""The vector contract: search by every metric, filtered, in batches and by text."""

# ruff: noqa: D102, S101

from __future__ import annotations

import asyncio
import threading
from typing import Any, Dict, List

import numpy as np
import pytest

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.models import DistanceMetric, SearchResults, VectorDocument
from modules.storage.vectors.testing_base import ContractBase, vectors_of
from modules.store_common.errors import InvalidValueError

__all__ = ["SearchContract"]


class SearchContract(ContractBase):
    """Search."""

    @pytest.mark.parametrize("metric", list(DistanceMetric), ids=lambda metric: metric.value)
    async def test_scores_and_order_agree_with_numpy(
        self, provider: VectorProvider, metric: DistanceMetric
    ) -> None:
        name = await self.collection(provider, dimension=16, metric=metric)
        stored = await self.fill(provider, name, {f"d{n:03d}": {"n": n} for n in range(200)}, dimension=16)
        scaled = {"far": stored["d000"] * 50, "near": stored["d001"] * 0.01, "against": -stored["d002"]}
        await provider.upsert(name, [VectorDocument(item, vector) for item, vector in scaled.items()])
        await self.settle(provider)
        stored.update(scaled)
        queries = [*vectors_of(5, 16, seed=2), stored["d003"], stored["d004"] * 30, -stored["d005"]]
        for query in queries:
            for top_k in (1, 10, 203, 500):
                results = await provider.search(name, query, top_k=top_k)
                assert isinstance(results, SearchResults)
                self.check_results(provider, results, metric, query, stored, top_k)

    async def test_scores_by_hand(self, provider: VectorProvider) -> None:
        expected = {
            DistanceMetric.COSINE: 0.6,
            DistanceMetric.EUCLIDEAN: 1 / (1 + 20**0.5),
            DistanceMetric.DOT_PRODUCT: 3.0,
            DistanceMetric.INNER_PRODUCT: 3.0,
        }
        for metric in provider.capabilities.metrics:
            name = await self.collection(provider, f"hand {metric.value}", dimension=2, metric=metric)
            await provider.upsert(name, [VectorDocument("x", [3, 4])])
            await self.settle(provider)
            (hit,) = await provider.search(name, [1, 0])
            assert hit.score == pytest.approx(expected[metric], abs=1e-4)
            assert isinstance(hit.score, float)
            assert isinstance(hit.distance, float)

    async def test_equal_vectors_come_in_the_order_of_ids(self, provider: VectorProvider) -> None:
        for metric in provider.capabilities.metrics:
            name = await self.collection(provider, f"ties {metric.value}", dimension=7, metric=metric)
            one, two = vectors_of(2, 7)
            ids = [f"d{n:02d}" for n in range(40)] + ["A", "a", "é", "\U0001f600", "\ue000", "Z z"]
            order = ids[::3] + ids[1::3] + ids[2::3]
            await provider.upsert(name, [VectorDocument(item, one) for item in order])
            await provider.upsert(name, [VectorDocument("other", two)])
            await self.settle(provider)
            stored = {**dict.fromkeys(ids, one), "other": two}
            for top_k in (1, 5, 30, 60):
                results = await provider.search(name, one, top_k=top_k)
                self.check_results(provider, results, metric, one, stored, top_k)
                same = [hit.document.id for hit in results if hit.document.id != "other"]
                assert same == sorted(ids)[: len(same)]

    async def test_an_empty_collection_gives_nothing_and_is_complete(self, provider: VectorProvider) -> None:
        name = await self.collection(provider)
        for arguments in ({}, {"filter": {"a": 1}}, {"namespace": "elsewhere"}):
            results = await provider.search(name, [1, 2, 3, 4], **arguments)
            assert (list(results), results.complete, results.reason) == ([], True, "")
        assert await provider.search_many(name, []) == []

    async def test_what_a_hit_holds(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        await provider.upsert(name, [VectorDocument("x", [1, 2], "text", {"a": [1]}, "space")])
        await self.settle(provider)
        (plain,) = await provider.search(name, [1, 0], namespace="space")
        document = plain.document
        assert (document.id, document.content, dict(document.metadata)) == ("x", "text", {"a": [1]})
        assert document.namespace == "space"
        assert document.created_at is not None
        assert len(document.vector) == 0
        (full,) = await provider.search(name, [1, 0], namespace="space", include_vectors=True)
        assert list(full.document.vector) == [1, 2]
        (bare,) = await provider.search(name, [1, 0], namespace="space", include_metadata=False)
        assert (bare.document.id, bare.document.content, dict(bare.document.metadata)) == ("x", None, {})
        assert bare.score == plain.score

    async def test_selective_filters_never_give_too_little(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=16)
        crowd = self.crowd
        metadata: Dict[str, Dict[str, Any]] = {f"d{n:05d}": {"n": n, "odd": n % 2 == 1} for n in range(crowd)}
        stored = await self.fill(provider, name, metadata, dimension=16)
        queries = vectors_of(6, 16, seed=5)
        for share in (0.5, 0.1, 0.01, 0.001):
            await self._check_share(provider, name, metadata, stored, queries, share)
        gone = [item for item in stored if int(item[1:]) % 3 == 0]
        assert await provider.delete(name, gone) == len(gone)
        await self.settle(provider)
        for item in gone:
            del stored[item]
        for share in (1.0, 0.5, 0.1, 0.01):
            await self._check_share(provider, name, metadata, stored, queries, share)

    async def _check_share(
        self,
        provider: VectorProvider,
        name: str,
        metadata: Dict[str, Dict[str, Any]],
        stored: Dict[str, Any],
        queries: Any,
        share: float,
    ) -> None:
        limit = max(1, int(len(metadata) * share))
        passing = {item: vector for item, vector in stored.items() if metadata[item]["n"] < limit}
        for query in queries:
            results = await provider.search(name, query, top_k=10, filter={"n": {"$lt": limit}})
            self.check_results(provider, results, DistanceMetric.COSINE, query, passing, 10)

    async def test_search_many_answers_as_search_does(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=8)
        await self.fill(provider, name, {f"d{n:03d}": {"n": n} for n in range(120)}, dimension=8)
        queries = vectors_of(9, 8, seed=6)
        for arguments in ({"top_k": 5}, {"top_k": 7, "filter": {"n": {"$lt": 50}}, "include_vectors": True}):
            together = await provider.search_many(name, queries, **arguments)
            assert len(together) == len(queries)
            for query, results in zip(queries, together):
                alone = await provider.search(name, query, **arguments)
                assert [hit.document.id for hit in results] == [hit.document.id for hit in alone]
                assert [hit.score for hit in results] == pytest.approx([hit.score for hit in alone], abs=1e-5)
                assert results.complete == alone.complete

    async def test_ids_alone_are_those_of_the_whole_answer(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=8)
        await self.fill(provider, name, {f"d{n:03d}": {"n": n} for n in range(120)}, dimension=8)
        for query in vectors_of(4, 8, seed=7):
            for top_k, condition in (
                (5, None),
                (1000, None),
                (7, {"n": {"$lt": 50}}),
                (9, {"n": {"$lt": 3}}),
            ):
                whole = await provider.search(name, query, top_k=top_k, filter=condition)
                named = await provider.search(
                    name, query, top_k=top_k, filter=condition, ids_only=True, include_vectors=True
                )
                assert [hit.document.id for hit in named] == [hit.document.id for hit in whole]
                assert [hit.score for hit in named] == pytest.approx([hit.score for hit in whole], abs=1e-6)
                assert (named.complete, named.reason) == (whole.complete, whole.reason)
                assert {hit.document.namespace for hit in named} == {hit.document.namespace for hit in whole}
                assert all(hit.document.content is None and not hit.document.metadata for hit in named)
                assert all(len(hit.document.vector) == 0 for hit in named)

    async def test_writes_are_seen_by_the_next_search(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        for turn in range(12):
            await provider.upsert(name, [VectorDocument(f"d{turn}", [1, turn])])
            if turn % 4 == 3:
                assert await provider.delete(name, [f"d{turn - 1}"]) == 1
            await self.settle(provider)
            hits = await provider.search(name, [1, turn], top_k=50)
            assert hits[0].document.id == f"d{turn}"
            assert len(hits) == turn + 1 - (turn + 1) // 4

    async def test_calls_at_the_same_time(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=4)
        vectors = vectors_of(80, 4)

        async def store(part: int) -> None:
            for n in range(part, 80, 8):
                await provider.upsert(name, [VectorDocument(f"d{n:02d}", vectors[n])])
                await provider.search(name, vectors[n], top_k=3)

        await asyncio.gather(*(store(part) for part in range(8)))
        await self.settle(provider)
        stored = {f"d{n:02d}": vectors[n] for n in range(80)}
        answers = await asyncio.gather(*(provider.search(name, vector, top_k=5) for vector in vectors[:20]))
        for vector, results in zip(vectors, answers):
            self.check_results(provider, results, DistanceMetric.COSINE, vector, stored, 5)

    async def test_search_by_text(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=2)
        await provider.upsert(
            name, [VectorDocument("x", [1, 0], "x"), VectorDocument("y", [0, 1], "y", {"a": 1})]
        )
        await self.settle(provider)
        threads: List[int] = []

        def embed(text: str) -> List[float]:
            threads.append(threading.get_ident())
            return [1.0, 0.1] if text == "like x" else [0.1, 1.0]

        async def embed_async(text: str) -> List[float]:
            await asyncio.sleep(0)
            return embed(text)

        for embed_fn in (embed, embed_async, lambda text: embed_async(text)):
            hits = await provider.search_by_text(name, "like x", embed_fn=embed_fn, top_k=1)
            assert [hit.document.id for hit in hits] == ["x"]
        assert threads[0] != threading.get_ident(), "a plain embed_fn ran on the event loop's thread"
        hits = await provider.search_by_text(
            name, "like x", embed_fn=embed, filter={"a": 1}, include_vectors=True, include_metadata=False
        )
        assert [(hit.document.id, list(hit.document.vector)) for hit in hits] == [("y", [0, 1])]
        for blank in ("", "  ", None, 5):
            with pytest.raises(InvalidValueError):
                await provider.search_by_text(name, blank, embed_fn=embed)  # type: ignore[arg-type]

        def broken(text: str) -> List[float]:
            raise LookupError("no model")

        with pytest.raises(LookupError, match="no model"):
            await provider.search_by_text(name, "text", embed_fn=broken)

    async def test_float64_and_matrix_queries(self, provider: VectorProvider) -> None:
        name = await self.collection(provider, dimension=3)
        await self.fill(provider, name, {f"d{n}": {} for n in range(20)}, dimension=3)
        query = np.array([0.1, 0.2, 0.3])
        answers = [
            [hit.document.id for hit in await provider.search(name, given)]
            for given in (query, query.tolist(), tuple(query.tolist()), query.astype(np.float32))
        ]
        assert answers.count(answers[0]) == 4
        assert len(await provider.search_many(name, np.stack([query, query]))) == 2

"""The vector contract: documents go by their age, in every namespace, and only those of the tenant."""

# ruff: noqa: S101

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.errors import VectorNotFoundError, VectorStoreError
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.retention import FOLLOWS, delete_older_everywhere
from modules.storage.vectors.testing_base import ContractBase, vectors_of
from modules.store_common.errors import InvalidValueError

__all__ = ["AgeContract"]

_BORDER = datetime(2024, 5, 1, 12, 30, 0, 250_000, tzinfo=timezone.utc)
_STEP = timedelta(microseconds=1)


class AgeContract(ContractBase):
    """Retention."""

    async def _fill_ages(self, provider: VectorProvider, name: str, tenant_id: str) -> None:
        ages = {"old": _BORDER - _STEP, "border": _BORDER, "young": _BORDER + _STEP}
        for namespace in ("default", "other space"):
            documents = [
                VectorDocument(key, [1, n], created_at=at) for n, (key, at) in enumerate(ages.items())
            ]
            documents.append(VectorDocument("now", [1, 9]))
            await provider.upsert(name, documents, namespace=namespace, tenant_id=tenant_id)
        await self.settle(provider)

    async def test_what_is_older_goes_in_every_namespace(self, provider: VectorProvider) -> None:
        """Both namespaces of one tenant lose what is older, the other tenant nothing."""
        if not provider.capabilities.deletes_by_age:
            pytest.skip("capabilities.deletes_by_age is False")
        await provider.create_collection("docs", 2, tenant_id="a")
        await provider.create_collection("docs", 2, tenant_id="b")
        await self._fill_ages(provider, "docs", "a")
        await self._fill_ages(provider, "docs", "b")
        assert await provider.delete_older("docs", _BORDER, tenant_id="a") == 2
        await self.settle(provider)
        for namespace in ("default", "other space"):
            page = await provider.scroll("docs", namespace=namespace, tenant_id="a")
            assert [item.id for item in page.items] == ["border", "now", "young"]
            hits = await provider.search("docs", [1, 0], top_k=9, namespace=namespace, tenant_id="a")
            assert sorted(hit.document.id for hit in hits) == ["border", "now", "young"]
        assert await provider.count("docs", tenant_id="b") == 8
        assert await provider.delete_older("docs", _BORDER, tenant_id="a") == 0
        with pytest.raises(InvalidValueError):
            await provider.delete_older("docs", datetime(2024, 5, 1), tenant_id="a")  # noqa: DTZ001 - naive on purpose
        with pytest.raises(VectorNotFoundError):
            await provider.delete_older("absent", _BORDER, tenant_id="a")

    async def test_a_crowd_goes_in_steps(self, provider: VectorProvider) -> None:
        """More rows than one step takes."""
        if not provider.capabilities.deletes_by_age:
            pytest.skip("capabilities.deletes_by_age is False")
        name = await self.collection(provider, dimension=2)
        matrix = vectors_of(self.crowd, 2)
        documents = [
            VectorDocument(f"d{n:05d}", vector, created_at=_BORDER - _STEP if n % 3 else _BORDER)
            for n, vector in enumerate(matrix)
        ]
        await provider.upsert(name, documents)
        await self.settle(provider)
        kept = [item.id for item in documents if item.created_at == _BORDER]
        assert await provider.delete_older(name, _BORDER) == len(documents) - len(kept)
        await self.settle(provider)
        assert await self.ids(provider, name) == kept

    async def test_everywhere_means_every_tenant_but_not_what_follows_something_else(
        self, provider: VectorProvider
    ) -> None:
        """Upkeep goes through tenants and collections."""
        if not provider.capabilities.deletes_by_age:
            with pytest.raises(VectorStoreError, match="cannot"):
                await delete_older_everywhere(provider, _BORDER)
            return
        for tenant in ("a", "b"):
            for name in ("one", "two"):
                await provider.create_collection(name, 2, tenant_id=tenant)
                await self._fill_ages(provider, name, tenant)
            await provider.create_collection("bound", 2, metadata={FOLLOWS: "messages"}, tenant_id=tenant)
            await self._fill_ages(provider, "bound", tenant)
        assert await delete_older_everywhere(provider, _BORDER, "a") == 4
        await self.settle(provider)
        assert await provider.count("one", tenant_id="b") == 8
        assert await delete_older_everywhere(provider, _BORDER) == 4
        await self.settle(provider)
        for tenant in ("a", "b"):
            counts = [await provider.count(name, tenant_id=tenant) for name in ("one", "two", "bound")]
            assert counts == [6, 6, 8]

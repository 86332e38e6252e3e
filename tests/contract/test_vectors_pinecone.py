"""The vector contract on Pinecone: our provider, Pinecone's SDK, and the emulator that checks what they say."""

from __future__ import annotations

from typing import Any, AsyncIterator, Callable, Optional

import pytest
import pytest_asyncio

pytest.importorskip("pinecone", reason="the package pinecone (10 or later) is not installed")
pytest.importorskip("aiohttp", reason="the package aiohttp, for the emulator, is not installed")

from modules.storage.vectors.base import VectorProvider
from modules.storage.vectors.pinecone import PineconeProvider
from modules.storage.vectors.testing import VectorProviderContract
from modules.store_common.tenancy import TenantPolicy
from tests.emulators.pinecone import PineconeEmulator


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

"""The Pinecone emulator's check against the specification bites: what is not of it fails the test that did it."""

from __future__ import annotations

import json
from typing import Any, List, Tuple

import pytest

pytest.importorskip("pinecone", minversion="10", reason="the package pinecone (10 or later) is not installed")
pytest.importorskip("aiohttp", reason="the package aiohttp, for the emulator, is not installed")

import httpx

from modules.storage.vectors.pinecone import PineconeProvider
from tests.emulators.pinecone import PineconeEmulator
from tests.emulators.pinecone_spec import ViolationError


async def _opened(emulator: PineconeEmulator) -> PineconeProvider:
    provider = PineconeProvider(api_key=emulator.api_key, host=emulator.host, dimension=2)
    await provider.initialize()
    return provider


async def _posted(emulator: PineconeEmulator, provider: PineconeProvider, path: str, body: Any) -> int:
    data = provider._open()[1].data.host
    headers = {"Api-Key": emulator.api_key, "X-Pinecone-Api-Version": "2026-04"}
    async with httpx.AsyncClient() as client:
        return (await client.post(f"{data}{path}", content=json.dumps(body), headers=headers)).status_code


_WRONG: List[Tuple[str, Any]] = [
    ("/query", {"topK": 0, "vector": [1, 0]}),
    ("/query", {"vector": [1, 0]}),
    ("/query", {"topK": 1, "vector": "x"}),
    ("/query", {"topK": 1, "vector": [1, 0], "top_k": 5}),
    ("/vectors/upsert", {"vectors": []}),
    ("/vectors/upsert", {"vectors": [{"values": [1, 0]}]}),
    ("/vectors/upsert", {"vectors": [{"id": "x" * 513, "values": [1, 0]}]}),
    ("/vectors/upsert", {"vectors": [{"id": str(n), "values": [1, 0]} for n in range(1001)]}),
    ("/vectors/nothing", {}),
]


@pytest.mark.parametrize(("path", "body"), _WRONG)
async def test_what_is_not_of_the_specification_fails_the_test(path: str, body: Any) -> None:
    async with PineconeEmulator() as emulator:
        if not emulator.specification.found:
            pytest.skip("no OpenAPI files in ../shared/spec/pinecone")
        provider = await _opened(emulator)
        assert await _posted(emulator, provider, "/query", {"topK": 1, "vector": [1, 0]}) == 200
        emulator.check()
        assert await _posted(emulator, provider, path, body) == 400
        await provider.shutdown()
        with pytest.raises(ViolationError):
            emulator.check()


async def test_a_wrong_response_fails_the_test_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with PineconeEmulator() as emulator:
        if not emulator.specification.found:
            pytest.skip("no OpenAPI files in ../shared/spec/pinecone")
        provider = await _opened(emulator)
        emulator.check()
        monkeypatch.setattr(
            "tests.emulators.pinecone_index.EmulatedIndex.stats", lambda self: {"dimension": "two"}
        )
        await provider.health_check()
        await provider.shutdown()
        with pytest.raises(ViolationError, match="describe_index_stats"):
            emulator.check()


async def test_both_forms_of_the_control_plane_are_checked() -> None:
    async with PineconeEmulator() as emulator:
        if not emulator.specification.found:
            pytest.skip("no OpenAPI files in ../shared/spec/pinecone")
        headers = {"Api-Key": emulator.api_key, "X-Pinecone-Api-Version": "2026-04"}
        spec = {"serverless": {"cloud": "aws", "region": "us-east-1"}}
        body = {"name": "old", "dimension": 2, "metric": "cosine", "spec": spec}
        async with httpx.AsyncClient(base_url=emulator.host, headers=headers) as client:
            assert (await client.post("/indexes", content=json.dumps(body))).status_code == 201
            assert (await client.get("/indexes/old")).json()["dimension"] == 2
            assert (await client.delete("/indexes/old")).status_code == 202
            emulator.check()
            wrong = {**body, "metric": "hamming"}
            assert (await client.post("/indexes", content=json.dumps(wrong))).status_code == 400
            new = {"name": "new", "schema": {"fields": {"_values": {"type": "dense_vector", "dimension": 0}}}}
            headers["X-Pinecone-Api-Version"] = "2026-07"
            answer = await client.post("/indexes", content=json.dumps(new), headers=headers)
            assert answer.status_code == 400
        assert len(emulator.violations) == 2

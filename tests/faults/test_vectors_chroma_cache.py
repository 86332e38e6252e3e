"""Rows of an embedded Chroma that are kept in memory: never older than what is stored, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, AsyncIterator, List

import numpy as np
import pytest

pytest.importorskip("chromadb", minversion="1", reason="the package chromadb is not installed")

from modules.storage.vectors.chroma import ChromaProvider
from modules.storage.vectors.errors import VectorNotFoundError
from modules.storage.vectors.models import VectorDocument

_SPACE = "conversation:1"
_MATRIX = np.random.default_rng(3).normal(size=(200, 8)).astype(np.float32)


@pytest.fixture
async def provider(tmp_path: Path) -> AsyncIterator[ChromaProvider]:
    made = ChromaProvider(persist_directory=str(tmp_path / "chroma"))
    await made.initialize()
    await made.create_collection("docs", 8)
    # most rows lie elsewhere, so that the index gives too few of the namespace and it is read whole
    await made.upsert("docs", [VectorDocument(f"x{n}", -row) for n, row in enumerate(_MATRIX)])
    rows = [VectorDocument(f"d{n}", _MATRIX[n], f"text {n}", {"n": n, "deep": [n]}) for n in range(40)]
    await made.upsert("docs", rows, namespace=_SPACE)
    yield made
    await made.shutdown()


async def _search(provider: ChromaProvider, top_k: int = 200, **more: Any) -> Any:
    return await provider.search("docs", _MATRIX[0], top_k=top_k, namespace=_SPACE, **more)


async def _ids(provider: ChromaProvider) -> List[str]:
    return sorted(hit.document.id for hit in await _search(provider))


def _cache(provider: ChromaProvider) -> Any:
    return provider._link.cache


def _is_kept(provider: ChromaProvider) -> bool:
    return bool(_cache(provider)._kept)


async def test_what_is_kept_answers_as_what_was_read_and_belongs_to_nobody_else(
    provider: ChromaProvider,
) -> None:
    assert not _is_kept(provider)
    first = await _search(provider, include_vectors=True)
    assert _is_kept(provider)
    for hit in first:
        # a caller may do what it likes with its answer
        hit.document.metadata["deep"].append("mine")
        np.asarray(hit.document.vector)[:] = 0
    second = await _search(provider, include_vectors=True)
    assert [hit.to_dict() for hit in second] != [hit.to_dict() for hit in first]
    for hit in second:
        number = int(hit.document.id[1:])
        assert (hit.document.content, hit.document.metadata) == (
            f"text {number}",
            {"n": number, "deep": [number]},
        )
        assert list(hit.document.vector) == list(_MATRIX[number])
        hit.document.metadata["deep"].append("mine")
        np.asarray(hit.document.vector)[:] = 0
    third = await _search(provider, include_vectors=True)
    assert [hit.score for hit in third] == [hit.score for hit in first]
    assert all(hit.document.metadata["deep"] == [hit.document.metadata["n"]] for hit in third)
    few = await _search(provider, filter={"n": {"$lt": 4}})
    assert sorted(hit.document.metadata["n"] for hit in few) == [0, 1, 2, 3]
    assert (few.complete, third.complete) == (True, True)


async def test_own_writes_are_taken_over(provider: ChromaProvider) -> None:
    await _search(provider)
    await provider.upsert("docs", [VectorDocument("new", _MATRIX[0], "n", {"n": 99})], namespace=_SPACE)
    await provider.upsert("docs", [VectorDocument("d0", -_MATRIX[0], "other", {"n": 98})], namespace=_SPACE)
    assert await provider.delete("docs", ["d1", "never"], namespace=_SPACE) == 1
    await provider.upsert("docs", [VectorDocument("d2", _MATRIX[2])], namespace="another")
    assert _is_kept(provider), "what this provider wrote is no reason to read everything again"
    found = await _search(provider, include_vectors=True)
    assert found[0].document.to_dict()["content"] == "n"
    assert found[-1].document.content == "other"
    assert list(found[-1].document.vector) == list(-_MATRIX[0])
    kept = [hit.to_dict() for hit in found]
    _cache(provider)._forget()
    assert [hit.to_dict() for hit in await _search(provider, include_vectors=True)] == kept
    assert sorted(hit["document"]["id"] for hit in kept) == sorted(
        ["new", *(f"d{n}" for n in range(40) if n != 1)]
    )


async def test_writes_of_others_are_seen(provider: ChromaProvider, tmp_path: Path) -> None:
    other = ChromaProvider(persist_directory=str(tmp_path / "chroma"))
    await other.initialize()
    try:
        before = await _ids(provider)
        assert _is_kept(provider)
        await other.upsert("docs", [VectorDocument("theirs", _MATRIX[0])], namespace=_SPACE)
        assert await _ids(provider) == sorted([*before, "theirs"])
        assert await other.delete("docs", ["d7"], namespace=_SPACE) == 1
        assert "d7" not in await _ids(provider)
        # between two looks both wrote: what is kept cannot be brought up to date, and is read again
        await _ids(provider)
        await other.upsert("docs", [VectorDocument("theirs", -_MATRIX[0])], namespace=_SPACE)
        await provider.upsert("docs", [VectorDocument("ours", _MATRIX[0])], namespace=_SPACE)
        found = await _search(provider)
        assert (found[0].document.id, found[-1].document.id)[1] == "theirs"
        assert "ours" in [hit.document.id for hit in found]
        await other.delete_collection("docs")
        with pytest.raises(VectorNotFoundError):
            await _search(provider)
    finally:
        await other.shutdown()


async def test_a_write_of_another_within_ours_is_noticed(provider: ChromaProvider, tmp_path: Path) -> None:
    import chromadb

    await _ids(provider)
    cache, link = _cache(provider), provider._link
    handle = await provider._space.handle("default", provider._specs["default", "docs"])
    theirs = chromadb.PersistentClient(str(tmp_path / "chroma"), settings=link.client._system.settings)
    stranger = theirs.get_collection(handle.name, embedding_function=None)

    def both() -> None:
        with cache.writing(handle.id, ["x"], lambda position: pytest.fail("it cannot know this row")):
            stranger.delete(ids=[f"{_SPACE}\x1fd3", f"{_SPACE}\x1fd4"])

    await link.run("write", both)
    assert not _is_kept(provider)
    left = await _ids(provider)
    assert "d3" not in left
    assert len(left) == 38


async def test_a_write_that_fails_leaves_nothing_kept(provider: ChromaProvider) -> None:
    await _ids(provider)
    cache = _cache(provider)

    def fail() -> None:
        with cache.writing(next(iter(cache._kept))[0], ["x"]):
            raise OSError("the disk is gone, on purpose")

    with pytest.raises(Exception, match="write"):
        await provider._link.run("write", fail)
    assert not _is_kept(provider)
    assert len(await _ids(provider)) == 40


async def test_it_keeps_no_more_than_it_may(provider: ChromaProvider) -> None:
    cache = _cache(provider)
    cache._most_bytes = 130_000
    for number in range(4):
        rows = [VectorDocument(f"d{n}", _MATRIX[n]) for n in range(40)]
        await provider.upsert("docs", rows, namespace=f"space {number}")
        await provider.search("docs", _MATRIX[0], top_k=200, namespace=f"space {number}")
        assert sum(kept.size_bytes for kept in cache._kept.values()) <= 130_000
    assert [place[1] for place in cache._kept] == ["space 2", "space 3"]
    cache.most_rows = 40
    await provider.upsert("docs", [VectorDocument("one more", _MATRIX[0])], namespace="space 3")
    assert [place[1] for place in cache._kept] == ["space 2"]
    found = await provider.search("docs", _MATRIX[0], top_k=200, namespace="space 3")
    assert len(found) == 41
    assert [place[1] for place in cache._kept] == ["space 2"]

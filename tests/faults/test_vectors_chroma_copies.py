"""The copies of vectors beside an embedded Chroma: lost, damaged, left by a kill, absent in directories of former versions."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest

pytest.importorskip("chromadb", minversion="1", reason="the package chromadb is not installed")

from modules.storage.vectors.chroma import ChromaProvider
from modules.storage.vectors.chroma_copies import COPIES_FILE, digest_of
from modules.storage.vectors.chroma_names import document_id
from modules.storage.vectors.errors import VectorCollectionError
from modules.storage.vectors.models import VectorDocument
from modules.store_common.errors import StorageFullError

# enough for Chroma to write the index to its files (sync_threshold)
_ROWS = 120
_MATRIX = np.random.default_rng(1).normal(size=(2 * _ROWS, 8)).astype(np.float32)


def _documents(count: int = _ROWS, first: int = 0) -> List[VectorDocument]:
    return [
        VectorDocument(f"d{n:04d}", _MATRIX[first + n], f"text {first + n}", {"n": first + n})
        for n in range(count)
    ]


async def _opened(directory: Path, **settings: Any) -> ChromaProvider:
    provider = ChromaProvider(persist_directory=str(directory), **settings)
    await provider.initialize()
    return provider


async def _fill(directory: Path, *, former: bool = False) -> None:
    provider = await _opened(directory)
    if former:
        # as before there were copies: rows hold their vector
        copies, provider._link.copies = provider._link.copies, None
    await provider.create_collection("docs", 8, index={"sync_threshold": 50})
    await provider.upsert("docs", _documents())
    await provider.search("docs", [1.0] * 8)
    if former:
        provider._link.copies = copies
    await provider.shutdown()


async def _all(provider: ChromaProvider) -> List[Dict[str, Any]]:
    return [item.to_dict() for item in (await provider.scroll("docs", limit=1000)).items]


def _given(count: int = _ROWS) -> List[List[float]]:
    return [[float(number) for number in item.vector] for item in _documents(count)]


async def _copies(provider: ChromaProvider) -> List[Any]:
    copies: Any = provider._link.copies
    found: List[Any] = await provider._link.run(
        "ask", lambda: copies._connection.execute("SELECT id, digest FROM copies ORDER BY id").fetchall()
    )
    return found


def _break_index(directory: Path) -> None:
    (header,) = directory.glob("*/header.bin")
    shutil.rmtree(header.parent)


async def test_every_row_has_one_copy_whatever_was_done(tmp_path: Path) -> None:
    provider = await _opened(tmp_path / "chroma")
    try:
        await provider.create_collection("docs", 8)
        await provider.upsert("docs", _documents(20))
        await provider.upsert("docs", _documents(20))
        await provider.upsert("docs", _documents(7, first=50))
        assert await provider.delete("docs", ["d0000", "d0019", "never"]) == 2
        assert await provider.delete_where("docs", {"n": 55}) == 1
        rows = {item.id: item for item in (await provider.scroll("docs", limit=100)).items}
        expected = [
            (document_id("default", key), digest_of(np.asarray(item.vector).tobytes()))
            for key, item in sorted(rows.items())
        ]
        assert len(expected) == 17
        assert await _copies(provider) == expected
        await provider.rebuild_index("docs")
        assert await _copies(provider) == expected
        await provider.delete_collection("docs")
        assert await _copies(provider) == []
    finally:
        await provider.shutdown()


async def test_a_copy_whose_row_was_never_written_is_not_read(tmp_path: Path) -> None:
    directory = tmp_path / "chroma"
    await _fill(directory)
    provider = await _opened(directory)
    before = await _all(provider)
    # what a process leaves that was killed between the copy and the row: of a row that is there, and of a new one
    copies: Any = provider._link.copies
    handle = await provider._space.handle("default", provider._specs["default", "docs"])
    stray = np.full(8, 7.0, dtype=np.float32).tobytes()
    keys = [document_id("default", key) for key in ("d0003", "new")]
    rows = [(key, digest_of(stray), stray) for key in keys]
    await provider._link.run("write", lambda: copies.add(handle.id, rows))
    await provider.shutdown()
    _break_index(directory)
    provider = await _opened(directory, on_damage="rebuild")
    try:
        assert await _all(provider) == before
        assert await provider.get("docs", ["new"]) == []
        # the same writes again make it whole, and what is deleted leaves nothing
        await provider.upsert("docs", [VectorDocument("d0003", [7.0] * 8), VectorDocument("new", [7.0] * 8)])
        found = await provider.get("docs", ["d0003", "new"])
        assert [list(item.vector) for item in found] == [[7.0] * 8] * 2
        assert await provider.delete("docs", ["d0003", "new"]) == 2
        assert not [row for row in await _copies(provider) if row[0] in keys]
    finally:
        await provider.shutdown()


@pytest.mark.parametrize("damage", ["lost", "garbage", "truncated"])
async def test_without_the_copies_chromas_own_vectors_serve(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "chroma"
    await _fill(directory)
    file = directory / COPIES_FILE
    if damage == "lost":
        file.unlink()
    elif damage == "garbage":
        file.write_bytes(b"not a database" * 1000)
    else:
        file.write_bytes(file.read_bytes()[:5000])
    provider = await _opened(directory)
    try:
        assert ("storage.vectors.copies_damaged" in caplog.text) is (damage != "lost")
        found = await _all(provider)
        # a cosine collection of Chroma gives another last bit
        assert [item["vector"] for item in found] == [pytest.approx(row, rel=1e-5) for row in _given()]
        for n in (0, 77):
            hits = await provider.search("docs", _MATRIX[n], top_k=3, include_vectors=True)
            assert hits[0].document.id == f"d{n:04d}"
            assert hits[0].score == pytest.approx(1.0, abs=1e-6)
        # from here on there are copies again: of what is written, and by a rebuild of all
        await provider.upsert("docs", _documents(5))
        assert len(await _copies(provider)) == 5
        await provider.rebuild_index("docs")
        assert len(await _copies(provider)) == _ROWS
        assert [item["vector"] for item in await _all(provider)][:5] == _given(5)
    finally:
        await provider.shutdown()


async def test_index_and_copies_both_lost_is_said(tmp_path: Path) -> None:
    directory = tmp_path / "chroma"
    await _fill(directory)
    _break_index(directory)
    (directory / COPIES_FILE).unlink()
    with pytest.raises(VectorCollectionError, match="no copy of some of its vectors"):
        await _opened(directory, on_damage="rebuild")


@pytest.mark.parametrize("is_broken", [False, True])
async def test_a_directory_of_a_former_version_goes_on(tmp_path: Path, is_broken: bool) -> None:
    directory = tmp_path / "chroma"
    await _fill(directory, former=True)
    if is_broken:
        _break_index(directory)
    provider = await _opened(directory, on_damage="rebuild")
    try:
        assert [item["vector"] for item in await _all(provider)] == _given()
        assert (await provider.search("docs", _MATRIX[3], top_k=1))[0].document.id == "d0003"
        # a rebuild moves the vectors out of the rows, and so does writing one again
        assert len(await _copies(provider)) == (_ROWS if is_broken else 0)
        await provider.upsert("docs", _documents(3))
        assert len(await _copies(provider)) == (_ROWS if is_broken else 3)
        handle = await provider._space.handle("default", provider._specs["default", "docs"])
        raw = (await provider._link.run("ask", handle.get))["metadatas"]
        assert sum("vec" in fields for fields in raw) == (0 if is_broken else _ROWS - 3)
        assert [item["vector"] for item in await _all(provider)] == _given()
    finally:
        await provider.shutdown()


async def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    provider = await _opened(tmp_path / "chroma")
    copies: Any = provider._link.copies

    async def limit(pages: int) -> None:
        wanted = f"PRAGMA max_page_count = {int(pages)}"
        await provider._link.run("limit", lambda: copies._connection.execute(wanted).fetchall())

    try:
        await provider.create_collection("docs", 8)
        await provider.upsert("docs", _documents(10))
        before = await _all(provider)
        # no page more than there are
        await limit(1)
        wide = [VectorDocument(f"d{n:04d}", _MATRIX[n]) for n in range(100)]
        with pytest.raises(StorageFullError, match="is full"):
            await provider.upsert("docs", wide)
        assert await _all(provider) == before
        await limit(1_000_000)
        await provider.upsert("docs", wide)
        assert await provider.count("docs") == 100
    finally:
        await provider.shutdown()


_REPLACER = """
import asyncio, itertools, sys
from modules.storage.vectors.chroma import ChromaProvider
from modules.storage.vectors.models import VectorDocument

async def main():
    provider = ChromaProvider(persist_directory=sys.argv[1])
    await provider.initialize()
    await provider.create_collection("docs", 8, index={"sync_threshold": 50})
    for turn in itertools.count(1):
        documents = [VectorDocument(f"d{n}", [turn, n] * 4, f"text {turn}", {"turn": turn}) for n in range(30)]
        await provider.upsert("docs", documents)
        print(turn, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("turns", [3, 8, 15, 40] if os.environ.get("ATLAS_TEST_FULL") else [8])
async def test_a_killed_writer_leaves_whole_documents(tmp_path: Path, turns: int) -> None:
    directory = tmp_path / "chroma"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _REPLACER, str(directory), stdout=subprocess.PIPE, cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert process.stdout is not None
    stored = 0
    try:
        while stored < turns:
            line = await asyncio.wait_for(process.stdout.readline(), 100)
            assert line, "the writer ended by itself"
            stored = int(line)
    finally:
        process.send_signal(signal.SIGKILL)
    rest = await process.stdout.read()
    await process.wait()
    stored = max([stored, *map(int, rest.split(b"\n")[:-1])])
    for is_broken in (False, True):
        # a rebuild of few rows leaves them in Chroma's log, and no index in files
        for header in list(directory.glob("*/header.bin")) if is_broken else []:
            shutil.rmtree(header.parent)
        provider = await _opened(directory, on_damage="rebuild")
        try:
            found = (await provider.scroll("docs", limit=100)).items
            assert len(found) == 30
            for item in found:
                turn, n = int(item.metadata["turn"]), int(item.id[1:])
                assert turn in (stored, stored + 1)
                # vector, text and metadata are of one and the same write
                assert (list(item.vector), item.content) == ([turn, n] * 4, f"text {turn}")
        finally:
            await provider.shutdown()

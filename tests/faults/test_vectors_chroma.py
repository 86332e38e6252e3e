"""Chroma under faults: damaged directories, killed writers, servers that are down, slow, or not Chroma."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, AsyncIterator, Callable, Dict, List, Tuple

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

pytest.importorskip("chromadb", minversion="1", reason="the package chromadb is not installed")

from modules.storage.vectors.chroma import ChromaProvider
from modules.storage.vectors.errors import VectorCollectionError, VectorStoreError, VectorUnavailableError
from modules.storage.vectors.models import VectorDocument
from modules.store_common.deadlines import deadline
from modules.store_common.errors import OverloadedError
from tests.support.chroma import ChromaServer
from tests.support.timing import assert_in_time

# enough for Chroma to write the index to its files (sync_threshold)
_ROWS = 120
_OPTIONS = {"sync_threshold": 50}
_INDEX_FILES = ["header.bin", "data_level0.bin", "length.bin", "link_lists.bin", "index_metadata.pickle"]


def vectors_of(count: int, dimension: int, seed: int = 1) -> NDArray[np.float32]:
    made: NDArray[np.float32] = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    return made


def _documents(count: int = _ROWS) -> List[VectorDocument]:
    return [
        VectorDocument(f"d{n:04d}", vector, f"text {n}", {"n": n, "list": [n, None]})
        for n, vector in enumerate(vectors_of(count, 8))
    ]


async def _fill(directory: Path) -> List[Dict[str, Any]]:
    """Make a store whose index is in its files, close it, and return its documents."""
    provider = ChromaProvider(persist_directory=str(directory))
    await provider.initialize()
    try:
        await provider.create_collection("docs", 8, index=_OPTIONS)
        await provider.upsert("docs", _documents())
        # a search lets Chroma bring its index up to date
        await provider.search("docs", [1.0] * 8)
        return [item.to_dict() for item in (await provider.scroll("docs", limit=1000)).items]
    finally:
        await provider.shutdown()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, List[Dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("filled") / "chroma"
    return directory, asyncio.run(_fill(directory))


@pytest.fixture
def store(filled: Tuple[Path, List[Dict[str, Any]]], tmp_path: Path) -> Tuple[Path, List[Dict[str, Any]]]:
    """A copy to damage."""
    directory = tmp_path / "chroma"
    shutil.copytree(filled[0], directory)
    return directory, filled[1]


async def _opened(directory: Path, **settings: Any) -> ChromaProvider:
    provider = ChromaProvider(persist_directory=str(directory), **settings)
    try:
        await provider.initialize()
    except BaseException:
        assert not provider.is_initialized
        raise
    return provider


async def test_a_sound_directory_opens(store: Tuple[Path, List[Dict[str, Any]]]) -> None:
    provider = await _opened(store[0])
    assert await provider.count("docs") == _ROWS
    await provider.shutdown()


async def test_a_store_in_use_is_never_called_damaged(tmp_path: Path) -> None:
    directory = tmp_path / "chroma"
    matrix = vectors_of(400, 8)
    for turn in range(4):
        provider = await _opened(directory)
        try:
            for name, threshold, rows in (("small", 1000, 30), ("large", 50, 300), ("even", 100, 100)):
                if turn == 0:
                    await provider.create_collection(name, 8, index={"sync_threshold": threshold})
                documents = [VectorDocument(f"d{n}", matrix[n], metadata={"n": turn}) for n in range(rows)]
                await provider.upsert(name, documents[turn * 7 :])
                await provider.delete(name, [f"d{n}" for n in range(turn, rows, 5)])
                if turn % 2:
                    assert len(await provider.search(name, matrix[0])) == 10
            if turn == 2:
                await provider.delete_collection("even")
                await provider.create_collection("even", 8)
        finally:
            await provider.shutdown()
    await (await _opened(directory)).shutdown()


def _truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _empty(file: Path) -> None:
    os.truncate(file, 0)


def _shorten(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("file", _INDEX_FILES)
@pytest.mark.parametrize("damage", [_truncate, _empty, _shorten, Path.unlink])
async def test_a_damaged_index_is_seen_and_made_anew_from_the_rows(
    store: Tuple[Path, List[Dict[str, Any]]], file: str, damage: Callable[[Path], None]
) -> None:
    directory, before = store
    (found,) = directory.glob(f"*/{file}")
    damage(found)
    with pytest.raises(VectorCollectionError, match="index of 1 Chroma") as caught:
        await _opened(directory)
    assert 'on_damage="rebuild"' in str(caught.value)
    provider = await _opened(directory, on_damage="rebuild")
    try:
        assert [item.to_dict() for item in (await provider.scroll("docs", limit=1000)).items] == before
        await _check_search(provider)
    finally:
        await provider.shutdown()
    await (await _opened(directory)).shutdown()


async def _check_search(provider: ChromaProvider) -> None:
    documents = _documents()
    matrix = np.stack([np.asarray(item.vector) for item in documents])
    for query in vectors_of(5, 8, seed=3):
        scores = matrix @ query / np.linalg.norm(matrix, axis=1)
        expected = {documents[position].id for position in np.argsort(-scores)[:10]}
        hits = await provider.search("docs", query)
        assert hits.complete
        assert len(expected & {hit.document.id for hit in hits}) >= 9


async def test_a_lost_index_directory_is_seen(store: Tuple[Path, List[Dict[str, Any]]]) -> None:
    directory, before = store
    (header,) = directory.glob("*/header.bin")
    shutil.rmtree(header.parent)
    with pytest.raises(VectorCollectionError, match="is missing"):
        await _opened(directory)
    provider = await _opened(directory, on_damage="rebuild")
    assert await provider.count("docs") == len(before)
    await _check_search(provider)
    await provider.shutdown()


def _garbage(file: Path) -> None:
    file.write_bytes(b"not a database" * 1000)


def _hole(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * 3 * 4096)


@pytest.mark.parametrize("damage", [_truncate, _empty, _garbage, _hole, Path.unlink])
async def test_a_damaged_database_is_seen_and_a_new_store_can_be_filled_again(
    store: Tuple[Path, List[Dict[str, Any]]], damage: Callable[[Path], None]
) -> None:
    directory, before = store
    damage(directory / "chroma.sqlite3")
    for on_damage in ("refuse", "rebuild"):
        with pytest.raises(VectorCollectionError, match="is damaged") as caught:
            await _opened(directory, on_damage=on_damage)
        assert "move it away" in str(caught.value)
    directory.rename(directory.with_name("damaged"))
    assert await _fill(directory) != []
    provider = await _opened(directory)
    ids = [item.id for item in (await provider.scroll("docs", limit=1000)).items]
    assert ids == [item["id"] for item in before]
    await provider.shutdown()


async def test_an_index_that_fails_while_open_still_gives_complete_answers(
    store: Tuple[Path, List[Dict[str, Any]]],
) -> None:
    directory, _ = store
    provider = await _opened(directory)
    try:
        # the files are read at the first search; the check at open cannot see what happens after it
        (header,) = directory.glob("*/header.bin")
        shutil.rmtree(header.parent)
        await _check_search(provider)
    finally:
        await provider.shutdown()


_WRITER = """
import asyncio, sys
from modules.storage.vectors.chroma import ChromaProvider
from modules.storage.vectors.models import VectorDocument
from modules.storage.vectors.testing_base import vectors_of

async def main():
    provider = ChromaProvider(persist_directory=sys.argv[1])
    await provider.initialize()
    await provider.create_collection("docs", 8, index={"sync_threshold": 50})
    matrix = vectors_of(100_000, 8)
    for start in range(0, 100_000, 20):
        await provider.upsert(
            "docs", [VectorDocument(f"d{n:06d}", matrix[n], None, {"n": n}) for n in range(start, start + 20)]
        )
        print(start + 20, flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [20, 140, 500])
async def test_a_killed_writer_loses_nothing_that_was_acknowledged(tmp_path: Path, acknowledged: int) -> None:
    directory = tmp_path / "chroma"
    # the reader blocks until the writer says a number: no sleeping
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITER, str(directory), stdout=subprocess.PIPE, cwd=os.getcwd(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert process.stdout is not None
    stored = 0
    try:
        while stored < acknowledged:
            line = await asyncio.wait_for(process.stdout.readline(), 100)
            assert line, "the writer ended by itself"
            stored = int(line)
    finally:
        process.send_signal(signal.SIGKILL)
    rest = await process.stdout.read()
    await process.wait()
    stored = max([stored, *map(int, rest.split(b"\n")[:-1])])
    # a kill between two index files is damage, which must be seen, and repaired from the rows
    provider = await _opened(directory, on_damage="rebuild")
    try:
        count = await provider.count("docs")
        # a batch that was not acknowledged may be there, whole or not
        assert stored <= count <= stored + 20
        ids = [f"d{n:06d}" for n in range(count)]
        found = await provider.get("docs", ids)
        matrix = vectors_of(100_000, 8)
        assert [item.id for item in found] == ids
        for n, item in enumerate(found):
            assert np.array_equal(np.asarray(item.vector), matrix[n])
            assert dict(item.metadata) == {"n": n}
        # doing the unacknowledged batch again changes nothing but what was missing
        again = [VectorDocument(f"d{n:06d}", matrix[n], None, {"n": n}) for n in range(stored, stored + 20)]
        for _ in range(2):
            assert await provider.upsert("docs", again) == 20
            assert await provider.count("docs") == stored + 20
        for n in (0, stored - 1, stored + 19):
            assert (await provider.search("docs", matrix[n], top_k=1))[0].document.id == f"d{n:06d}"
    finally:
        await provider.shutdown()


async def test_a_server_that_is_down_or_frozen_and_comes_back(tmp_path: Path) -> None:
    server = ChromaServer(tmp_path / "server")
    provider = ChromaProvider(host="127.0.0.1", port=server.port, timeout_s=20.0)
    with pytest.raises(VectorUnavailableError, match="is its server running"):
        await provider.initialize()
    assert not provider.is_initialized
    await asyncio.get_running_loop().run_in_executor(None, server.start)
    try:
        await provider.initialize()
        await provider.create_collection("docs", 8)
        await provider.upsert("docs", _documents(5))
        server.pause()
        started = time.monotonic()
        with deadline(0.5), pytest.raises(VectorUnavailableError, match="did not"):
            await provider.search("docs", [1.0] * 8)
        assert await provider.health_check(timeout=0.5) is False
        assert_in_time(started, 10)
        server.resume()
        assert len(await provider.search("docs", [1.0] * 8)) == 5
        server.kill()
        with pytest.raises(VectorUnavailableError):
            await provider.upsert("docs", _documents(6))
        with pytest.raises(VectorUnavailableError):
            await provider.search("docs", [1.0] * 8)
        assert await provider.health_check() is False
        await asyncio.get_running_loop().run_in_executor(None, server.start)
        assert await provider.health_check(timeout=60) is True
        # what was acknowledged is there; the rest may be repeated
        assert await provider.upsert("docs", _documents(6)) == 6
        assert await provider.count("docs") == 6
    finally:
        server.stop()
        await provider.shutdown()


@pytest_asyncio.fixture
async def recorder() -> AsyncIterator[Tuple[int, List[str]]]:
    """Something that speaks HTTP, says little, and remembers the requests."""
    requests: List[str] = []
    body = b'{"nanosecond heartbeat":1,"id":"x","name":"x","tenant":"x","max_batch_size":100}'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                requests.append(head)
                failed = "collections" in head.split("\r\n")[0]
                status, text = ("502 Bad Gateway", b"secret-in-body") if failed else ("200 OK", body)
                length = [line for line in head.split("\r\n") if line.lower().startswith("content-length")]
                if length:
                    await reader.readexactly(int(length[0].split(":")[1]))
                writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1], requests
    server.close()
    await server.wait_closed()


async def test_each_provider_sends_its_own_token_and_no_error_shows_it(
    recorder: Tuple[int, List[str]], caplog: pytest.LogCaptureFixture
) -> None:
    port, requests = recorder
    caplog.set_level("DEBUG")
    tokens = ["token-one-secret", "token-two-secret", None]
    providers = [ChromaProvider(host="127.0.0.1", port=port, auth_token=token) for token in tokens]
    for provider, token in zip(providers, tokens):
        requests.clear()
        await provider.initialize()
        with pytest.raises(VectorStoreError) as caught:
            await provider.list_collections()
        assert requests
        for head in requests:
            assert (f"Bearer {token}" in head) is (token is not None)
            assert head.count("secret") == (2 if token is not None else 0)
        assert "secret" not in str(caught.value)
        assert "secret" not in repr(vars(caught.value))
    for provider in providers:
        await provider.shutdown()
    assert "token-one-secret" not in caplog.text


async def test_an_embedded_call_ends_at_its_deadline_and_the_loop_stays_free(tmp_path: Path) -> None:
    provider = await _opened(tmp_path / "chroma")
    release = threading.Event()
    try:
        slow = asyncio.ensure_future(provider._link.run("wait", release.wait))
        await asyncio.sleep(0)
        with deadline(0.2), pytest.raises(VectorUnavailableError, match="did not"):
            await provider.list_collections()
        assert await provider.health_check(timeout=0.2) is False
        waiting = [asyncio.ensure_future(provider._link.run("wait", release.wait)) for _ in range(1000)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await provider.list_collections()
        release.set()
        assert all(await asyncio.gather(slow, *waiting, return_exceptions=True))
        assert await provider.list_collections() == []
    finally:
        release.set()
        await provider.shutdown()

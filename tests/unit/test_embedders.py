"""Embedders: the settings that name them, the built-in one, an endpoint over HTTP, functions of the application."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any, Iterator, List

import numpy as np
import pytest

from modules.storage.embedders import EmbedderError, EmbedderUnavailableError, close_embedder, make_embedder
from modules.storage.embedders_hashing import HashingEmbedder
from modules.store_common.errors import InvalidValueError, MissingDependencyError
from tests.support.embedding import EmbeddingServer


def count_letters(texts: List[str]) -> Any:
    return [[float(len(text)), 1.0] for text in texts]


async def count_letters_async(texts: List[str]) -> Any:
    return count_letters(texts)


def broken(texts: List[str]) -> Any:
    raise ValueError("on purpose")


def nonsense(texts: List[str]) -> Any:
    return "nonsense"


@pytest.fixture
def server() -> Iterator[EmbeddingServer]:
    made = EmbeddingServer()
    yield made
    made.close()


@pytest.mark.parametrize(
    "spec", ["", "openai", "openai:", "word2vec", "sentence-transformers", "sentence-transformers:"]
)
def test_what_names_no_embedder_is_refused(spec: str) -> None:
    with pytest.raises((InvalidValueError, EmbedderError)):
        make_embedder(spec)


class TestHashing:
    async def test_same_vectors_everywhere_of_length_one(self) -> None:
        matrix = await make_embedder("hashing").embed(["two kittens", "two kittens", "", "🎉", "the"])

        assert matrix.dtype == np.float32
        assert matrix.shape == (5, 384)
        np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(matrix[0], matrix[1])
        # a figure that another machine, Python or release must give as well
        assert int(np.argmax(np.abs(HashingEmbedder(64).vectors(["kittens"])[0]))) == KITTENS_AT

    async def test_near_words_are_near(self) -> None:
        a, b, c, d = await make_embedder("hashing").embed(
            ["my kittens", "a kitten", "a kiiten", "an umbrella"]
        )

        assert a @ b > 0.9
        assert a @ c > 0.05
        assert abs(a @ d) < a @ c

    @pytest.mark.parametrize("dimension", [1, 15, 5000, -3])
    def test_dimension_is_checked(self, dimension: int) -> None:
        with pytest.raises(InvalidValueError):
            make_embedder("hashing", dimension=dimension)


# A figure that another machine, Python or release must give as well.
KITTENS_AT = 36


class TestHttp:
    async def test_batches_in_order_with_the_key(self, server: EmbeddingServer) -> None:
        embedder = make_embedder("openai:small", base_url=server.url, api_key="sk-secret", batch_size=2)
        matrix = await embedder.embed(["a", "bb", "ccc", "dddd", "eeeee"])
        await close_embedder(embedder)

        assert matrix[:, 0].tolist() == [1, 2, 3, 4, 5]
        assert embedder.dimension == 3
        assert sorted(len(request["input"]) for request in server.requests) == [1, 2, 2]
        assert {request["path"] for request in server.requests} == {"/v1/embeddings"}
        assert set(server.keys) == {"Bearer sk-secret"}
        assert "secret" not in repr(embedder)

    @pytest.mark.parametrize(
        ("status", "kind"),
        [
            (401, EmbedderError),
            (400, EmbedderError),
            (429, EmbedderUnavailableError),
            (503, EmbedderUnavailableError),
        ],
    )
    async def test_refusals_are_typed_and_show_no_secret(
        self, server: EmbeddingServer, status: int, kind: Any
    ) -> None:
        server.status, server.answer = status, b'{"error": "bad key sk-secret for text private"}'
        embedder = make_embedder("openai:small", base_url=server.url, api_key="sk-secret")
        with pytest.raises(EmbedderError) as caught:
            await embedder.embed(["private"])
        await close_embedder(embedder)

        assert type(caught.value) is kind
        assert "secret" not in str(caught.value)
        assert "private" not in str(caught.value)

    @pytest.mark.parametrize(
        "answer",
        [b"", b"[]", b"null", b'{"data": []}', b'{"data": [{"embedding": "x"}]}', b'{"data": [{"embedding": [0, 0, 0]}]}',
         b'{"data": [{"embedding": [1, null]}]}', b'{"data": 5}', b"<html>"],
    )  # fmt: skip
    async def test_nonsense_is_an_error(self, server: EmbeddingServer, answer: bytes) -> None:
        server.answer = answer or b" "
        embedder = make_embedder("openai:small", base_url=server.url)
        with pytest.raises(EmbedderError):
            await embedder.embed(["a"])
        await close_embedder(embedder)

    async def test_nobody_there(self, server: EmbeddingServer) -> None:
        embedder = make_embedder("openai:small", base_url="http://127.0.0.1:1/v1", timeout_s=5)
        with pytest.raises(EmbedderUnavailableError):
            await embedder.embed(["a"])
        await close_embedder(embedder)

    async def test_who_is_cancelled_waits_for_no_answer(self, server: EmbeddingServer) -> None:
        server.gate.clear()
        embedder = make_embedder("openai:small", base_url=server.url, timeout_s=3600)
        asked = asyncio.ensure_future(embedder.embed(["a"]))
        end = time.monotonic() + 60
        while not server.requests:
            assert time.monotonic() < end, "nobody asked"
            await asyncio.sleep(0.01)

        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await asyncio.wait_for(close_embedder(embedder), 60)

        assert not server.gate.is_set()

    @pytest.mark.parametrize("scheme", ["http", "https"])
    async def test_who_is_cancelled_waits_for_no_connection(self, scheme: str) -> None:
        """The server takes no connection at all, or takes it and never answers TLS's greeting."""
        loop = asyncio.get_running_loop()
        with socket.socket() as listener, contextlib.ExitStack() as stack:
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            listener.setblocking(False)
            host, port = listener.getsockname()
            if scheme == "http":
                _fill(stack, host, port)
            embedder = make_embedder("openai:small", base_url=f"{scheme}://{host}:{port}/v1", timeout_s=3600)
            asked = asyncio.ensure_future(embedder.embed(["a"]))
            if scheme == "https":
                taken, _ = await asyncio.wait_for(loop.sock_accept(listener), 60)
                stack.callback(taken.close)
                assert await asyncio.wait_for(loop.sock_recv(taken, 1), 60), "nobody greeted"
            else:
                await _until_thread_runs("atlas-embedder")

            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await asyncio.wait_for(close_embedder(embedder), 60)

    @pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://user:secret@host/v1", "http:///v1"])
    def test_bad_urls(self, url: str) -> None:
        with pytest.raises(InvalidValueError) as caught:
            make_embedder("openai:small", base_url=url)
        assert "secret" not in str(caught.value)


class TestOwn:
    @pytest.mark.parametrize("name", ["count_letters", "count_letters_async"])
    async def test_a_function(self, name: str) -> None:
        embedder = make_embedder(f"{__name__}:{name}")
        matrix = await embedder.embed(["a", "bb"])

        assert matrix.tolist() == [[1, 1], [2, 1]]
        assert embedder.dimension == 2
        assert name in embedder.name

    async def test_an_embedder_class(self) -> None:
        embedder = make_embedder("tests.support.embedding:MeaningEmbedder")
        assert embedder.name == "meaning"

    @pytest.mark.parametrize("name", ["broken", "nonsense"])
    async def test_failures_are_typed(self, name: str) -> None:
        with pytest.raises(EmbedderError):
            await make_embedder(f"{__name__}:{name}").embed(["a"])

    @pytest.mark.parametrize(
        "target", ["no_such_module_here:x", f"{__name__}:missing", f"{__name__}:KITTENS_AT"]
    )
    def test_what_is_not_there(self, target: str) -> None:
        with pytest.raises(EmbedderError):
            make_embedder(target)

    async def test_a_missing_package_names_its_extra(self) -> None:
        pytest.importorskip("modules")
        try:
            import sentence_transformers  # noqa: F401
        except ImportError:
            embedder = make_embedder("sentence-transformers:any")
            with pytest.raises(MissingDependencyError, match="embeddings"):
                await embedder.embed(["a"])
            await close_embedder(embedder)


def _fill(stack: contextlib.ExitStack, host: str, port: int) -> None:
    """Make connections until the system leaves one waiting: what comes next waits as well."""
    for _ in range(50):
        one = stack.enter_context(socket.socket())
        one.settimeout(0.2)
        try:
            one.connect((host, port))
        except socket.timeout:
            return
    pytest.skip("this system's listeners take every connection")


async def _until_thread_runs(name: str) -> None:
    end = time.monotonic() + 60
    while not any(thread.name.startswith(name) for thread in threading.enumerate()):
        assert time.monotonic() < end, f"no thread {name}"
        await asyncio.sleep(0.01)

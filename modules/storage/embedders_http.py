"""An embedder behind an OpenAI-compatible HTTP endpoint: OpenAI's own, or a local server that speaks the same.

Needs no package: requests go through `http.client` on threads of the embedder's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import http.client
import os
import selectors
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, Optional, Sequence, Tuple
from urllib.parse import urlsplit

import numpy as np
import orjson

from modules.storage.embedders_base import EmbedderError, EmbedderUnavailableError, Matrix, checked_matrix
from modules.storage.opening import run_in_thread
from modules.store_common.errors import InvalidValueError

__all__ = ["DEFAULT_BASE_URL", "OpenAIEmbedder"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"
# More than the largest batch of the largest model gives, and no more than a wrong server may make us hold.
_MAX_ANSWER_BYTES = 256 * 1024 * 1024
_THREADS = 4
_LOOK_EVERY_S = 0.05


class OpenAIEmbedder:
    """Asks `POST {base_url}/embeddings`.

    Args:
        model: The model's name.
        base_url: Up to and including the version, for example "http://127.0.0.1:8080/v1".
        api_key: Sent as a bearer token; None: none is sent.
        dimension: Numbers in a vector; 0: what the first answer has. Given, it is also asked for (`dimensions`) of models
            whose name begins with "text-embedding-3".
        timeout_s: Seconds that each request may take.
        batch_size: Texts in a request, 1 to 2,048.
        max_characters: A longer text is cut; servers refuse texts over their model's window.

    Source:
        OpenAI API reference, "Create embeddings".
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: Optional[str] = None,
        api_key: Optional[str] = None,
        dimension: int = 0,
        timeout_s: float = 30.0,
        batch_size: int = 128,
        max_characters: int = 16_000,
    ) -> None:
        if not model.strip():
            raise InvalidValueError("the embedder openai needs a model: openai:MODEL")
        if not 1 <= batch_size <= 2048:
            raise InvalidValueError("the batch size of the embedder must be 1 to 2,048")
        parts = urlsplit((base_url or DEFAULT_BASE_URL).rstrip("/"))
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise InvalidValueError(
                "the base URL of the embedder must be http(s)://host[:port]/path, without user and password"
            )
        self.name = f"openai:{model}"
        self.dimension = dimension
        self._model = model
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._path = parts.path + "/embeddings"
        self._key = api_key
        self._asks_dimension = bool(dimension) and model.startswith("text-embedding-3")
        self._timeout_s = timeout_s
        self._batch_size = batch_size
        self._max_characters = max_characters
        self._threads: Optional[ThreadPoolExecutor] = None

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._model!r}, host={self._host!r})"

    async def embed(self, texts: Sequence[str]) -> Matrix:
        """Return a vector for each text, in as many requests as the batch size makes of them; cancelled, it ends them."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="atlas-embedder")
        cut = [text[: self._max_characters] for text in texts]
        size = self._batch_size
        loop = asyncio.get_running_loop()
        call = _Call()
        try:
            parts = await asyncio.gather(
                *[
                    loop.run_in_executor(self._threads, self._request, cut[start : start + size], call)
                    for start in range(0, len(cut), size)
                ]
            )
        finally:
            # when it failed or was cancelled nobody waits for the answers any more, and `close` must not
            call.end()
        rows = [row for part in parts for row in part]
        matrix = checked_matrix(
            rows if rows else np.zeros((0, self.dimension)), len(texts), self.dimension, self.name
        )
        if rows:
            self.dimension = matrix.shape[1]
        return matrix

    async def close(self) -> None:
        """End the threads."""
        threads, self._threads = self._threads, None
        if threads is not None:
            await run_in_thread(threads.shutdown)

    # --- on a thread --------------------------------------------------------------------------------------------

    def _request(self, texts: List[str], call: _Call) -> List[Any]:
        body: Dict[str, Any] = {"model": self._model, "input": texts, "encoding_format": "float"}
        if self._asks_dimension:
            body["dimensions"] = self.dimension
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._connection()
        # the way that the connection makes its socket; `http.client` has no public one
        connection._create_connection = call.connect  # type: ignore[attr-defined]
        try:
            connection.request("POST", self._path, orjson.dumps(body), headers)
            response = connection.getresponse()
            answer = response.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as exc:
            raise EmbedderUnavailableError(
                f"the embedder {self.name} at {self._host} did not answer: {type(exc).__name__}"
            ) from exc
        finally:
            connection.close()
            call.release()
        self._check_status(response.status)
        return self._vectors(answer, len(texts))

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=context
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _check_status(self, status: int) -> None:
        # The body of a refusal may quote the key or the texts: it is not shown.
        if status == 200:
            return
        if status in (408, 409, 425, 429) or status >= 500:
            raise EmbedderUnavailableError(f"the embedder {self.name} answered {status}; try again later")
        hint = "check the API key" if status in (401, 403) else "check the model, the base URL and the texts"
        raise EmbedderError(f"the embedder {self.name} at {self._host} answered {status}; {hint}")

    def _vectors(self, answer: bytes, count: int) -> List[Any]:
        try:
            data = orjson.loads(answer)["data"]
            rows = {int(item.get("index", place)): item["embedding"] for place, item in enumerate(data)}
            return [rows[place] for place in range(count)]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise EmbedderError(
                f"the embedder {self.name} at {self._host} gave an answer that is not of the embeddings API"
            ) from exc


class _Call:
    """The sockets of one call of `embed`: so that all its threads end at once, whatever they wait for.

    What cannot be ended is the look-up of a host's name.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False
        self._held: Dict[int, socket.socket] = {}

    def end(self) -> None:
        """End what threads wait for, now and later; they close their own sockets."""
        with self._lock:
            self._is_over = True
            held, self._held = self._held, {}
        for one in held.values():
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def release(self) -> None:
        """The request of this thread is over."""
        with self._lock:
            held = self._held.pop(threading.get_ident(), None)
        if held is not None:
            held.close()

    def connect(self, address: Tuple[str, int], timeout: float, source: Any = None) -> socket.socket:
        """Return a connected socket, as `socket.create_connection` does.

        Raises:
            OSError: nothing answered, or the call was ended.
        """
        error: OSError = OSError("the name has no address")
        for family, kind, protocol, _, target in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
            made = socket.socket(family, kind, protocol)
            try:
                self._reach(made, target, timeout)
                return made
            except OSError as exc:
                made.close()
                error = exc
        raise error

    def _reach(self, made: socket.socket, target: Any, timeout: float) -> None:
        """Connect, looking now and then whether anybody still waits."""
        until = time.monotonic() + timeout
        made.setblocking(False)
        code = made.connect_ex(target)
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            raise OSError(code, os.strerror(code))
        with selectors.DefaultSelector() as selector:
            selector.register(made, selectors.EVENT_WRITE)
            while not selector.select(_LOOK_EVERY_S):
                if self._is_over:
                    raise ConnectionAbortedError("nobody waits for it any more")
                if time.monotonic() > until:
                    raise socket.timeout("no connection in time")
        code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        made.settimeout(timeout)
        self._hold(made)

    def _hold(self, made: socket.socket) -> None:
        # another handle of the same socket: TLS takes the first one into an object of its own
        again = made.dup()
        with self._lock:
            if not self._is_over:
                self._held[threading.get_ident()] = again
                return
        again.close()
        raise ConnectionAbortedError("nobody waits for it any more")

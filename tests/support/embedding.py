"""Embedders for tests: one that knows a few meanings, and a small server that speaks the embeddings API."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from modules.storage.embedders_base import EmbedderError, EmbedderUnavailableError

__all__ = ["EmbeddingServer", "MeaningEmbedder"]

# Words of one line mean the same to it.
_MEANINGS = [{"cat", "kitten", "kittens", "cats"}, {"car", "cars", "automobile"}, {"rain", "storm", "wet"}]


class MeaningEmbedder:
    """Knows three meanings; can be told to fail, and to wait at a gate with a batch in its hands."""

    name = "meaning"
    dimension = 4

    def __init__(self) -> None:
        self.is_down = False
        self.calls: List[List[str]] = []
        self.entered: Optional[asyncio.Event] = None
        self.gate: Optional[asyncio.Event] = None

    async def embed(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        if self.entered is not None and self.gate is not None:
            self.entered.set()
            await self.gate.wait()
        if self.is_down:
            raise EmbedderUnavailableError("the embedder is down on purpose")
        if any("poison" in text for text in texts):
            raise EmbedderError("one of the texts is refused on purpose")
        rows = np.full((len(texts), 4), 0.01, dtype=np.float32)
        for row, given in zip(rows, texts):
            words = set(given.lower().replace(":", " ").replace(".", " ").split())
            row[:3] += [len(words & meaning) for meaning in _MEANINGS]
        return rows


class EmbeddingServer:
    """Answers `POST /v1/embeddings`; `status` makes it refuse, `answer` talk nonsense, `gate` wait."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: Optional[bytes] = None
        self.requests: List[Dict[str, Any]] = []
        self.keys: List[Optional[str]] = []
        self.gate = threading.Event()
        self.gate.set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.requests.append({"path": self.path, **body})
                owner.keys.append(self.headers.get("Authorization"))
                owner.gate.wait()
                data = [
                    {"index": n, "embedding": [float(len(text)), 1.0, 0.0]}
                    for n, text in enumerate(body["input"])
                ]
                answer = owner.answer or json.dumps({"data": data[::-1]}).encode()
                with contextlib.suppress(ConnectionError):  # whoever asked has gone
                    self.send_response(owner.status)
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

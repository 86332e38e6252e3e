"""HTTP below ASGI: what uvicorn leaves open. The head of a request is bounded, and what is no HTTP is told as every error.

By h11 the head is bounded already (64 KiB). httptools, which uvicorn takes where it is installed, keeps what it is sent, whole:
without a token anybody could fill the memory.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from modules.Server.problems import problem

__all__ = ["MOST_HEAD_BYTES", "http_protocol"]

#: Bytes that the path, the headers and the trailers of a request may have.
MOST_HEAD_BYTES = 64 * 1024


class _Telling:
    """Of a protocol of uvicorn: refusals are problem details."""

    transport: Any

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read, and close; `msg` is uvicorn's."""
        self._refuse(400, "bad_request", "this is no HTTP/1.1 request that can be read")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        if self.transport.is_closing():
            return
        answer = problem(status, code, detail, headers={"Connection": "close"})
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode(),
            *(b"%s: %s" % pair for pair in answer.raw_headers),
        ]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()


def http_protocol() -> Any:
    """Return the class that uvicorn makes for each connection: by httptools where it is installed, else by h11."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol

        class H11(_Telling, H11Protocol):
            """By h11."""

        return H11

    class HttpTools(_Telling, HttpToolsProtocol):
        """By httptools, with a bound on the head."""

        _head = 0
        # bytes since the parser said something: those of a path or a header that does not end
        _unsaid = 0

        def data_received(self, data: bytes) -> None:
            self._unsaid += len(data)
            super().data_received(data)
            if self._unsaid > MOST_HEAD_BYTES:
                self._refuse_head()

        def on_message_begin(self) -> None:
            self._head = 0
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            self._unsaid = 0
            self._head += len(name) + len(value)
            if self._head > MOST_HEAD_BYTES:
                self._refuse_head()
                raise ValueError("too large")  # ends the parser
            super().on_header(name, value)

        def on_body(self, body: bytes) -> None:
            self._unsaid = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._unsaid = 0
            super().on_message_complete()

        def _refuse_head(self) -> None:
            self._refuse(
                431, "headers_too_large", f"the head of a request may have {MOST_HEAD_BYTES} bytes at most"
            )

    return HttpTools

"""What comes before HTTP is understood: heads without end, and what is no HTTP."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from modules.Server.protocol import MOST_HEAD_BYTES
from tests.support import sqlite as sqlite_support
from tests.support.live import LiveServer

FAST, PURE = "httptools", "h11"


@pytest.fixture(scope="module", params=[FAST, PURE])
def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with each parser: httptools may be installed or not."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == FAST:
            pytest.importorskip(FAST)
        else:
            patch.setitem(sys.modules, "httptools", None)
            patch.delitem(sys.modules, "uvicorn.protocols.http.httptools_impl", raising=False)
        path: Path = tmp_path_factory.mktemp(request.param) / "storage.sqlite3"
        shutil.copyfile(sqlite_support.migrated_template(), path)
        with LiveServer(path) as made:
            yield made


def said(server: LiveServer, *parts: bytes) -> bytes:
    """Send parts until there is an answer; return it, b"" when the connection was cut before it could be read."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), 30) as connection:
        found: List[bytes] = []
        try:
            for part in parts:
                connection.sendall(part)
            while not found or b"}" not in found[-1]:
                data = connection.recv(65536)
                if not data:
                    break
                found.append(data)
        except ConnectionError:
            pass
        return b"".join(found)


def test_what_is_no_http_is_told_as_every_error(server: LiveServer) -> None:
    head, _, body = said(server, b"GARBAGE\r\n\r\n").partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["code"] == "bad_request"


HEADER = b"X-%d: " + b"a" * 30_000 + b"\r\n"
ENDLESS = {
    "one header": [b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ", *[b"a" * 2**16] * 500],
    "many headers": [b"GET /livez HTTP/1.1\r\nHost: localhost\r\n", *(HEADER % n for n in range(1000))],
    "a path": [b"GET /", *[b"a" * 2**16] * 500],
    "trailers": [
        b"POST /v1/kv/a/b/increment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        *(HEADER % n for n in range(1000)),
    ],
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_head_without_end_is_cut_off(server: LiveServer, kind: str) -> None:
    """30 MB are sent, none of them is an end: so whatever answers has not waited for one."""
    answer = said(server, *ENDLESS[kind])

    assert b" 200 " not in answer.partition(b"\r\n")[0]
    assert server.client().get("/livez").status_code == 200


def test_a_head_that_is_not_too_large_is_served(server: LiveServer) -> None:
    client = server.client("read")
    long = "x" * (MOST_HEAD_BYTES - 4096)
    assert client.get("/v1/tenants", headers={"X-Long": long}).status_code == 200
    assert client.get("/v1/tenants", headers={"X-Long": long}).status_code == 200, "each is counted anew"
    put = client.put("/v1/kv/a/b/bytes", content=b"x" * 2**20)
    assert put.status_code == 403, "a body is not a head"

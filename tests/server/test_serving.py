"""The server as a process: SIGTERM under load, many clients, what it says about where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, AsyncIterator, Dict, List, Tuple

import psutil
import pytest

from modules.storage.manager import StorageManager
from tests.support import sqlite as sqlite_support
from tests.support.postgres import ROOT

FULL = bool(os.environ.get("ATLAS_TEST_FULL"))
PROGRAM = [sys.executable, "-m", "modules.storage.cli"]


def environment(directory: Path) -> Dict[str, str]:
    """Return the environment of a process on the database of that directory."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        "ATLAS_SQL_URL": f"sqlite:///{directory}/storage.sqlite3",
    }


def opened(directory: Path) -> StorageManager:
    """Return a manager on the database of that directory, which is made if need be."""
    path = directory / "storage.sqlite3"
    if not path.exists():
        shutil.copyfile(sqlite_support.migrated_template(), path)
    return StorageManager({"sql": {"url": f"sqlite:///{path}"}})


@contextlib.asynccontextmanager
async def served(directory: Path, *arguments: str) -> AsyncIterator[Tuple[Any, str, int]]:
    """Run `atlas-storage serve`; gives the process, a token and the port."""
    async with opened(directory) as storage:
        token = (await storage.access.create_token("load", scopes=["admin"])).text
    process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once
        [*PROGRAM, "serve", "--port", "0", "--json", *arguments],
        cwd=directory,
        env=environment(directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line, process.stderr.read() if process.stderr else ""
        yield process, token, int(json.loads(line)["url"].rpartition(":")[2])
    finally:
        if process.poll() is None:
            process.kill()
        await asyncio.to_thread(process.communicate, None, 30)


class Client:
    """One connection that is kept and made anew: enough of HTTP to load a server with a thousand of them."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = f"Host: localhost\r\nAuthorization: Bearer {token}\r\n"
        self._reader: Any = None
        self._writer: Any = None

    async def ask(self, method: str, path: str, body: Any = None) -> Tuple[int, Any]:
        """Send a request, return status and body; OSError or EOFError when there was no answer."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        data = b"" if body is None else json.dumps(body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
        try:
            self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{kind}\r\n".encode() + data)
            await self._writer.drain()
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
            length = int(re.search(r"content-length: (\d+)", head)[1])  # type: ignore[index]
            content = await self._reader.readexactly(length)
        except BaseException:
            await self.close()
            raise
        if "connection: close" in head:
            await self.close()
        return int(head.split()[1]), json.loads(content)

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def ask_once(port: int, token: str, method: str, path: str, body: Any = None) -> int:
    client = Client(port, token)
    status, _ = await client.ask(method, path, body)
    await client.close()
    return status


async def test_sigterm_under_load_answers_what_it_has_accepted(tmp_path: Path) -> None:
    """Every message that was stored was acknowledged to its sender: no accepted request is dropped."""
    acknowledged: List[str] = []
    refused: List[str] = []
    enough = asyncio.Event()

    async def send(port: int, token: str, number: int) -> None:
        client = Client(port, token)
        for turn in range(100_000):
            name = f"{number}-{turn}"
            try:
                status, body = await client.ask(
                    "POST", "/v1/conversations/load/messages", {"role": "user", "content": name}
                )
            except (OSError, EOFError):
                refused.append(name)
                return
            if status != 201:
                assert status == 503, body
                break
            acknowledged.append(name)
            if len(acknowledged) >= 300:
                enough.set()
        await client.close()

    async with served(tmp_path) as (process, token, port):
        assert await ask_once(port, token, "POST", "/v1/conversations", {"id": "load"}) == 201
        senders = [asyncio.create_task(send(port, token, number)) for number in range(30)]
        await asyncio.wait_for(enough.wait(), 60)
        process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        await asyncio.wait_for(asyncio.gather(*senders), 60)
        code = await asyncio.to_thread(process.wait, 60)
        seconds = time.monotonic() - started

    assert code == 0
    assert seconds < 30 + 2
    async with opened(tmp_path) as storage:
        found = await storage.conversations.fetch_messages("load", limit=10_000)
    stored = {message.content for message in found}
    assert len(acknowledged) >= 300
    assert set(acknowledged) <= stored, "an acknowledged message is lost"
    assert stored <= set(acknowledged), "a message was stored and its sender never told"


@pytest.mark.timeout(300)
async def test_many_clients_at_once_without_an_error(tmp_path: Path) -> None:
    """1,000 clients for 20 seconds with ATLAS_TEST_FULL=1; zero errors, bounded memory."""
    clients, seconds = (1000, 20.0) if FULL else (150, 3.0)
    counts: Dict[str, int] = {"answers": 0}
    errors: List[str] = []

    async def work(port: int, token: str, number: int, end: float) -> None:
        client = Client(port, token)
        turn = 0
        while turn == 0 or time.monotonic() < end:
            turn += 1
            asks = [
                ("PUT", f"/v1/kv/load/{number}", {"value": turn}),
                ("GET", f"/v1/kv/load/{number}", None),
                ("GET", "/v1/conversations?limit=5", None),
                ("POST", "/v1/conversations/load/messages", {"role": "user", "content": "x" * 200}),
            ]
            method, path, body = asks[(turn + number) % 4] if turn > 1 else asks[0]
            try:
                status, found = await client.ask(method, path, body)
            except (OSError, EOFError) as exc:
                errors.append(type(exc).__name__)
                continue
            counts["answers"] += 1
            if status >= 300:
                errors.append(f"{status} {found}")
        await client.close()

    async with served(tmp_path) as (process, token, port):
        assert await ask_once(port, token, "POST", "/v1/conversations", {"id": "load"}) == 201
        server = psutil.Process(process.pid)
        before = server.memory_info().rss
        end = time.monotonic() + seconds
        await asyncio.gather(*(work(port, token, number, end) for number in range(clients)))
        after = server.memory_info().rss
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 60) == 0

    more = (after - before) / 2**20
    print(
        f"{clients} clients, {seconds} s: {counts['answers']} answers, {len(errors)} errors, {more:.0f} MiB more"
    )
    assert errors == []
    assert counts["answers"] >= clients
    assert after - before < 300 * 2**20


async def test_it_says_when_others_can_reach_it(tmp_path: Path) -> None:
    async with served(tmp_path, "--host", "0.0.0.0") as (process, _, port):
        assert port
        process.send_signal(signal.SIGTERM)
        _, said = await asyncio.to_thread(process.communicate, None, 60)

    assert "reachable from other machines" in said
    assert "server.not_on_loopback" in said


async def test_an_address_that_is_taken_is_told_in_one_line(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = await asyncio.to_thread(
            subprocess.run,
            [*PROGRAM, "serve", "--port", str(port)],
            cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen at 127.0.0.1 port {port}")
    assert len(done.stderr.splitlines()) == 1

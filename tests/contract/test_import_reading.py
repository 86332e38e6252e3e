"""An import reads its file in a thread: whatever the file does, the event loop serves others, and can give up."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO, List

import pytest

from modules.storage.transfer import export_tenant, import_file

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a named pipe")


class Pipe:
    """A file that gives what is written to it when it is written."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._file: List[BinaryIO] = []

    async def open(self) -> None:
        """Wait for the reader."""
        self._file.append(await asyncio.to_thread(open, self.path, "wb", 0))

    def write(self, *lines: Any) -> None:
        # one write each, below PIPE_BUF: it cannot block while the pipe is empty
        for line in lines:
            self._file[0].write(json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        self._file[0].close()


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path / "pipe.jsonl")


def _conversation(number: int) -> Any:
    return {"id": f"c{number}", "messages": [{"id": "m", "role": "user", "content": f"{number}"}]}


async def test_others_are_served_while_the_file_makes_wait(storage: Any, pipe: Pipe) -> None:
    importing = asyncio.ensure_future(import_file(storage, pipe.path))
    await storage.kv.set("n", "before it is opened", 1)
    await pipe.open()
    pipe.write(_conversation(1))
    await storage.kv.set("n", "while it is looked at", 1)
    pipe.write(*[_conversation(n) for n in range(2, 40)])
    while not await storage.conversations.get_conversation("c10"):
        assert not importing.done()
        await asyncio.sleep(0.01)
    assert not importing.done()
    pipe.write(_conversation(40), _conversation(1))
    pipe.close()
    report = await importing
    assert (report.conversations_seen, report.conversations_added, report.messages_added) == (41, 40, 40)


async def test_an_export_is_read_in_a_thread_too(storage: Any, pipe: Pipe, tmp_path: Path) -> None:
    await storage.conversations.create_conversation("c")
    await storage.conversations.add_messages("c", [{"role": "user", "content": f"{n}"} for n in range(50)])
    await storage.kv.set("n", "k", b"bytes", tenant_id="default")
    exported = tmp_path / "export.jsonl"
    await export_tenant(storage, exported)
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    importing = asyncio.ensure_future(import_file(storage, pipe.path, tenant_id="other"))
    await pipe.open()
    pipe.write(*lines[: len(lines) // 2])
    await storage.kv.set("n", "meanwhile", 1)
    assert not importing.done()
    pipe.write(*lines[len(lines) // 2 :])
    pipe.close()
    report = await importing
    assert (report.messages_added, report.keys_added, report.bad_count) == (50, 1, 0)


@pytest.mark.parametrize("opened", [False, True])
async def test_cancelling_does_not_wait_for_the_file(storage: Any, pipe: Pipe, opened: bool) -> None:
    """The thread that reads ends, and closes the file, when the read ends."""
    importing = asyncio.ensure_future(import_file(storage, pipe.path))
    if opened:
        await pipe.open()
        pipe.write(_conversation(1))
    await storage.kv.set("n", "k", 1)
    importing.cancel()
    await asyncio.wait_for(asyncio.wait([importing]), 60)
    assert importing.cancelled()
    if not opened:
        await pipe.open()
    pipe.close()
    for thread in threading.enumerate():
        if thread.name == "atlas-storage-blocking":
            await asyncio.to_thread(thread.join, 60)
            assert not thread.is_alive()

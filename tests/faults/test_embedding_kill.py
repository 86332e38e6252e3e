"""A process that embeds dies at any point of it: no message is lost to the search by meaning, edits and deletions follow.

The child writes, edits and deletes messages and embeds them meanwhile; it kills itself with SIGKILL right after the n-th
call of one step of the work. With ATLAS_TEST_FULL=1 every step is tried many times.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple
from urllib.parse import urlsplit

import numpy as np
import pytest

from modules.storage.manager import StorageManager
from modules.storage.semantic_documents import namespace_of_conversation, vector_id

STEPS = ["claim", "read_texts", "upsert", "delete", "finish_and_remove"]
TURNS = list(range(1, 13)) if os.environ.get("ATLAS_TEST_FULL") else [2]

_CHILD = """
import asyncio, os, random, signal, sys
from modules.conversation_store import backlog
from modules.storage import outbox_queue
from modules.storage.manager import StorageManager

url, step, wanted, run = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
seen = 0

def reached():
    global seen
    seen += 1
    if seen == wanted:
        os.kill(os.getpid(), signal.SIGKILL)

class Dying:
    # hands calls on, and dies after the chosen one
    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

class DyingExecutor(Dying):
    async def run(self, operation, *args):
        result = await self._inner.run(operation, *args)
        if operation in (getattr(backlog, step, None), getattr(outbox_queue, step, None)):
            reached()
        return result

class DyingProvider(Dying):
    async def upsert(self, *args, **named):
        result = await self._inner.upsert(*args, **named)
        if step == "upsert":
            reached()
        return result

    async def delete(self, *args, **named):
        result = await self._inner.delete(*args, **named)
        if step == "delete":
            reached()
        return result

async def write(storage):
    chance = random.Random(run)
    name = f"c{run}"
    await storage.conversations.create_conversation(name)
    for n in range(10_000):
        await storage.conversations.add_message(name, "user", f"number {n} of {run}", message_id=f"{run}-{n}")
        if n % 3 == 2:
            target = chance.randrange(n)
            target -= target % 5 == 3  # those are deleted
            await storage.conversations.record_edit(name, f"{run}-{target}", content=f"edited at {n}")
        if n % 5 == 4:
            await storage.conversations.soft_delete_message(name, f"{run}-{n - 1}")

async def embed(index):
    while True:
        await index.embed_pending()
        await asyncio.sleep(0)

async def main():
    async with StorageManager({"sql": {"url": url}, "embedder": "hashing"}, background=False) as storage:
        index = storage.semantic_index
        index._batch_size = 3
        await index.register()
        index._executor, index._provider = DyingExecutor(index._executor), DyingProvider(index._provider)
        await asyncio.wait_for(asyncio.gather(write(storage), embed(index)), 60)

asyncio.run(main())
"""


async def _compare(storage: Any) -> int:
    """Every message that can be found has the vector of its words as they are now, and nothing else has one."""
    index = storage.semantic_index
    collection = await index.collection()
    expected: Dict[Tuple[str, str], str] = {}
    page = await storage.conversations.list_conversations(limit=1000)
    for conversation in page:
        async for message in storage.conversations.stream_messages(conversation.id):
            key = vector_id(conversation.id, message.sequence)
            expected["default", key] = message.content
            expected[namespace_of_conversation(conversation.id), key] = message.content
    for namespace in {space for space, _ in expected}:
        wanted = {key: text for (space, key), text in expected.items() if space == namespace}
        found: Dict[str, Any] = {}
        cursor = None
        while True:
            documents = await storage.vectors.scroll(
                collection, namespace=namespace, limit=1000, cursor=cursor
            )
            found.update({item.id: np.asarray(item.vector) for item in documents.items})
            cursor = documents.next_cursor
            if cursor is None:
                break
        assert sorted(found) == sorted(wanted)
        names = sorted(wanted)
        vectors = await index.embedder.embed([wanted[name] for name in names])
        assert np.allclose(np.stack([found[name] for name in names]), vectors, atol=1e-6)
    return len(expected) // 2


def _run(command: List[str], environment: Dict[str, str]) -> Any:
    return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)


@pytest.mark.parametrize("backend", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
async def test_nothing_is_lost_whatever_step_it_dies_after(
    backend: str,
    databases: Any,
    child_environment: Dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url = databases.url(backend, migrated=True)
    program = tmp_path / "child.py"
    program.write_text(_CHILD, encoding="utf-8")
    runs: List[Tuple[str, int]] = [(step, turn) for turn in TURNS for step in STEPS]
    for number, (step, turn) in enumerate(runs):
        command = [sys.executable, str(program), url, step, str(turn), str(number)]
        died = await asyncio.to_thread(_run, command, child_environment)
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-2000:]
        if backend == "postgresql":
            # the server still does what the dead one had sent
            request.getfixturevalue("postgres").until_alone(urlsplit(url).path.lstrip("/"))
        async with StorageManager({"sql": {"url": url}, "embedder": "hashing"}, background=False) as storage:
            index = storage.semantic_index
            assert index is not None
            if step in ("claim", "read_texts", "upsert"):
                hits = await storage.conversations.search("number", mode="semantic")
                assert not hits.complete, "rows in the hands of the dead"
            # what the dead one had claimed is free again after five minutes; the test does not wait for them
            await storage.sql_backend.execute_sql("UPDATE atlas_outbox SET available_at = staged_at")
            await index.embed_pending()
            assert (await index.progress()).pending == 0
            count = await _compare(storage)
            assert count > 0
            assert (await storage.conversations.search("number", mode="semantic")).complete
    print(f"{backend}: {len(runs)} kills, {count} messages, 0 lost, 0 stale")

"""`uow.vectors`: documents and messages are kept together or not at all; who cannot join says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from modules.storage.manager import StorageManager
from modules.storage.vectors.base import VectorDocument
from modules.store_common.errors import (
    DeadlineExceededError,
    NotConfiguredError,
    StorageError,
)
from tests.support.leaks import wait_until


async def _message(stores: Any, content: str) -> None:
    await stores.conversations.add_message("c", role="user", content=content)


async def _state(storage: Any) -> Any:
    page = await storage.conversations.fetch_messages("c")
    found = await storage.vectors.search("docs", [1.0, 0.0], top_k=100)
    return [message.content for message in page], sorted(hit.document.id for hit in found)


@pytest.fixture
async def filled(storage: Any) -> Any:
    await storage.conversations.create_conversation(conversation_id="c")
    await storage.vectors.create_collection("docs", 2)
    await storage.vectors.upsert("docs", [VectorDocument("before", [1.0, 0.0])])
    await _message(storage, "before")
    return storage


async def test_messages_and_vectors_commit_together(filled: Any) -> None:
    async with filled.unit_of_work() as uow:
        await _message(uow, "kept")
        await uow.vectors.upsert("docs", [VectorDocument("kept", [0.0, 1.0])])
        inside = await uow.vectors.search("docs", [0.0, 1.0])
        assert [hit.document.id for hit in inside] == ["kept", "before"]
    messages, documents = await _state(filled)
    assert len(messages) == 2
    assert documents == ["before", "kept"]


@pytest.mark.parametrize("ending", ["error", "rollback", "cancelled", "deadline"])
async def test_messages_and_vectors_vanish_together(filled: Any, ending: str) -> None:
    before = await _state(filled)
    wrote = asyncio.Event()

    async def work(timeout_s: float) -> None:
        async with filled.unit_of_work(timeout=timeout_s) as uow:
            await _message(uow, "undone")
            await uow.vectors.upsert("docs", [VectorDocument("undone", [0.0, 1.0])])
            await uow.vectors.delete("docs", ["before"])
            await uow.vectors.create_collection("undone", 3)
            wrote.set()
            if ending == "error":
                raise LookupError("changed my mind")
            if ending == "rollback":
                await uow.rollback()
                return
            while ending == "deadline":
                await uow.kv.get("n", "k")
            await asyncio.Event().wait()

    timeout_s = 2.0 if ending == "deadline" else 60.0
    while not wrote.is_set():
        task = asyncio.ensure_future(work(timeout_s))
        await wait_until(lambda: wrote.is_set() or task.done(), 60)  # noqa: B023 - awaited here
        if not wrote.is_set():
            # on a busy machine its time may be over before everything is written
            assert isinstance(task.exception(), DeadlineExceededError)
            timeout_s *= 2
    if ending == "cancelled":
        task.cancel()
    await asyncio.wait({task}, timeout=60)
    assert task.done()
    assert (task.cancelled() or task.exception() is not None) == (ending != "rollback")
    assert await _state(filled) == before
    assert await filled.vectors.get_collection("undone") is None


async def test_the_first_use_may_be_inside_a_unit(storage: Any) -> None:
    await storage.conversations.create_conversation(conversation_id="c")
    async with storage.unit_of_work() as uow:
        await _message(uow, "kept")
        await uow.vectors.create_collection("docs", 2)
        await uow.vectors.upsert("docs", [VectorDocument("kept", [1.0, 0.0])])
    messages, documents = await _state(storage)
    assert (len(messages), documents) == (1, ["kept"])
    with pytest.raises(StorageError):
        await uow.vectors.count("docs")


async def test_a_unit_undone_after_a_search_leaves_no_trace_in_the_matrix(filled: Any) -> None:
    await _state(filled)
    for attempt in range(3):
        with pytest.raises(LookupError):
            async with filled.unit_of_work() as uow:
                await uow.vectors.upsert("docs", [VectorDocument(f"undone{attempt}", [1.0, 0.0])])
                raise LookupError
        async with filled.unit_of_work() as uow:
            await uow.vectors.upsert("docs", [VectorDocument(f"kept{attempt}", [1.0, 0.0])])
    assert (await _state(filled))[1] == ["before", "kept0", "kept1", "kept2"]


@pytest.mark.background
async def test_stores_outside_of_the_database_take_part_by_staging(storage: Any) -> None:
    storage.add_vector_store("in_memory", default=True)
    await storage.conversations.create_conversation(conversation_id="c")
    await storage.vectors.create_collection("docs", 2)
    with pytest.raises(LookupError):
        async with storage.unit_of_work() as undone:
            await _message(undone, "undone")
            await undone.vectors.upsert("docs", [VectorDocument("undone", [1.0, 0.0])])
            raise LookupError
    async with storage.unit_of_work() as uow:
        await _message(uow, "kept")
        await uow.vectors.upsert("docs", [VectorDocument("kept", [1.0, 0.0])])
    await uow.applied(60)
    assert await _state(storage) == (["kept"], ["kept"])


async def test_a_store_of_another_database_cannot_join(filled: Any, tmp_path: Path) -> None:
    """Its class could join a transaction, but not this one: the documents would land in the wrong database."""
    async with StorageManager({"sql": {"path": str(tmp_path / "other.sqlite3")}}) as other:
        filled.vector_registry.register_instance("other", other.vectors, default=True)
        async with filled.unit_of_work() as uow:
            with pytest.raises(NotConfiguredError, match="registered from outside"):
                _ = uow.vectors
        await filled.shutdown()

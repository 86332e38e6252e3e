"""A manager with an embedder: messages become searchable by meaning by themselves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from modules.storage.manager import StorageManager
from modules.store_common.errors import NotConfiguredError


async def test_messages_are_embedded_in_the_background(migrated_settings: Any) -> None:
    settings = migrated_settings.merged_with({"embedder": "hashing"})
    async with StorageManager(settings) as storage:
        await storage.conversations.create_conversation("c")
        await storage.conversations.add_message("c", "user", "two kittens", message_id="m")
        deadline = time.monotonic() + 60
        hits = await storage.conversations.search("kitten", mode="semantic")
        while not (hits and hits.complete):
            assert time.monotonic() < deadline, hits.reason
            await asyncio.sleep(0.05)
            hits = await storage.conversations.search("kitten", mode="semantic")
        assert hits[0].message.id == "m"
        assert storage.embedder is not None
        async with storage.unit_of_work() as uow:
            assert await uow.conversations.search("kitten", mode="hybrid")


async def test_without_an_embedder_there_is_none(storage: Any) -> None:
    assert storage.semantic_index is None
    assert storage.embedder is None
    with pytest.raises(NotConfiguredError):
        await storage.conversations.search("x", mode="hybrid")

"""`atlas-storage outbox ...`, `relay` and `reconcile`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from modules.storage.manager import StorageManager
from modules.storage.outbox_queue import claim, fail


@pytest.fixture
def filled(cli_on: Any) -> Any:
    """Three keys: one pending, two parked with a reason."""

    async def fill() -> None:
        async with StorageManager({"sql": {"url": cli_on.url}, "outbox": {"relay": False}}) as storage:

            async def apply(entry: Any) -> None:
                raise AssertionError("no relay runs here")

            storage.register_target("crm", apply)
            async with storage.unit_of_work() as uow:
                for key in ("one", "two"):
                    uow.stage("crm", "customer", key, {"name": key})
            entries = await storage.executor.run(claim, "crm", "test", 10, 60.0)
            await storage.executor.run(fail, [(entry, "ValueError") for entry in entries], 1)
            async with storage.unit_of_work() as uow:
                uow.stage("crm", "customer", "three", {"name": "three"})

    asyncio.run(fill())
    return cli_on


def test_look_redrive_and_discard(filled: Any) -> None:
    listed = filled("--json", "outbox", "list").lines
    assert [(item["state"], item["key"], item["error"]) for item in listed] == [
        ("pending", "three", None),
        ("parked", "one", "ValueError"),
        ("parked", "two", "ValueError"),
    ]
    found = filled("--json", "outbox", "stats").json
    assert (found["pending"], found["parked"]) == (1, 2)
    assert "crm" in filled("outbox", "stats").stdout
    shown = filled("--json", "outbox", "show", "crm", "customer", "one").json
    assert (shown["payload"], shown["attempts"]) == ('{"name":"one"}', 1)
    assert "does not know" in filled("outbox", "show", "crm", "customer", "absent", code=1).stderr
    assert filled("--json", "outbox", "redrive", "crm", "customer", "one").json == {"redriven": 1}
    assert "not parked" in filled("outbox", "redrive", "crm", "customer", "one", code=1).stderr
    assert filled("--json", "outbox", "discard", "--all", "--target", "crm").json == {"discarded": 1}
    assert "name one key" in filled("outbox", "discard", code=2).stderr
    assert [item["key"] for item in filled("--json", "outbox", "list").lines] == ["one", "three"]
    health = filled("--json", "health").json
    assert health["components"]["outbox"]["details"]["pending"] == 2


def test_relay_and_reconcile_say_when_there_is_nothing_to_do(filled: Any) -> None:
    assert "nothing to relay to" in filled("relay", code=2).stderr
    assert "No store outside" in filled("reconcile").stdout
    assert "no target 'chroma'" in filled("reconcile", "--target", "chroma", code=2).stderr

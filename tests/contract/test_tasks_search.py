"""Full-text search over tasks: any text is a question, ranked, within the tenant, in step with every change."""

from __future__ import annotations

from typing import Any

import pytest

from modules.store_common.errors import InvalidValueError
from tests.support.tasks import query


@pytest.fixture
async def tasks(storage: Any) -> Any:
    tasks = storage.tasks
    await tasks.create_tasks(
        [
            {"title": "Repair the roof", "id": "roof", "description": "Tiles are loose; it rains in.", "owner_id": "ann"},
            {"title": "Buy umbrellas", "id": "buy", "description": "Two of them. " + "Filler words. " * 50},
            {"title": "Umbrella stand", "id": "stand", "conversation_id": "c"},
        ]
    )  # fmt: skip
    return tasks


async def found(tasks: Any, text: str, **given: Any) -> Any:
    return [hit.task.id for hit in await tasks.search(text, **given)]


async def test_titles_and_descriptions(tasks: Any) -> None:
    assert await found(tasks, "umbrella") == ["stand", "buy"]
    assert await found(tasks, "raining tile") == ["roof"]
    assert set(await found(tasks, "umbrella or roof")) == {"stand", "buy", "roof"}
    assert await found(tasks, "the of it") == await found(tasks, "  ") == []
    hits = await tasks.search("loose tiles")
    assert hits[0].snippet == "Repair the roof [Tiles] are [loose]; it rains in."
    assert hits[0].task == await tasks.get_task("roof")
    assert hits[0].score > 0


async def test_filters(tasks: Any) -> None:
    await tasks.transition_task("stand", "cancelled")
    assert await found(tasks, "umbrella", status="open") == ["buy"]
    assert await found(tasks, "umbrella", status="cancelled") == ["stand"]
    assert await found(tasks, "umbrella", conversation_id="c") == ["stand"]
    assert await found(tasks, "umbrella roof", owner_id="ann") == ["roof"]
    assert len(await found(tasks, "umbrella", limit=1)) == 1
    with pytest.raises(InvalidValueError):
        await tasks.search("x", status="gone")


async def test_the_index_follows_every_change(tasks: Any) -> None:
    await tasks.update_task("roof", title="Paint the fence", description=None)
    assert await found(tasks, "roof tiles") == []
    assert await found(tasks, "fence") == ["roof"]
    await tasks.update_task("roof", description="with green paint", priority=2)
    assert await found(tasks, "green") == ["roof"]
    await tasks.delete_task("roof")
    assert await found(tasks, "fence green") == []
    await tasks.create_task("Roof again", task_id="roof")
    assert await found(tasks, "roof") == ["roof"]


@pytest.mark.parametrize(
    "text", ['"', "NEAR(a", "a* OR NOT", "x:y & !z", "'; DROP", "\x00", "🙂" * 20, "col:umbrella ("]
)
async def test_any_text_is_a_question(tasks: Any, text: str) -> None:
    assert set(await found(tasks, text)) <= {"buy", "stand"}


async def test_a_tenant_finds_its_own(tasks: Any) -> None:
    await tasks.create_task("umbrella of theirs", task_id="theirs", tenant_id="theirs")
    assert await found(tasks, "umbrella") == ["stand", "buy"]
    assert await found(tasks, "umbrella", tenant_id="theirs") == ["theirs"]
    assert await found(tasks, "umbrella", tenant_id="their") == []


async def test_rebuilding(tasks: Any, backend: str) -> None:
    before = [(hit.task.id, hit.snippet) for hit in await tasks.search("umbrella roof")]
    await tasks.rebuild_search()
    assert [(hit.task.id, hit.snippet) for hit in await tasks.search("umbrella roof")] == before
    await tasks.update_task("roof", title="Cellar", description=None)
    assert await found(tasks, "cellar roof") == ["roof"]


async def test_nothing_is_left_of_a_deleted_task(tasks: Any, backend: str) -> None:
    if backend == "postgresql":
        pytest.skip("its index is a column of the row")
    from sqlalchemy import BigInteger

    for task in list(await tasks.list_tasks()):
        await tasks.delete_task(task.id)
    rows = await query(tasks, "SELECT count(*) FROM atlas_task_search_numbers", count=BigInteger)
    assert rows[0][0] == 0
    assert await found(tasks, "umbrella roof buy") == []

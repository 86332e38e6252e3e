"""The API of tasks, on every back end."""

from __future__ import annotations

import asyncio
from typing import Any

T = "/v1/tasks"


async def test_a_task_from_beginning_to_end(api: Any) -> None:
    made = await api(
        "POST", T, 201, json={"id": "t1", "title": "Book the hotel", "tags": ["trip"], "priority": 3}
    )
    assert made.headers["etag"] == '"v1"'
    await api("GET", f"{T}/t1", 304, headers={"If-None-Match": '"v1"'})
    changed = await api("PATCH", f"{T}/t1", 200, json={"owner_id": "ada"}, headers={"If-Match": '"v1"'})
    assert (changed.json()["owner_id"], changed.json()["title"]) == ("ada", "Book the hotel")
    await api("PATCH", f"{T}/t1", 412, json={"owner_id": "bob"}, headers={"If-Match": '"v1"'})
    for status in ("ready", "in_progress", "review", "done"):
        await api("POST", f"{T}/t1/move", 200, json={"status": status})
    said = await api("POST", f"{T}/t1/comments", 201, json={"text": "Done.", "actor_id": "ada"})
    assert said.json()["type"] == "comment"
    details = (await api("GET", f"{T}/t1/details", 200)).json()
    assert [e["type"] for e in details["events"]].count("status_changed") == 4
    await api("DELETE", f"{T}/t1", 204)
    assert (await api("GET", f"{T}/t1", 404)).json()["code"] == "task_not_found"


async def test_a_move_that_is_not_allowed_is_explained(api: Any) -> None:
    await api("POST", T, 201, json={"id": "t1", "title": "A"})

    refused = await api("POST", f"{T}/t1/move", 409, json={"status": "done"})

    assert refused.json()["code"] == "task_transition"
    assert "ready" in refused.json()["detail"]
    assert (
        await api("POST", f"{T}/t1/move", 412, json={"status": "ready"}, headers={"If-Match": '"v9"'})
    ).json()


async def test_dependencies_hold_a_task_back_and_circles_are_refused(api: Any) -> None:
    await api("POST", T, 201, json={"id": "a", "title": "A", "status": "ready"})
    await api("POST", T, 201, json={"id": "b", "title": "B", "depends_on": ["a"]})

    held = await api("POST", f"{T}/b/move", 409, json={"status": "ready"})
    circle = await api("PUT", f"{T}/a/dependencies/b", 409)

    assert held.json()["code"] == "task_dependency"
    assert circle.json()["code"] == "task_cycle"
    await api("DELETE", f"{T}/b/dependencies/a", 204)
    await api("POST", f"{T}/b/move", 200, json={"status": "ready"})


async def test_the_board_has_every_status_with_its_moves(api: Any) -> None:
    for number in range(3):
        await api("POST", T, 201, json={"title": f"T{number}", "status": "ready"})

    board = (await api("GET", f"{T}/board", 200, params={"limit": 2})).json()["columns"]

    ready = next(column for column in board if column["status"] == "ready")
    assert [column["status"] for column in board] == [
        "draft",
        "ready",
        "in_progress",
        "review",
        "done",
        "cancelled",
    ]
    assert (ready["count"], len(ready["items"]), ready["moves"]) == (
        3,
        2,
        ["in_progress", "draft", "cancelled"],
    )


async def test_search_and_filters(api: Any) -> None:
    await api("POST", T, 201, json={"title": "Find an umbrella", "tags": ["rain"]})
    await api("POST", T, 201, json={"title": "Find sun cream", "owner_id": "ada"})

    hits = (await api("GET", f"{T}/search", 200, params={"q": "umbrellas"})).json()["items"]

    assert [hit["task"]["title"] for hit in hits] == ["Find an umbrella"]
    for params, title in (({"tag": "rain"}, "Find an umbrella"), ({"owner_id": "ada"}, "Find sun cream")):
        found = (await api("GET", T, 200, params=params)).json()["items"]
        assert [task["title"] for task in found] == [title]


async def test_one_idempotency_key_is_one_task(api: Any) -> None:
    headers = {"Idempotency-Key": "once"}
    made = await asyncio.gather(
        *(api("POST", T, 201, json={"title": "A"}, headers=headers) for _ in range(6))
    )

    assert len({answer.json()["id"] for answer in made}) == 1
    await api("POST", T, 422, json={"title": "B"}, headers=headers)


async def test_a_comment_and_a_move_that_are_sent_again_are_made_once(api: Any) -> None:
    await api("POST", T, 201, json={"id": "a", "title": "A"})
    for path, body, status in (("comments", {"text": "hello"}, 201), ("move", {"status": "ready"}, 200)):
        headers = {"Idempotency-Key": path}
        answers = await asyncio.gather(
            *(api("POST", f"{T}/a/{path}", status, json=body, headers=headers) for _ in range(4))
        )
        assert len({answer.text for answer in answers}) == 1
    events = (await api("GET", f"{T}/a/details", 200)).json()["events"]

    assert sorted(event["type"] for event in events if event["type"] != "created") == [
        "comment",
        "status_changed",
    ]


async def test_what_a_task_must_have_cannot_be_cleared(api: Any) -> None:
    await api("POST", "/v1/tasks", 201, json={"id": "t1", "title": "x", "metadata": {"a": 1}})
    for name in ("title", "priority", "tags", "metadata"):
        refused = await api("PATCH", "/v1/tasks/t1", 422, json={name: None})
        assert refused.json()["code"] == "invalid_value", name
        assert name in refused.json()["detail"]
    assert (await api("GET", "/v1/tasks/t1", 200)).json()["metadata"] == {"a": 1}

"""The API of conversations and messages, on every back end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

C = "/v1/conversations"


async def make(api: Any, name: str = "c1", *texts: str) -> None:
    await api("POST", C, 201, json={"id": name, "title": "A trip"})
    for text in texts:
        await api("POST", f"{C}/{name}/messages", 201, json={"role": "user", "content": text})


async def test_a_conversation_from_beginning_to_end(api: Any) -> None:
    await make(api, "c1", "one", "two")

    got = await api("GET", f"{C}/c1", 200)
    assert got.json()["last_sequence"] == 2
    assert got.headers["etag"] == '"v1"'
    await api("GET", f"{C}/c1", 304, headers={"If-None-Match": '"v1"'})
    listed = (await api("GET", f"{C}/c1/messages", 200)).json()
    assert [item["content"] for item in listed["items"]] == ["one", "two"]
    changed = await api(
        "PATCH", f"{C}/c1", 200, json={"title": "B", "metadata": {"a": 1}}, headers={"If-Match": '"v1"'}
    )
    assert (changed.json()["title"], changed.json()["metadata"]) == ("B", {"a": 1})
    await api("POST", f"{C}/c1/archive", 200)
    refused = await api("POST", f"{C}/c1/messages", 409, json={"role": "user", "content": "x"})
    assert refused.json()["code"] == "conversation_archived"
    await api("POST", f"{C}/c1/unarchive", 200)
    await api("DELETE", f"{C}/c1", 204)
    gone = await api("GET", f"{C}/c1", 404)
    assert gone.headers["content-type"] == "application/problem+json"
    assert gone.json()["code"] == "conversation_not_found"


async def test_a_change_with_an_old_version_changes_nothing_of_it(api: Any) -> None:
    await make(api)
    await api("PATCH", f"{C}/c1", 200, json={"title": "B"})

    refused = await api(
        "PATCH", f"{C}/c1", 412, json={"title": "C", "metadata": {"x": 1}}, headers={"If-Match": '"v1"'}
    )

    assert refused.json()["code"] == "concurrency"
    assert refused.json()["actual"] == 2
    found = (await api("GET", f"{C}/c1", 200)).json()
    assert (found["title"], found["metadata"]) == ("B", {})


async def test_pages_follow_each_other(api: Any) -> None:
    await make(api, "c1", *[str(i) for i in range(7)])
    seen, cursor = [], None
    while True:
        params = {"limit": 3, **({"cursor": cursor} if cursor else {})}
        page = (await api("GET", f"{C}/c1/messages", 200, params=params)).json()
        seen += [item["content"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert seen == [str(i) for i in range(7)]
    bad = await api("GET", f"{C}/c1/messages", 400, params={"cursor": "rubbish"})
    assert bad.json()["code"] == "invalid_cursor"


async def test_an_id_may_hold_anything(api: Any) -> None:
    name = "a/b c%20d?é#%2F"
    quoted = "a%2Fb%20c%2520d%3F%C3%A9%23%252F"
    await api("POST", C, 201, json={"id": name})
    await api("POST", f"{C}/{quoted}/messages", 201, json={"role": "user", "content": "hi", "id": "m/1"})

    assert (await api("GET", f"{C}/{quoted}", 200)).json()["id"] == name
    assert (await api("GET", f"{C}/{quoted}/messages/m%2F1", 200)).json()["content"] == "hi"


async def test_edit_history_and_deletion_of_a_message(api: Any) -> None:
    await make(api, "c1", "one")
    message = (await api("GET", f"{C}/c1/messages", 200)).json()["items"][0]
    at = f"{C}/c1/messages/{message['id']}"

    edited = await api(
        "PATCH", at, 200, json={"content": "ONE", "actor_id": "ada"}, headers={"If-Match": '"v1"'}
    )
    await api("PATCH", at, 412, json={"content": "x"}, headers={"If-Match": '"v1"'})
    await api("PATCH", at, 412, json={"content": "x"}, headers={"If-Match": '"other"'})
    await api("PATCH", at, 422, json={})
    await api("DELETE", at, 200)
    await api("GET", at, 404)

    assert edited.json()["content"] == "ONE"
    events = (await api("GET", f"{C}/c1/events", 200)).json()["items"]
    assert [item["type"] for item in events] == ["created", "edited", "deleted"]
    assert events[1]["former"]["content"] == "one"


async def test_expect_refuses_an_append_that_saw_less(api: Any) -> None:
    await make(api, "c1", "one")

    refused = await api("POST", f"{C}/c1/messages", 409, json={"role": "user", "content": "x", "expect": 0})

    assert refused.json()["code"] == "concurrency"
    await api("POST", f"{C}/c1/messages", 201, json={"role": "user", "content": "x", "expect": 1})


async def test_one_idempotency_key_is_one_message(api: Any) -> None:
    await make(api)
    body = {"role": "user", "content": "once"}
    headers = {"Idempotency-Key": "k1"}

    answers = await asyncio.gather(
        *(api("POST", f"{C}/c1/messages", 201, json=body, headers=headers) for _ in range(10))
    )

    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await api("GET", f"{C}/c1/messages", 200)).json()["items"]) == 1
    other = await api("POST", f"{C}/c1/messages", 422, json={**body, "content": "else"}, headers=headers)
    assert other.json()["code"] == "idempotency_conflict"


async def test_one_idempotency_key_is_one_conversation_and_one_fork(api: Any) -> None:
    headers = {"Idempotency-Key": "make"}
    made = await asyncio.gather(
        *(api("POST", C, 201, json={"title": "T"}, headers=headers) for _ in range(8))
    )

    ids = {answer.json()["id"] for answer in made}
    assert len(ids) == 1
    assert sorted(answer.headers.get("idempotent-replayed", "no") for answer in made) == ["no"] + ["true"] * 7
    assert len({answer.headers["etag"] for answer in made}) == 1
    conflict = await api("POST", C, 422, json={"title": "U"}, headers=headers)
    assert conflict.json()["code"] == "idempotency_conflict"
    at = f"{C}/{ids.pop()}"
    await api("POST", f"{at}/messages", 201, json={"role": "user", "content": "hi"})
    forks = [
        await api("POST", f"{at}/fork", 201, json={}, headers={"Idempotency-Key": "fork"}) for _ in range(2)
    ]
    assert forks[0].json() == forks[1].json()
    assert forks[0].json()["last_sequence"] == 1
    assert len((await api("GET", C, 200)).json()["items"]) == 2


async def test_a_refused_request_may_be_sent_again_with_its_key(api: Any) -> None:
    headers = {"Idempotency-Key": "k"}
    await api("POST", f"{C}/none/fork", 404, json={}, headers=headers)
    await make(api, "none")

    await api("POST", f"{C}/none/fork", 201, json={}, headers=headers)


async def test_search_and_its_modes(api: Any) -> None:
    await make(api, "c1", "an umbrella in the rain", "sun")

    found = (await api("GET", "/v1/search", 200, params={"q": "umbrellas"})).json()

    assert [hit["message"]["content"] for hit in found["items"]] == ["an umbrella in the rain"]
    assert "[umbrella]" in found["items"][0]["snippet"]
    assert found["complete"] is True
    unset = await api("GET", "/v1/search", 501, params={"q": "x", "mode": "semantic"})
    assert unset.json()["code"] == "not_configured"
    await api("GET", "/v1/search", 422, params={"q": "x", "mode": "psychic"})


async def test_exports_are_lines_that_can_be_imported(api: Any) -> None:
    await make(api, "c1", "one")
    await make(api, "c2", "two")

    one = (await api("GET", f"{C}/c1/export", 200)).text.splitlines()
    everything = (await api("GET", f"{C}/export", 200)).text.splitlines()

    assert [next(iter(json.loads(line))) for line in one] == ["conversation", "message"]
    assert len(everything) == 4
    await api("GET", f"{C}/none/export", 404)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"role": "user"}, "invalid_request"),
        ({"role": "user", "content": "x", "colour": "blue"}, "invalid_request"),
        ({"role": "", "content": "x"}, "invalid_value"),
        ({"role": "user", "content": 2**70}, "invalid_value"),
        ({"role": "user", "content": "x", "status": "asleep"}, "invalid_request"),
    ],
)
async def test_a_wrong_body_is_told_and_not_repeated(api: Any, body: Any, code: str) -> None:
    await make(api)

    refused = await api("POST", f"{C}/c1/messages", 422, json=body)

    assert refused.json()["code"] == code
    assert "blue" not in refused.text
    assert (await api("GET", f"{C}/c1", 200)).json()["last_sequence"] == 0


@pytest.mark.parametrize(
    ("kind", "body", "status", "words"),
    [
        ("application/x-www-form-urlencoded", b'{"title": "t"}', 422, "Content-Type: application/json"),
        ("text/plain", b'{"title": "t"}', 422, "Content-Type: application/json"),
        ("application/json", b"[]", 422, "body: "),
        ("application/json", b'{"title": "\xff"}', 400, "cannot be read as JSON"),
        ("application/json", b'{"metadata": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nested"),
    ],
)
async def test_a_body_that_cannot_be_read_is_told_so(
    api: Any, kind: str, body: bytes, status: int, words: str
) -> None:
    answer = await api("POST", "/v1/conversations", status, content=body, headers={"Content-Type": kind})
    assert words in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_body_without_anything_in_it_may_be_left_out(api: Any) -> None:
    await make(api, "c1", "hello")
    await api("POST", "/v1/conversations/c1/fork", 201)
    job = (await api("POST", "/v1/jobs", 201, json={"handler": "h"})).json()
    assert (await api("POST", f"/v1/jobs/{job['id']}/cancel", 200)).json()["status"] == "cancelled"
    assert (await api("POST", "/v1/dead-letters/redrive", 200)).json() == {"count": 0}


async def test_a_kept_answer_that_somebody_has_written_over_is_no_answer(api: Any) -> None:
    sent = {"json": {"title": "t"}, "headers": {"Idempotency-Key": "k"}}
    await api("POST", "/v1/conversations", 201, **sent)
    for kept in (await api("GET", "/v1/kv/_http.replies", 200)).json()["items"]:
        await api("PUT", f"/v1/kv/_http.replies/{kept['key']}", 200, json={"value": [1]})

    refused = await api("POST", "/v1/conversations", 422, **sent)

    assert refused.json()["code"] == "idempotency_conflict"


@pytest.mark.parametrize(
    "body",
    [
        b'{"title": "\\udae4"}',
        b'{"metadata": {"n": 123456789012345678901234567890}}',
        b'{"metadata": {"n": NaN}}',
        b'{"\\ud800": 1}',
    ],
    ids=["surrogate", "large number", "not a number", "name"],
)
async def test_what_no_store_takes_is_refused_with_a_key_as_without(api: Any, body: bytes) -> None:
    for headers in ({}, {"Idempotency-Key": "k"}):
        sent = {"Content-Type": "application/json", **headers}
        refused = await api("POST", "/v1/conversations", 422, content=body, headers=sent)
        assert refused.json()["code"] in ("invalid_value", "invalid_request")

"""The API of jobs and schedules, and of the outbox."""

from __future__ import annotations

import asyncio
from typing import Any, List

J = "/v1/jobs"


async def claim(api: Any) -> Any:
    """Take the next job as a worker would."""
    return (await api.storage.jobs.queue(tenant_id="acme").claim("worker", limit=1))[0]


async def test_a_job_from_beginning_to_end(api: Any) -> None:
    made = await api("POST", J, 201, json={"handler": "mail", "payload": {"to": "ada"}})
    at = f"{J}/{made.json()['id']}"
    assert (made.json()["status"], made.json()["payload"]) == ("scheduled", {"to": "ada"})
    assert (await api("GET", "/v1/queues", 200)).json()["items"][0]["queue"] == "default"

    job = await claim(api)
    queue = api.storage.jobs.queue(tenant_id="acme")
    await queue.log(job, "half way")
    await queue.complete(job, {"sent": True})

    assert (await api("GET", at, 200)).json()["status"] == "succeeded"
    runs = (await api("GET", f"{at}/runs", 200)).json()["items"]
    assert [(run["status"], run["result"]) for run in runs] == [("succeeded", {"sent": True})]
    assert [line["message"] for line in (await api("GET", f"{at}/logs", 200)).json()["items"]] == ["half way"]
    assert "created" in [event["type"] for event in (await api("GET", f"{at}/events", 200)).json()["items"]]
    assert (await api("GET", f"{J}/counts", 200)).json()["counts"]["succeeded"] == 1
    assert (await api("POST", f"{at}/retry", 200)).json()["status"] == "scheduled"
    assert (await api("POST", f"{at}/cancel", 200, json={"reason": "enough"})).json()["reason"] == "enough"
    refused = await api("POST", f"{at}/cancel", 409, json={})
    assert refused.json()["code"] == "job_transition"
    assert (await api("GET", f"{J}/none", 404)).json()["code"] == "job_not_found"


async def test_dead_letters_are_listed_and_run_again(api: Any) -> None:
    await api("POST", J, 201, json={"handler": "mail", "retry": {"max_attempts": 1}})
    await api.storage.jobs.queue(tenant_id="acme").fail(await claim(api), "SMTPError", "no such mailbox")

    dead = (await api("GET", "/v1/dead-letters", 200)).json()["items"]

    assert [job["status"] for job in dead] == ["failed"]
    assert (await api("POST", "/v1/dead-letters/redrive", 200, json={"handler": "other"})).json() == {
        "count": 0
    }
    assert (await api("POST", "/v1/dead-letters/redrive", 200, json={})).json() == {"count": 1}
    assert (await api("GET", "/v1/dead-letters", 200)).json()["items"] == []


async def test_one_idempotency_key_is_one_job(api: Any) -> None:
    headers = {"Idempotency-Key": "once"}
    made = await asyncio.gather(
        *(api("POST", J, 201, json={"handler": "h"}, headers=headers) for _ in range(6))
    )

    assert len({answer.json()["id"] for answer in made}) == 1
    conflict = await api("POST", J, 422, json={"handler": "other"}, headers=headers)
    assert conflict.json()["code"] == "idempotency_conflict"


async def test_what_is_asked_again_with_a_key_is_done_once(api: Any) -> None:
    schedule = {"name": "nightly", "recurrence": {"cron": "0 3 * * *"}, "job": {"handler": "clean"}}
    job = (await api("POST", J, 201, json={"handler": "h"})).json()["id"]
    for path, body, status in (
        ("/v1/schedules", schedule, 201),
        (f"{J}/{job}/cancel", {"reason": "enough"}, 200),
        (f"{J}/{job}/retry", None, 200),
        ("/v1/dead-letters/redrive", {}, 200),
    ):
        headers = {"Idempotency-Key": path}
        first = await api("POST", path, status, json=body, headers=headers)
        again = await api("POST", path, status, json=body, headers=headers)
        assert again.json() == first.json()
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers.get("etag") == first.headers.get("etag")
    await api("POST", f"{J}/{job}/retry", 409)


async def test_schedules(api: Any) -> None:
    body = {"name": "nightly", "recurrence": {"cron": "0 3 * * *"}, "job": {"handler": "clean"}}
    made = await api("POST", "/v1/schedules", 201, json=body)
    at = f"/v1/schedules/{made.json()['id']}"

    assert made.json()["next_at"] is not None
    assert (await api("POST", "/v1/schedules", 409, json=body)).json()["code"] == "schedule_name_taken"
    off = await api("PATCH", at, 200, json={"enabled": False}, headers={"If-Match": made.headers["etag"]})
    assert off.json()["enabled"] is False
    await api("PATCH", at, 412, json={"enabled": True}, headers={"If-Match": made.headers["etag"]})
    assert [one["name"] for one in (await api("GET", "/v1/schedules", 200)).json()["items"]] == ["nightly"]
    wrong = {**body, "name": "x", "recurrence": {"cron": "0 3 * * *", "every_s": 5}}
    assert (await api("POST", "/v1/schedules", 422, json=wrong)).json()["code"] == "invalid_value"
    await api("DELETE", at, 204)
    await api("GET", at, 404)


async def test_the_outbox_is_for_administrators(api: Any) -> None:
    admin = await api.login("admin")

    await api("GET", "/v1/outbox", 403)
    assert "targets" in (await api("GET", "/v1/outbox", 200, headers=admin)).json()
    assert (await api("GET", "/v1/outbox/keys", 200, headers=admin)).json() == {
        "items": [],
        "next_cursor": None,
    }
    body = {"keys": [{"tenant_id": "acme", "target": "t", "kind": "k", "key": "x"}]}
    for what in ("redrive", "discard"):
        assert (await api("POST", f"/v1/outbox/{what}", 200, headers=admin, json=body)).json() == {"count": 0}


async def test_keys_of_the_outbox_come_in_parts(api: Any) -> None:
    admin = await api.login("admin")
    async with api.storage.unit_of_work() as uow:
        for n in range(5):
            uow.stage("far", "note", f"k{n}")
    parts: List[List[str]] = []
    where = "/v1/outbox/keys?state=pending&target=far&limit=2"
    cursor = ""
    while len(parts) < 9:
        part = (await api("GET", where + cursor, 200, headers=admin)).json()
        parts.append([one["key"] for one in part["items"]])
        if part["next_cursor"] is None:
            break
        cursor = f"&cursor={part['next_cursor']}"
    assert parts == [["k0", "k1"], ["k2", "k3"], ["k4"]]
    other = where.replace("pending", "parked") + cursor
    assert (await api("GET", other, 400, headers=admin)).json()["code"] == "invalid_cursor"

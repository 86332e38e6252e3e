"""The API over stores in MongoDB: it works, and what needs a transaction over SQL says so and does nothing."""

from __future__ import annotations

from typing import Any, AsyncIterator

import pytest

from modules.storage.manager import StorageManager
from tests.server.conftest import Api, api_over

pytestmark = [pytest.mark.mongodb, pytest.mark.usefixtures("mongodb")]


@pytest.fixture
async def api(mongo_settings: Any, leaks: Any) -> AsyncIterator[Api]:
    async with StorageManager(mongo_settings, background=False) as storage:
        await storage.ensure_schemas()
        async with api_over(storage) as made:
            yield made


async def test_stores_in_mongodb_are_served(api: Api) -> None:
    at = "/v1/conversations"
    await api("POST", at, 201, json={"id": "c", "title": "old"})
    sent = {"json": {"role": "user", "content": "hello"}, "headers": {"Idempotency-Key": "m"}}
    first, again = [await api("POST", f"{at}/c/messages", 201, **sent) for _ in range(2)]
    assert first.json()["id"] == again.json()["id"]
    renamed = await api("PATCH", f"{at}/c", 200, json={"title": "new"})
    assert renamed.json()["title"] == "new"
    version = renamed.headers["etag"]
    await api("PATCH", f"{at}/c", 200, json={"metadata": {"a": 1}}, headers={"If-Match": version})
    await api("PATCH", f"{at}/c", 412, json={"metadata": {"a": 2}}, headers={"If-Match": version})
    await api("PUT", "/v1/kv/n/k", 200, json={"value": 1})
    assert (await api("GET", "/v1/kv/n/k", 200)).json()["value"] == 1
    key = {"Idempotency-Key": "j"}
    jobs = [await api("POST", "/v1/jobs", 201, json={"handler": "h"}, headers=key) for _ in range(2)]
    assert jobs[0].json()["id"] == jobs[1].json()["id"]


async def test_what_needs_a_transaction_over_sql_says_so_and_does_nothing(api: Api) -> None:
    at = "/v1/conversations"
    await api("POST", at, 201, json={"id": "c", "title": "old"})

    both = await api("PATCH", f"{at}/c", 501, json={"title": "new", "metadata": {"a": 1}})
    once = await api("POST", at, 501, json={"id": "d"}, headers={"Idempotency-Key": "k"})

    assert both.json()["code"] == once.json()["code"] == "not_configured"
    assert (await api("GET", f"{at}/c", 200)).json()["title"] == "old"
    await api("GET", f"{at}/d", 404)

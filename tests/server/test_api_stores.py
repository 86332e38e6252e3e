"""The API of keys and vectors, on every back end; tenants."""

from __future__ import annotations

import asyncio
from typing import Any

KV = "/v1/kv/settings"


async def test_a_key_from_beginning_to_end(api: Any) -> None:
    await api("GET", f"{KV}/a", 404)
    put = await api("PUT", f"{KV}/a", 200, json={"value": {"x": [1, None, "é"]}})
    got = await api("GET", f"{KV}/a", 200)

    assert put.headers["etag"] == got.headers["etag"] == '"v1"'
    assert got.json()["value"] == {"x": [1, None, "é"]}
    await api("GET", f"{KV}/a", 304, headers={"If-None-Match": '"v1"'})
    assert (await api("GET", "/v1/kv", 200)).json()["items"] == ["settings"]
    assert [e["key"] for e in (await api("GET", KV, 200, params={"prefix": "a"})).json()["items"]] == ["a"]
    await api("DELETE", f"{KV}/a", 204)
    await api("DELETE", f"{KV}/a", 404)


async def test_compare_and_set_by_etag(api: Any) -> None:
    await api("PUT", f"{KV}/a", 200, json={"value": 1}, headers={"If-None-Match": "*"})
    await api("PUT", f"{KV}/a", 412, json={"value": 2}, headers={"If-None-Match": "*"})
    answers = await asyncio.gather(
        *(api("PUT", f"{KV}/a", json={"value": n}, headers={"If-Match": '"v1"'}) for n in range(10))
    )

    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 9
    await api("DELETE", f"{KV}/a", 412, headers={"If-Match": '"v1"'})
    await api("DELETE", f"{KV}/a", 204, headers={"If-Match": '"v2"'})


async def test_counting_with_a_key_counts_once(api: Any) -> None:
    headers = {"Idempotency-Key": "n"}
    answers = await asyncio.gather(
        *(api("POST", f"{KV}/n/increment", 200, json={"amount": 5}, headers=headers) for _ in range(8))
    )

    assert [answer.json()["value"] for answer in answers] == [5] * 8
    assert (await api("POST", f"{KV}/n/increment", 200, json={})).json()["value"] == 6
    await api("PUT", f"{KV}/t", 200, json={"value": "text"})
    refused = await api("POST", f"{KV}/t/increment", 409, json={})
    assert refused.json()["code"] == "invalid_value_type"


async def test_bytes_are_shown_as_what_they_are_and_can_be_sent_back_so(api: Any) -> None:
    await api.storage.kv.set("settings", "b", b"\x00\xff", tenant_id="acme")
    await api("PUT", f"{KV}/alike", 200, json={"value": {"base64": "AP8="}})
    shown = (await api("GET", f"{KV}/b", 200)).json()
    copied = {"value": shown["value"], "encoding": shown["encoding"]}
    await api("PUT", f"{KV}/c", 200, json=copied)
    listed = (await api("GET", KV, 200)).json()["items"]

    assert copied == {"value": "AP8=", "encoding": "base64"}
    assert await api.storage.kv.get("settings", "c", tenant_id="acme") == b"\x00\xff"
    assert [(item["key"], item["encoding"], item["value"]) for item in listed] == [
        ("alike", "json", {"base64": "AP8="}),
        ("b", "base64", "AP8="),
        ("c", "base64", "AP8="),
    ]
    for wrong in ("AP8", "A P8=", "é", 7, None, {"base64": "AP8="}):
        refused = await api("PUT", f"{KV}/c", 422, json={"value": wrong, "encoding": "base64"})
        assert refused.json()["code"] == "invalid_request"
    assert (await api("GET", f"{KV}/c", 200)).json()["version"] == 1


async def test_bytes_are_taken_and_given_as_they_are(api: Any) -> None:
    content = bytes(range(256)) * 40
    stored = await api("PUT", f"{KV}/raw/bytes", 200, content=content, params={"ttl_seconds": 60})
    got = await api("GET", f"{KV}/raw/bytes", 200)
    entry = await api.storage.kv.get_entry("settings", "raw", tenant_id="acme")

    assert (got.content, got.headers["content-type"]) == (content, "application/octet-stream")
    assert got.headers["etag"] == stored.headers["etag"]
    assert entry.value == content
    assert entry.expires_at is not None
    await api("GET", f"{KV}/raw/bytes", 304, headers={"If-None-Match": got.headers["etag"]})
    await api("PUT", f"{KV}/raw/bytes", 412, content=b"x", headers={"If-None-Match": "*"})
    await api("PUT", f"{KV}/raw/bytes", 412, content=b"x", headers={"If-Match": '"v9"'})
    await api("PUT", f"{KV}/raw/bytes", 200, content=b"", headers={"If-Match": got.headers["etag"]})
    assert (await api("GET", f"{KV}/raw/bytes", 200)).content == b""
    await api("GET", f"{KV}/none/bytes", 404)
    await api("PUT", f"{KV}/text", 200, json={"value": "hello"})
    assert (await api("GET", f"{KV}/text/bytes", 409)).json()["code"] == "invalid_value_type"


async def test_vectors_from_beginning_to_end(api: Any) -> None:
    made = await api("POST", "/v1/vectors", json={"name": "docs", "dimension": 3})
    if made.status_code == 501:
        return  # this back end has no vectors by default
    assert made.status_code == 201, made.text
    documents = [
        {"id": "a", "vector": [1, 0, 0], "content": "first", "metadata": {"lang": "en"}},
        {"id": "b", "vector": [0, 1, 0], "metadata": {"lang": "de"}},
    ]
    stored = await api("POST", "/v1/vectors/docs/documents", 200, json={"documents": documents})
    near = await api("POST", "/v1/vectors/docs/search", 200, json={"vector": [0.9, 0.1, 0], "top_k": 2})
    german = await api(
        "POST", "/v1/vectors/docs/search", 200, json={"vector": [1, 0, 0], "filter": {"lang": "de"}}
    )
    listed = await api("GET", "/v1/vectors/docs/documents", 200, params={"include_vectors": True})

    assert stored.json() == {"count": 2}
    assert [hit["document"]["id"] for hit in near.json()["items"]] == ["a", "b"]
    assert [hit["document"]["id"] for hit in german.json()["items"]] == ["b"]
    assert listed.json()["items"][0]["vector"] == [1, 0, 0]
    assert (await api("GET", "/v1/vectors/docs", 200)).json()["count"] == 2
    wrong = await api("POST", "/v1/vectors/docs/search", 422, json={"vector": [1, 0]})
    assert wrong.json()["code"] == "vector_dimension"
    assert (await api("POST", "/v1/vectors", 409, json={"name": "docs", "dimension": 3})).json()[
        "code"
    ] == "vector_collection"
    assert (await api("POST", "/v1/vectors/docs/delete", 200, json={"ids": ["a", "x"]})).json() == {
        "count": 1
    }
    await api("DELETE", "/v1/vectors/docs", 204)
    await api("GET", "/v1/vectors/docs", 404)


async def test_a_token_sees_its_tenants_and_no_other(api: Any) -> None:
    await api("PUT", f"{KV}/a", 200, json={"value": "acme's"})
    both = await api.login("write", tenant="other", other_tenants=["acme"])

    assert (await api("GET", "/v1/tenants", 200, headers=both)).json()["items"] == [
        {"id": "other", "is_default": True},
        {"id": "acme", "is_default": False},
    ]
    await api("GET", f"{KV}/a", 404, headers=both)
    named = await api("GET", f"{KV}/a", 200, headers={**both, "Atlas-Tenant": "acme"})
    assert named.json()["value"] == "acme's"
    refused = await api("GET", f"{KV}/a", 403, headers={"Atlas-Tenant": "other"})
    assert refused.json()["code"] == "tenant_not_allowed"


async def test_scopes_are_kept_apart(api: Any) -> None:
    reader, monitor = await api.login("read"), await api.login("monitor")

    await api("GET", KV, 200, headers=reader)
    await api("PUT", f"{KV}/a", 403, json={"value": 1}, headers=reader)
    await api("GET", "/metrics", 403, headers=reader)
    await api("GET", "/metrics", 200, headers=monitor)
    await api("GET", KV, 403, headers=monitor)
    assert "checks" not in (await api("GET", "/health", 200, headers=reader)).json()
    assert "sql" in (await api("GET", "/health", 200, headers=monitor)).json()["checks"]


async def test_a_revoked_token_ends(api: Any) -> None:
    made = await api.storage.access.create_token("x", tenant_id="acme")
    headers = {"Authorization": f"Bearer {made.text}"}
    await api("GET", KV, 200, headers=headers)
    await api.storage.access.revoke_token(made.token.id, tenant_id="acme")
    api.services.authenticator.forget()

    refused = await api("GET", KV, 401, headers=headers)

    assert refused.json()["code"] == "token_rejected"
    assert refused.headers["www-authenticate"].startswith("Bearer")

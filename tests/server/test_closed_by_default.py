"""P37: the gate and the login. Who has no token, comes from elsewhere or sends too much gets nothing."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from pathlib import Path
from typing import Any, Dict, List

import httpx
import pytest

from modules.Server.dashboard.rendering import NAVIGATION
from modules.Server.gate import CONTENT_SECURITY_POLICY
from modules.Server.sessions import COOKIE
from modules.storage.settings import ServerSettings, StorageSettings
from tests.support.live import LiveServer


def test_it_listens_at_loopback_unless_told_otherwise(live: Any) -> None:
    assert ServerSettings().host == "127.0.0.1"
    assert ServerSettings().is_local
    assert not ServerSettings(host="0.0.0.0").is_local
    assert StorageSettings().server.host_names == ["localhost", "127.0.0.1", "::1"]
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(OSError), socket.create_connection((own, int(live.url.rpartition(":")[2])), 2):
            pass


def test_every_answer_carries_the_policy(live: Any) -> None:
    client = live.client()
    for path in ("/livez", "/login", "/static/app.css", "/v1/kv", "/nothing", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY, path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY


def test_templates_have_no_inline_script_or_style() -> None:
    folder = Path(__file__).resolve().parents[2] / "modules" / "Server" / "dashboard" / "templates"
    for file in folder.glob("*.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(
            r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|\|\s*safe|autoescape false|https?://", text
        ), file.name


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "[::2]"]
)
def test_a_page_of_another_name_gets_nothing(live: Any, host: str) -> None:
    """DNS rebinding: the browser says the name it was lured with."""
    token = live.token("admin")
    answer = live.client().get("/v1/kv", headers={"Host": host, "Authorization": f"Bearer {token}"})

    assert answer.status_code == 421
    assert answer.json()["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9", "[::1]:9"])
def test_the_names_of_this_machine_are_known(live: Any, host: str) -> None:
    assert live.client().get("/livez", headers={"Host": host}).status_code == 200


def login(live: Any, client: Any, *scopes: str) -> str:
    answer = client.post("/login", data={"token": live.token(*scopes)}, headers={"Origin": live.url})
    assert answer.status_code == 303, answer.text
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    return re.search(r'name="csrf" value="([^"]+)"', client.get("/kv").text)[1]  # type: ignore[index]


def test_the_cookie_opens_pages_and_not_the_api(live: Any) -> None:
    client = live.client()
    login(live, client, "write")

    assert client.get("/conversations").status_code == 200
    assert client.get("/v1/conversations").status_code == 401
    assert client.get("/metrics").status_code == 401


def test_the_description_of_the_api_is_for_those_with_a_token(live: Any) -> None:
    assert live.client().get("/openapi.json").status_code == 401
    for scope in ("read", "monitor"):
        assert "/v1/tasks" in live.client(scope).get("/openapi.json").json()["paths"]


def test_watchers_may_ask_by_head(live: Any) -> None:
    for path in ("/livez", "/readyz", "/health"):
        answer = live.client().head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert live.client("read").head("/v1/kv").status_code == 405


def test_pages_ask_for_a_login(live: Any) -> None:
    client = live.client()
    single = ("/conversations/x", "/tasks/x", "/jobs/x", "/kv/x/x", "/vectors/x")
    for path in (*(where for where, _, _ in NAVIGATION), *single):
        answer = client.get(path)
        assert (answer.status_code, answer.headers.get("location")) == (303, "/login"), path
    assert client.get("/live/").status_code == 401
    assert client.post("/kv", data={"namespace": "a", "key": "b", "value": "1"}).status_code == 401


def test_a_form_of_another_site_is_refused(live: Any) -> None:
    client = live.client()
    csrf = login(live, client, "write")
    form = {"namespace": "csrf", "key": "k", "value": "1"}
    here = {"Origin": live.url}

    refused: List[Dict[str, Any]] = [
        {"data": form, "headers": here},
        {"data": {**form, "csrf": "x"}, "headers": here},
        {"data": {**form, "csrf": csrf}, "headers": {"Origin": "https://evil.example"}},
        {"data": {**form, "csrf": csrf}, "headers": {"Origin": "null"}},
        {"data": {**form, "csrf": csrf}, "headers": {**here, "Sec-Fetch-Site": "cross-site"}},
    ]
    for given in refused:
        assert client.post("/kv", **given).status_code == 403, given
    assert live.call(live.storage.kv.get("csrf", "k", tenant_id="acme")) is None
    assert client.post("/kv", data={**form, "csrf": csrf}, headers=here).status_code == 303
    assert live.call(live.storage.kv.get("csrf", "k", tenant_id="acme")) == 1


def test_wrong_input_in_a_form_is_told_on_the_page(live: Any) -> None:
    client = live.client()
    csrf = login(live, client, "write")
    client.follow_redirects = True
    for path, form, said in (
        ("/tasks", {"title": ""}, "must not be blank"),
        ("/tasks/none/move", {"status": "ready"}, "no task"),
        ("/jobs", {"handler": "h", "payload": "{"}, "not JSON"),
        ("/jobs/none/do", {"what": "cancel"}, "no job"),
        ("/conversations", {"title": "x" * 5000}, "longer than"),
        ("/kv", {"namespace": "n" * 300, "key": "k", "value": "1"}, "longer than"),
    ):
        answer = client.post(path, data={**form, "csrf": csrf}, headers={"Origin": live.url})
        # of what is not there no page can say it: it is the error that says it
        assert answer.status_code in (200, 404), (path, answer.text)
        assert said in answer.text, path


def test_forms_and_pages_ask_for_their_scope(live: Any) -> None:
    reader = live.client()
    csrf = login(live, reader, "read")
    here = {"Origin": live.url}
    for path in ("/tasks", "/jobs", "/jobs/redrive", "/tasks/x/move", "/outbox", "/kv"):
        assert reader.post(path, data={"csrf": csrf}, headers=here).status_code == 403, path
    assert reader.get("/outbox").status_code == 403
    assert reader.get("/migrations").status_code == 403
    writer = live.client()
    csrf = login(live, writer, "write")
    assert writer.post("/outbox", data={"csrf": csrf, "what": "discard"}, headers=here).status_code == 403


def test_a_login_of_another_site_is_refused(live: Any) -> None:
    answer = live.client().post(
        "/login", data={"token": live.token("read")}, headers={"Origin": "https://evil.example"}
    )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_who_may_read_cannot_write_by_a_form(live: Any) -> None:
    client = live.client()
    csrf = login(live, client, "read")
    form = {"namespace": "ro", "key": "k", "value": "1", "csrf": csrf}

    assert client.post("/kv", data=form, headers={"Origin": live.url}).status_code == 403
    assert client.post("/logout", data={"csrf": csrf}, headers={"Origin": live.url}).status_code == 303
    assert client.get("/kv").status_code == 303


def test_a_session_ends_with_its_token(live: Any) -> None:
    client = live.client()
    login(live, client, "read")
    tokens = live.call(live.storage.access.list_tokens(limit=1000, tenant_id="acme"))
    live.call(live.storage.access.revoke_token(tokens[-1].id, tenant_id="acme"))
    live.server._services.authenticator.forget()

    assert client.get("/kv").status_code == 303


def test_errors_show_no_secret(live: Any) -> None:
    """P35: neither the token nor what was sent comes back, whatever is wrong."""
    client, token = live.client(), live.token("read")
    canary = "canary-3f9a"
    said = [
        client.get("/v1/kv", headers={"Authorization": f"Bearer {token[:-1]}{canary}"}),
        client.get(f"/v1/kv?limit={canary}", headers={"Authorization": f"Bearer {token}"}),
        client.put("/v1/kv/a/b", headers={"Authorization": f"Bearer {token}"}, json={"value": canary}),
        client.post("/login", data={"token": canary}),
        client.get("/health"),
        client.get("/metrics", headers={"Authorization": f"Bearer {live.token('monitor')}"}),
    ]
    for answer in said:
        assert canary not in answer.text, answer.url
        assert token not in answer.text + str(answer.headers)


def _database(directory: Path) -> Path:
    import shutil

    from tests.support.sqlite import migrated_template

    path = directory / "storage.sqlite3"
    shutil.copyfile(migrated_template(), path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with small limits."""
    with LiveServer(
        _database(tmp_path_factory.mktemp("small")), max_body_bytes=2000, max_streams=2
    ) as server:
        yield server


def test_a_body_that_is_too_large_is_refused(small: Any) -> None:
    client = small.client("write")
    whole = client.put("/v1/kv/a/b", json={"value": "x" * 3000})

    def parts() -> Any:
        yield b'{"value": "'
        for _ in range(50):
            yield b"x" * 100
        yield b'"}'

    chunked = client.put("/v1/kv/a/b", content=parts(), headers={"Content-Type": "application/json"})
    for answer in (whole, chunked):
        assert answer.status_code == 413
        assert answer.json()["code"] == "body_too_large"
    assert client.put("/v1/kv/a/b", json={"value": "x" * 500}).status_code == 200


def test_a_request_that_never_ends_is_ended(tmp_path: Path) -> None:
    with LiveServer(_database(tmp_path), request_timeout_seconds=0.5) as server:
        port, token = int(server.url.rpartition(":")[2]), server.token("write")
        head = f"PUT /v1/kv/a/b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        with socket.create_connection(("127.0.0.1", port), 60) as slow:
            slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
            said = slow.recv(65536).decode()
            while "}" not in said:
                said += slow.recv(65536).decode()

    assert said.startswith("HTTP/1.1 504")
    assert '"code":"deadline_exceeded"' in said


def test_streams_are_counted_and_their_end_noticed(small: Any) -> None:
    small.call(small.storage.conversations.ensure_conversation("s", tenant_id="acme"))
    client = small.client("read")
    path = "/v1/conversations/s/messages/stream"
    with client.stream("GET", path) as first, client.stream("GET", path) as second:
        assert (first.status_code, second.status_code) == (200, 200)
        refused = client.get(path)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
    feed = small.server._services.feed

    async def none_left() -> None:
        while feed.open_streams:  # noqa: ASYNC110 - polled, with the deadline below
            await asyncio.sleep(0.01)

    small.call(asyncio.wait_for(none_left(), 50))


def test_a_stream_tells_of_new_messages_and_goes_on_where_it_was(live: Any) -> None:
    live.call(live.storage.conversations.ensure_conversation("stream", tenant_id="acme"))
    writer, reader = live.client("write"), live.client("read")
    path = "/v1/conversations/stream/messages"
    seen: List[Any] = []
    opened, done = threading.Event(), threading.Event()

    def follow() -> None:
        with reader.stream("GET", path + "/stream") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                opened.set()
                if line.startswith("data: "):
                    seen.append(json.loads(line[6:])["content"])
                if len(seen) == 2:
                    break
        done.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert opened.wait(60)
    writer.post(path, json={"role": "user", "content": "by the API"})
    live.call(live.storage.conversations.add_message("stream", "user", "by a program", tenant_id="acme"))
    assert done.wait(60)
    thread.join(60)

    assert seen == ["by the API", "by a program"]
    with reader.stream("GET", path + "/stream", headers={"Last-Event-ID": "1"}) as answer:
        events = (line for line in answer.iter_lines() if line.startswith(("id: ", "data: ")))
        assert next(events) == "id: 2"
    assert reader.get("/v1/conversations/none/messages/stream").status_code == 404


@pytest.mark.parametrize("path", ["/live/conversations/ending", "/v1/conversations/ending/messages/stream"])
def test_an_open_stream_ends_when_its_token_is_revoked(live: Any, path: str) -> None:
    live.call(live.storage.conversations.ensure_conversation("ending", tenant_id="acme"))
    made = live.call(live.storage.access.create_token("ends", scopes=["read"], tenant_id="acme"))
    client = live.client()
    client.headers["Authorization"] = f"Bearer {made.text}"
    client.cookies.set(COOKIE, live.server._services.sessions.open(made.text))
    with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        next(lines)
        live.call(live.storage.access.revoke_token(made.token.id, tenant_id="acme"))
        for _ in lines:  # ends by itself; the client's own time-out is an error
            pass
    assert client.get(path).status_code == 401


def test_metrics_count_by_route_and_not_by_path(live: Any) -> None:
    client = live.client("monitor")
    for name in ("a", "b"):
        live.client("read").get(f"/v1/kv/{name}")
        live.client().get(f"/no/such/{name}")
    text = client.get("/metrics").text

    assert 'route="/v1/kv/{namespace}"' in text
    assert 'route="(none)"' in text
    assert "/no/such" not in text
    for name in ("batches_total", "calls_total", "turns_total", "wait_seconds_total", "waiting"):
        assert f"\natlas_sql_writer_{name} " in text
    assert 'atlas_storage_info{dialect="sqlite"' in text


def test_the_api_ends_streams_when_the_server_ends(tmp_path: Path) -> None:
    with LiveServer(_database(tmp_path)) as server:
        server.call(server.storage.conversations.ensure_conversation("s", tenant_id="acme"))
        client = httpx.Client(base_url=server.url, timeout=60, trust_env=False)
        headers = {"Authorization": f"Bearer {server.token('read')}"}
        with client.stream("GET", "/v1/conversations/s/messages/stream", headers=headers) as answer:
            assert answer.status_code == 200
            server.call(server.server.stop())
            assert all(line == "" or line.startswith(":") for line in answer.iter_lines())
        client.close()

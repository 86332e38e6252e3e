"""What every request passes before any route sees it, as one plain ASGI layer.

- Only known names in `Host`: a page of somebody else whose name was made to point here (DNS rebinding) gets nothing.
- A bounded number of requests, bounded bodies, a deadline until the answer begins (streams then go on by themselves).
- A segment of a path may hold a "/" as %2F: identifiers are any text.
- Security headers on every answer; `Connection: close` while the server is shutting down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Callable, Dict, List, MutableMapping, Optional, Tuple
from urllib.parse import quote, unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

from modules.Server.problems import problem
from modules.storage.settings import ServerSettings
from modules.store_common.ids import new_id

__all__ = ["CONTENT_SECURITY_POLICY", "Gate", "Traffic"]

logger = logging.getLogger(__name__)

_Headers = List[Tuple[bytes, bytes]]
_Message = MutableMapping[str, Any]
_PROBES = ("/livez", "/readyz")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_SECURITY: _Headers = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


class _Segment(Convertor[str]):
    """A path segment that may hold an encoded slash; see `Gate`."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return value.replace("%2F", "/").replace("%25", "%")

    def to_string(self, value: str) -> str:
        return quote(value, safe="")


register_url_convertor("segment", _Segment())


class Traffic:
    """What is under way.

    Attributes:
        in_flight: Requests whose answer has not ended.
        answered: Requests that have ended.
        refused: Requests refused because there were too many.
        draining: Set while the server shuts down: streams end, connections are closed after their answer.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.refused = 0
        self.answered = 0
        self.draining = False


class Gate:
    """The ASGI layer.

    Args:
        app: What is behind it.
        settings: The limits.
        traffic: Where it counts.
        observe: Called at the end of each request with its scope, status and seconds.
    """

    def __init__(
        self,
        app: Any,
        settings: ServerSettings,
        traffic: Traffic,
        observe: Callable[[Dict[str, Any], int, float], None],
    ) -> None:
        self._app = app
        self._settings = settings
        self._traffic = traffic
        self._observe = observe
        self._names = frozenset(settings.host_names)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(self._app, self._settings, self._traffic, scope, receive, send)
        self._traffic.in_flight += 1
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, passage.send)
            else:
                await passage.run()
        finally:
            self._traffic.in_flight -= 1
            self._traffic.answered += 1
            self._observe(scope, passage.status, time.perf_counter() - passage.started)

    def _refusal(self, scope: Dict[str, Any]) -> Any:
        scope["atlas_request_id"] = request_id = new_id()
        headers = scope["headers"]
        if "*" not in self._names and _host_name(headers) not in self._names:
            return problem(
                421,
                "unknown_host",
                "this server is not called by that name; see the setting server.allowed_hosts",
                request_id=request_id,
            )
        path = _path_of(scope)
        if path is None:
            return problem(400, "bad_request", "the path is not UTF-8", request_id=request_id)
        scope["path"] = path
        if self._traffic.in_flight > self._settings.max_requests and path not in _PROBES:
            self._traffic.refused += 1
            return problem(
                503, "overloaded", "too many requests are under way", retryable=True, request_id=request_id
            )
        length = next((value for name, value in headers if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._settings.max_body_bytes:
            return _too_large(self._settings, request_id)
        return None


class _Passage:
    """One request on its way."""

    def __init__(
        self, app: Any, settings: ServerSettings, traffic: Traffic, scope: Any, receive: Any, send: Any
    ) -> None:
        self._app = app
        self._settings = settings
        self._traffic = traffic
        self._scope = scope
        self._receive = receive
        self._send = send
        self._received = 0
        self._timer: Optional[asyncio.TimerHandle] = None
        self._expired = False
        self.started = time.perf_counter()
        self.status = 0

    async def run(self) -> None:
        """Let the application answer, by the deadline."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a server runs each request in a task
        timeout_s = self._settings.request_timeout_seconds
        # Not `deadline()` of the storage: that would end streams, too, which outlive it on purpose.
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, task)
        try:
            await self._app(self._scope, self.receive, self.send)
        except asyncio.CancelledError:
            if not self._expired:
                raise
            if hasattr(task, "uncancel"):
                task.uncancel()
            await self._answer_late()
        finally:
            self._timer.cancel()

    def _expire(self, task: Any) -> None:
        self._expired = True
        task.cancel()

    async def _answer_late(self) -> None:
        logger.warning("server.request.timed_out", extra={"operation": self._scope["method"]})
        answer = problem(
            504,
            "deadline_exceeded",
            "the request was not answered in time; a write may or may not have been applied",
            retryable=True,
            request_id=self._scope["atlas_request_id"],
        )
        if not self.status:
            await answer(self._scope, self._receive, self.send)

    async def receive(self) -> Any:
        """Pass on a part of the request, as long as the whole is not too large."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._settings.max_body_bytes:
                raise HTTPException(413, _TOO_LARGE.format(self._settings.max_body_bytes))
        return message

    async def send(self, message: _Message) -> None:
        """Pass on a part of the answer, with our headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._timer is not None:
                self._timer.cancel()
            headers = list(message.get("headers", ()))
            given = {name.lower() for name, _ in headers}
            headers += [(name, value) for name, value in _SECURITY if name not in given]
            headers.append((b"x-request-id", self._scope["atlas_request_id"].encode()))
            if b"cache-control" not in given:
                headers.append((b"cache-control", b"no-store"))
            if self._traffic.draining:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)


_TOO_LARGE = "the body of a request may have {} bytes at most (server.max_body_bytes)"


def _too_large(settings: ServerSettings, request_id: str) -> Any:
    answer = problem(413, "body_too_large", _TOO_LARGE.format(settings.max_body_bytes), request_id=request_id)
    # what is left of the body is not read
    answer.headers["Connection"] = "close"
    return answer


def _host_name(headers: _Headers) -> str:
    host = next((value for name, value in headers if name == b"host"), b"").decode("latin-1").lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _path_of(scope: Dict[str, Any]) -> Optional[str]:
    """Return the decoded path in which a slash or percent sign inside of a segment is still encoded; None: no UTF-8."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    text = raw.partition(b"?")[0].decode("latin-1")
    if "%" not in text:
        return str(scope["path"]) if text.isascii() else None
    try:
        parts = [unquote(part, errors="strict") for part in text.split("/")]
    except UnicodeDecodeError:
        return None
    return "/".join(part.replace("%", "%25").replace("/", "%2F") for part in parts)

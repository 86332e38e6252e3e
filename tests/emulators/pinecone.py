"""A Pinecone that runs in the test's event loop: the published API over plain http on loopback, with faults on demand.

    async with PineconeEmulator() as emulator:
        provider = PineconeProvider(api_key=emulator.api_key, host=emulator.host, ...)
        emulator.fault("throttle", times=3, path="/query", retry_after="0.05")
        ...
    emulator.check()   # fails when a request or response was not of the specification (see pinecone_spec)

Each index listens on a port of its own, as the service gives each a host. It is exact where the service is approximate,
and it has no plans, quotas or costs.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Dict, List, Optional, Tuple, Type
from urllib.parse import unquote

from aiohttp import web

from tests.emulators.pinecone_index import EmulatedIndex, RefusedError
from tests.emulators.pinecone_spec import (
    SCHEMA_VERSION,
    Specification,
    ViolationError,
    new_response,
    old_request,
)

__all__ = ["PineconeEmulator", "Seen"]

_REQUEST_BYTES = 2 * 1024 * 1024
_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 409: "ALREADY_EXISTS"}
_FAULTS = {
    "throttle": (429, "too many requests"),
    "unavailable": (503, "try again"),
    "refuse": (400, "as the test asked"),
    "no-namespace": (404, "Namespace not found"),
    "no-index": (404, "Resource not found"),
}


@dataclass(frozen=True)
class Seen:
    """One request that came."""

    plane: str
    version: str
    method: str
    path: str
    size_bytes: int
    status: int


@dataclass
class _Fault:
    kind: str
    times: int
    path: Optional[str]
    retry_after: Optional[str]


@dataclass
class _Place:
    model: Dict[str, Any]
    data: EmulatedIndex
    site: web.TCPSite
    describes_until_ready: int


class PineconeEmulator:
    """See the module.

    Args:
        ready_after_describes: How often a new index is described as initialising.
    """

    api_key = "emulator-key-0123456789"

    def __init__(self, *, ready_after_describes: int = 1) -> None:
        self.ready_after_describes = ready_after_describes
        self.final_state = "Ready"
        self.seen: List[Seen] = []
        self.violations: List[str] = []
        self.specification = Specification()
        self._faults: List[_Fault] = []
        self._places: Dict[str, _Place] = {}
        self._ports: Dict[int, str] = {}
        self._visibility: Tuple[int, float, int] = (0, 0.0, 0)

    async def __aenter__(self) -> PineconeEmulator:
        self._closing = asyncio.Event()
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None), handle_signals=False, shutdown_timeout=1.0
        )
        await self._runner.setup()
        _, port = await self._listen()
        self.host = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._closing.set()
        await self._runner.cleanup()

    async def _listen(self) -> Tuple[web.TCPSite, int]:
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return site, port

    # --- what tests say -----------------------------------------------------------------------------------------

    def fault(
        self, kind: str, *, times: int = 1, path: Optional[str] = None, retry_after: Optional[str] = None
    ) -> None:
        """Answer the next requests (to `path`, which may end in "*"; None: any) wrongly.

        Kinds: throttle (429), unavailable (503), drop (the connection), lose (done, but the connection drops before the
        answer), hang (until the end), refuse (400), garbage (not JSON), no-namespace and no-index (404).
        """
        self._faults.append(_Fault(kind, times, path, retry_after))

    def delay_visibility(self, *, reads: int = 0, seconds: float = 0.0, queries: int = 0) -> None:
        """Show each later write only after so many reads of its index and seconds, to queries after so many of them."""
        self._visibility = (reads, seconds, queries)
        for place in self._places.values():
            self._delay(place.data)

    def _delay(self, data: EmulatedIndex) -> None:
        data.visible_after_reads, data.visible_after_s, data.searchable_after_queries = self._visibility

    def show(self) -> None:
        """Make every write visible now."""
        for place in self._places.values():
            place.data.show()

    def count(self, path: str) -> int:
        """How many requests to `path` came."""
        return sum(item.path == path for item in self.seen)

    def check(self) -> None:
        """Fail when something was not of the specification."""
        if self.violations:
            raise ViolationError("\n".join(self.violations[:10]))

    # --- the server ---------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        index = self._ports.get(port)
        plane = "control" if index is None else "data"
        data = await request.content.read()
        version = request.headers.get("X-Pinecone-Api-Version", "")
        path = request.rel_url.raw_path
        body = _body(data)
        fault = self._take(path)
        if fault is not None and fault.kind == "hang":
            await self._closing.wait()
        if fault is not None and fault.kind == "drop":
            _abort(request)
            return web.Response()
        status, answer = self._checked_request(request, plane, version, path, body)
        if status == 200:
            status, answer = await self._answer(request, index, version, path, body, len(data), fault)
        self._check_response(plane, version, request.method.lower(), path, status, answer)
        self.seen.append(Seen(plane, version, request.method, path, len(data), status))
        if fault is not None and fault.kind == "lose":
            _abort(request)
        headers = {}
        if fault is not None and fault.retry_after is not None and status == 429:
            headers["Retry-After"] = fault.retry_after
        text = "<html>" if fault is not None and fault.kind == "garbage" else json.dumps(answer)
        if answer is None:
            return web.Response(status=status, headers=headers)
        return web.Response(status=status, text=text, content_type="application/json", headers=headers)

    def _take(self, path: str) -> Optional[_Fault]:
        for fault in self._faults:
            wanted = fault.path
            matches = wanted is None or path == wanted or (wanted[-1] == "*" and path.startswith(wanted[:-1]))
            if fault.times > 0 and matches:
                fault.times -= 1
                return fault
        return None

    def _checked_request(
        self, request: web.BaseRequest, plane: str, version: str, path: str, body: Any
    ) -> Tuple[int, Any]:
        query = {name: request.query.getall(name) for name in request.query}
        try:
            if not version:
                raise ViolationError("a request has no X-Pinecone-Api-Version")
            known = body
            if plane == "control" and version >= SCHEMA_VERSION and request.method == "POST":
                known = old_request(body)
            self.specification.request(plane, version, request.method.lower(), path, query, known)
        except (ViolationError, KeyError) as exc:
            self.violations.append(
                f"{exc!s}" if isinstance(exc, ViolationError) else f"{path}: {exc!r} is missing"
            )
            return 400, _error(plane, 400, str(exc))
        if request.headers.get("Api-Key") != self.api_key:
            return 401, _error(plane, 401, "Invalid API Key")
        return 200, None

    def _check_response(
        self, plane: str, version: str, method: str, path: str, status: int, answer: Any
    ) -> None:
        try:
            known = answer
            if plane == "control" and version >= SCHEMA_VERSION and status < 300 and answer is not None:
                known = self._old_models(path, method)
            self.specification.response(plane, version, method, path, status, known)
        except ViolationError as exc:
            self.violations.append(str(exc))

    def _old_models(self, path: str, method: str) -> Any:
        if path == "/indexes" and method == "get":
            return {"indexes": [place.model for place in self._places.values()]}
        name = list(self._places)[-1] if method == "post" else path.rpartition("/")[2]
        return self._places[name].model

    async def _answer(
        self,
        request: web.BaseRequest,
        index: Optional[str],
        version: str,
        path: str,
        body: Any,
        size: int,
        fault: Optional[_Fault],
    ) -> Tuple[int, Any]:
        plane = "control" if index is None else "data"
        wrong = _FAULTS.get(fault.kind if fault else "")
        if wrong is not None:
            return wrong[0], _error(plane, *wrong)
        try:
            if index is None:
                return await self._control(request.method, path, version, body)
            if size > _REQUEST_BYTES:
                raise RefusedError("message length too large: the limit is 2 MB")
            place = self._places.get(index)
            if place is None or not place.model["status"]["ready"]:
                raise RefusedError("the index is not there or not ready", 404)
            return 200, self._data(place.data, request, path, body)
        except RefusedError as exc:
            return exc.status, _error(plane, exc.status, exc.message)

    # --- control plane ------------------------------------------------------------------------------------------

    async def _control(self, method: str, path: str, version: str, body: Any) -> Tuple[int, Any]:
        new = version >= SCHEMA_VERSION
        if path == "/indexes" and method == "GET":
            models = [place.model for place in self._places.values()]
            return 200, {"indexes": [new_response(item) if new else item for item in models]}
        if path == "/indexes" and method == "POST":
            model = await self._create(old_request(body) if new else body)
            return 201, new_response(model) if new else model
        name = unquote(path.rpartition("/")[2])
        if name not in self._places:
            raise RefusedError(f"Resource {name} not found", 404)
        place = self._places[name]
        if method == "DELETE":
            del self._places[name]
            await place.site.stop()
            return 202, None
        place.describes_until_ready -= 1
        if place.describes_until_ready < 0:
            place.model["status"] = {"ready": self.final_state == "Ready", "state": self.final_state}
        return 200, new_response(place.model) if new else place.model

    async def _create(self, body: Dict[str, Any]) -> Dict[str, Any]:
        name = body["name"]
        if name in self._places:
            raise RefusedError("Resource already exists", 409)
        site, port = await self._listen()
        spec = body["spec"]["serverless"]
        model = {
            "name": name,
            "dimension": body["dimension"],
            "metric": body.get("metric", "cosine"),
            "host": f"http://127.0.0.1:{port}",
            "deletion_protection": body.get("deletion_protection", "disabled"),
            "tags": body.get("tags", {}),
            "spec": {
                "serverless": {
                    "cloud": spec["cloud"],
                    "region": spec["region"],
                    "read_capacity": {"mode": "OnDemand", "status": {"state": "Ready"}},
                }
            },
            "status": {"ready": False, "state": "Initializing"},
            "vector_type": "dense",
        }
        data = EmulatedIndex(model["dimension"], model["metric"])
        self._delay(data)
        self._places[name] = _Place(model, data, site, self.ready_after_describes)
        self._ports[port] = name
        return model

    # --- data plane ---------------------------------------------------------------------------------------------

    @staticmethod
    def _data(data: EmulatedIndex, request: web.BaseRequest, path: str, body: Any) -> Any:
        query = request.query
        posts: Dict[str, Callable[[Any], Any]] = {
            "/vectors/upsert": data.upsert,
            "/vectors/delete": data.delete,
            "/vectors/update": data.update,
            "/vectors/fetch_by_metadata": data.fetch_by_metadata,
            "/query": data.query,
            "/describe_index_stats": lambda _: data.stats(),
        }
        if path in posts:
            return posts[path](body)
        if path == "/vectors/fetch":
            return data.fetch(query.getall("ids"), query.get("namespace", ""))
        token = query.get("paginationToken")
        limit = int(query.get("limit", "100"))
        if path == "/vectors/list":
            return data.list(query.get("namespace", ""), query.get("prefix", ""), limit, token)
        if path == "/namespaces":
            return data.list_namespaces(query.get("prefix", ""), limit, token)
        name = unquote(path.rpartition("/")[2])
        return data.delete_namespace(name) if request.method == "DELETE" else data.describe_namespace(name)


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()


def _body(data: bytes) -> Any:
    return json.loads(data) if data else None


def _error(plane: str, status: int, message: str) -> Dict[str, Any]:
    if plane == "control":
        code = _CODES.get(status, "RESOURCE_EXHAUSTED" if status == 429 else "UNAVAILABLE")
        return {"error": {"code": code, "message": message}, "status": status}
    return {"code": {400: 3, 401: 16, 404: 5, 429: 8}.get(status, 14), "message": message, "details": []}

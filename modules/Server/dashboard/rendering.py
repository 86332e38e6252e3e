"""Templates and their filters, the frame around every page, and pages that stay current.

A page is a coroutine function that returns what its template needs. `page()` makes two routes of it: the page, and
`/live/...`, an event stream that sends the template's block `live` anew whenever it has changed.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
from datetime import datetime
from pathlib import Path
from typing import Any, AsyncIterator, Awaitable, Callable, Dict, Optional
from urllib.parse import quote

import orjson
from fastapi import APIRouter, FastAPI, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from modules.Server.dashboard import charts
from modules.Server.dashboard.visitors import Visitor, VisitorHere
from modules.Server.replies import event, plain
from modules.Server.services import services_of
from modules.Server.sessions import COOKIE
from modules.storage.version import __version__
from modules.store_common.clock import utc_now
from modules.store_common.errors import StorageError

__all__ = [
    "NAVIGATION",
    "Loader",
    "ago",
    "back",
    "csrf_field",
    "marked",
    "mount_static",
    "page",
    "pretty",
    "render",
    "segment",
    "short",
    "size",
]

#: The pages in the navigation: path, icon, name.
NAVIGATION = (
    ("/", "overview", "Overview"),
    ("/conversations", "conversations", "Conversations"),
    ("/search", "search", "Search"),
    ("/tasks", "tasks", "Tasks"),
    ("/jobs", "jobs", "Jobs"),
    ("/vectors", "vectors", "Vectors"),
    ("/kv", "kv", "Keys"),
    ("/outbox", "outbox", "Outbox"),
    ("/migrations", "migrations", "Migrations"),
)

_HERE = Path(__file__).parent
# Seconds between two looks of an open page that nobody wakes: few after a change, more while nothing changes.
_LIVE_EVERY_S = 2.0
_LIVE_AT_LEAST_EVERY_S = 5.0
# However much is written, a page is not made anew more often than that.
_PAUSE_S = 0.3
_LONG = 20_000
_MARK = re.compile(r"\[([^\[\]]{1,100})\]")

#: Loads what a page shows: (visitor, request) -> names of the template.
Loader = Callable[[Visitor, Request], Awaitable[Dict[str, Any]]]


def mount_static(app: FastAPI) -> None:
    """Serve CSS and JavaScript; they are public, as the login page needs them."""
    app.mount("/static", StaticFiles(directory=_HERE / "static"), name="static")


@functools.lru_cache(maxsize=1)
def _version_of_static() -> str:
    digest = hashlib.sha256()
    for file in sorted((_HERE / "static").iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def ago(instant: Optional[datetime]) -> Markup:
    """Return a time as people say it, with the exact one behind it."""
    if instant is None:
        return Markup('<span class="muted">never</span>')
    seconds = (utc_now() - instant).total_seconds()
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        instant.isoformat(), instant.strftime("%Y-%m-%d %H:%M:%S UTC"), _distance(seconds)
    )


def _distance(seconds: float) -> str:
    ahead, seconds = seconds < 0, abs(seconds)
    for size, unit in (
        (86400.0 * 365, "y"),
        (86400.0 * 30, "mo"),
        (86400.0, "d"),
        (3600.0, "h"),
        (60.0, "min"),
    ):
        if seconds >= size:
            text = f"{int(seconds / size)} {unit}"
            return f"in {text}" if ahead else f"{text} ago"
    return "soon" if ahead else "just now"


def size(count: Optional[float]) -> str:
    """Return a number of bytes for people."""
    value = float(count or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def pretty(value: Any) -> str:
    """Return a value as text: text as it is, JSON with indents, no more than a page can hold."""
    text = (
        value
        if isinstance(value, str)
        else orjson.dumps(value, default=plain, option=orjson.OPT_INDENT_2).decode()
    )
    return text if len(text) <= _LONG else text[:_LONG] + f"\n… ({len(text) - _LONG:,} more characters)"


def short(value: Any, length: int = 90) -> str:
    """Return a value on one line, cut."""
    text = value if isinstance(value, str) else orjson.dumps(value, default=plain).decode()
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"


def marked(snippet: str) -> Markup:
    """Return a snippet of a search with its found words marked: everything is escaped before a mark is made."""
    return Markup(_MARK.sub(r"<mark>\1</mark>", str(escape(snippet))))  # noqa: S704 - escaped one step before


def segment(text: str) -> str:
    """Return an identifier as one segment of a path, or as a value in a query."""
    return quote(text, safe="")


def csrf_field(csrf: str) -> Markup:
    """Return the field that every form carries."""
    return Markup('<input type="hidden" name="csrf" value="{}">').format(csrf)


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(ago=ago, size=size, pretty=pretty, short=short, marked=marked, segment=segment)
    made.globals.update(
        charts=charts,
        version=__version__,
        static_version=_version_of_static,
        csrf_field=csrf_field,
        navigation=lambda: NAVIGATION,
    )
    return made


_templates = _environment()


def _names(visitor: Optional[Visitor], request: Request, given: Dict[str, Any]) -> Dict[str, Any]:
    return {
        "visitor": visitor,
        "csrf": visitor.session.csrf if visitor is not None else "",
        "path": request.url.path.removeprefix("/live") or "/",
        "notice": request.query_params.get("notice", ""),
        "may_write": visitor is not None and visitor.may("write"),
        "may_administer": visitor is not None and visitor.may("admin"),
        "may_monitor": visitor is not None and visitor.may("monitor"),
        **given,
    }


def render(
    template: str, visitor: Optional[Visitor], request: Request, http_status: int = 200, **given: Any
) -> HTMLResponse:
    """Return a page."""
    text = _templates.get_template(template).render(_names(visitor, request, given))
    return HTMLResponse(text, http_status)


def back(path: str, notice: str = "") -> Response:
    """Return the answer to a form: look at `path` now, with a line about what was done."""
    bare, _, anchor = path.partition("#")
    if notice:
        bare += f"{'&' if '?' in bare else '?'}notice={quote(notice)}"
    return RedirectResponse(f"{bare}#{anchor}" if anchor else bare, 303)


def page(router: APIRouter, path: str, template: str) -> Callable[[Loader], Loader]:
    """Make a loader a page at `path`, and a stream of its changes at `/live` + `path`."""

    def decorate(load: Loader) -> Loader:
        async def show(request: Request, visitor: VisitorHere) -> Response:
            return render(template, visitor, request, **await load(visitor, request))

        async def follow(request: Request, visitor: VisitorHere) -> Response:
            services = services_of(request)
            services.feed.admit()
            await load(visitor, request)  # what is not there is told before the stream begins
            return StreamingResponse(
                _changes(template, load, visitor, request), media_type="text/event-stream"
            )

        router.add_api_route(path, show, methods=["GET"], response_class=HTMLResponse, name=template)
        router.add_api_route("/live" + path, follow, methods=["GET"], name="live " + template)
        return load

    return decorate


async def _changes(template: str, load: Loader, visitor: Visitor, request: Request) -> AsyncIterator[bytes]:
    services = visitor.services
    block = _templates.get_template(template).blocks["live"]
    last, pause_s = "", _LIVE_EVERY_S
    async with services.feed.page(visitor.tenant_id) as subscription:
        yield b"retry: 3000\n\n"
        while not services.traffic.draining and services.sessions.get(request.cookies.get(COOKIE)):
            try:
                if not await services.authenticator.still_holds(visitor.session.key):
                    return
                names = _names(visitor, request, await load(visitor, request))
            except StorageError:
                yield event({}, name="lost")
                return
            context = _templates.get_template(template).new_context(names)
            text = "".join(block(context))
            pause_s = min(pause_s * 1.5, _LIVE_AT_LEAST_EVERY_S) if text == last else _LIVE_EVERY_S
            if text != last:
                last = text
                yield event({"html": text}, name="part")
            await asyncio.sleep(_PAUSE_S)
            if not await subscription.wait(pause_s):
                yield b": alive\n\n"

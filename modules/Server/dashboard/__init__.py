"""The dashboard: server-rendered pages for people.

    visitors.py    who looks, and what guards forms; the logins themselves are in modules.Server.sessions
    rendering.py   templates, filters, the frame of a page, live pages
    charts.py      SVG made here, without styles of its own
    pages/         one file for each page
    templates/, static/   HTML, CSS and JavaScript of ours

Text of users is only ever text: the templates escape everything, and the policy of the gate runs no inline script.
"""

from __future__ import annotations

from typing import Optional

from fastapi import FastAPI, Request
from starlette.responses import Response

from modules.Server.dashboard.pages import (
    conversations,
    jobs,
    keys,
    login,
    migrations,
    outbox,
    overview,
    tasks,
    thread,
    vectors,
)
from modules.Server.dashboard.rendering import mount_static, render
from modules.Server.dashboard.visitors import LoginNeededError

__all__ = ["PAGES", "error_page", "install"]

#: The pages, one file each.
PAGES = (login, overview, conversations, thread, tasks, jobs, keys, vectors, outbox, migrations)


def error_page(
    request: Request, status: int, title: str, code: str, detail: str, request_id: Optional[str]
) -> Response:
    """Return an error as a page for people."""
    return render(
        "error.html", None, request, status, title=title, code=code, detail=detail, request_id=request_id
    )


def install(app: FastAPI) -> None:
    """Add the dashboard to `app`."""
    mount_static(app)
    app.add_exception_handler(LoginNeededError, login.login_needed)
    app.state.error_page = error_page
    for page in PAGES:
        app.router.routes.extend(page.router.routes)

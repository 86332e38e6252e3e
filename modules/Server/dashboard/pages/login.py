"""Logging in with a token, logging out, choosing the tenant; what a page that needs a login answers without one."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from modules.access_store.errors import TokenRejectedError
from modules.Server.dashboard.rendering import back, render
from modules.Server.dashboard.visitors import VisitorHere, check_origin, session_of
from modules.Server.problems import ApiError
from modules.Server.services import services_of
from modules.Server.sessions import COOKIE

__all__ = ["choose_tenant", "log_in", "log_out", "login_needed", "router", "show_login"]

router = APIRouter(include_in_schema=False)


async def login_needed(request: Request, exc: Exception) -> Response:
    """Show the login instead of a page; refuse a form or a stream."""
    if request.method != "GET" or request.url.path.startswith("/live"):
        return render("login.html", None, request, 401, wrong=False)
    return RedirectResponse("/login", 303)


@router.get("/login")
async def show_login(request: Request) -> Response:
    """Show the login."""
    if session_of(request) is not None:
        return RedirectResponse("/", 303)
    return render("login.html", None, request, wrong=False)


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Begin a session for the token in the form."""
    check_origin(request)
    services = services_of(request)
    text = (await request.form()).get("token")
    text = text.strip() if isinstance(text, str) else ""
    try:
        token = await services.authenticator.token_of(text)
    except TokenRejectedError:
        return render("login.html", None, request, 401, wrong=True)
    if "read" not in token.granted:
        return render("login.html", None, request, 403, wrong=True)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE,
        services.sessions.open(text),
        max_age=int(services.settings.session_seconds),
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


@router.post("/logout")
async def log_out(request: Request, visitor: VisitorHere) -> Response:
    """End the session."""
    visitor.services.sessions.close(request.cookies.get(COOKIE))
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.post("/tenant")
async def choose_tenant(request: Request, visitor: VisitorHere) -> Response:
    """Show another tenant from now on."""
    form: Any = await request.form()
    tenant_id = str(form.get("tenant", ""))
    if tenant_id not in visitor.token.tenants:
        raise ApiError(403, "tenant_not_allowed", "this token may not name that tenant")
    visitor.services.sessions.choose_tenant(request.cookies.get(COOKIE), tenant_id)
    return back("/")

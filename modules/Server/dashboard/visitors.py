"""Who looks at the dashboard: dependencies of its pages that ask for a login, and what guards its forms."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated, Optional
from urllib.parse import urlsplit

from fastapi import Depends, Request

from modules.access_store.errors import TokenRejectedError
from modules.access_store.records import AccessToken
from modules.Server.problems import ApiError
from modules.Server.services import Services, services_of
from modules.Server.sessions import COOKIE, Session
from modules.storage.manager import StorageManager

__all__ = ["LoginNeededError", "Visitor", "VisitorHere", "check_origin", "session_of"]


class LoginNeededError(Exception):
    """There is no session, or its token has ended."""


@dataclass(frozen=True)
class Visitor:
    """Who looks at a page.

    Attributes:
        token: Of the login.
        session: The login.
        services: The server's parts.
    """

    token: AccessToken
    session: Session
    services: Services

    @property
    def storage(self) -> StorageManager:
        """The storage."""
        return self.services.storage

    @property
    def tenant_id(self) -> str:
        """Whose data the page shows: pass it to every call of a store."""
        return self.session.tenant_id

    def may(self, scope: str) -> bool:
        """Return whether the token has a scope."""
        return scope in self.token.granted


def session_of(request: Request) -> Optional[Session]:
    """Return the session of a request, None without one."""
    return services_of(request).sessions.get(request.cookies.get(COOKIE))


async def _visitor(request: Request) -> Visitor:
    services, session = services_of(request), session_of(request)
    if session is None:
        raise LoginNeededError
    try:
        token = await services.authenticator.token_at(session.key)
    except TokenRejectedError as exc:
        raise LoginNeededError from exc
    if session.tenant_id not in token.tenants or "read" not in token.granted:
        raise LoginNeededError
    if request.method not in ("GET", "HEAD"):
        await _check_form(request, token, session)
    return Visitor(token, session, services)


async def _check_form(request: Request, token: AccessToken, session: Session) -> None:
    check_origin(request)
    sent = request.headers.get("x-atlas-csrf") or (await request.form()).get("csrf")
    if not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), session.csrf.encode()):
        raise ApiError(403, "forbidden", "this form is not of this login; load the page again")
    if "write" not in token.granted and request.url.path not in ("/logout", "/tenant"):
        raise ApiError(403, "forbidden", "the token of this login may only read")


def check_origin(request: Request) -> None:
    """Refuse a form that another site sent.

    Raises:
        ApiError: it did.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    foreign = (
        origin is not None and urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower()
    )
    if foreign or site not in (None, "same-origin", "none"):
        raise ApiError(403, "forbidden", "forms are taken from this server's own pages only")


VisitorHere = Annotated[Visitor, Depends(_visitor)]

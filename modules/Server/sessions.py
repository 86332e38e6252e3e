"""The login of the dashboard: a random cookie that stands for a token, kept in this process only.

The cookie is HttpOnly and SameSite=Strict. A form is taken from our own pages only: its Origin must be this server, and it
carries the session's own secret. The API does not know the cookie, so no page can make a browser call the API.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, replace
from typing import Dict, Optional

from modules.access_store.tokens import TokenKey, key_of

__all__ = ["COOKIE", "Session", "Sessions"]

COOKIE = "atlas_session"
_MOST_SESSIONS = 10_000


@dataclass(frozen=True)
class Session:
    """A login.

    Attributes:
        key: Where its token is; the token itself is not kept.
        csrf: What every form of it carries.
        tenant_id: Whose data its pages show.
        ends_at: Monotonic time, in seconds.
    """

    key: TokenKey
    csrf: str
    tenant_id: str
    ends_at: float


class Sessions:
    """The logins of one server.

    Args:
        seconds: How long each lasts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._sessions: Dict[str, Session] = {}

    def open(self, text: str) -> str:
        """Begin a session for a token and return the cookie."""
        now = time.monotonic()
        if len(self._sessions) >= _MOST_SESSIONS:
            self._sessions = {name: one for name, one in self._sessions.items() if one.ends_at > now}
        while len(self._sessions) >= _MOST_SESSIONS:
            self._sessions.pop(next(iter(self._sessions)))
        cookie, key = secrets.token_urlsafe(32), key_of(text)
        self._sessions[_name(cookie)] = Session(
            key, secrets.token_urlsafe(32), key.tenant_id, now + self._seconds
        )
        return cookie

    def get(self, cookie: Optional[str]) -> Optional[Session]:
        """Return the session of a cookie, None without one."""
        found = None if cookie is None else self._sessions.get(_name(cookie))
        return found if found is not None and found.ends_at > time.monotonic() else None

    def choose_tenant(self, cookie: Optional[str], tenant_id: str) -> None:
        """Show another tenant from now on; whether the token may name it is checked by the caller."""
        session = self.get(cookie)
        if cookie is not None and session is not None:
            self._sessions[_name(cookie)] = replace(session, tenant_id=tenant_id)

    def close(self, cookie: Optional[str]) -> None:
        """End a session."""
        if cookie is not None:
            self._sessions.pop(_name(cookie), None)


def _name(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()

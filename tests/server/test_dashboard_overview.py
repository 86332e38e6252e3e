"""The overview says which component needs a look."""

from __future__ import annotations

import re
from typing import Any

from modules.Server.sessions import COOKIE
from tests.support.live import park


async def test_what_needs_a_look_is_named(api: Any) -> None:
    made = await api.storage.access.create_token("p", scopes=["read"], tenant_id="acme")
    api.client.cookies.set(COOKIE, api.services.sessions.open(made.text))

    await park(api.storage, "acme", ["key"], "the target answered 503")
    await api.services.history.sample()

    # on a slow machine others may be named, too
    page = " ".join((await api("GET", "/", 200)).text.split())
    assert re.search(r"Something [a-z ]+: [\w ,-]*Outbox", page)

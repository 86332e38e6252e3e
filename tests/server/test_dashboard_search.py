"""The search page tells how well a message fits in words that mean something."""

from __future__ import annotations

from typing import Any

from modules.Server.dashboard.pages.conversations import _fits
from modules.Server.sessions import COOKIE


def test_scores_of_words_are_told_by_the_best() -> None:
    assert _fits("text", [0.000002, 0.000001]) == ["", "50% of the best"]
    assert _fits("hybrid", [1.5, 1.5, 0.0]) == ["", "", ""]
    assert _fits("semantic", [0.817, 0.0]) == ["similarity 0.82", "similarity 0.00"]
    assert _fits("text", []) == []


async def test_the_page_shows_the_hits_and_no_bare_score(api: Any) -> None:
    made = await api.storage.access.create_token("p", scopes=["read"], tenant_id="acme")
    api.client.cookies.set(COOKIE, api.services.sessions.open(made.text))
    await api.storage.conversations.create_conversation("c", tenant_id="acme")
    for text in ("a storm breaks over the village by the sea", "storm, storm, storm"):
        await api.storage.conversations.add_message("c", "user", text, tenant_id="acme")

    page = (await api("GET", "/search?q=storm", 200)).text

    assert "2 messages, best first" in page
    assert "of the best" in page
    assert "score" not in page
    assert "1 message</p>" in " ".join((await api("GET", "/search?q=village", 200)).text.split())

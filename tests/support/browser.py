"""A real browser (Debian's chromium) driven by Playwright, in a thread of its own: Playwright's loop must not be the tests'."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, List, Optional

from modules.Server.sessions import COOKIE

__all__ = ["SHOTS", "Browser", "why_not"]

#: Where screenshots are kept; git ignores it.
SHOTS = Path(__file__).resolve().parents[2] / ".build" / "screenshots"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without these it calls home at every start, and cannot run as root.
_ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


def _program() -> Optional[str]:
    return next((found for found in map(shutil.which, _NAMES) if found), None)


def why_not() -> str:
    """Return why there is no browser; "" when there is one."""
    if find_spec("playwright") is None:
        return "playwright is not installed: pip install playwright"
    return "" if _program() else "chromium is not installed: apt-get install chromium"


class Browser:
    """One browser; every call runs in its thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "browser")
        self._playwright: Any = None
        self._browser: Any = None

    def __enter__(self) -> Browser:
        self.run(self._open)
        return self

    def __exit__(self, *error: Any) -> None:
        self.run(self._close)
        self._thread.shutdown()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the browser's thread."""
        return self._thread.submit(function, *arguments).result(110)

    def visit(
        self, base: str, use: Callable[[Any], Any], *, session: str = "", width: int = 1280
    ) -> List[str]:
        """Open a page with the cookie of a session, let `use(page)` work on it; return what the browser complained of."""
        return list(self.run(self._visit, base, use, session, width))

    def _visit(self, base: str, use: Callable[[Any], Any], session: str, width: int) -> List[str]:
        context = self._browser.new_context(base_url=base, viewport={"width": width, "height": 900})
        context.set_default_timeout(60_000)
        if session:
            context.add_cookies(
                [{"name": COOKIE, "value": session, "url": base, "httpOnly": True, "sameSite": "Strict"}]
            )
        complaints: List[str] = []
        try:
            page = context.new_page()
            page.on(
                "console",
                lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
            )
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "dialog",
                lambda dialog: (
                    dialog.accept() if dialog.message.endswith("?") else complaints.append(dialog.message)
                ),
            )
            page.on(
                "request",
                lambda asked: None if asked.url.startswith((base, "data:")) else complaints.append(asked.url),
            )
            use(page)
        finally:
            context.close()
        return complaints

    def _open(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(executable_path=_program(), args=_ARGUMENTS)

    def _close(self) -> None:
        if self._browser is not None:
            self._browser.close()
        if self._playwright is not None:
            self._playwright.stop()

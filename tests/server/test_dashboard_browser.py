"""The dashboard in a real browser: every page in both themes and at phone width, the main actions, stored text as text.

Screenshots are left in .build/screenshots.
"""

from __future__ import annotations

import warnings
from typing import Any, Dict, Iterator

import pytest

from tests.support.browser import SHOTS, Browser, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a browser")

#: Text that would run, break out or load something if it ever became HTML.
XSS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' autofocus onfocus=alert(1) x='",
    "</textarea><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}${7*7}<%= 7*7 %>",
    "[<b>mark</b>] &lt;i&gt;",
    "<iframe src=https://example.com></iframe>",
    "<a href='https://example.com' onmouseover=alert(1)>link</a>",
    "\u202eevil\u2028</script>",
]


#: Counts what only stored text could have put there.
_PLANTED = """
document.querySelectorAll('main :is(script, iframe, img, i, svg[onload])').length
  + [...document.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    SHOTS.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Playwright's own
        with Browser() as opened:
            yield opened


@pytest.fixture(scope="module")
def data(live: Any) -> Dict[str, str]:
    """A tenant with something on every page."""
    from modules.job_store.records import NewJob, RetryPolicy
    from modules.job_store.schedules import Recurrence

    async def fill() -> None:
        from modules.storage.vectors.models import VectorDocument

        storage, key = live.storage, {"tenant_id": "acme"}
        await storage.conversations.create_conversation("trip", title="A trip to Lisbon", **key)
        for number in range(12):
            role = "user" if number % 2 == 0 else "assistant"
            await storage.conversations.add_message("trip", role, f"About hotel number {number}.", **key)
        await storage.conversations.fork_conversation(
            "trip", new_conversation_id="fork", title="Another end", **key
        )
        await storage.kv.set("settings", "model", {"name": "small", "temperature": 0.2}, **key)
        await storage.vectors.create_collection("docs", 8, **key)
        documents = [
            VectorDocument(f"d{n}", [float((n * k) % 7) + 0.1 for k in range(1, 9)], f"document {n}")
            for n in range(40)
        ]
        await storage.vectors.upsert("docs", documents, **key)

    async def work() -> None:
        storage, key = live.storage, {"tenant_id": "acme"}
        for number, status in enumerate(("draft", "ready", "ready")):
            await storage.tasks.create_task(
                f"Task {number}", task_id=f"t{number}", status=status, tags=["trip"], **key
            )
        await storage.tasks.create_task("Pay", task_id="pay", depends_on=["t1"], **key)
        await storage.jobs.enqueue("mail", {"to": "ada"}, name="welcome", **key)
        failing = await storage.jobs.enqueue("mail", {"to": "bob"}, retry=RetryPolicy(max_attempts=1), **key)
        queue = storage.jobs.queue(tenant_id="acme")
        for job in await queue.claim("worker", limit=2):
            if job.id == failing:
                await queue.fail(job, "SMTPError", "no such mailbox")
            else:
                await queue.complete(job, {"sent": True})
        await storage.jobs.create_schedule("nightly", Recurrence(cron="0 3 * * *"), NewJob("clean"), **key)

    live.call(fill())
    live.call(work())
    return {"admin": live.token("admin"), "reader": live.token("read")}


PAGES = {
    "overview": "/",
    "conversations": "/conversations",
    "thread": "/conversations/trip",
    "search": "/search?q=hotel",
    "tasks": "/tasks",
    "task": "/tasks/pay",
    "jobs": "/jobs",
    "dead-letters": "/jobs?status=failed",
    "keys": "/kv",
    "key": "/kv/settings/model",
    "vectors": "/vectors",
    "collection": "/vectors/docs?near=d3",
    "outbox": "/outbox",
    "migrations": "/migrations",
}


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("phone", 375)])
def test_every_page_is_shown_whole(browser: Browser, live: Any, data: Any, theme: str, width: int) -> None:
    problems = []

    def look(page: Any) -> None:
        for name, path in PAGES.items():
            answer = page.goto(path)
            if answer.status != 200:
                problems.append(f"{name}: {answer.status}")
            too_wide = page.evaluate(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            if too_wide > 0:
                problems.append(f"{name}: {too_wide} px too wide")
            if not page.title().endswith("ATLAS storage") or page.locator("h1").count() != 1:
                problems.append(f"{name}: no title of its own")
            if page.locator("input:not([type=hidden]):not([hidden]), select, textarea").evaluate_all(
                "all => all.filter(each => !each.labels.length).length"
            ):
                problems.append(f"{name}: a field without a label")
            page.screenshot(path=str(SHOTS / f"{name}-{theme}.png"))

    complaints = browser.visit(live.url, look, token=data["admin"], width=width, dark=theme == "dark")

    assert problems == []
    assert complaints == []


def test_login_is_asked_for_and_a_wrong_token_is_refused(browser: Browser, live: Any) -> None:
    seen = {}

    def look(page: Any) -> None:
        page.goto("/conversations")
        seen["where"] = page.url
        page.screenshot(path=str(SHOTS / "login-light.png"))
        page.fill("#token", "atlas_YQ_wrong")
        page.keyboard.press("Enter")
        seen["said"] = page.locator("[role=alert]").inner_text()

    complaints = browser.visit(live.url, look)

    assert seen["where"].endswith("/login")
    assert "not valid" in seen["said"]
    assert [c for c in complaints if "401" not in c] == []


def test_a_conversation_is_written_to_by_keyboard_and_others_messages_show_up(
    browser: Browser, live: Any, data: Any
) -> None:
    seen = {}

    def act(page: Any) -> None:
        page.goto("/conversations")
        page.click("summary")
        page.fill("#title", "Made by hand")
        page.click("text=Begin")
        page.wait_for_selector("#content")
        page.fill("#content", "first")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".message >> text=first")
        name = page.locator(".facts .id").inner_text()
        live.call(
            live.storage.conversations.add_message(name, "assistant", "from elsewhere", tenant_id="acme")
        )
        page.wait_for_selector(".message >> text=from elsewhere")
        page.click("summary")
        page.fill("#title", "Renamed")
        page.click("text=Rename")
        seen["title"] = page.locator("h1").inner_text()
        page.click("summary")
        page.click("button:has-text('Archive')")
        page.wait_for_selector(".state.archived")
        seen["composers"] = page.locator("#content").count()
        page.click("summary")
        page.click("button:has-text('Delete')")
        page.wait_for_url("**/conversations?notice=*")

    complaints = browser.visit(live.url, act, token=data["admin"])

    assert seen == {"title": "Renamed", "composers": 0}
    assert complaints == []


def test_search_marks_what_it_found_and_leads_there(browser: Browser, live: Any, data: Any) -> None:
    seen = {}

    def act(page: Any) -> None:
        page.goto("/conversations")
        page.keyboard.press("/")
        page.keyboard.type("hotels")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hits mark")
        seen["marked"] = page.locator(".hits mark").first.inner_text()
        page.click(".hits a >> nth=0")
        page.wait_for_selector(".thread")
        seen["where"] = page.url

    complaints = browser.visit(live.url, act, token=data["admin"])

    assert seen["marked"] == "hotel"
    assert "/conversations/" in seen["where"]
    assert complaints == []


def test_a_key_is_changed_only_as_it_was_seen(browser: Browser, live: Any, data: Any) -> None:
    seen = {}
    live.call(live.storage.kv.set("settings", "edited", 1, tenant_id="acme"))

    def act(page: Any) -> None:
        page.goto("/kv/settings/edited")
        page.click("summary")
        live.call(live.storage.kv.set("settings", "edited", 2, tenant_id="acme"))
        page.fill("#value", "3")
        page.click("button:has-text('Store')")
        seen["late"] = page.locator(".notice").inner_text()
        page.click("summary")
        page.fill("#value", '{"a": 3}')
        page.click("button:has-text('Store')")
        seen["stored"] = page.locator(".notice").inner_text()

    complaints = browser.visit(live.url, act, token=data["admin"])

    assert "nothing was written" in seen["late"]
    assert seen["stored"] == "Stored."
    assert live.call(live.storage.kv.get("settings", "edited", tenant_id="acme")) == {"a": 3}
    assert complaints == []


def test_tasks_move_by_keys_and_by_dragging_and_a_wrong_move_is_explained(
    browser: Browser, live: Any, data: Any
) -> None:
    seen = {}

    def act(page: Any) -> None:
        page.goto("/tasks")
        page.focus("#task-t1")
        page.keyboard.press("Shift+ArrowRight")
        page.wait_for_selector(".toast:not([hidden])")
        seen["moved"] = page.locator("#toast").inner_text()
        page.wait_for_selector("[data-status=in_progress] #task-t1")
        page.goto("/tasks")  # a fresh page, so that no card moves away under the mouse
        page.drag_and_drop("#task-t2", "[data-status=done]")
        page.wait_for_selector(".toast.bad")
        seen["refused"] = page.locator("#toast").inner_text()
        page.goto("/tasks")
        page.drag_and_drop("#task-t0", "[data-status=ready]")
        page.wait_for_selector("[data-status=ready] #task-t0")
        page.screenshot(path=str(SHOTS / "tasks-moved.png"))

    complaints = browser.visit(live.url, act, token=data["admin"])

    assert seen["moved"] == "Moved to In progress."
    assert "cannot move from 'ready' to 'done'" in seen["refused"]
    assert live.call(live.storage.tasks.get_task("t0", tenant_id="acme")).status == "ready"
    assert [c for c in complaints if "409" not in c] == []


def test_a_dead_letter_is_run_again(browser: Browser, live: Any, data: Any) -> None:
    seen = {}

    def act(page: Any) -> None:
        page.goto("/jobs?status=failed")
        page.click("main table a")
        page.wait_for_selector("text=no such mailbox")
        page.screenshot(path=str(SHOTS / "job-light.png"))
        page.click("button:has-text('Run again')")
        seen["said"] = page.locator(".notice").first.inner_text()
        seen["state"] = page.locator(".head .state").inner_text()

    complaints = browser.visit(live.url, act, token=data["admin"])

    assert seen == {"said": "It runs again.", "state": "scheduled"}
    assert complaints == []


def test_a_point_of_the_map_shows_its_neighbours(browser: Browser, live: Any, data: Any) -> None:
    seen = {}

    def act(page: Any) -> None:
        page.goto("/vectors/docs")
        seen["points"] = page.locator(".map circle").count()
        page.locator(".map a").nth(5).dispatch_event("click")
        page.wait_for_selector(".dot.chosen")
        seen["near"] = page.locator(".near li").count()

    complaints = browser.visit(live.url, act, token=data["admin"])

    assert seen == {"points": 40, "near": 12}
    assert complaints == []


def test_who_may_only_read_is_offered_nothing_else(browser: Browser, live: Any, data: Any) -> None:
    seen = {}

    def look(page: Any) -> None:
        page.goto("/conversations/trip")
        seen["forms"] = page.locator("main form").count()
        seen["migrations"] = page.locator("text=Migrations").count()

    browser.visit(live.url, look, token=data["reader"])

    assert seen == {"forms": 0, "migrations": 0}


def test_stored_text_is_never_html(browser: Browser, live: Any) -> None:
    """Every field that holds text of somebody, on every page that shows it: nothing runs, nothing loads, all is readable."""
    tenant = "xss"

    async def fill() -> None:
        from modules.storage.vectors.models import VectorDocument

        storage, key = live.storage, {"tenant_id": tenant}
        await storage.vectors.create_collection("docs", 2, **key)
        for number, text in enumerate(XSS):
            made = await storage.conversations.create_conversation(
                f"c{number}", title=text, user_id=f"u{number}", metadata={text: text}, **key
            )
            for content in (text, {"text": text}, f"umbrella {text}"):
                await storage.conversations.add_message(made.id, "user", content, name=text, **key)
            await storage.kv.set("ns", f"k{number}", {text: text}, **key)
            await storage.vectors.upsert("docs", [VectorDocument(f"d{number}", [1.0, number], text)], **key)
            await storage.tasks.create_task(
                text, task_id=f"t{number}", description=text, owner_id=f"o{number}", **key
            )
            await storage.tasks.add_comment(f"t{number}", text, **key)
            await storage.jobs.enqueue("h", {text: text}, **key)
        await storage.kv.set("<b>ns</b>", "<i onclick=alert(1)>k</i>", XSS[0], **key)

    live.call(fill())
    token = live.token("admin", tenant=tenant)
    problems = []

    def look(page: Any) -> None:
        paths = [
            "/",
            "/conversations",
            "/search?q=umbrella",
            "/kv",
            "/kv?namespace=ns",
            "/vectors/docs?near=d1",
        ]
        paths += ["/tasks", "/tasks/t0", "/tasks/t4", "/jobs"]
        paths += [f"/conversations/c{number}" for number in range(len(XSS))]
        paths += [
            "/kv/%3Cb%3Ens%3C%2Fb%3E/%3Ci%20onclick%3Dalert(1)%3Ek%3C%2Fi%3E",
            "/search?q=%3Cscript%3Ealert(1)%3C/script%3E",
        ]
        paths += [
            "/conversations?notice=%3Cscript%3Ealert(1)%3C/script%3E",
            "/kv?prefix=%22%3E%3Csvg%20onload=alert(1)%3E",
        ]
        for path in paths:
            answer = page.goto(path)
            if answer.status != 200:
                problems.append((path, answer.status))
            planted = page.evaluate(_PLANTED)
            if planted:
                problems.append((path, "became HTML"))
        page.goto("/conversations/c0")
        if page.locator(".text").first.inner_text() != XSS[0]:
            problems.append("the text is not shown as it is")

    complaints = browser.visit(live.url, look, token=token)

    assert problems == []
    assert complaints == []

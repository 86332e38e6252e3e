"""The dashboard in a real browser: every page in both themes and at phone width, the main actions, stored text as text.

Screenshots are left in .build/screenshots: wide and light, narrow and dark; with ATLAS_TEST_FULL=1 all four.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict

import pytest

from tests.support.browser import SHOTS, Browser, why_not
from tests.support.live import park

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "there is a browser")


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

    async def work() -> str:
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
        return f"/jobs/{failing}"

    live.call(fill())
    job = live.call(work())
    live.call(park(live.storage, "acme", ["customer-with-a-rather-long-key-4711"], "the target answered 503"))
    return {
        "admin": live.session("admin"),
        "reader": live.session("read"),
        "token": live.token("admin"),
        "job": job,
    }


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
    "outbox-pending": "/outbox?state=pending",
    "migrations": "/migrations",
}


FULL = os.environ.get("ATLAS_TEST_FULL") == "1"
LOOKS = (("light", 1280), ("dark", 1280), ("light", 375), ("dark", 375))
_TOO_WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
_UNLABELLED = "all => all.filter(each => !each.labels.length).length"
#: Counts the parts that the page's stream brings, and how often one takes the place of what is shown.
_COUNT_PARTS = """
window.parts = window.replaced = 0;
document.addEventListener("live", () => { window.replaced += 1; });
window.EventSource = class extends EventSource {
  constructor(where) {
    super(where);
    this.addEventListener("part", () => setTimeout(() => { window.parts += 1; }));
  }
};
"""
_GROUND = "getComputedStyle(document.body).backgroundColor"


def test_every_page_is_shown_whole_in_both_themes_and_on_a_phone(
    browser: Browser, live: Any, data: Any
) -> None:
    problems = []
    grounds = set()

    def look(page: Any) -> None:
        for name, path in {**PAGES, "job": data["job"]}.items():
            answer = page.goto(path)
            if answer.status != 200:
                problems.append(f"{name}: {answer.status}")
            if not page.title().endswith("ATLAS storage") or page.locator("h1").count() != 1:
                problems.append(f"{name}: no title of its own")
            fields = page.locator("input:not([type=hidden]):not([hidden]), select, textarea")
            if fields.evaluate_all(_UNLABELLED):
                problems.append(f"{name}: a field without a label")
            for theme, width in LOOKS:
                page.emulate_media(color_scheme=theme)
                page.set_viewport_size({"width": width, "height": 900})
                if page.evaluate(_TOO_WIDE) > 0:
                    problems.append(f"{name}: too wide for {width} px")
                grounds.add((theme, page.evaluate(_GROUND)))
                if FULL or (theme == "light") == (width > 800):
                    page.screenshot(path=str(SHOTS / f"{name}-{theme}-{width}.png"))

    complaints = browser.visit(live.url, look, session=data["admin"])

    assert problems == []
    assert complaints == []
    assert len({ground for _, ground in grounds}) == len(grounds) == 2


def test_on_a_phone_the_name_of_the_page_is_in_view(browser: Browser, live: Any, data: Any) -> None:
    seen = {}

    def look(page: Any) -> None:
        page.goto("/migrations")
        seen.update(page.locator(".side [aria-current]").bounding_box())

    browser.visit(live.url, look, session=data["admin"], width=375)

    assert seen["x"] >= 0
    assert seen["x"] + seen["width"] <= 375


def test_the_overview_draws_jobs_by_state(browser: Browser, live: Any, data: Any) -> None:
    seen = {}
    for _ in range(2):
        live.call(live.server._services.history.sample())

    def look(page: Any) -> None:
        page.goto("/")
        seen["parts"] = page.locator(".areas polygon").count()
        seen["legend"] = page.locator(".tile .legend").inner_text()

    complaints = browser.visit(live.url, look, session=data["admin"])

    assert seen["parts"] >= 1
    assert "dead letters" in seen["legend"]
    assert complaints == []


def test_login_is_asked_for_and_a_wrong_token_is_refused(browser: Browser, live: Any, data: Any) -> None:
    seen = {}

    def look(page: Any) -> None:
        page.goto("/conversations")
        seen["where"] = page.url
        page.screenshot(path=str(SHOTS / "login-light.png"))
        page.fill("#token", "atlas_YQ_wrong")
        page.keyboard.press("Enter")
        seen["said"] = page.locator("[role=alert]").inner_text()
        page.fill("#token", data["token"])
        page.click("button.main")
        page.wait_for_url(live.url + "/")

    complaints = browser.visit(live.url, look)

    assert seen["where"].endswith("/login")
    assert "not valid" in seen["said"]
    assert [c for c in complaints if "401" not in c] == []


def test_what_changes_before_the_stream_of_a_page_begins_shows_up(
    browser: Browser, live: Any, data: Any
) -> None:
    answers = []

    def act(page: Any) -> None:
        def begin(route: Any) -> None:
            """The page is there, its stream is not yet."""
            text = f"said in between {len(answers)}"
            live.call(live.storage.conversations.add_message("trip", "user", text, tenant_id="acme"))
            answers.append(text)
            route.continue_()

        page.route("**/live/**", begin)
        page.goto("/conversations/trip")
        page.wait_for_selector(".message >> text=said in between 0")
        # and a first part that says nothing new leaves the page as it was served
        page.unroute("**/live/**")
        page.add_init_script(_COUNT_PARTS)
        page.goto("/migrations")
        # not wait_for_function: what that looks at later than at once is the eval that the page's policy forbids
        end = time.monotonic() + 60
        while not page.evaluate("window.parts > 0"):
            assert time.monotonic() < end, "the stream of the page does not begin"
            page.wait_for_timeout(20)
        assert page.evaluate("window.replaced") == 0

    complaints = browser.visit(live.url, act, session=data["admin"])

    assert len(answers) == 1
    assert complaints == []


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
        page.wait_for_load_state()  # the keys are the script's
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
        page.wait_for_selector("h1:has-text('Renamed')")
        page.click("summary")
        page.click("button:has-text('Archive')")
        page.wait_for_selector(".state.archived")
        seen["composers"] = page.locator("#content").count()
        page.click("summary")
        page.click("button:has-text('Delete')")
        page.wait_for_url("**/conversations?notice=*")

    complaints = browser.visit(live.url, act, session=data["admin"])

    assert seen == {"composers": 0}
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

    complaints = browser.visit(live.url, act, session=data["admin"])

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
        page.wait_for_selector(".notice:has-text('Stored')")  # on the page before, there was another one
        seen["stored"] = page.locator(".notice").inner_text()

    complaints = browser.visit(live.url, act, session=data["admin"])

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

    complaints = browser.visit(live.url, act, session=data["admin"])

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

    complaints = browser.visit(live.url, act, session=data["admin"])

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

    complaints = browser.visit(live.url, act, session=data["admin"])

    assert seen == {"points": 40, "near": 12}
    assert complaints == []


def test_who_may_only_read_is_offered_nothing_else(browser: Browser, live: Any, data: Any) -> None:
    seen = {}

    def look(page: Any) -> None:
        page.goto("/conversations/trip")
        seen["forms"] = page.locator("main form").count()
        seen["migrations"] = page.locator("text=Migrations").count()

    browser.visit(live.url, look, session=data["reader"])

    assert seen == {"forms": 0, "migrations": 0}

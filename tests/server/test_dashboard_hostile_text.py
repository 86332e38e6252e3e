"""Stored text is only ever text: a corpus of hostile texts in every field, looked at in a real browser (P37)."""

from __future__ import annotations

from typing import Any, Dict, List
from urllib.parse import quote

import pytest

from tests.support.browser import Browser, why_not
from tests.support.live import park

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

#: Counts in a document what only stored text could have put there.
_PLANTED = """
(all) => all.querySelectorAll('main :is(script, iframe, img, i, svg[onload], a[href^="https:"], a[href^="javascript:"])').length
  + all.querySelectorAll('script').length - 1
  + [...all.querySelectorAll('*')].filter(e => [...e.attributes].some(a => a.name.startsWith('on'))).length
"""
#: The same of pages that are fetched and parsed, not shown: many in little time.
_PLANTED_AT = f"""
async (paths) => {{
  const planted = {_PLANTED}, found = [];
  for (const path of paths) {{
    const answer = await fetch(path);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (answer.status !== 200 || planted(page)) found.push([path, answer.status]);
  }}
  return found;
}}
"""


@pytest.fixture(scope="module")
def places(live: Any) -> Dict[str, List[str]]:
    """Put the corpus into every field of a tenant; gives the paths of the lists, and of the single things."""
    key = {"tenant_id": "xss"}

    async def talk() -> None:
        from modules.storage.vectors.models import VectorDocument

        storage = live.storage
        await storage.vectors.create_collection("docs", 2, **key)
        for number, text in enumerate(XSS):
            made = await storage.conversations.create_conversation(
                f"c{number}", title=text, user_id=f"u{number}", metadata={text: text}, **key
            )
            for content in (text, {"text": text}, f"umbrella {text}"):
                await storage.conversations.add_message(made.id, "user", content, name=text, **key)
            await storage.kv.set("ns", f"k{number}", {text: text}, **key)
            await storage.vectors.upsert("docs", [VectorDocument(f"d{number}", [1.0, number], text)], **key)
        await storage.kv.set("<b>ns</b>", "<i onclick=alert(1)>k</i>", XSS[0], **key)

    async def work() -> List[str]:
        from modules.job_store.records import NewJob, RetryPolicy
        from modules.job_store.schedules import Recurrence

        storage, once = live.storage, RetryPolicy(max_attempts=1)
        queue = storage.jobs.queue(tenant_id="xss")
        jobs = []
        for number, text in enumerate(XSS):
            await storage.tasks.create_task(
                text, task_id=f"t{number}", description=text, owner_id=text, tags=[text], **key
            )
            await storage.tasks.add_comment(f"t{number}", text, actor_id=text, **key)
            jobs.append(await storage.jobs.enqueue("h", {text: text}, name=text, retry=once, **key))
        for job in await queue.claim("<i>worker</i>", limit=len(XSS)):
            await queue.log(job, job.name)
            await queue.fail(job, "Error", job.name, details={"trace": job.name})
        for text in XSS:
            await storage.jobs.enqueue(text, text, queue=text, **key)
            await storage.jobs.create_schedule(text, Recurrence(cron="0 3 * * *"), NewJob(text), **key)
        return jobs

    live.call(talk())
    jobs = live.call(work())
    live.call(park(live.storage, "xss", XSS, "".join(XSS)))
    lists = ["/", "/conversations", "/search?q=umbrella", "/kv", "/kv?namespace=ns", "/vectors/docs?near=d1"]
    lists += ["/tasks", "/jobs", "/jobs?status=failed", "/outbox?state=parked", "/outbox?state=pending"]
    lists += [
        f"/search?q={quote(XSS[0])}",
        f"/conversations?notice={quote(XSS[0])}",
        f"/kv?prefix={quote(XSS[2])}",
    ]
    single = [
        f"/{room}/{name}{n}"
        for room, name in (("conversations", "c"), ("tasks", "t"))
        for n in range(len(XSS))
    ]
    single += [f"/jobs/{job}" for job in jobs]
    single += [f"/kv/ns/k{n}" for n in range(len(XSS))]
    single += [f"/kv/{quote('<b>ns</b>', safe='')}/{quote('<i onclick=alert(1)>k</i>', safe='')}"]
    return {"lists": lists, "single": single, "jobs": [f"/jobs/{job}" for job in jobs]}


def test_stored_text_is_never_html(browser: Browser, live: Any, places: Dict[str, List[str]]) -> None:
    """Every field that holds text of somebody, on every page that shows it: nothing runs, nothing loads, all is readable."""
    problems: List[Any] = []

    def look(page: Any) -> None:
        for path in places["lists"] + ["/tasks/t1", places["jobs"][1], "/conversations/c0"]:
            answer = page.goto(path)
            if answer.status != 200:
                problems.append((path, answer.status))
            if page.evaluate(f"({_PLANTED})(document)"):
                problems.append((path, "became HTML"))
        if page.locator(".text").first.inner_text() != XSS[0]:
            problems.append("the text is not shown as it is")
        problems.extend(page.evaluate(_PLANTED_AT, places["single"]))

    complaints = browser.visit(live.url, look, session=live.session("admin", tenant="xss"))

    assert problems == []
    assert complaints == []


def test_what_comes_in_while_a_page_is_open_is_text_too(
    browser: Browser, live: Any, places: Dict[str, List[str]]
) -> None:
    """The script puts new versions of a page in place: it must not be the way in."""
    planted: List[int] = []

    def look(page: Any) -> None:
        page.goto("/conversations/c1")
        for number, text in enumerate(XSS):
            live.call(
                live.storage.conversations.add_message("c1", "user", f"late {number} {text}", tenant_id="xss")
            )
        page.wait_for_selector(f".message >> text=late {len(XSS) - 1}")
        planted.append(page.evaluate(f"({_PLANTED})(document)"))

    complaints = browser.visit(live.url, look, session=live.session("admin", tenant="xss"))

    assert planted == [0]
    assert complaints == []


def test_the_look_out_for_planted_html_would_see_it(browser: Browser, live: Any) -> None:
    """The check of this file sees what it is there to see."""
    seen: List[int] = []

    def look(page: Any) -> None:
        page.goto("/login")
        for text in ("<img src=x>", "<p onclick='x'>", "<a href='javascript:x'>"):
            page.evaluate("(text) => { document.querySelector('main').innerHTML = text; }", text)
            seen.append(page.evaluate(f"({_PLANTED})(document)"))

    browser.visit(live.url, look)

    assert all(count > 0 for count in seen), seen

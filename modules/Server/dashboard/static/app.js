/* What pages gain from script; without it everything still works by links and forms. */
"use strict";

const main = document.getElementById("main");
const live = document.getElementById("live");

/** Put a new version of the live part in place, keeping focus, open details and the reader's place. */
function replace(html) {
  if (document.body.classList.contains("dragging")) return;
  const active = document.activeElement;
  if (active && live.contains(active) && /^(INPUT|TEXTAREA|SELECT)$/.test(active.tagName)) return;
  const key = active && live.contains(active) ? active.id || active.getAttribute("href") : null;
  const open = [...live.querySelectorAll("details[open][id]")].map((each) => each.id);
  const scrolled = [...live.querySelectorAll(".scroll, .board")].map((each) => each.scrollLeft);
  const atEnd = window.innerHeight + window.scrollY >= document.body.scrollHeight - 80;
  const had = live.querySelectorAll(".thread > li").length;
  live.innerHTML = html; // made by the server's own templates, which escape every stored text
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  live.querySelectorAll(".scroll, .board").forEach((each, index) => { each.scrollLeft = scrolled[index] || 0; });
  if (key) [...live.querySelectorAll("[id], a[href]")].find((each) => each.id === key || each.getAttribute("href") === key)?.focus({ preventScroll: true });
  if (atEnd && had && live.querySelectorAll(".thread > li").length !== had) window.scrollTo(0, document.body.scrollHeight);
  document.dispatchEvent(new Event("live"));
}

if (live && main?.dataset.live) {
  const stream = new EventSource("/live" + main.dataset.live + location.search);
  let first = true;
  stream.addEventListener("part", (message) => {
    // the first one is what the page shows already, unless it has changed meanwhile
    if (!first || live.dataset.stale) replace(JSON.parse(message.data).html);
    else first = false;
  });
  stream.addEventListener("error", () => { live.dataset.stale = "yes"; });
  window.addEventListener("pagehide", () => stream.close());
}

document.addEventListener("keydown", (press) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(press.target.tagName);
  if (press.key === "Enter" && (press.ctrlKey || press.metaKey) && press.target.dataset?.send !== undefined) press.target.form.requestSubmit();
  if (typing || press.ctrlKey || press.metaKey || press.altKey) return;
  const wanted = document.querySelector(`[data-key="${CSS.escape(press.key)}"]`);
  if (wanted) { press.preventDefault(); wanted.focus(); wanted.select?.(); }
});

document.addEventListener("submit", (sent) => {
  const question = sent.submitter?.dataset.confirm;
  if (question && !window.confirm(question)) sent.preventDefault();
});

document.addEventListener("change", (changed) => {
  if (changed.target.dataset?.submit !== undefined) changed.target.form.requestSubmit();
});

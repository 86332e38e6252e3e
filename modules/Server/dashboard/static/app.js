/* What pages gain from script; without it everything still works by links and forms. */
"use strict";

const main = document.getElementById("main");
const live = document.getElementById("live");

// on a phone the names of the pages are one long line: the one that is shown comes into view
const here = document.querySelector(".side nav [aria-current]");
const names = here?.closest("nav");
if (names) {
  const [inner, outer] = [here, names].map((each) => each.getBoundingClientRect());
  names.scrollLeft += inner.left - outer.left - (outer.width - inner.width) / 2;
}

let missed = null; // the newest version that came while a card was dragged

/** Put a new version of the live part in place, keeping focus, open details and the reader's place. */
function replace(html) {
  const dragging = document.body.classList.contains("dragging");
  missed = dragging ? html : null;
  if (dragging) return;
  const active = document.activeElement;
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

/** The text as the browser gives back what it was served with. */
function normal(html) {
  const made = document.createElement("div");
  made.innerHTML = html;
  return made.innerHTML;
}

if (live && main?.dataset.live) {
  const stream = new EventSource("/live" + main.dataset.live + location.search);
  let served = live.innerHTML;
  stream.addEventListener("part", (message) => {
    const { html } = JSON.parse(message.data);
    // the first one is what the page was served with, unless it has changed meanwhile
    if (served === null || served !== normal(html)) replace(html);
    served = null;
  });
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

/* The board: cards move by dragging, or by Shift with an arrow; the server decides, and explains what it refuses. */
function say(text, bad) {
  const toast = document.getElementById("toast");
  if (!toast) return;
  toast.textContent = text;
  toast.classList.toggle("bad", Boolean(bad));
  toast.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { toast.hidden = true; }, 6000);
}

async function moveCard(card, column) {
  const board = card.closest(".board");
  const body = new URLSearchParams({ status: column.dataset.status, version: card.dataset.version });
  const answer = await fetch(`/tasks/${card.dataset.id}/move`, { method: "POST", body, headers: { "X-Atlas-Csrf": board.dataset.csrf, Accept: "application/json" } });
  const told = await answer.json().catch(() => ({}));
  say(told.says || told.detail || "The server did not answer.", !answer.ok);
  if (!answer.ok) return;
  column.querySelector("ul").prepend(card);
  card.dataset.version = Number(card.dataset.version) + 1;
  card.focus();
}

document.addEventListener("dragstart", (drag) => {
  const card = drag.target.closest?.(".card");
  if (!card) return;
  drag.dataTransfer.setData("text/plain", card.id);
  drag.dataTransfer.effectAllowed = "move";
  card.classList.add("moving");
  document.body.classList.add("dragging");
});
document.addEventListener("dragend", () => {
  document.body.classList.remove("dragging");
  document.querySelectorAll(".moving, .over").forEach((each) => each.classList.remove("moving", "over"));
  if (missed !== null) replace(missed);
});
document.addEventListener("dragover", (drag) => {
  const column = document.body.classList.contains("dragging") && drag.target.closest?.(".column");
  if (!column) return;
  drag.preventDefault();
  document.querySelectorAll(".over").forEach((each) => each !== column && each.classList.remove("over"));
  column.classList.add("over");
});
document.addEventListener("drop", (drag) => {
  const column = drag.target.closest?.(".column");
  const card = document.getElementById(drag.dataTransfer.getData("text/plain"));
  if (!column || !card?.classList.contains("card")) return;
  drag.preventDefault();
  if (card.closest(".column") !== column) moveCard(card, column);
});
document.addEventListener("keydown", (press) => {
  const card = press.target.closest?.(".card");
  if (!card || press.target !== card) return;
  if (press.key === "Enter") card.querySelector("a").click();
  const column = card.closest(".column");
  const next = { ArrowLeft: column.previousElementSibling, ArrowRight: column.nextElementSibling }[press.key];
  if (!next) return;
  press.preventDefault();
  if (press.shiftKey && card.draggable) moveCard(card, next);
  else next.querySelector(".card")?.focus();
});

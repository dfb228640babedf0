// Renews the parts of a page that have changed, and shows times as this machine's clock has them.
"use strict";

const STATE = document.getElementById("state");
const EVERY_S = Number(document.body.dataset.every || 0);
const LONGEST_S = 30;
let etag = document.body.dataset.etag;
let failures = 0;
let timer = 0;

function showTimes(root) {
  for (const each of root.querySelectorAll("time[datetime]")) {
    const at = new Date(each.dateTime);
    if (!Number.isNaN(at.getTime())) {
      each.title = each.textContent;
      each.textContent = at.toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });
    }
  }
}

function elapsed(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  return (hours ? `${hours}:` : "") + `${hours ? two(Math.floor(whole / 60) % 60) : Math.floor(whole / 60)}:${two(whole % 60)}`;
}

function showElapsed() {
  for (const each of document.querySelectorAll("[data-since]")) {
    each.textContent = elapsed(Date.now() / 1000 - Number(each.dataset.since));
  }
}

function tell(text, lost) {
  if (STATE.textContent !== text) STATE.textContent = text;
  STATE.classList.toggle("lost", lost);
}

// What the reader chose in a part outlives its renewal: ticked boxes, scrolled tables, the focus.
function replacePart(part, html, digest) {
  const ticked = [...part.querySelectorAll("input:checked")].map((each) => each.id);
  const scrolled = [...part.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
  const active = document.activeElement;
  const focusable = "a, button, input, select, [tabindex]";
  const place = part.contains(active) ? [...part.querySelectorAll(focusable)].indexOf(active) : -1;
  const address = place >= 0 ? active.getAttribute("href") : null;
  part.innerHTML = html;
  part.dataset.digest = digest;
  for (const id of ticked) {
    const box = id && document.getElementById(id);
    if (box) box.checked = true;
  }
  part.querySelectorAll(".scroll").forEach((each, index) => { each.scrollLeft = scrolled[index] || 0; });
  if (place >= 0) {
    const all = [...part.querySelectorAll(focusable)];
    const same = address && all.find((each) => each.getAttribute("href") === address);
    (same || all[place] || document.getElementById("main")).focus({ preventScroll: true });
  }
  showTimes(part);
}

async function renew() {
  const answer = await fetch(location.href, {
    headers: { Accept: "application/json", "If-None-Match": etag },
    cache: "no-store",
    credentials: "same-origin",
  });
  if (answer.status === 304) return;
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  const parts = new Map([...document.querySelectorAll("[data-part]")].map((each) => [each.dataset.part, each]));
  for (const { name, html, digest } of found.parts) {
    if (parts.has(name)) replacePart(parts.get(name), html, digest);
  }
  etag = found.etag;
  showElapsed();
}

async function look() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    await renew();
    failures = 0;
    tell("live", false);
  } catch (error) {
    failures += 1;
    const reason = error instanceof TypeError || error instanceof SyntaxError ? "the dashboard does not answer" : error.message;
    tell(`not renewed: ${reason}; trying again`, true);
  }
  timer = setTimeout(look, 1000 * Math.min(LONGEST_S, EVERY_S * 2 ** Math.min(failures, 6)));
}

showTimes(document);
showElapsed();
if (EVERY_S) {
  setInterval(showElapsed, 1000);
  document.addEventListener("visibilitychange", look);
  timer = setTimeout(look, 1000 * EVERY_S);
  tell("live", false);
}

// The console's own script. Pages work without it; with it, what is marked data-live brings itself up to date, a
// form that was sent is not sent twice, and the theme's icons that act as buttons can be used from the keyboard.
"use strict";

(() => {
  const refresh = async (part) => {
    if (document.hidden || part.contains(document.activeElement)) return;
    try {
      const answer = await fetch(part.dataset.live, { credentials: "same-origin", headers: { "X-Fragment": "1" } });
      if (!answer.ok || answer.redirected) return;
      part.innerHTML = await answer.text();
      // What may be done with it is another thing now: the whole page is asked for, once.
      if (part.querySelector("[data-finished]")) { clearInterval(part.timer); location.reload(); }
    } catch { /* The network is away: the page stays as it was, with its time, and asks again. */ }
  };

  const start = () => {
    for (const part of document.querySelectorAll("[data-live]")) {
      part.timer = setInterval(() => refresh(part), 1000 * (Number(part.dataset.every) || 3));
    }
    // What waits for a worker asks again, but not while nobody looks.
    const waits = document.querySelector("[data-again]");
    if (waits) setInterval(() => { if (!document.hidden) location.reload(); }, 1000 * Number(waits.dataset.again));
    for (const form of document.querySelectorAll("form[data-once]")) {
      form.addEventListener("submit", (event) => {
        if (form.dataset.sent) { event.preventDefault(); return; }
        form.dataset.sent = "1";
        for (const button of form.querySelectorAll("button")) button.setAttribute("aria-disabled", "true");
      });
    }
    // On a phone a row of a wide table becomes a block of named lines; the names come from the table's head.
    for (const table of document.querySelectorAll(".k-scroll > .k-table")) {
      const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
      for (const row of table.querySelectorAll("tbody tr")) {
        [...row.children].forEach((cell, place) => { cell.dataset.label = heads[place] || ""; });
      }
      table.classList.add("k-stacks");
    }
    const names = { dock_to_right: "Show or hide the menu", close: "Close the menu", unfold_more: "Your account" };
    for (const icon of document.querySelectorAll("[x-on\\:click]")) {
      if (icon.matches("a, button, input, summary, [role]") || icon.querySelector("a, button, input")) continue;
      icon.setAttribute("role", "button");
      icon.setAttribute("tabindex", "0");
      const label = names[icon.textContent.trim().split(/\s+/).pop()];
      if (label) icon.setAttribute("aria-label", label);
      icon.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); icon.click(); }
      });
    }
  };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start); else start();
})();

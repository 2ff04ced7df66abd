// The console's script. Pages work without it.
// - It refreshes each part of a page that has the attribute data-live.
// - It prevents a form from being sent twice.
// - On phones it writes the column's name before each cell of a table.
// - It makes the theme's icon buttons usable from the keyboard.
"use strict";

(() => {
  const refresh = async (part) => {
    if (document.hidden || part.contains(document.activeElement)) return;
    try {
      const response = await fetch(part.dataset.live, { credentials: "same-origin", headers: { "X-Fragment": "1" } });
      if (!response.ok || response.redirected) return;
      part.innerHTML = await response.text();
      // When the settlement has finished, other buttons appear. Reload the whole page once to show them.
      if (part.querySelector("[data-finished]")) { clearInterval(part.timer); location.reload(); }
    } catch { /* Without a network the page keeps its last figures. The next refresh tries again. */ }
  };

  const start = () => {
    for (const part of document.querySelectorAll("[data-live]")) {
      part.timer = setInterval(() => refresh(part), 1000 * (Number(part.dataset.every) || 3));
    }
    // A page that waits for a worker's figures reloads itself. In a hidden tab it does not.
    const waits = document.querySelector("[data-again]");
    if (waits) setInterval(() => { if (!document.hidden) location.reload(); }, 1000 * Number(waits.dataset.again));
    for (const form of document.querySelectorAll("form[data-once]")) {
      form.addEventListener("submit", (event) => {
        if (form.dataset.sent) { event.preventDefault(); return; }
        form.dataset.sent = "1";
        for (const button of form.querySelectorAll("button")) button.setAttribute("aria-disabled", "true");
      });
    }
    // On a phone each row of a wide table becomes a block of lines. Each line begins with the column's name.
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

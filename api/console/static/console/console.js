// The console's script. Pages work without it.
// - It refreshes a live page as a whole, and changes only the parts that differ.
// - It prevents a form from being sent twice.
// - On phones it writes the column's name before each cell of a table.
// - It makes the theme's icon buttons usable from the keyboard.
"use strict";

(() => {
  // --- live pages ---------------------------------------------------------------------------------------------------

  // Two elements with the same key show the same thing, such as one payout's row. A focused link must never turn into
  // the link to another payout.
  const keyOf = (node) => {
    if (node.nodeType !== 1) return "";
    if (node.id || node.dataset.key) return node.id || node.dataset.key;
    const link = node.matches("a") ? node : node.matches("tr, li") ? node.querySelector("a") : null;
    return link ? link.getAttribute("href") : "";
  };
  const alike = (old, fresh) => old.nodeName === fresh.nodeName && keyOf(old) === keyOf(fresh);

  const redraw = (canvas, fresh) => {
    if (canvas.dataset.value === fresh.dataset.value) return;
    canvas.dataset.value = fresh.dataset.value;
    const chart = window.Chart && window.Chart.getChart(canvas);
    if (!chart) return;
    const { labels, datasets } = JSON.parse(fresh.dataset.value);
    chart.data.labels = labels;
    datasets.forEach((dataset, place) => Object.assign((chart.data.datasets[place] ||= {}), dataset));
    chart.data.datasets.length = datasets.length;
    chart.update("none");
  };

  // Make `old` equal to `fresh`. Open details, typed text and the focused element stay as they are.
  const morph = (old, fresh) => {
    if (old.isEqualNode(fresh)) return;
    if (old.nodeType !== 1) { old.nodeValue = fresh.nodeValue; return; }
    if (old.matches("canvas")) { redraw(old, fresh); return; }
    if (old.matches("input, select, textarea")) return;
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    let place = old.firstChild;
    for (const wanted of [...fresh.childNodes]) {
      let match = place;
      while (match && !alike(match, wanted)) match = match.nextSibling;
      if (!match) { old.insertBefore(wanted, place); continue; }
      while (place !== match) { const gone = place; place = place.nextSibling; gone.remove(); }
      place = match.nextSibling;
      morph(match, wanted);
    }
    while (place) { const gone = place; place = place.nextSibling; gone.remove(); }
  };

  const goLive = (page) => {
    const stale = document.getElementById("k-stale");
    const clock = () => new Date().toLocaleTimeString("en-GB", { timeZone: "Africa/Nairobi" });
    let [tag, refreshed, seconds] = ["", clock(), Number(page.dataset.live)];
    const warn = (words) => { stale.textContent = words; stale.hidden = !words; };

    const refresh = async () => {
      const began = Date.now();
      try {
        const response = await fetch(location.href, {
          cache: "no-store", credentials: "same-origin", redirect: "manual",
          headers: { "X-Fragment": "1", ...(tag && { "If-None-Match": tag }) },
        });
        if (response.type === "opaqueredirect" || [403, 404].includes(response.status)) {
          warn(`You are logged out, or this page is gone. The figures are of ${refreshed} EAT. Reload the page.`);
          return;
        }
        if (response.status === 200) {
          const fresh = document.createElement("div");
          fresh.innerHTML = await response.text();
          label(fresh);
          const wrapper = page.cloneNode(false);
          wrapper.append(...fresh.childNodes);
          morph(page, wrapper);
          tag = response.headers.get("ETag") || "";
          seconds = Number(response.headers.get("X-Refresh")) || seconds;
        } else if (response.status !== 304) {
          throw new Error(`status ${response.status}`);
        }
        refreshed = clock();
        warn("");
      } catch {
        warn(`The server does not answer. The figures are of ${refreshed} EAT. This page tries again by itself.`);
      }
      // A slow server gets fewer requests: at most a fifth of its time goes into one page.
      setTimeout(next, Math.max(1000 * seconds, 4 * (Date.now() - began)));
    };
    const next = () => {
      if (!document.hidden) return refresh();
      document.addEventListener("visibilitychange", next, { once: true });
    };
    setTimeout(next, 1000 * seconds);
  };

  // --- tables on phones ---------------------------------------------------------------------------------------------

  // On a phone each row of a wide table becomes a block of lines. Each line begins with the column's name.
  const label = (part) => {
    for (const table of part.querySelectorAll(".k-scroll > .k-table")) {
      const heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent.trim());
      for (const row of table.querySelectorAll("tbody tr")) {
        [...row.children].forEach((cell, place) => { cell.dataset.label = heads[place] || ""; });
      }
      table.classList.add("k-stacks");
    }
  };

  const start = () => {
    label(document);
    const page = document.querySelector("[data-live]");
    if (page) goLive(page);
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

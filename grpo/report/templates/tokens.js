"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const labels = document.querySelector("[data-rows]")?.dataset.rows.split("|");

  // While the run trains: load the page again, and open again what was open.
  const place = (part) => part.id || part.querySelector("[id]")?.id;
  const { open = [] } = history.state ?? {};
  for (const part of all("details")) part.open ||= open.includes(place(part) ?? "");
  const again = () => {
    const parts = all("details[open]").map(place);
    history.replaceState({ chosen: document.getElementById("step-choice")?.value, open: parts }, "");
    location.reload();
  };
  if (document.body.dataset.reload) setTimeout(again, 1000 * document.body.dataset.reload);

  // One stop of the Tab key a completion; the arrow keys go on from there.
  for (const tokens of all(".tokens"))
    for (const token of all("i", tokens).slice(1)) token.tabIndex = -1;
  document.addEventListener("keydown", (event) => {
    const token = event.target;
    if (!token.matches(".tokens i")) return;
    const row = [...token.parentNode.children];
    const at = row.indexOf(token);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: row.length - 1 }[event.key];
    if (row[to] === undefined) return;
    event.preventDefault();
    row[to].focus();
  });
  // What the eye reads in the card, for a screen reader: each number after its name.
  document.addEventListener("focusin", (event) => {
    if (!event.target.matches(".tokens i")) return;
    const numbers = event.target.dataset.v.split("\n");
    event.target.setAttribute("role", "note");
    event.target.ariaLabel = labels.map((label, i) => `${label} ${numbers[i]}`).join(", ");
  });
})();

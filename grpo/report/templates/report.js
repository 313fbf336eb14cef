"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  // While the run trains: load the page again, and open again what was open.
  const place = (part) => part.id || part.querySelector("[id]")?.id;
  const { chosen, open = [] } = history.state ?? {};
  for (const part of all("details")) part.open ||= open.includes(place(part) ?? "");
  const again = () => {
    const parts = all("details[open]").map(place);
    history.replaceState({ chosen: document.getElementById("step-choice")?.value, open: parts }, "");
    location.reload();
  };
  if (document.body.dataset.reload) setTimeout(again, 1000 * document.body.dataset.reload);
  const steps = all(".step");
  if (!steps.length) return;
  const form = document.getElementById("filters");
  const [choice, modality, type, search, count] = [
    "step-choice", "modality", "type", "search", "count",
  ].map((id) => document.getElementById(id));
  const labels = document.getElementById("steps").dataset.rows.split("|");

  // The choices of a filter are what the groups hold, added as text.
  const offer = (select, key) => {
    for (const value of [...new Set(all(".group").map((group) => group.dataset[key]))].sort())
      select.append(new Option(value, value));
    select.closest("label").hidden = select.options.length < 3;
  };

  // What the search reads of a group: its question, options and completions, in small letters.
  const texts = new Map();
  const said = (group) => {
    if (!texts.has(group)) {
      const parts = all(".question, .options li, .tokens", group).map((part) => part.textContent);
      texts.set(group, parts.join("\n").replace(/[\s⏎⇥]+/g, " ").toLowerCase());
    }
    return texts.get(group);
  };

  const matches = (group) => {
    const words = search.value.trim().replace(/\s+/g, " ").toLowerCase();
    const wanted = all("[name=mark]:checked", form).map((box) => box.value);
    const marks = group.dataset.marks.split("|");
    return (
      (!modality.value || group.dataset.modality === modality.value) &&
      (!type.value || group.dataset.type === type.value) &&
      wanted.every((mark) => marks.includes(mark)) &&
      (!words || said(group).includes(words))
    );
  };

  const show = (event) => {
    let elsewhere = 0;
    const fits = steps.map((step) => all(".group", step).filter(matches));
    // What is searched for may be in another step only.
    if (event?.target === search && !fits[choice.selectedIndex].length)
      choice.selectedIndex = Math.max(0, fits.findIndex((fit) => fit.length));
    for (const [i, step] of steps.entries()) {
      const [groups, fit] = [all(".group", step), fits[i]];
      for (const group of groups) group.hidden = !fit.includes(group);
      choice.options[i].text = `${step.dataset.step} (${fit.length} of ${groups.length})`;
      step.hidden = step.dataset.step !== choice.value;
      if (step.hidden) elsewhere += fit.length;
      else {
        step.open = true;
        count.textContent = `${fit.length} of ${groups.length} groups here`;
      }
    }
    count.textContent += `, ${elsewhere} in other steps`;
    document.getElementById("before").disabled = choice.selectedIndex === 0;
    document.getElementById("after").disabled = choice.selectedIndex === steps.length - 1;
  };

  const move = (by) => {
    choice.selectedIndex += by;
    show();
  };

  // A link to a step, a group or a question shows it, whatever is filtered.
  const reveal = (hash) => {
    const target = document.getElementById(hash.slice(1));
    const step = target?.closest(".step");
    if (step) {
      form.reset();
      choice.value = step.dataset.step;
      show();
    }
    for (let part = target?.closest("details"); part; part = part.parentNode.closest("details"))
      part.open = true;
    target?.scrollIntoView();
  };

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

  offer(modality, "modality");
  offer(type, "type");
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", show);
  search.addEventListener("input", show);
  document.getElementById("before").addEventListener("click", () => move(-1));
  document.getElementById("after").addEventListener("click", () => move(1));
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    if (link) reveal(link.hash);
  });
  addEventListener("hashchange", () => reveal(location.hash));
  choice.value = chosen ?? steps[0].dataset.step;
  show();
  if (!chosen) reveal(location.hash);
})();

"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const steps = all(".step");
  if (!steps.length) return;
  const form = document.getElementById("filters");
  const [choice, modality, type, search, count] = [
    "step-choice", "modality", "type", "search", "count",
  ].map((id) => document.getElementById(id));

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
  choice.value = history.state?.chosen ?? steps[0].dataset.step;
  show();
  if (!history.state) reveal(location.hash);
})();

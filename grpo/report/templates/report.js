"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const steps = all(".step");
  if (!steps.length) return;
  const form = document.getElementById("filters");
  const [choice, modality, type, count] = ["step-choice", "modality", "type", "count"].map(
    (id) => document.getElementById(id)
  );

  // The choices of a filter are what the groups hold, added as text.
  const offer = (select, key) => {
    for (const value of [...new Set(all(".group").map((group) => group.dataset[key]))].sort())
      select.append(new Option(value, value));
    select.closest("label").hidden = select.options.length < 3;
  };

  const matches = (group) => {
    const wanted = all("[name=mark]:checked", form).map((box) => box.value);
    const marks = group.dataset.marks.split("|");
    return (
      (!modality.value || group.dataset.modality === modality.value) &&
      (!type.value || group.dataset.type === type.value) &&
      wanted.every((mark) => marks.includes(mark))
    );
  };

  const show = () => {
    let elsewhere = 0;
    for (const [i, step] of steps.entries()) {
      const groups = all(".group", step);
      const fit = groups.filter(matches);
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

  offer(modality, "modality");
  offer(type, "type");
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", show);
  document.getElementById("before").addEventListener("click", () => move(-1));
  document.getElementById("after").addEventListener("click", () => move(1));
  const asked = steps.findIndex((step) => `#${step.id}` === location.hash);
  choice.selectedIndex = Math.max(asked, 0);
  show();
})();

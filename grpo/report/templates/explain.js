"use strict";
(() => {
  const form = document.getElementById("controls");
  // Flat, as in grpo/loss.py: one number for each token of the group; logprobs one such list an update.
  const data = JSON.parse(form.dataset.group);
  const controls = [...form.elements].filter((control) => control.name);
  const real = new Map(controls.map((control) => [control, control.value]));
  const completions = [...document.querySelectorAll(".completions > li")];
  const rewardInputs = controls.filter((control) => "reward" in control.dataset);
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const short = (value, digits = 6) => String(Number(value.toPrecision(digits)));

  // grpo/advantages.py: group_advantages; "reward" is --baseline none
  const groupAdvantages = (rewards, scale) => {
    if (scale === "reward") return rewards;
    if (rewards.every((reward) => reward === rewards[0])) return rewards.map(() => 0);
    const mean = sum(rewards) / rewards.length;
    const std = Math.sqrt(sum(rewards.map((r) => (r - mean) ** 2)) / (rewards.length - 1));
    return rewards.map((reward) => (reward - mean) / (scale === "none" ? 1 : std + 1e-4));
  };

  // grpo/loss.py: token_weights, one for each completion
  const tokenWeights = (lengths, loss) =>
    lengths.map((length) => 1 / {
      grpo: lengths.length * length,
      dapo: sum(lengths),
      dr_grpo: lengths.length * Number(form.dataset.longest),
    }[loss]);

  // grpo/loop.py: policy_pass, at one token; the log-ratio is held within +-20, where its gradient ends
  const objective = (logprob, old, ref, advantage, weight, set) => {
    const [ratio, x] = [logprob - old, ref - logprob].map((log) => Math.exp(clamp(log, -20, 20)));
    const [low, high] = [1 - set.clip_eps, 1 + set.clip_eps_high];
    const clipped = (advantage > 0 && ratio > high) || (advantage < 0 && ratio < low);
    const surrogate = Math.min(ratio * advantage, clamp(ratio, low, high) * advantage);
    const kl = x - clamp(ref - logprob, -20, 20) - 1;
    const push = clipped || Math.abs(logprob - old) > 20 ? 0 : ratio * advantage;
    const pull = Math.abs(ref - logprob) > 20 ? 0 : set.kl_coef * (1 - x);
    const loss = -weight * (surrogate - set.kl_coef * kl);
    return { ratio, clipped, kl, surrogate, loss, gradient: -weight * (push - pull) };
  };

  const show = () => {
    const set = Object.fromEntries(controls.map(({ name, value }) => [name, Number(value)]));
    const [scale, aggregation, shade] = ["advantage", "loss", "shade"].map((name) => form.elements[name].value);
    const taken = completions.slice(0, set.group_size).map((one) => one.querySelectorAll(".tokens i").length);
    const rewards = rewardInputs.slice(0, set.group_size).map((input) => Number(input.value));
    const advantages = groupAdvantages(rewards, scale);
    const weights = tokenWeights(taken, aggregation);
    const found = [];
    let at = 0;
    for (const [i, completion] of completions.entries()) {
      const [advantage, weight] = [advantages[i] ?? NaN, weights[i] ?? NaN];
      completion.classList.toggle("absent", i >= set.group_size);
      const sign = Math.sign(advantage) || 0;
      const label = completion.querySelector(".advantage");
      label.className = `advantage ${["down", "", "up"][sign + 1]}`;
      label.textContent = i < set.group_size ? `${"▼·▲"[sign + 1]} A ${short(advantage)}` : "not taken";
      completion.querySelector(".weight").textContent = i < set.group_size ? short(weight) : "-";
      for (const token of completion.querySelectorAll(".tokens i")) {
        const old = data.old_logprobs[at];
        const moved = set.stretch * (data.logprobs[set.update][at] - old) + set.shift;
        const logprob = Math.min(old + moved, 0);
        const ref = data.ref_logprobs[at] ?? logprob; // without a reference to itself: KL is 0
        at += 1;
        const told = objective(logprob, old, ref, advantage, weight, set);
        if (i < set.group_size) found.push(told);
        const size = shade === "weight" ? weight * Math.abs(Math.sign(told.gradient)) : Math.abs(told.gradient);
        token.className = [told.gradient < 0 ? "up" : told.gradient > 0 ? "down" : "", told.clipped ? "c" : ""].join(" ");
        token.style.setProperty("--n", Math.min(4, 2 * size * sum(taken)) || 0);
        const numbers = [logprob, old, data.ref_logprobs[at - 1] === null ? NaN : ref, told.ratio, told.kl, told.surrogate, weight, told.loss, told.gradient];
        token.dataset.v = [token.textContent.replace(/\n/g, ""), ...numbers.map((value) => (isNaN(value) ? "-" : short(value)))].join("\n");
      }
    }
    for (const control of controls)
      if (control.type === "range") control.nextElementSibling.textContent = short(Number(control.value), 3);
    const changed = controls.filter((control) => control.value !== real.get(control) && control.name !== "shade");
    document.getElementById("moved").textContent = changed.map(({ name }) => name).join(", ") || "nothing";
    const clipped = found.filter((token) => token.clipped).length;
    const signal = advantages.some(Boolean) ? "" : " Equal rewards: no signal.";
    document.getElementById("totals").textContent = `loss ${short(sum(found.map((token) => token.loss)), 4)}; ${clipped} of ${found.length} tokens clipped.${signal}`;
  };

  document.addEventListener("input", show);
  document.getElementById("restore").addEventListener("click", () => (form.reset(), show()));
  form.addEventListener("submit", (event) => event.preventDefault());
  show();
})();

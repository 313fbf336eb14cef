"""`python train.py --explain`: one step of GRPO as the paper's equations with the step's numbers.

Each equation stands beside the function that computes it. The step is made by the loop itself.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_uppercase
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from grpo.interfaces import Policy
from grpo.loss import clip_bounds, clipped_surrogate
from grpo.metrics import Step
from grpo.run.terminal import visible
from grpo.run.trace import Describe, Pieces, write_trace
from grpo.settings.config import Config
from grpo.settings.errors import UsageError

WIDTH, LABEL, NUMBER = 100, 33, 11  # columns of a line, and of the table of tokens
# One step on one prompt. A question whose rewards are all equal has no signal, so others are drawn
# in its place. With a KL term, so that the reference is used, and at the full learning rate. The
# equations are those of the default objective: a variant that is typed does not hold.
UNLESS_TYPED = "--recipe phantom --group-size 4 --kl-coef 0.04 --warmup-steps 0"
ALWAYS = "--method grpo --prompts-per-step 1 --steps 1 --dynamic-sampling 50 --eval-size 0"
PLAIN = "--baseline group --combine-rewards sum --ratio token --surrogate clip --kl k3 --delta none"
WEIGHTS = {
    "grpo": "w = 1 / (B G |o_i|)",
    "dapo": "w = 1 / sum_i |o_i|",
    "dr_grpo": "w = 1 / (B G max_length)",
}


def one_step(typed: Sequence[str]) -> list[str]:
    """Return the flags of the run whose step is explained.

    >>> one_step(["--kl-coef", "0"])[6:12]
    ['--warmup-steps', '0', '--kl-coef', '0', '--method', 'grpo']
    """
    return [*UNLESS_TYPED.split(), *typed, *ALWAYS.split(), *PLAIN.split(), "--eval-every", "0"]


def explanation(
    policy: Policy, step: Step, config: Config, describe: Describe, pieces: Pieces, page: str | None
) -> str:
    """Return the text, whose lines are at most 100 characters long; write the group to `page`.

    `policy` has made the step, which has one group. Raises UsageError if all rewards are equal, or
    if the file `page` cannot be written.
    """
    rollout = step.rollout
    if not step.advantages.any():
        problem = f"{rollout.redrawn + 1} questions were drawn, and none had rewards that differ"
        raise UsageError(f"--explain: {problem}; use a larger --group-size or another --seed")
    best, worst = int(step.advantages.argmax()), int(step.advantages.argmin())
    between = [i for i in step.advantages[0].argsort().tolist() if i not in (best, worst)]
    middle = between[(len(between) - 1) // 2 :][:1]  # two completions have no middle
    with torch.no_grad():
        after, _ = policy.logprobs(rollout.groups, config.temperature)
    sections = (
        question(step, config, describe),
        advantages(step, config),
        tokens(policy, step, config, [best, *middle, worst]),
        loss(step, config),
        effect(step, after, best, worst),
    )
    if page:
        from grpo.explain.page import write_page  # most runs make none

        # The policy after the step is one more update, of which the page reads log-probs alone.
        last = replace(step.updates[-1], logprobs=after.cpu())
        step = replace(step, updates=[*step.updates, last])
        with TemporaryDirectory() as folder:
            write_trace(Path(folder, "trace"), step, config, describe, pieces)
            write_page(Path(folder), page)
    return "\n\n".join("\n".join(visible(line)[:WIDTH] for line in section) for section in sections)


def question(step: Step, config: Config, describe: Describe) -> Iterator[str]:
    """Yield the question, the sampled completions and their rewards."""
    rollout = step.rollout
    facts, _ = describe(rollout.examples[0])
    options = zip(ascii_uppercase, facts["options"], strict=False)
    yield beside("One step of GRPO, on one question (B = 1)", "grpo/loop.py:grpo_step")
    yield f"q: {facts['question']!r} {', '.join(f'{letter}) {text}' for letter, text in options)}"
    yield f"   right is {facts['gold']}; {facts['modality']}, {facts['id']}"
    yield "The first question drawn whose completions earn different rewards: equal ones have no"
    yield f"advantages, so no signal. Drawn before it and skipped: {rollout.redrawn}."
    yield ""
    last = f"o_{config.group_size}"
    yield beside(f"1. o_1 .. {last} ~ pi_old(. | q)", "models/policy.py:Policy.sample")
    for i, text in enumerate(rollout.texts[0]):
        yield f"   o_{i + 1} of {int(rollout.lengths[i])} tokens: {text!r}"
    yield beside(f"2. r_i, the weighted sum of {config.reward}", "rewards/scoring.py:score")
    for i, reward in enumerate(rollout.rewards[0].tolist()):
        parts = ", ".join(f"{name} {brief(part[0, i])}" for name, part in rollout.parts.items())
        yield f"   r_{i + 1} = {brief(reward)} ({parts})"


def advantages(step: Step, config: Config) -> Iterator[str]:
    """Yield the equation of A_i with its numbers."""
    rewards = step.rollout.rewards[0]
    mean, std = rewards.mean(), rewards.std()
    divisor = " / (std + 0.0001)" if config.scale_rewards != "none" else ""
    yield beside(f"3. A_i = (r_i - mean){divisor}", "grpo/advantages.py:group_advantages")
    divisor = divisor.replace("std", brief(std))
    total = " + ".join(map(brief, rewards.tolist()))
    yield f"   mean = ({total}) / {len(rewards)} = {brief(mean)}"
    yield f"   std = sqrt(sum_i (r_i - mean)^2 / ({len(rewards)} - 1)) = {brief(std)}"
    for i, (reward, advantage) in enumerate(zip(rewards, step.advantages[0], strict=True), 1):
        yield f"   A_{i} = ({brief(reward)} - {brief(mean)}){divisor} = {brief(advantage)}"


def tokens(policy: Policy, step: Step, config: Config, chosen: Sequence[int]) -> Iterator[str]:
    """Yield the numbers of one token of each `chosen` completion: the one of highest entropy."""
    last, row, rollout = step.updates[-1], step.rollout.row, step.rollout
    eps, eps_high, _ = clip_bounds(config.clip_eps, config.clip_eps_high)
    picks = [(i, int(last.entropy[row == i].argmax())) for i in chosen]
    at = torch.stack([(row == i).nonzero()[t, 0] for i, t in picks])  # (3,) into (N,)
    ratio, advantage = last.ratio[at], step.advantages.flatten()[row[at]]
    low, high = 1 - eps, 1 + eps_high
    gain = clipped_surrogate(ratio, advantage, eps, eps_high)
    ids = [rollout.groups[0].completions[i][t : t + 1] for i, t in picks]
    update = f"update {len(step.updates)} of {len(step.updates)}"
    yield f"4. The least certain token of the best, a middle and the worst completion, {update}"
    yield columns("   o_i[t]", [f"o_{i + 1}[{t + 1}]" for i, t in picks])
    yield columns("   its text", [repr(policy.decode(i))[: NUMBER - 1] for i in ids])
    reference = ratio * math.nan if step.ref_logprobs is None else step.ref_logprobs[at]
    table = (
        ("log pi", last.logprobs[at], "models/policy.py:Policy.logprobs"),
        ("log pi_old, at first update", step.old_logprobs[at], "grpo/loop.py:policy_pass"),
        ("log pi_ref", reference, "models/policy.py:Policy.reference"),
        ("rho = exp(log pi - log pi_old)", ratio, "grpo/loss.py:importance_ratio"),
        (f"clip(rho, {low:g}, {high:g})", ratio.clamp(low, high), "grpo/loss.py:clipped_surrogate"),
        ("L = min(rho A, clip(rho) A)", gain, "grpo/loss.py:clipped_surrogate"),
        ("KL = x - log x - 1, x = ref/pi", last.kl[at], "grpo/loss.py:k3_kl"),
        (WEIGHTS[config.loss], step.weights[at], "grpo/loss.py:token_weights"),
        (f"loss = -w (L - {config.kl_coef:g} KL)", last.loss[at], "grpo/loop.py:policy_pass"),
    )
    for label, values, place in table:
        yield columns(f"   {label}", [brief(value) for value in values], place)
    if (last.ratio == 1).all():
        yield "   The ratio is 1 at every token, and none is clipped: the weights have not moved"
        yield "   since sampling, so pi is pi_old. With --updates-per-rollout 3 they do."
    if config.kl_coef > 0 and (last.kl == 0).all():
        yield "   KL is 0 at every token: training starts at the reference, so pi is pi_ref. It"
        yield "   grows once the weights have moved, from the second update on."


def loss(step: Step, config: Config) -> Iterator[str]:
    """Yield the loss, each completion's share of it, the gradient's norm and the learning rate."""
    last, row = step.updates[-1], step.rollout.row
    where = "grpo/loop.py:policy_pass"
    yield beside("5. The sum of the tokens' losses, by completion and in all", where)
    for i in range(config.group_size):
        yield f"   o_{i + 1}: {brief(last.loss[row == i].sum())}"
    total = last.loss.sum()
    yield f"   loss = {brief(total)}"
    if config.loss == "grpo" and (last.ratio == 1).all() and total.abs() < 1e-6:
        yield "   0 but for rounding: the advantages sum to 0, and completions weigh the same."
        yield "   Its derivative by a log pi is not 0 but -w A, and that moves the weights."
    yield ""
    held = "longer than" if last.grad_norm > config.max_grad_norm else "within"
    yield beside("6. g = d loss / d weights of the LoRA", "grpo/optim.py:optimizer_step")
    yield f"   |g| = {brief(last.grad_norm)}, {held} --max-grad-norm {config.max_grad_norm:g}"
    rate = f"   AdamW moves the weights, at learning rate {brief(last.learning_rate)}"
    yield beside(rate, "grpo/optim.py:learning_rate")


def effect(step: Step, after: Tensor, best: int, worst: int) -> Iterator[str]:
    """Yield how likely the best and the worst completion were before the step and are now."""
    row, old = step.rollout.row, step.old_logprobs
    where = "models/policy.py:Policy.logprobs"
    yield beside("7. What the step did: log pi(o_i | q), the sum over its tokens", where)
    for name, i in (("best", best), ("worst", worst)):
        before, now = old[row == i].sum(), after[row == i].sum()
        times = f"{brief((now - before).exp())} times as likely"
        yield f"   {name} o_{i + 1}: {brief(before)} before, {brief(now)} after: {times}"
        if name == "worst" and now > before:
            yield "   It rose too: all completions share the weights, and one step is coarse."


def beside(text: str, place: str) -> str:
    """Return a line with the place in the code at its right end."""
    return text + place.rjust(WIDTH - len(text))


def columns(label: str, values: Sequence[str], place: str = "") -> str:
    """Return a row of the table of tokens."""
    numbers = "".join(value.rjust(NUMBER) for value in values)
    return beside(label.ljust(LABEL) + numbers, place).rstrip()


def brief(value: float | Tensor) -> str:
    """Return a number with six digits, in at most ten columns.

    >>> brief(2.0), brief(-0.02083333), brief(-1.1920929e-07)
    ('2', '-0.0208333', '-1.192e-07')
    """
    text = f"{float(value) + 0.0:.6g}"
    return f"{float(value):.3e}" if "e" in text else text

"""Every variant of the objective through the running loop, against nested loops in Python floats,
which are float64: its loss token by token, and its slopes by differences of the oracle's loss.

The policy is the table of test_oracle.py, so the gradient is that of every token's log-prob.
"""

import json
import math
import random
import statistics
from collections.abc import Sequence

import pytest
import torch

from grpo.loss import (
    cispo_surrogate,
    clip_bounds,
    clipped,
    clipped_surrogate,
    corrected_k3_kl,
    importance_ratio,
    k3_kl,
)
from grpo.settings.config import Config
from tests.grpo import cases
from tests.grpo.test_advantages import gdpo_by_hand
from tests.grpo.test_oracle import (
    ONE_FAST,
    Case,
    Table,
    at_each_update,
    random_case,
    random_config,
    starts,
)

WEIGHTS = {"form": 1.0, "right": 2.0, "maybe": -0.5}
GDPO = {"combine_rewards": "normalized", "reward": "form,f.py:right=2,maybe=-0.5"}
PLAIN = {"scale_rewards": "group", "clip_eps": 0.2, "clip_eps_high": None}
VARIANTS = {
    "reinforce": {"baseline": "none", "scale_rewards": "none"},
    "batch std": {"scale_rewards": "batch"},
    "gdpo": GDPO,
    "gspo": {"ratio": "sequence", "clip_eps": 0.1},
    "gspo, corrected KL": {"ratio": "sequence", "kl": "k3-corrected", "kl_coef": 1.0},
    "cispo": {"surrogate": "cispo", "clip_eps_high": 0.1},
    "cispo of sequences": {"surrogate": "cispo", "ratio": "sequence", "clip_eps_high": 0.05},
    "delta": {"clip_delta": 1.3, "clip_eps": 0.1, "clip_eps_high": 0.15},
    "corrected KL": {"kl": "k3-corrected", "kl_coef": 1.0},
    "cut completions masked": {"mask_truncated": True},
    "all at once": {**GDPO, "ratio": "sequence", "kl": "k3-corrected", "mask_truncated": True},
}


class Cut(Table):
    """The table, with some of its completions cut."""

    def completed(self, prompt, ids, truncated, logprobs):
        cut = [(prompt + i) % 3 == 0 for i in range(len(truncated))]
        return super().completed(prompt, ids, cut, logprobs)


def advantages(parts: dict[str, list], totals: list, c: Config) -> list[list[float]]:
    if c.combine_rewards == "normalized":
        return gdpo_by_hand(parts, WEIGHTS)
    if c.baseline == "none":
        return totals
    every = [r for row in totals for r in row]
    found = []
    for row in totals:
        std = {"group": row, "batch": every}.get(c.scale_rewards)
        by = statistics.stdev(std) + 1e-4 if std else 1.0
        found.append([(r - statistics.fmean(row)) / by for r in row])
    return found


def oracle(case: Case, c: Config, scores: list, p: Sequence[float], held: Sequence[float]) -> list:
    """Every token's share of the loss; `held` are the log-probs where no gradient is taken."""
    lengths = [n for row in case.lengths for n in row]
    cut = [(b + i) % 3 == 0 for b, row in enumerate(case.lengths) for i in range(len(row))]
    masked = [c.mask_truncated and one for one in cut]
    kept = sum(n for n, out in zip(lengths, masked, strict=True) if not out)
    high = 1 + (c.clip_eps_high or c.clip_eps)
    losses, start = [], 0
    for n, out, a in zip(lengths, masked, [a for row in scores for a in row], strict=True):
        at = range(start, start := start + n)
        weight = {"grpo": n * len(lengths), "dapo": max(kept, 1)}
        weight = 0.0 if out else 1 / weight.get(c.loss, len(lengths) * c.max_completion_length)

        def ratio(logprobs: Sequence[float], t: int, at=at, n=n) -> float:
            tokens = at if c.ratio == "sequence" else [t]
            return math.exp(sum(logprobs[s] - case.old[s] for s in tokens) / len(tokens))

        for t in at:
            rho, x = ratio(p, t), math.exp(case.ref[t] - p[t])
            if c.surrogate == "cispo":
                gain = min(ratio(held, t), high) * a * p[t]
            else:
                bounded = min(max(rho, 1 - c.clip_eps), high)
                gain = min(min(rho, c.clip_delta or math.inf) * a, bounded * a)
            kl = (x - math.log(x) - 1) * (rho if c.kl == "k3-corrected" else 1)
            losses.append(-weight * (gain - c.kl_coef * kl))
    return losses


def slopes(case: Case, c: Config, scores: list, p: list[float], h: float = 1e-6) -> list[float]:
    found = []
    for t in range(len(p)):
        ends = [sum(oracle(case, c, scores, [*p[:t], p[t] + d, *p[t + 1 :]], p)) for d in (h, -h)]
        found.append((ends[0] - ends[1]) / (2 * h))
    return found


def worst(found: torch.Tensor, expected: Sequence[float]) -> float:
    want = torch.tensor(expected, dtype=torch.float64)
    return float((found.double() - want).abs().max() / want.abs().max().clamp(min=1e-3))


@pytest.mark.parametrize("loss", ONE_FAST)
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_slope_of_every_token_are_those_of_nested_loops(name, loss):
    errors = []
    for seed in range(3):
        rng = random.Random(f"{name} {loss} {seed}")
        case, c = random_case(rng), random_config(rng)
        size = {"group_size": len(case.lengths[0]), "prompts_per_step": len(case.lengths)}
        c = Config(**{**vars(c), **size, **PLAIN, "loss": loss, **VARIANTS[name]})
        shape = [[rng.choice([0.0, 0.5, 1.0]) for _ in row] for row in case.lengths]
        parts = {k: [[rng.choice([0.0, 1.0]) for _ in row] for row in shape] for k in WEIGHTS}
        parts["maybe"][0][0] = math.nan
        flat = {k: [None if math.isnan(r) else r for row in v for r in row]
                for k, v in parts.items()}  # fmt: skip
        totals = [r for row in shape for r in row]
        table, seen = Cut(case, together=bool(seed % 2)), []

        def reward(examples, texts, ids, case=case, totals=totals, flat=flat):
            places = [starts(case).index(int(text)) for text in texts]
            assert [one[0] for one in ids] == [starts(case)[i] for i in places]
            picked = {k: [values[i] for i in places] for k, values in flat.items()}
            return [totals[i] for i in places], picked

        def look(*_, table=table, seen=seen, case=case) -> None:
            seen.append(table.table.grad.clone())
            table.moved = torch.tensor(case.drift)

        with at_each_update(look):
            (step,) = cases.steps(table, lambda step, slot, attempt: slot, reward, c)
        scores = advantages(parts, shape, c)
        errors.append(worst(step.advantages.flatten(), [a for row in scores for a in row]))
        old, drift = torch.tensor(case.old), torch.tensor(case.drift)
        for update, slope, p in zip(step.updates, seen, (old, old + drift), strict=True):
            errors.append(
                worst(update.loss.nan_to_num(), oracle(case, c, scores, *[p.tolist()] * 2))
            )
            errors.append(worst(slope, slopes(case, c, scores, p.tolist())))
    print(json.dumps({"variant": name, "loss": loss, "largest": max(errors)}))
    assert max(errors) < 1e-5


def one_step(rewards: list[list[float]], parts: dict[str, list[list[float]]], **changes):
    """A step of groups with these rewards; and which slots were drawn, in order."""
    rng, size, drawn = random.Random(0), len(rewards[0]), []
    case = Case(rewards, [[2] * size for _ in rewards], [-1.0] * 2 * size * len(rewards), [], [])
    case.ref = [rng.uniform(-2, 0) for _ in case.old]
    c = Config(group_size=size, prompts_per_step=len(rewards), steps=1, kl_coef=0.0, **changes)

    def draw(step: int, slot: int, attempt: int) -> int:
        drawn.append(slot)
        return slot

    def reward(examples, texts, ids):
        flat = {k: [v for b in examples[::size] for v in rows[b]] for k, rows in parts.items()}
        return [r for b in examples[::size] for r in rewards[b]], flat

    (step,) = cases.steps(Table(case, together=True), draw, reward, c)
    return step, drawn


def test_no_signal_is_decided_on_advantages_not_on_totals():
    """Group 0 has equal totals, group 1 cancels, group 2 is equal throughout; 3 is as any other."""
    parts = {
        "form": [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]],
        "right": [[0, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]],
        "findings": [[0, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
    }
    rewards = [[float(sum(r)) for r in zip(*rows, strict=True)]
               for rows in zip(*parts.values(), strict=True)]  # fmt: skip
    assert rewards[0] == [1, 1, 1, 1]
    settings = (
        ({}, [0, 0, 0, 1]),
        ({"combine_rewards": "normalized"}, [1, 0, 0, 1]),
        ({"baseline": "none", "scale_rewards": "none"}, [1, 1, 1, 1]),
    )
    for changes, signal in settings:
        step, drawn = one_step(rewards, parts, dynamic_sampling=2, **changes)
        signal = torch.tensor(signal, dtype=torch.bool)
        silent = [b for b in range(4) if not signal[b]]
        assert drawn == [0, 1, 2, 3, *silent, *silent], "what has no signal is drawn again"
        assert torch.equal(step.advantages.any(dim=1), signal)
        assert torch.equal(~step.updates[0].logprobs.isnan(), signal.repeat_interleave(8))
        assert step.metrics["frac_reward_zero_std"] == pytest.approx(1 - signal.float().mean())
        assert step.metrics["groups_redrawn"] == 2 * len(silent)


def test_cut_completions_keep_their_reward_in_the_baseline_and_their_place_in_the_mean():
    rewards = [[1.0, 0.0, 0.0]]
    case = Case(rewards, [[2, 2, 2]], [-1.0] * 6, [-1.0] * 6, [])
    c = Config(group_size=3, prompts_per_step=1, steps=1, kl_coef=0.0, mask_truncated=True)
    reward = lambda *_: (rewards[0], {"r": rewards[0]})  # noqa: E731
    (step,) = cases.steps(Cut(case, together=True), lambda *_: 0, reward, c)
    assert step.rollout.truncated.tolist() == [True, False, False]
    assert step.advantages[0, 0] > 1
    assert step.weights.tolist() == pytest.approx([0, 0, 1 / 6, 1 / 6, 1 / 6, 1 / 6])


def test_delta_bounds_what_the_clip_leaves_open_and_nothing_else():
    ratio = torch.tensor([5.0, 5.0, 1.5, 0.5], requires_grad=True)
    a = torch.tensor([-1.0, 1.0, -1.0, -1.0])
    clipped_surrogate(ratio, a, 0.2, 0.2, 3.0).sum().backward()
    assert ratio.grad.tolist() == [0, 0, -1, 0]
    low, high = clipped(ratio.detach(), a, *clip_bounds(0.2, None, 3.0))
    assert (low | high).tolist() == (ratio.grad == 0).tolist()
    assert low.tolist() == [False, False, False, True]


def test_no_token_of_cispo_loses_its_gradient():
    logprobs = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    ratio, a = torch.tensor([9.0, 9.0, 0.1]), torch.tensor([1.0, -1.0, -1.0])
    cispo_surrogate(ratio, a, logprobs, 4.0).sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([5.0, -5.0, -0.1])
    low, high = clipped(ratio, a, *clip_bounds(0.2, 4.0, None, "cispo"))
    assert (low.tolist(), high.tolist()) == ([False] * 3, [True, False, False])


def test_corrected_kl_has_the_gradient_of_the_true_kl():
    """Sum over tokens of pi_old rho k3, where pi_old is pi: that of k3 alone is another one."""
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64).log_softmax(0)
    p = logits.log_softmax(0)
    old = p.detach()
    true = torch.autograd.grad((p.exp() * (p - ref)).sum(), logits, retain_graph=True)[0]
    corrected = (old.exp() * corrected_k3_kl(p, ref, importance_ratio(p, old))).sum()
    found = torch.autograd.grad(corrected, logits, retain_graph=True)[0]
    torch.testing.assert_close(found, true)
    alone = torch.autograd.grad((old.exp() * k3_kl(p, ref)).sum(), logits)[0]
    assert (alone - true).abs().max() > 0.05

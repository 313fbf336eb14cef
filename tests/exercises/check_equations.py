"""The checks of exercises 1 to 4: each raises Wrong if an answer differs from the oracle."""

import math
import random
from collections.abc import Callable

import torch

from grpo.settings.config import Config
from tests.exercises.comparing import finite, same, slope
from tests.grpo import test_oracle, test_variants

LOSSES = ("grpo", "dapo", "dr_grpo")


def group_advantages(answer: Callable) -> None:
    rng = random.Random(0)
    steps = [
        [[2.0, 0.0, 0.0, 0.0]],
        [[1.0, 0.0, 1.0], [5.0, 5.0, 6.0]],
        [[rng.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(6)] for _ in range(20)],
        [[1e-3 * rng.random() for _ in range(5)]],
    ]
    for scale in ("group", "none", "batch"):
        for i, rewards in enumerate(steps):
            what = f"advantages, scale_rewards {scale}"
            if i < 2:
                what += f", rewards {rewards}"
            expected = test_variants.advantages({}, rewards, Config(scale_rewards=scale))
            same(what, answer(torch.tensor(rewards), scale), expected)
        found = answer(torch.full((2, 7), 0.1), scale)
        same(f"seven rewards of 0.1, scale_rewards {scale}", found, torch.zeros(2, 7), 0.0)
    same("advantages without scale_rewards", answer(torch.tensor(steps[2])),
         test_variants.advantages({}, steps[2], Config()))  # fmt: skip


def token_weights(answer: Callable) -> None:
    """At rho 1 and A -1, without KL, the oracle's loss of a token is its weight."""
    for lengths in ([[1, 3]], [[4, 2, 7], [1, 5, 3]], [[3]]):
        flat = [n for row in lengths for n in row]
        cut = [(b + i) % 3 == 0 for b, row in enumerate(lengths) for i in range(len(row))]
        zeros = [0.0] * sum(flat)
        case = test_oracle.Case([], lengths, zeros, zeros, [])
        for loss in LOSSES:
            for masked in (False, True):
                c = Config(loss=loss, max_completion_length=9, mask_truncated=masked, kl_coef=0.0)
                scores = [[-1.0] * len(row) for row in lengths]
                expected = test_variants.oracle(case, c, scores, zeros, zeros)
                given = (torch.tensor(flat), loss, 9) + (torch.tensor(cut),) * masked
                what = f"weights, loss {loss}, lengths {flat}, max_completion_length 9"
                same(f"{what}, masked {cut}" if masked else what, answer(*given), expected)


def one_token_each(rng: random.Random, count: int = 40) -> test_oracle.Case:
    """Completions of one token, so that each token has an advantage of its own."""
    old, ref = ([rng.uniform(-4, -0.1) for _ in range(count)] for _ in range(2))
    return test_oracle.Case([], [[1] * count], old, ref, [rng.uniform(-1, 1) for _ in old])


def importance_ratio(answer: Callable) -> None:
    case = one_token_each(random.Random(1))
    old = torch.tensor(case.old)
    logprobs = (old + torch.tensor(case.drift)).requires_grad_()
    expected = [math.exp(p - q) for p, q in zip(logprobs.tolist(), case.old, strict=True)]
    ratio = answer(logprobs, old)
    same("rho", ratio, expected)
    same("gradient of rho by log pi", slope("rho", ratio, logprobs), expected)
    same("rho of equal log-probs", answer(old, old), torch.ones_like(old), 0.0)
    finite("rho", answer, old)


def clipped_surrogate(answer: Callable) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        case = one_token_each(rng)
        scores = [rng.uniform(-2, 2) for _ in case.old]
        for settings in ({"clip_eps": 0.2}, {"clip_eps": 0.2, "clip_eps_high": 0.28},
                         {"clip_eps": 0.1, "clip_delta": 1.3}):  # fmt: skip
            c = Config(loss="dr_grpo", max_completion_length=1, kl_coef=0.0, **settings)
            logprobs = torch.tensor(case.old) + torch.tensor(case.drift)
            ratio = (logprobs - torch.tensor(case.old)).exp().requires_grad_()
            high = c.clip_eps_high or c.clip_eps
            bounds = (c.clip_eps, high, c.clip_delta)[: 3 if c.clip_delta else 2]
            found = answer(ratio, torch.tensor(scores), *bounds)
            # Its weight is 1 over their number; and dL/drho = dL/dlog pi / rho.
            count, p = len(scores), logprobs.tolist()
            expected = test_variants.oracle(case, c, [scores], p, p)
            slopes = torch.tensor(test_variants.slopes(case, c, [scores], p))
            what = f"with the bounds {bounds}"
            same(f"L {what}", found, [-count * loss for loss in expected])
            found = slope("L", found, ratio)
            same(f"gradient of L by rho {what}", found, -count * slopes / ratio.detach())


def k3_kl(answer: Callable) -> None:
    """Without advantages and with beta 1 the oracle's loss of a token is its weighted KL."""
    case = one_token_each(random.Random(2))
    c = Config(loss="dr_grpo", max_completion_length=1, kl_coef=1.0)
    count, ref = len(case.old), torch.tensor(case.ref)
    logprobs = torch.tensor(case.old, requires_grad=True)
    arguments = (case, c, [[0.0] * count], case.old)
    kl = answer(logprobs, ref)
    same("KL", kl, [count * loss for loss in test_variants.oracle(*arguments, case.old)])
    slopes = count * torch.tensor(test_variants.slopes(*arguments))
    same("gradient of KL by log pi", slope("KL", kl, logprobs), slopes)
    same("KL of equal log-probs", answer(ref, ref), torch.zeros_like(ref), 0.0)
    finite("KL", answer, ref)

"""The GRPO objective: pure functions of flat tensors, one number a completion token.

(N,) is every completion token of the step and `row` (N,) says which of the B*G completions a token
belongs to. There is no mask, because what comes after a completion's end does not exist.

    rho_t  = pi_theta(o_t) / pi_old(o_t)                                importance_ratio
    L_t    = min(rho_t A, clip(rho_t, 1 - eps, 1 + eps_high) A)         clipped_surrogate
    KL_t   = pi_ref / pi_theta - log(pi_ref / pi_theta) - 1             k3_kl
    loss   = - sum_t w_t (L_t - beta KL_t)                              token_weights

Each equation has variants; `Objective` holds those of a configuration.
"""

from math import inf

import torch
from torch import Tensor

from grpo.advantages import gdpo_advantages, group_advantages, reward_weights
from grpo.settings.config import Config

LOG_RATIO_LIMIT = 20.0  # exp(20) is 5e8; beyond it float32 soon overflows and poisons the step


def log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """log(p / q) of log-probabilities, held within +-20. (N,), (N,) -> (N,)"""
    assert numerator.shape == denominator.shape, "one log-prob a token on both sides"
    return (numerator - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho = pi_theta / pi_old of every token. (N,), (N,) -> (N,)"""
    return log_ratio(logprobs, old_logprobs).exp()


def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, lengths: list[int]) -> Tensor:
    """(prod_t rho_t)^(1 / |o_i|) at every token of o_i: GSPO (2507.18071) eq. 7. (n,) -> (n,)

    `lengths` are those of the completions, whose tokens stand one after another.

    >>> sequence_ratio(torch.tensor([0.1, 0.3, 0.0]), torch.zeros(3), [2, 1])
    tensor([1.2214, 1.2214, 1.0000])
    """
    parts = log_ratio(logprobs, old_logprobs).split(lengths)
    return torch.cat([part.mean().expand_as(part) for part in parts]).exp()


def clip_bounds(
    clip_eps: float, clip_eps_high: float | None, delta: float | None = None, kind: str = "clip"
) -> tuple[float, float, float]:
    """eps, eps_high and delta of the clip: without a bound of its own the high side has the low
    one's, delta is infinite, and so is eps if the surrogate's `kind` is "cispo".

    >>> clip_bounds(0.2, None), clip_bounds(0.2, 0.28, 4.0), clip_bounds(0.2, 4.0, None, "cispo")
    ((0.2, 0.2, inf), (0.2, 0.28, 4.0), (inf, 4.0, inf))
    """
    return (inf if kind == "cispo" else clip_eps), clip_eps_high or clip_eps, delta or inf


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float, delta: float = inf
) -> Tensor:
    """min(rho A, clip(rho, 1 - eps, 1 + eps_high) A): PPO (1707.06347) eq. 7, DAPO's two bounds.
    (N,) -> (N,)

    `advantages` (N,) holds each token's A, that of its completion. The gradient is zero where the
    clip acts: A > 0 and rho > 1 + eps_high, or A < 0 and rho < 1 - eps. `delta`, which must be more
    than 1 + eps_high, also bounds the case left open, A < 0 and a large rho: min(rho, delta) A in
    place of rho A (INTELLECT-2, 2505.07291).

    >>> ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    >>> clipped_surrogate(ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2, 0.2)
    tensor([ 1.2000, -1.5000,  0.5000, -0.8000])
    >>> clipped_surrogate(torch.tensor([9.0, 9.0]), torch.tensor([1.0, -1.0]), 0.2, 0.2, 4.0)
    tensor([ 1.2000, -4.0000])
    """
    assert ratio.shape == advantages.shape, "one advantage a token"
    bounded = ratio.clamp(1 - clip_eps, 1 + clip_eps_high)
    ratio = ratio if delta == inf else ratio.clamp(max=delta)
    return torch.min(ratio * advantages, bounded * advantages)


def cispo_surrogate(
    ratio: Tensor, advantages: Tensor, logprobs: Tensor, clip_eps_high: float
) -> Tensor:
    """sg(min(rho, 1 + eps_high)) A log pi_theta: CISPO (MiniMax-M1, 2506.13585) eq. 4. (N,) -> (N,)

    sg is no gradient: the bound holds a token's weight, so every token keeps its gradient.

    >>> cispo_surrogate(torch.tensor([0.5, 9.0]), torch.ones(2), torch.tensor([-1.0, -1.0]), 4.0)
    tensor([-0.5000, -5.0000])
    """
    return ratio.detach().clamp(max=1 + clip_eps_high) * advantages * logprobs


def clipped(
    ratio: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float, delta: float = inf
) -> tuple[Tensor, Tensor]:
    """Where the clip took the gradient away, at the low and at a high bound: two (N,) bool. Where
    `clip_bounds` are CISPO's, the high one held the weight of a token with A > 0."""
    low = (ratio < 1 - clip_eps) & (advantages < 0)
    high = (ratio > 1 + clip_eps_high) & (advantages > 0) | (ratio > delta) & (advantages < 0)
    return low, high


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(pi_theta || pi_ref) by Schulman's k3: x - log x - 1 with x = pi_ref / pi_theta. (N,), (N,)
    -> (N,)

    Unbiased under pi_theta, never negative, zero where the two agree
    (joschu.net/blog/kl-approx.html).
    """
    log_x = log_ratio(ref_logprobs, logprobs)
    return log_x.exp() - log_x - 1


def corrected_k3_kl(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor) -> Tensor:
    """rho (x - log x - 1): k3 of tokens that pi_old drew (DeepSeek-V3.2, 2512.02556). (N,) x 3
    -> (N,)

    Unbiased under pi_old, and so is its gradient, because rho has one: that of k3 alone is not even
    where rho is 1.

    >>> corrected_k3_kl(torch.tensor([0.0]), torch.tensor([-1.0]), torch.tensor([2.0]))
    tensor([0.7358])
    """
    return ratio * k3_kl(logprobs, ref_logprobs)


def token_weights(
    lengths: Tensor, loss: str, max_completion_length: int, masked: Tensor | bool = False
) -> Tensor:
    """The weight w of every token in the loss: the whole of what `--loss` decides. (B*G,) -> (N,)

    `grpo`     1 / (B G |o_i|): mean of each completion, then over them (DeepSeekMath eq. 3)
    `dapo`     1 / sum_i |o_i|: every token of the step counts the same (DAPO, 2503.14476, eq. 8)
    `dr_grpo`  1 / (B G max_completion_length): a constant (Dr. GRPO, 2503.20783)

    `lengths` holds all completions of the step, on all ranks and passes: one denominator, however
    the work is divided. The completions of `masked` (B*G,) bool weigh nothing (DAPO); as in TRL
    they count among the B G and not among the tokens of `dapo`.

    >>> token_weights(torch.tensor([1, 3]), "grpo", 4)
    tensor([0.5000, 0.1667, 0.1667, 0.1667])
    """
    rows = len(lengths)
    kept = lengths * (masked == 0)  # (B*G,)
    denominator = {
        "grpo": rows * lengths.double(),
        "dapo": kept.sum().clamp(min=1).double().expand(rows),
        "dr_grpo": torch.full_like(lengths, rows * max_completion_length, dtype=torch.float64),
    }[loss]
    return ((kept > 0) / denominator).repeat_interleave(lengths).float()


class Objective:
    """What a configuration puts into the loop's equations; grpo/README.md lists the variants."""

    def __init__(self, c: Config) -> None:
        bounds = clip_bounds(c.clip_eps, c.clip_eps_high, c.clip_delta, c.surrogate)
        self.beta, self.temperature = c.kl_coef, c.temperature
        # A of the rewards (B, G) and their parts by name, (B, G) each -> (B, G)
        self.advantages = {
            ("group", "sum"): lambda r, _: group_advantages(r, c.scale_rewards),
            ("group", "normalized"): lambda _, k: gdpo_advantages(k, reward_weights(c.reward)),
            ("none", "sum"): lambda r, _: r,  # REINFORCE: A_i = r_i
        }[c.baseline, c.combine_rewards]
        # w of the lengths (B*G,), and of whether a completion was cut -> (N,)
        most = c.max_completion_length
        self.weights = lambda n, cut: token_weights(n, c.loss, most, cut & c.mask_truncated)
        # rho of log pi, log pi_old and the groups; this and all below (n,)
        self.ratio = {
            "token": lambda p, q, _: importance_ratio(p, q),
            "sequence": lambda p, q, groups: sequence_ratio(
                p, q, [len(o) for group in groups for o in group.completions]
            ),
        }[c.ratio]
        # L of rho, A and log pi
        self.surrogate = {
            "clip": lambda rho, a, _: clipped_surrogate(rho, a, *bounds),
            "cispo": lambda rho, a, p: cispo_surrogate(rho, a, p, bounds[1]),
        }[c.surrogate]
        # KL of log pi, log pi_ref and rho
        self.kl = {"k3": lambda p, ref, _: k3_kl(p, ref), "k3-corrected": corrected_k3_kl}[c.kl]

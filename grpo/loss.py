"""The GRPO objective: pure functions of flat tensors, one number a completion token.

(N,) is every completion token of the step and `row` (N,) says which of the B*G completions a token
belongs to. There is no mask, because what comes after a completion's end does not exist.

    rho_t  = pi_theta(o_t) / pi_old(o_t)                                importance_ratio
    L_t    = min(rho_t A, clip(rho_t, 1 - eps, 1 + eps_high) A)         clipped_surrogate
    KL_t   = pi_ref / pi_theta - log(pi_ref / pi_theta) - 1             k3_kl
    loss   = - sum_t w_t (L_t - beta KL_t)                              token_weights
"""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # exp(20) is 5e8; beyond it float32 soon overflows and poisons the step


def log_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """log(p / q) of log-probabilities, held within +-20. (N,), (N,) -> (N,)"""
    assert numerator.shape == denominator.shape, "one log-prob a token on both sides"
    return (numerator - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho = pi_theta / pi_old of every token. (N,), (N,) -> (N,)"""
    return log_ratio(logprobs, old_logprobs).exp()


def clip_bounds(clip_eps: float, clip_eps_high: float | None) -> tuple[float, float]:
    """eps and eps_high of the clip: without a bound of its own the high side has the low one's.

    >>> clip_bounds(0.2, None), clip_bounds(0.2, 0.28)
    ((0.2, 0.2), (0.2, 0.28))
    """
    return clip_eps, clip_eps_high or clip_eps


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float
) -> Tensor:
    """min(rho A, clip(rho, 1 - eps, 1 + eps_high) A): PPO (1707.06347) eq. 7, DAPO's two bounds.
    (N,) -> (N,)

    `advantages` (N,) holds each token's A, that of its completion. The gradient is zero where the
    clip acts: A > 0 and rho > 1 + eps_high, or A < 0 and rho < 1 - eps.

    >>> ratio = torch.tensor([1.5, 1.5, 0.5, 0.5])
    >>> clipped_surrogate(ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2, 0.2)
    tensor([ 1.2000, -1.5000,  0.5000, -0.8000])
    """
    assert ratio.shape == advantages.shape, "one advantage a token"
    bounded = ratio.clamp(1 - clip_eps, 1 + clip_eps_high)
    return torch.min(ratio * advantages, bounded * advantages)


def clipped(
    ratio: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float
) -> tuple[Tensor, Tensor]:
    """Where the clip took the gradient away, at the low and at the high bound: two (N,) bool."""
    low = (ratio < 1 - clip_eps) & (advantages < 0)
    high = (ratio > 1 + clip_eps_high) & (advantages > 0)
    return low, high


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(pi_theta || pi_ref) by Schulman's k3: x - log x - 1 with x = pi_ref / pi_theta. (N,), (N,)
    -> (N,)

    Unbiased under pi_theta, never negative, zero where the two agree
    (joschu.net/blog/kl-approx.html).
    """
    log_x = log_ratio(ref_logprobs, logprobs)
    return log_x.exp() - log_x - 1


def token_weights(lengths: Tensor, loss: str, max_completion_length: int) -> Tensor:
    """The weight w of every token in the loss: the whole of what `--loss` decides. (B*G,) -> (N,)

    `grpo`     1 / (B G |o_i|): mean of each completion, then over them (DeepSeekMath eq. 3)
    `dapo`     1 / sum_i |o_i|: every token of the step counts the same (DAPO, 2503.14476, eq. 8)
    `dr_grpo`  1 / (B G max_completion_length): a constant (Dr. GRPO, 2503.20783)

    `lengths` holds all completions of the step, on all ranks and passes: one denominator, however
    the work is divided.

    >>> token_weights(torch.tensor([1, 3]), "grpo", 4)
    tensor([0.5000, 0.1667, 0.1667, 0.1667])
    """
    rows = len(lengths)
    denominator = {
        "grpo": rows * lengths.double(),
        "dapo": lengths.sum().double().expand(rows),
        "dr_grpo": torch.full_like(lengths, rows * max_completion_length, dtype=torch.float64),
    }[loss]
    return (1 / denominator).repeat_interleave(lengths).float()

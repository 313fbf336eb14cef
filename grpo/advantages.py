"""Rewards of a group to advantages: what "relative" in GRPO means."""

from collections.abc import Mapping

import torch
from torch import Tensor


def group_advantages(rewards: Tensor, scale_rewards: str = "group") -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-4) within each group. (B, G) -> (B, G)

    DeepSeekMath (2402.03300) section 4.1, with TRL's unbiased std (ddof 1) and its 1e-4.
    `scale_rewards="none"` leaves the division out, as Dr. GRPO (2503.20783) does; "batch" divides
    by the std of all B G rewards (2508.08221). A group of equal rewards gets exact zeros.

    >>> group_advantages(torch.tensor([[1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]]), "none")
    tensor([[ 0.5000, -0.5000,  0.5000, -0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    assert rewards.ndim == 2, "rewards are (B, G)"
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if scale_rewards == "group":
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 1e-4)
    elif scale_rewards == "batch":
        advantages = advantages / (rewards.std() + 1e-4)
    # The mean of equal numbers can miss them by a rounding error, which the division would blow up.
    equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)  # (B, 1)
    return advantages.masked_fill(equal, 0.0)


def gdpo_advantages(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """GDPO (2601.05242): each reward normalised in its group, then their sum over the step.

        s_i = sum_k w_k (r_ik - mean(r_k)) / (std(r_k) + 1e-4)        within each group
        A_i = (s_i - mean(s)) / (std(s) + 1e-4)                       over all B groups

    `parts` holds each reward r_k by name, (B, G); `weights` their w_k, 1 if absent. -> (B, G)
    NaN, a reward that does not apply, adds nothing to s_i and has no part in mean and std. A group
    whose sums are all 0 gets exact zeros: rewards that are equal, or that cancel.

    >>> form, right = torch.tensor([[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 0.0]]])
    >>> gdpo_advantages({"format": form, "accuracy": right}, {})  # the first and third earn 1
    tensor([[ 0.3981,  0.3981,  0.6894, -1.4856]])
    """
    each = [weights.get(k, 1.0) * normalised(part.double(), 1) for k, part in parts.items()]
    total = torch.stack(each).nansum(dim=0)  # (B, G)
    silent = (total.abs() < 1e-6).all(dim=1, keepdim=True)  # (B, 1) but for rounding of r
    return normalised(total.view(1, -1), 1).view_as(total).masked_fill(silent, 0.0).float()


def normalised(values: Tensor, dim: int) -> Tensor:
    """(x - mean) / (std + 1e-4) along `dim`, std unbiased; NaN stays and has no part in them.

    >>> normalised(torch.tensor([2.0, float("nan"), 0.0]), 0)
    tensor([ 0.7071,     nan, -0.7071])
    """
    centred = values - values.nanmean(dim, keepdim=True)
    degrees = (~values.isnan()).sum(dim, keepdim=True) - 1
    return centred / ((centred.square().nansum(dim, keepdim=True) / degrees).sqrt() + 1e-4)


def reward_weights(spec: str) -> dict[str, float]:
    """The weights in the text of `--reward`, by the rewards' names.

    >>> reward_weights("format=0.5, my.py:brevity")
    {'format': 0.5, 'brevity': 1.0}
    """
    terms = (term.strip().partition("=") for term in spec.split(","))
    return {name.rpartition(":")[2]: float(weight or 1) for name, _, weight in terms}

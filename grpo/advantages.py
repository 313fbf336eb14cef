"""Rewards of a group to advantages: what "relative" in GRPO means."""

from torch import Tensor


def group_advantages(rewards: Tensor, scale_rewards: str = "group") -> Tensor:
    """A_i = (r_i - mean(r)) / (std(r) + 1e-4) within each group. (B, G) -> (B, G)

    DeepSeekMath (2402.03300) section 4.1, with TRL's unbiased std (ddof 1) and its 1e-4.
    `scale_rewards="none"` leaves the division out, as Dr. GRPO (2503.20783) does. A group of equal
    rewards gets exact zeros.

    >>> import torch
    >>> group_advantages(torch.tensor([[1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]]), "none")
    tensor([[ 0.5000, -0.5000,  0.5000, -0.5000],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    assert rewards.ndim == 2, "rewards are (B, G)"
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    if scale_rewards == "group":
        advantages = advantages / (rewards.std(dim=1, keepdim=True) + 1e-4)
    # The mean of equal numbers can miss them by a rounding error, which the division would blow up.
    return advantages.masked_fill(zero_variance(rewards)[:, None], 0.0)


def zero_variance(rewards: Tensor) -> Tensor:
    """Which groups have equal rewards throughout, and so nothing to say. (B, G) -> (B,) bool"""
    return (rewards == rewards[:, :1]).all(dim=1)

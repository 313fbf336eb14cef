"""The numbers of a step, under TRL's names where TRL has one; and a clock for its phases."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from .advantages import zero_variance
from .loss import LOG_RATIO_LIMIT, clipped, k3_kl
from .rollout import Group, Rollout
from .step import Update

GRADIENT = ("grad_norm", "learning_rate", "skipped_updates")  # of an update, as metrics


class Clock:
    """Seconds spent in the phases of a step: `lap` ends a phase."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        if torch.cuda.is_available():  # kernels run on: wait, or the next phase pays for them
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.phases[f"time/{phase}"], self.last = now - self.last, now

    def times(self) -> dict[str, float]:
        """All phases, and `time/step`: the whole step so far."""
        return {**self.phases, "time/step": time.perf_counter() - self.start}


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """What was sampled, what it earned. `reward_std`: mean of the groups' own (ddof 1) std."""
    lengths = rollout.lengths.float()
    truncated = [t for group in rollout.groups for t in group.truncated]
    return {
        "reward": rollout.rewards.mean().item(),
        "reward_std": rollout.rewards.std(dim=1).mean().item(),
        **{f"rewards/{name}/mean": part.nanmean().item() for name, part in rollout.parts.items()},
        "frac_reward_zero_std": zero_variance(rollout.rewards).float().mean().item(),
        "groups_redrawn": float(rollout.redrawn),
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": sum(truncated) / len(truncated),
    }


def update_metrics(
    update: Update,
    passes: list[tuple[list[Group], Tensor]],
    advantages: Tensor,
    eps: float,
    eps_high: float,
    beta: float,
) -> dict[str, float]:
    """Means over the scored tokens, those of the passes. `advantages` (N,).

    `clamped` is the share of tokens whose log-ratio, to the old policy or to the reference, was
    held at its bound. Without a KL term there is no `kl`.
    """
    gradient = {name: getattr(update, name) for name in GRADIENT}
    if not passes:  # no group had signal
        return {"loss": 0.0, **gradient}
    tokens = torch.cat([tokens for _, tokens in passes])
    ratio, kl = update.ratio[tokens], update.kl[tokens]
    low, high = clipped(ratio, advantages[tokens], eps, eps_high)
    bounds = ratio.new_tensor([LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT])
    clamped = torch.isin(ratio, bounds.exp()) | torch.isin(kl, k3_kl(bounds, 0 * bounds))
    return {
        "loss": update.loss[tokens].sum().item(),
        **({"kl": kl.mean().item()} if beta > 0 else {}),
        "entropy": update.entropy[tokens].mean().item(),
        "ratio/mean": ratio.mean().item(),
        "ratio/max": ratio.max().item(),
        "ratio/clamped": clamped.float().mean().item(),
        "clip_ratio/low_mean": low.float().mean().item(),
        "clip_ratio/high_mean": high.float().mean().item(),
        "clip_ratio/region_mean": (low | high).float().mean().item(),
        **gradient,
    }


def mean_over_updates(updates: list[dict[str, float]]) -> dict[str, float]:
    """Each metric averaged over the mu updates of a step."""
    return {name: sum(u[name] for u in updates) / len(updates) for name in updates[0]}

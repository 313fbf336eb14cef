"""The numbers of a step, under TRL's names where TRL has one; and a clock for its phases."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.advantages import zero_variance
from grpo.loss import LOG_RATIO_LIMIT, clipped, k3_kl
from grpo.rollout import Rollout
from grpo.settings.config import Config
from grpo.step import Update

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
    updates: Sequence[Update], scored: Tensor, advantages: Tensor, config: Config
) -> dict[str, float]:
    """Means over the scored (N,) bool tokens, those of a pass, and over the mu updates of a step.

    `advantages` are (N,). `clamped` is the share of tokens whose log-ratio, to the old policy or to
    the reference, was held at its bound. Without a KL term there is no `kl`.
    """
    each = [_update_metrics(update, scored, advantages, config) for update in updates]
    return {name: sum(of[name] for of in each) / len(each) for name in each[0]}


def _update_metrics(
    update: Update, scored: Tensor, advantages: Tensor, config: Config
) -> dict[str, float]:
    gradient = {name: getattr(update, name) for name in GRADIENT}
    if not scored.any():  # no group had signal
        return {"loss": 0.0, **gradient}
    ratio, kl = update.ratio[scored], update.kl[scored]
    bounds = config.clip_eps, config.clip_eps_high or config.clip_eps
    low, high = clipped(ratio, advantages[scored], *bounds)
    limits = ratio.new_tensor([LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT])
    clamped = torch.isin(ratio, limits.exp()) | torch.isin(kl, k3_kl(limits, 0 * limits))
    return {
        "loss": update.loss[scored].sum().item(),
        **({"kl": kl.mean().item()} if config.kl_coef > 0 else {}),
        "entropy": update.entropy[scored].mean().item(),
        "ratio/mean": ratio.mean().item(),
        "ratio/max": ratio.max().item(),
        "ratio/clamped": clamped.float().mean().item(),
        "clip_ratio/low_mean": low.float().mean().item(),
        "clip_ratio/high_mean": high.float().mean().item(),
        "clip_ratio/region_mean": (low | high).float().mean().item(),
        **gradient,
    }

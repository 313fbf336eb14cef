"""A step as the loop yields it, and its numbers, under TRL's names where TRL has one.

A step refers to everything that it is made of, so that keeping a record of it (run/trace.py),
explaining it (explain/) or neither is up to the caller.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan

import torch
from torch import Tensor

from grpo.interfaces import Example
from grpo.loss import LOG_RATIO_LIMIT, clip_bounds, clipped, k3_kl
from grpo.rollout import Rollout
from grpo.settings.config import Config

Metrics = dict[str, float]  # by name
PER_TOKEN = ("logprobs", "ratio", "kl", "entropy", "loss")  # what a pass sees of a token
GRADIENT = ("grad_norm", "learning_rate", "skipped_updates")  # fields of Update, as metrics too


class Tokens:
    """What the loss needs to know of every completion token of a step, (N,) each."""

    def __init__(self, weights: Tensor, advantages: Tensor, device: torch.device) -> None:
        """`advantages` are those of the token's completion; `device` is the policy's."""
        self.weights, self.advantages = weights.to(device), advantages.to(device)
        self.old_logprobs = torch.zeros_like(self.weights)
        self.ref_logprobs = torch.zeros_like(self.weights)


class Seen:
    """What the passes of one update see of every completion token, as one tensor (5, N)."""

    def __init__(self, weights: Tensor, update: int) -> None:
        """`weights` (N,) gives size, dtype and device; `update` counts from 0 in a step."""
        self.numbers = weights.new_zeros(len(PER_TOKEN), len(weights))
        self.update = update

    def keep(self, at: Tensor, **values: Tensor) -> None:
        """Write the values (n,), by their names, for the tokens at the places `at` (n,)."""
        for name, value in values.items():
            self.numbers[PER_TOKEN.index(name), at] = value.detach()

    def by_name(self, in_pass: Tensor) -> dict[str, Tensor]:
        """(N,) each on the CPU, NaN for the tokens that took no pass: not `in_pass` (N,) bool."""
        return dict(zip(PER_TOKEN, self.numbers.cpu().where(in_pass, nan), strict=True))


@dataclass
class Update:
    """One optimizer update and what its passes saw of every token: (N,) each, detached.

    NaN for the tokens of a group that took no pass: equal rewards, and no KL term.
    """

    logprobs: Tensor
    ratio: Tensor
    kl: Tensor
    entropy: Tensor
    loss: Tensor  # the token's share of the loss, which is their sum
    grad_norm: float  # before clipping
    learning_rate: float
    skipped_updates: float  # 1.0 where a number was not finite and so nothing was updated
    grad_norm_by_layer: dict[str, float] = field(default_factory=dict)  # of a traced step


@dataclass
class Step:
    """What happened in a step. A supervised one has its metrics and nothing else."""

    metrics: Metrics
    rollout: Rollout | None = None
    advantages: Tensor | None = None  # (B, G)
    weights: Tensor | None = None  # (N,)
    old_logprobs: Tensor | None = None  # (N,)
    ref_logprobs: Tensor | None = None  # (N,); None where kl_coef is 0
    updates: list[Update] = field(default_factory=list)
    suspects: list[Example] = field(default_factory=list)  # whose pass spoilt the gradient
    cuts: int = 0  # how often memory ran out, and its passes were made smaller
    image_logprobs: dict[str, Tensor] = field(default_factory=dict)  # (N,) each, of --trace-blind


class Clock:
    """Seconds spent in the phases of a step on a device: `lap` ends a phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self.last = time.perf_counter()
        self.phases: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        if self.device.type == "cuda":  # kernels run on: wait, or the next phase pays for them
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.phases[f"time/{phase}"], self.last = now - self.last, now

    def times(self) -> Metrics:
        """All phases, and `time/step`: the whole step so far."""
        return {**self.phases, "time/step": time.perf_counter() - self.start}


def rollout_metrics(rollout: Rollout) -> Metrics:
    """The metrics of completions and rewards. `reward_std`: mean of the groups' std (ddof 1)."""
    lengths = rollout.lengths.float()
    return {
        "reward": rollout.rewards.mean().item(),
        "reward_std": rollout.rewards.std(dim=1).mean().item(),
        **{f"rewards/{name}/mean": part.nanmean().item() for name, part in rollout.parts.items()},
        "frac_same_text": sum(len(set(texts)) == 1 for texts in rollout.texts) / len(rollout.texts),
        "groups_redrawn": float(rollout.redrawn),
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": rollout.truncated.float().mean().item(),
    }


def update_metrics(
    updates: Sequence[Update], rollout: Rollout, advantages: Tensor, in_pass: Tensor, config: Config
) -> Metrics:
    """Means over the tokens `in_pass` (N,) bool and over the mu updates of a step.

    `advantages` are (B, G). `clamped` is the share of tokens whose log-ratio, to the old policy or
    to the reference, was held at its bound. Without a KL term there is no `kl`.
    `sampling_logp_difference` is |log pi_old - the log-prob that the token was drawn with|. The
    sampler is another program than the scorer (a cache, one token at a time), so it rounds
    otherwise; a large difference means that one of them is wrong, which the ratio cannot show.
    """
    of_token = advantages.flatten()[rollout.row][in_pass]
    each = [_update_metrics(update, in_pass, of_token, config) for update in updates]
    means = {name: sum(metrics[name] for metrics in each) / len(each) for name in each[0]}
    means["frac_reward_zero_std"] = (~advantages.any(dim=1)).float().mean().item()
    if not in_pass.any():
        return means
    apart = (updates[0].logprobs - rollout.sampling_logprobs)[in_pass].abs()
    name = "sampling/sampling_logp_difference"
    return means | {f"{name}/mean": apart.mean().item(), f"{name}/max": apart.max().item()}


def _update_metrics(update: Update, in_pass: Tensor, advantages: Tensor, config: Config) -> Metrics:
    gradient = {name: getattr(update, name) for name in GRADIENT}
    if not in_pass.any():  # no group had signal
        return {"loss": 0.0, **gradient}
    ratio, kl = update.ratio[in_pass], update.kl[in_pass]
    bounds = clip_bounds(config.clip_eps, config.clip_eps_high, config.clip_delta, config.surrogate)
    low, high = clipped(ratio, advantages, *bounds)
    limits = ratio.new_tensor([LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT])
    clamped = torch.isin(ratio, limits.exp()) | torch.isin(kl, k3_kl(limits, 0 * limits))
    return {
        "loss": update.loss[in_pass].sum().item(),
        **({"kl": kl.mean().item()} if config.kl_coef > 0 else {}),
        "entropy": update.entropy[in_pass].mean().item(),
        "ratio/mean": ratio.mean().item(),
        "ratio/max": ratio.max().item(),
        "ratio/clamped": clamped.float().mean().item(),
        "clip_ratio/low_mean": low.float().mean().item(),
        "clip_ratio/high_mean": high.float().mean().item(),
        "clip_ratio/region_mean": (low | high).float().mean().item(),
        **gradient,
    }

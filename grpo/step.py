"""A step as the loop yields it: everything that it is made of, by reference, so that keeping a
record of it (run/trace.py), explaining it (explain/) or neither is up to the caller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from grpo.rollout import Example, Rollout


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

    metrics: dict[str, float]
    rollout: Rollout | None = None
    advantages: Tensor | None = None  # (B, G)
    weights: Tensor | None = None  # (N,)
    old_logprobs: Tensor | None = None  # (N,)
    ref_logprobs: Tensor | None = None  # (N,); None where kl_coef is 0
    updates: list[Update] = field(default_factory=list)
    suspects: list[Example] = field(default_factory=list)  # whose pass spoilt the gradient
    cuts: int = 0  # how often memory ran out, and its passes were made smaller

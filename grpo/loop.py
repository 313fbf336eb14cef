"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300), in the order of its
equations. Read this first.

A step has B groups; a group is one prompt and G completions of it. Shapes:

    (B, G)  rewards, advantages
    (N,)    every completion token of the step: logprobs, old_logprobs, ref_logprobs, weights
    (n,)    the tokens of one pass, where a step is too large for one

Two things look like bugs and are not. On the first update after a rollout the policy that scores
is the one that sampled: the ratio is exactly 1, and as advantages sum to 0 so does the `grpo` loss
(but for beta KL). Its gradient does not; it is that of REINFORCE with a baseline. And the KL starts
at exactly 0, because fresh adapters change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from math import nan
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from grpo.advantages import group_advantages, zero_variance
from grpo.distributed import sum_gradients, summed
from grpo.loss import clipped_surrogate, importance_ratio, k3_kl, token_weights
from grpo.metrics import Clock, rollout_metrics, update_metrics
from grpo.optim import norm_by_layer, optimizer_step
from grpo.passes import Passes
from grpo.rollout import Example, Group, Rewards, sample_groups
from grpo.settings.config import Config
from grpo.step import Step, Update


class Policy(Protocol):
    """What the algorithm needs of a model."""

    device: torch.device
    names: list[str]  # of the parameters

    def encode(self, examples: Sequence[Example]) -> list[Any]:
        """Prompts: token ids, positions and kept image features of each question."""

    def sample(
        self,
        prompts: list[Any],
        group_size: int,
        keys: list[tuple[int, ...]],  # one a prompt, of the random numbers
        *,
        temperature: float,
        max_completion_length: int,
    ) -> list[Group]:
        """`group_size` completions of every prompt, drawn from softmax(logits / temperature)."""

    def logprobs(self, groups: Sequence[Group], temperature: float) -> tuple[Tensor, Tensor]:
        """log pi_theta of every completion token (n,), and the entropy there (n,), no gradient."""

    def reference(self) -> AbstractContextManager[None]:
        """Inside it, `logprobs` is that of the policy before training."""

    def passes(self, groups: Sequence[Group]) -> list[list[int]]:
        """Indices of the groups that go through the model together."""

    def group(self, prompt: Any, texts: Sequence[str]) -> Group:
        """Given texts as the completions of a prompt (supervised training)."""

    def completed(self, prompt: Any, ids: Sequence[list[int]], truncated: list[bool]) -> Group:
        """Given token ids as the completions of a prompt: what `sample` drew, elsewhere perhaps."""

    def out_of_memory(self, error: Exception) -> bool: ...
    def decode(self, ids: Tensor) -> str: ...
    def parameters(self) -> list[Tensor]: ...
    def save(self, folder: Path) -> None: ...


def grpo(
    policy: Policy,
    optimizer: torch.optim.AdamW,
    draw: Callable[[int, int, int], Example],
    reward: Callable[[list[Example], list[str]], Rewards],
    config: Config,
    start: int = 0,
) -> Iterator[Step]:
    """Train `policy` in place and yield every step: its metrics and what they are made of.

    `draw(step, slot, attempt)` asks a question; `reward(examples, texts)` scores completions, one
    example a text; `start` steps are done. Of many processes each has a share of the groups.
    """
    eps, eps_high = config.clip_eps, config.clip_eps_high or config.clip_eps
    beta, traced = config.kl_coef, config.traced_steps

    for step in range(start, config.steps):
        clock = Clock()

        # o_1 .. o_G ~ pi_old(. | q) for B questions q, and their rewards r_i
        rollout = sample_groups(policy, draw, reward, config, step)
        row = rollout.row  # (N,) which of the B*G completions a token belongs to
        clock.lap("rollout")

        # A_i = (r_i - mean(r)) / std(r): one for a completion, the same for all its tokens
        advantages = group_advantages(rollout.rewards, config.scale_rewards)  # (B, G)
        token_advantages = advantages.flatten()[row]  # (N,)

        # 1/G sum_i 1/|o_i| sum_t, or another aggregation: one weight a token of the whole step
        weights = token_weights(rollout.lengths, config.loss, config.max_completion_length)  # (N,)

        # Equal rewards: no policy gradient. Without a KL term their pass would add exact zeros.
        live = ~zero_variance(rollout.rewards) | (beta > 0)  # (B,)
        scored = live[row // config.group_size]  # (N,) the tokens that go through a pass
        passes = Passes(policy, rollout.groups, live)

        # log pi_ref(o_t), the policy before training
        ref_logprobs = torch.zeros_like(weights)  # (N,)
        if beta > 0:
            with torch.no_grad(), policy.reference():
                for groups, tokens in passes:
                    with passes.fitted():
                        ref_logprobs[tokens], _ = policy.logprobs(groups, config.temperature)
            ref_logprobs = summed(ref_logprobs)
        clock.lap("reference")

        old_logprobs = torch.zeros_like(weights)  # (N,)
        updates = []
        for update in range(config.updates_per_rollout):
            seen = weights.new_zeros(5, len(row))  # of every token, for the record
            for groups, tokens in passes:
                with passes.fitted():
                    logprobs = ratio = surrogate = kl = loss = None  # the pass before lets go
                    # All of the following are (n,), the tokens of this pass.
                    logprobs, entropy = policy.logprobs(groups, config.temperature)
                    if update == 0:  # nothing has moved since sampling: this is pi_old
                        old_logprobs[tokens] = logprobs.detach()

                    ratio = importance_ratio(logprobs, old_logprobs[tokens])
                    surrogate = clipped_surrogate(ratio, token_advantages[tokens], eps, eps_high)
                    kl = k3_kl(logprobs, ref_logprobs[tokens] if beta > 0 else logprobs)
                    loss = -weights[tokens] * (surrogate - beta * kl)
                    loss.sum().backward()
                    seen[:, tokens] = torch.stack([logprobs, ratio, kl, entropy, loss]).detach()

            seen = summed(seen)
            sum_gradients(policy.parameters())
            layers = norm_by_layer(policy.names, optimizer) if step + 1 in traced else {}
            gradient = optimizer_step(optimizer, step, config, seen)
            updates.append(Update(*seen.where(scored, nan), **gradient, grad_norm_by_layer=layers))
        clock.lap("update")

        of_updates = update_metrics(updates, scored, token_advantages, config)
        metrics = {"step": step + 1, **rollout_metrics(rollout), **of_updates, **clock.times()}
        old, ref = updates[0].logprobs, ref_logprobs if beta > 0 else None
        suspects = [rollout.examples[b] for b in passes.suspects]
        yield Step(metrics, rollout, advantages, weights, old, ref, updates, suspects, passes.cuts)

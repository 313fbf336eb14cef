"""The supervised baseline: the same policy, questions, adapters, optimizer and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from grpo.distributed import sum_gradients, summed
from grpo.loop import Policy
from grpo.metrics import Clock
from grpo.optim import optimizer_step
from grpo.passes import Passes
from grpo.rollout import Example
from grpo.settings.config import Config
from grpo.step import Step


def sft(
    policy: Policy,
    optimizer: torch.optim.AdamW,
    draw: Callable[[int, int, int], Example],
    target: Callable[[Example], str],
    config: Config,
    start: int = 0,
) -> Iterator[Step]:
    """Train `policy` in place to write `target(example)`, and yield the metrics of every step.

    The loss is the mean of -log pi(token) over all target tokens of the step, the prompt's not
    among them. Scored at temperature 1, as a likelihood must be.
    """
    for step in range(start, config.steps):
        clock = Clock()
        examples = [draw(step, slot, 0) for slot in range(config.prompts_per_step)]
        prompts = policy.encode(examples)
        groups = [policy.group(p, [target(e)]) for p, e in zip(prompts, examples, strict=True)]
        passes = Passes(policy, groups, torch.ones(len(groups), dtype=torch.bool))
        losses = torch.zeros(sum(len(g.completions[0]) for g in groups), device=policy.device)
        for chosen, tokens in passes:
            with passes.fitted():
                logprobs = loss = None  # the pass before lets go
                logprobs, _ = policy.logprobs(chosen, temperature=1.0)  # (n,)
                loss = -logprobs / len(losses)
                loss.sum().backward()
                losses[tokens] = loss.detach()
        losses = summed(losses)  # (N,)
        sum_gradients(policy.parameters())
        update = optimizer_step(optimizer, step, config, losses)
        clock.lap("update")
        numbers = {"loss": losses.sum().item(), **update, **clock.times()}
        suspects = [examples[b] for b in passes.suspects]
        yield Step({"step": step + 1, **numbers}, suspects=suspects)

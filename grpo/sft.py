"""The supervised baseline: the same policy, questions, adapters, optimizer and steps."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import AdamW

from grpo.distributed import sum_gradients, summed
from grpo.interfaces import Draw, Groups, Policy, Target
from grpo.metrics import Clock, Step
from grpo.optim import optimizer_step
from grpo.passes import Passes
from grpo.settings.config import Config


def sft(
    policy: Policy, optimizer: AdamW, draw: Draw, target: Target, config: Config, start: int = 0
) -> Iterator[Step]:
    """Train `policy` in place to write `target(example)`, and yield the metrics of every step.

    The loss is the mean of -log pi(token) over all target tokens of the step, the prompt's not
    among them. Scored at temperature 1, as a likelihood must be.
    """
    for step in range(start, config.steps):
        clock = Clock(policy.device)
        examples = [draw(step, slot, 0) for slot in range(config.prompts_per_step)]
        prompts = policy.encode(examples)
        groups = [policy.group(p, [target(e)]) for p, e in zip(prompts, examples, strict=True)]
        passes = Passes(policy, groups, torch.ones(len(groups), dtype=torch.bool))
        # (N,) the tokens of all targets
        losses = torch.zeros(sum(len(g.completions[0]) for g in groups), device=policy.device)
        passes.run(target_pass, policy, losses)
        summed(losses)
        sum_gradients(policy.parameters())
        update = optimizer_step(optimizer, step, config, losses)
        clock.lap("update")
        metrics = {"step": step + 1, "loss": losses.sum().item(), **update, **clock.times()}
        yield Step(metrics, suspects=[examples[b] for b in passes.suspects])


def target_pass(groups: Groups, at: Tensor, policy: Policy, losses: Tensor) -> None:
    """Add the gradient of one pass: -1/N sum_t log pi(token t)."""
    logprobs, _ = policy.logprobs(groups, temperature=1.0)  # (n,)
    loss = -logprobs / len(losses)
    loss.sum().backward()
    losses[at] = loss.detach()

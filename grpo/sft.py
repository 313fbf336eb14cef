"""The supervised baseline: the same policy, questions, adapters, optimizer and steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .config import Config
from .loop import Policy
from .metrics import Clock
from .optim import adamw, learning_rate, optimizer_step
from .rollout import Example
from .step import Step


def sft(
    policy: Policy,
    draw: Callable[[int, int, int], Example],
    target: Callable[[Example], str],
    config: Config,
) -> Iterator[Step]:
    """Train `policy` in place to write `target(example)`, and yield the metrics of every step.

    The loss is the mean of -log pi(token) over all target tokens of the step, the prompt's not
    among them. Scored at temperature 1, as a likelihood must be.
    """
    optimizer = adamw(policy.parameters(), config)
    for step in range(config.steps):
        clock = Clock()
        examples = [draw(step, slot, 0) for slot in range(config.prompts_per_step)]
        prompts = policy.encode(examples)
        groups = [policy.group(p, [target(e)]) for p, e in zip(prompts, examples, strict=True)]
        tokens = sum(len(group.completions[0]) for group in groups)
        total = 0.0
        for chosen in policy.passes(groups):
            logprobs, _ = policy.logprobs([groups[i] for i in chosen], temperature=1.0)  # (n,)
            loss = -logprobs.sum() / tokens
            loss.backward()
            total += loss.item()
        update = optimizer_step(optimizer, learning_rate(step, config), config.max_grad_norm)
        clock.lap("update")
        yield Step({"step": step + 1, "loss": total, **update, **clock.times()})

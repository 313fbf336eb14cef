"""The one step that the plan of a run's memory takes, with fake tensors."""

from typing import Any

from grpo.distributed import alone
from grpo.interfaces import Example, Policy
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.settings.config import Config
from grpo.sft import sft


def largest_step(policy: Policy, config: Config, example: Example, text: str) -> None:
    """One step: its prompts all ask `example`; supervised, all its targets are `text`.

    Rewards differ within every group, so that all have a part in the gradient.
    """

    def reward(examples: list[Example], texts: list[str], ids: list[list[int]]) -> Any:
        values = [float(i % 2) for i in range(len(texts))]
        return values, {"any": values}

    optimizer = adamw(policy.parameters(), config)
    optimizer.step()  # makes the moments, which are there from the second step of a run on
    train, by = (sft, lambda _: text) if config.method == "sft" else (grpo, reward)
    with alone():
        next(train(policy, optimizer, lambda *slot: example, by, config))

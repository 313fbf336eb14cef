"""The rollout of a step: ask B questions, sample G completions of each, score them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from grpo.advantages import zero_variance
from grpo.distributed import gathered, in_order, share
from grpo.settings.config import TRAIN_STREAM, Config

if TYPE_CHECKING:
    from grpo.loop import Policy

Example = Any  # a question with its images: only the policy and the rewards look inside
Rewards = tuple[list[float], dict[str, list[float | None]]]  # totals, and their parts by name


class Group(Protocol):
    """One prompt and its G completions: ids up to and with the end of sequence, no more."""

    completions: list[Tensor]
    truncated: list[bool]  # stopped by max_completion_length, without an end of sequence


@dataclass
class Rollout:
    """B groups, their rewards (B, G), and the parts by name, (B, G), NaN where not applicable."""

    examples: list[Example]
    groups: list[Group]
    texts: list[list[str]]
    rewards: Tensor
    parts: dict[str, Tensor]
    redrawn: int = 0  # groups sampled and thrown away by dynamic sampling
    lengths: Tensor = field(init=False)  # (B*G,) tokens of each completion
    row: Tensor = field(init=False)  # (N,) the completion that each token belongs to

    def __post_init__(self) -> None:
        lengths = [len(ids) for group in self.groups for ids in group.completions]
        self.lengths = torch.tensor(lengths, device=self.rewards.device)
        self.row = torch.repeat_interleave(self.lengths)


def sample_groups(
    policy: Policy,
    draw: Callable[[int, int, int], Example],
    reward: Callable[[list[Example], list[str]], Rewards],
    config: Config,
    step: int,
) -> Rollout:
    """Fill the step's B slots with groups, each process its share of them.

    With dynamic sampling (DAPO, 2503.14476, section 3.2) a slot whose rewards are all equal is
    filled again, with another question, up to `dynamic_sampling` times; what is still without
    signal then stays. A slot's random numbers are keyed by (seed, step, slot, attempt), so neither
    batch layout nor the other slots can change them, nor who draws it.
    """
    slots, redrawn = list(range(config.prompts_per_step)), 0
    filled: dict[int, tuple[Example, Group, dict[str, Any]]] = {}
    for attempt in range(config.dynamic_sampling + 1):
        examples = [draw(step, slot, attempt) for slot in slots]
        own = policy.encode(share(examples))
        groups = policy.sample(
            own,
            config.group_size,
            [(TRAIN_STREAM, config.seed, step, slot, attempt) for slot in share(slots)],
            temperature=config.temperature,
            max_completion_length=config.max_completion_length,
        )
        scored = in_order(gathered(score_groups(policy, share(examples), groups, reward)))
        # The others' images have gone through the tower by now, and are in the cache on disk.
        prompts = own if len(own) == len(slots) else policy.encode(examples)
        for slot, example, prompt, of in zip(slots, examples, prompts, scored, strict=True):
            group = policy.completed(prompt, of["ids"], of["truncated"])
            filled[slot] = example, group, of
        rewards = {slot: _tensor(policy, [filled[slot][2]["rewards"]]) for slot in slots}  # (1, G)
        slots = [slot for slot in slots if zero_variance(rewards[slot])]
        if not slots or attempt == config.dynamic_sampling:
            break
        redrawn += len(slots)
    examples, groups, scored = zip(*(filled[slot] for slot in sorted(filled)), strict=True)
    return Rollout(
        examples=list(examples),
        groups=list(groups),
        texts=[of["texts"] for of in scored],
        rewards=_tensor(policy, [of["rewards"] for of in scored]),
        parts={
            name: _tensor(policy, [of["parts"][name] for of in scored])
            for name in scored[0]["parts"]
        },
        redrawn=redrawn,
    )


def score_groups(
    policy: Policy,
    examples: Sequence[Example],
    groups: Sequence[Group],
    reward: Callable[[list[Example], list[str]], Rewards],
) -> list[dict[str, Any]]:
    """Each group ready for JSON: ids, truncated, texts, rewards and, by name, their parts (G)."""
    if not groups:
        return []
    texts = [[policy.decode(ids) for ids in group.completions] for group in groups]
    repeated = [example for example, of in zip(examples, texts, strict=True) for _ in of]
    totals, parts = reward(repeated, [text for of in texts for text in of])
    scored, end = [], 0
    for group, of in zip(groups, texts, strict=True):
        start, end = end, end + len(of)
        scored.append(
            {
                "ids": [ids.tolist() for ids in group.completions],
                "truncated": list(group.truncated),
                "texts": of,
                "rewards": list(totals[start:end]),
                "parts": {name: list(part[start:end]) for name, part in parts.items()},
            }
        )
    return scored


def _tensor(policy: Policy, values: Sequence[Sequence[float | None]]) -> Tensor:
    """(B, G) float32, NaN for None."""
    rows = [[float("nan") if value is None else value for value in row] for row in values]
    return torch.tensor(rows, dtype=torch.float32, device=policy.device)

"""The rollout of a step: ask B questions, sample G completions of each, score them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .advantages import zero_variance
from .config import TRAIN_STREAM, Config

if TYPE_CHECKING:
    from .loop import Policy

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
    """Fill the step's B slots with groups.

    With dynamic sampling (DAPO, 2503.14476, section 3.2) a slot whose rewards are all equal is
    filled again, with another question, up to `dynamic_sampling` times; what is still without
    signal then stays. A slot's random numbers are keyed by (seed, step, slot, attempt), so neither
    batch layout nor the other slots can change them.
    """
    slots, redrawn = list(range(config.prompts_per_step)), 0
    filled: dict[int, Rollout] = {}  # each slot as a rollout of one group
    for attempt in range(config.dynamic_sampling + 1):
        examples = [draw(step, slot, attempt) for slot in slots]
        groups = policy.sample(
            policy.encode(examples),
            config.group_size,
            [(TRAIN_STREAM, config.seed, step, slot, attempt) for slot in slots],
            temperature=config.temperature,
            max_completion_length=config.max_completion_length,
        )
        scored = score_groups(policy, examples, groups, reward)
        filled.update(zip(slots, scored, strict=True))
        slots = [slot for slot in slots if zero_variance(filled[slot].rewards).item()]
        if not slots or attempt == config.dynamic_sampling:
            break
        redrawn += len(slots)
    return _join([filled[slot] for slot in sorted(filled)], redrawn)


def score_groups(
    policy: Policy,
    examples: Sequence[Example],
    groups: Sequence[Group],
    reward: Callable[[list[Example], list[str]], Rewards],
) -> list[Rollout]:
    """Every group with its rewards, as a rollout of one group: (1, G)."""
    texts = [[policy.decode(ids) for ids in group.completions] for group in groups]
    repeated = [example for example, of in zip(examples, texts, strict=True) for _ in of]
    totals, parts = reward(repeated, [text for of in texts for text in of])

    def by_group(values: Sequence[float | None]) -> Tensor:
        numbers = [float("nan") if value is None else value for value in values]
        return torch.tensor(numbers, dtype=torch.float32, device=policy.device).view(
            len(groups), -1
        )  # (B, G)

    rewards, parts = by_group(totals), {name: by_group(values) for name, values in parts.items()}
    return [
        Rollout(
            [example],
            [group],
            [of],
            rewards[b : b + 1],
            {k: v[b : b + 1] for k, v in parts.items()},
        )
        for b, (example, group, of) in enumerate(zip(examples, groups, texts, strict=True))
    ]


def _join(rollouts: list[Rollout], redrawn: int) -> Rollout:
    """Rollouts of one group each, in the order of their slots, as one rollout."""
    return Rollout(
        examples=[r.examples[0] for r in rollouts],
        groups=[r.groups[0] for r in rollouts],
        texts=[r.texts[0] for r in rollouts],
        rewards=torch.cat([r.rewards for r in rollouts]),
        parts={name: torch.cat([r.parts[name] for r in rollouts]) for name in rollouts[0].parts},
        redrawn=redrawn,
    )


def plan_passes(policy: Policy, rollout: Rollout, live: Tensor) -> list[tuple[list[Group], Tensor]]:
    """The live (B,) groups in passes through the model: each's groups, and their places in (N,)."""
    kept = live.nonzero().flatten().tolist()
    group_of = rollout.row // rollout.rewards.shape[1]  # (N,)
    passes = []
    for chosen in policy.passes([rollout.groups[b] for b in kept]):
        members = sorted(kept[i] for i in chosen)
        tokens = (
            torch.isin(group_of, torch.tensor(members, device=live.device)).nonzero().flatten()
        )  # (n,)
        passes.append(([rollout.groups[b] for b in members], tokens))
    return passes

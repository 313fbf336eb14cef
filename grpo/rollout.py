"""The rollout of a step: ask B questions, sample G completions of each, score them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor

from grpo.advantages import zero_variance
from grpo.distributed import gathered, in_order, share, world
from grpo.interfaces import Draw, Example, Group, Groups, Policy, Reward
from grpo.settings.config import TRAIN_STREAM, Config


@dataclass
class ScoredGroup:
    """One question's completions and what they earned; lists have G entries."""

    example: Example
    group: Group
    texts: list[str]
    rewards: list[float]
    parts: dict[str, list[float | None]]  # by the reward's name; None where it does not apply


@dataclass
class Rollout:
    """B groups with their rewards (B, G). `parts` holds each reward by name, (B, G); NaN: it does
    not apply. On the CPU, where all but the passes is computed: a GPU would wait for each number.
    """

    examples: list[Example]
    groups: list[Group]
    texts: list[list[str]]
    rewards: Tensor
    parts: dict[str, Tensor]
    redrawn: int = 0  # groups sampled and thrown away by dynamic sampling
    lengths: Tensor = field(init=False)  # (B*G,) tokens of each completion
    row: Tensor = field(init=False)  # (N,) the completion that each token belongs to
    sampling_logprobs: Tensor = field(init=False)  # (N,) those that the tokens were drawn with

    def __post_init__(self) -> None:
        logprobs: list[Tensor] = []  # one number a token, so its length is the completion's
        for group in self.groups:
            logprobs += group.sampling_logprobs
        self.lengths = torch.tensor(list(map(len, logprobs)))
        self.row = torch.repeat_interleave(self.lengths)
        self.sampling_logprobs = torch.cat(logprobs)


def sample_groups(policy: Policy, draw: Draw, reward: Reward, config: Config, step: int) -> Rollout:
    """Fill the step's B slots with groups, each process its share of them.

    With dynamic sampling (DAPO, 2503.14476, section 3.2) a slot whose rewards are all equal is
    filled again, with another question, up to `dynamic_sampling` times; what is still without
    signal then stays. A slot's random numbers are keyed by (seed, step, slot, attempt), so neither
    batch layout nor the other slots can change them, nor which process draws it.
    """
    slots, redrawn = list(range(config.prompts_per_step)), 0
    filled: dict[int, ScoredGroup] = {}
    for attempt in range(config.dynamic_sampling + 1):
        examples = [draw(step, slot, attempt) for slot in slots]
        # o_1 .. o_G ~ pi_old(. | q): no update has been made since, so the policy is pi_old
        groups = policy.sample(
            policy.encode(share(examples)),
            config.group_size,
            [(TRAIN_STREAM, config.seed, step, slot, attempt) for slot in share(slots)],
            temperature=config.temperature,
            max_completion_length=config.max_completion_length,
        )
        # r_i of this process's share; every process then needs all groups, for A_i and the loss
        scored = score_groups(policy, share(examples), groups, reward)
        if world() > 1:
            scored = exchange(policy, examples, scored)
        filled |= zip(slots, scored, strict=True)

        # Equal rewards: every advantage of the group would be 0. What is left at the end stays.
        slots = [slot for slot in slots if zero_variance(_tensor([filled[slot].rewards]))]
        if not slots or attempt == config.dynamic_sampling:
            break
        redrawn += len(slots)

    whole, parts = [filled[slot] for slot in sorted(filled)], {}
    for name in whole[0].parts:
        flat = [value for scored in whole for value in scored.parts[name]]
        flat = [nan if value is None else value for value in flat]
        parts[name] = _tensor(flat).view(len(whole), -1)
    return Rollout(
        examples=[scored.example for scored in whole],
        groups=[scored.group for scored in whole],
        texts=[scored.texts for scored in whole],
        rewards=_tensor([scored.rewards for scored in whole]),
        parts=parts,
        redrawn=redrawn,
    )


def score_groups(
    policy: Policy, examples: Sequence[Example], groups: Groups, reward: Reward
) -> list[ScoredGroup]:
    """r_i of every completion: all texts of these groups go to `reward` in one call."""
    if not groups:
        return []
    # Rewards read the text. What trains are the sampled ids: text is never encoded again.
    texts, repeated = [], []
    for example, group in zip(examples, groups, strict=True):
        texts += map(policy.decode, group.completions)
        repeated += [example] * len(group.completions)
    totals, parts = reward(repeated, texts)
    scored, end = [], 0
    for example, group in zip(examples, groups, strict=True):
        start, end = end, end + len(group.completions)
        own = {}
        for name, part in parts.items():
            own[name] = list(part[start:end])
        rewards = list(totals[start:end])
        scored.append(ScoredGroup(example, group, texts[start:end], rewards=rewards, parts=own))
    return scored


def exchange(
    policy: Policy, examples: Sequence[Example], scored: Sequence[ScoredGroup]
) -> list[ScoredGroup]:
    """The groups of all processes, one for each of `examples`; they travel as JSON."""
    records: list[dict[str, Any]] = [
        {
            "ids": [ids.tolist() for ids in mine.group.completions],
            "truncated": list(mine.group.truncated),
            "logprobs": [logprobs.tolist() for logprobs in mine.group.sampling_logprobs],
            "scores": {"texts": mine.texts, "rewards": mine.rewards, "parts": mine.parts},
        }
        for mine in scored
    ]
    records = in_order(gathered(records))
    # Now every process has computed the features of its own images: with a cache on disk, encoding
    # all prompts here only reads it.
    exchanged = []
    for example, prompt, record in zip(examples, policy.encode(examples), records, strict=True):
        drawn = (record[name] for name in ("ids", "truncated", "logprobs"))
        group = policy.completed(prompt, *drawn)
        exchanged.append(ScoredGroup(example, group, **record["scores"]))
    return exchanged


def _tensor(values: Sequence[Any]) -> Tensor:
    """Numbers in float32, whatever torch's default is: a reward may have changed that."""
    return torch.tensor(values, dtype=torch.float32)

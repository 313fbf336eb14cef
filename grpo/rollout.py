"""The rollout of a step: ask B questions, sample G completions of each, score them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from grpo.distributed import gathered, in_order, share, world
from grpo.interfaces import Draw, Example, Group, Groups, Policy, Reward
from grpo.loss import Objective
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
    truncated: Tensor = field(init=False)  # (B*G,) bool: has no end of sequence
    row: Tensor = field(init=False)  # (N,) the completion that each token belongs to
    sampling_logprobs: Tensor = field(init=False)  # (N,) those that the tokens were drawn with

    def __post_init__(self) -> None:
        logprobs: list[Tensor] = []  # one number a token, so its length is the completion's
        truncated: list[bool] = []
        for group in self.groups:
            logprobs += group.sampling_logprobs
            truncated += group.truncated
        self.truncated = torch.tensor(truncated)
        self.lengths = torch.tensor(list(map(len, logprobs)))
        self.row = torch.repeat_interleave(self.lengths)
        self.sampling_logprobs = torch.cat(logprobs)


def sample_groups(policy: Policy, draw: Draw, reward: Reward, config: Config, step: int) -> Rollout:
    """Fill the step's B slots with groups, each process its share of them.

    With dynamic sampling (DAPO, 2503.14476, section 3.2) a slot whose advantages are all 0 is
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

        # Whether a group has advantages depends on no other. What is left at the end stays.
        signal = Objective(config).advantages(*stacked(scored)).any(dim=1)  # (slots,)
        slots = [slot for slot, some in zip(slots, signal, strict=True) if not some]
        if not slots or attempt == config.dynamic_sampling:
            break
        redrawn += len(slots)

    whole = [filled[slot] for slot in sorted(filled)]
    asked = zip(*[(one.example, one.group, one.texts) for one in whole], strict=True)
    return Rollout(*map(list, asked), *stacked(whole), redrawn=redrawn)


def score_groups(
    policy: Policy, examples: Sequence[Example], groups: Groups, reward: Reward
) -> list[ScoredGroup]:
    """r_i of every completion: all texts of these groups go to `reward` in one call."""
    if not groups:
        return []
    # Rewards read text and ids. What trains are the sampled ids: text is never encoded again.
    texts, repeated, ids = [], [], []
    for example, group in zip(examples, groups, strict=True):
        texts += map(policy.decode, group.completions)
        ids += map(Tensor.tolist, group.completions)
        repeated += [example] * len(group.completions)
    totals, parts = reward(repeated, texts, ids)
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


def stacked(scored: Sequence[ScoredGroup]) -> tuple[Tensor, dict[str, Tensor]]:
    """The rewards of these groups (B, G), and each reward by name (B, G): NaN for None. In float32,
    whatever torch's default is: a reward may have changed that."""
    rewards: list[list[float]] = []
    values: dict[str, list[list[float]]] = {}
    for one in scored:
        rewards.append(one.rewards)
        for name, given in one.parts.items():
            values.setdefault(name, []).append([*map({None: nan}.get, given, given)])
    as_tensor = partial(torch.tensor, dtype=torch.float32)
    return as_tensor(rewards), dict(zip(values, map(as_tensor, values.values()), strict=True))

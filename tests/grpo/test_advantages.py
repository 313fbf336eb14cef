"""Advantages against the formula in plain Python."""

import math
import random
import statistics

import pytest
import torch

from grpo.advantages import group_advantages, zero_variance


def by_hand(rewards: list[float], scale: str) -> list[float]:
    mean = statistics.fmean(rewards)
    std = statistics.stdev(rewards) if scale == "group" else 1 - 1e-4
    return [(r - mean) / (std + 1e-4) for r in rewards]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_the_formula_with_the_unbiased_std(scale):
    rng = random.Random(0)
    rewards = [[rng.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(6)] for _ in range(20)]
    expected = torch.tensor([by_hand(group, scale) for group in rewards])
    got = group_advantages(torch.tensor(rewards), scale)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_two_completions_by_hand():
    # mean 1, std sqrt(2): +-1 / (1.41421 + 0.0001)
    a = 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(
        group_advantages(torch.tensor([[2.0, 0.0]])), torch.tensor([[a, -a]])
    )


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_sum_to_zero_in_every_group_and_ignore_a_shift(scale):
    rewards = torch.rand(8, 5, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(rewards, scale)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(group_advantages(rewards + 3, scale), advantages, atol=1e-4, rtol=0)


def test_advantages_of_a_group_do_not_depend_on_the_other_groups():
    """Search-R1#88: wrong grouping quietly turns GRPO into something else."""
    rewards = torch.rand(4, 8, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(group_advantages(rewards)[order], group_advantages(rewards[order]))
    alone = torch.cat([group_advantages(group[None]) for group in rewards])
    torch.testing.assert_close(group_advantages(rewards), alone)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e6])
def test_equal_rewards_give_exact_zeros(value):
    advantages = group_advantages(torch.full((2, 7), value))
    assert torch.equal(advantages, torch.zeros(2, 7))
    assert zero_variance(torch.full((2, 7), value)).all()


def test_a_group_is_without_signal_only_when_all_its_rewards_are_equal():
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 1e-6], [0.0, 0.0, 0.0]])
    assert zero_variance(rewards).tolist() == [True, False, True]

"""Advantages against the formula in plain Python."""

import math
import random
import statistics

import pytest
import torch

from grpo.advantages import gdpo_advantages, group_advantages


def by_hand(rewards: list[float], scale: str) -> list[float]:
    mean = statistics.fmean(rewards)
    std = statistics.stdev(rewards) if scale == "group" else 1 - 1e-4
    return [(r - mean) / (std + 1e-4) for r in rewards]


def gdpo_by_hand(parts: dict[str, list], weights: dict[str, float]) -> list[list[float]]:
    """Each reward by itself, group by group, without its NaN; then the sums, over all groups."""
    groups, size = len(next(iter(parts.values()))), len(next(iter(parts.values()))[0])
    sums = [[0.0] * size for _ in range(groups)]
    for name, rows in parts.items():
        for b, row in enumerate(rows):
            there = [r for r in row if not math.isnan(r)]
            for i, r in enumerate(row):
                if not math.isnan(r) and len(there) > 1:
                    by = statistics.stdev(there) + 1e-4
                    sums[b][i] += weights[name] * (r - statistics.fmean(there)) / by
    every = [s for row in sums for s in row]
    mean, std = statistics.fmean(every), statistics.stdev(every)
    return [[(s - mean) / (std + 1e-4) for s in row] for row in sums]


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
    equal = torch.full((2, 7), value)
    for scale in ("group", "batch", "none"):
        assert torch.equal(group_advantages(equal, scale), torch.zeros(2, 7))
    assert torch.equal(gdpo_advantages({"a": equal, "b": equal}, {"a": 0.3}), torch.zeros(2, 7))


def test_a_group_is_without_signal_only_when_all_its_rewards_are_equal():
    rewards = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 1e-6], [0.0, 0.0, 0.0]])
    assert group_advantages(rewards).any(dim=1).tolist() == [False, True, False]


def test_batch_scaling_divides_by_the_std_of_all_rewards_of_the_step():
    rng = random.Random(1)
    rewards = [[rng.choice([0.0, 0.5, 1.0, 2.0]) for _ in range(6)] for _ in range(20)]
    std = statistics.stdev(r for group in rewards for r in group)
    expected = [[(r - statistics.fmean(group)) / (std + 1e-4) for r in group] for group in rewards]
    found = group_advantages(torch.tensor(rewards), "batch")
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_gdpo_is_the_formula_in_plain_python_with_rewards_that_do_not_apply():
    """ms-swift#8123: one NaN made every advantage of the step NaN."""
    rng = random.Random(2)
    values = [0.0, 0.5, 1.0, math.nan]
    parts = {k: [[rng.choice(values) for _ in range(6)] for _ in range(20)] for k in "abc"}
    parts["c"][3] = [math.nan] * 6  # applies nowhere in its group
    parts["c"][4] = [1.0, *[math.nan] * 5]  # and here to one alone, which is compared with none
    weights = {"a": 1.0, "b": -0.5, "c": 2.0}
    found = gdpo_advantages({k: torch.tensor(rows) for k, rows in parts.items()}, weights)
    expected = torch.tensor(gdpo_by_hand(parts, weights))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_gdpo_tells_apart_completions_of_equal_totals():
    form, right = torch.tensor([[1.0, 0, 1, 0]]), torch.tensor([[0.0, 1, 0, 0]])
    totals = group_advantages(form + right)[0]
    apart = gdpo_advantages({"format": form, "accuracy": right}, {})[0]
    assert totals[0] == totals[1], "(1, 0) and (0, 1)"
    assert apart[1] > apart[0] + 0.1, "the rarer success is worth more"


def test_of_two_rewards_of_one_weight_whose_totals_are_equal_gdpo_makes_nothing():
    """Then one is a constant less the other, and their normalised values cancel exactly."""
    for right in ([1.0, 0, 0], [1.0, 1, 0], [0.3, 0.1, 0.9]):
        right = torch.tensor([right])
        both = {"format": 1 - right, "accuracy": right}
        assert torch.equal(gdpo_advantages(both, {}), torch.zeros(1, 3))
        assert gdpo_advantages(both, {"format": 0.5}).any(), "not so with other weights"

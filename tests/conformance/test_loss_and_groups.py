"""The loss and its groups: lines 34 to 42 of README.md's table."""

import random
import re
import statistics

import pytest
import torch

from grpo.advantages import group_advantages
from grpo.loss import token_weights
from grpo.run.diagnoses import no_signal
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from tests.conformance import oracle
from tests.conformance.oracle import near
from tests.conftest import randomise
from tests.grpo.cases import config, draw, reward

LOSSES = ("grpo", "dapo", "dr_grpo")
ONE_FAST = ["grpo", *(pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES[1:])]


def flat_rewards(examples, texts, ids=()):
    """Equal within every group, and no sum of binary fractions: their mean misses them."""
    return [0.1] * len(texts), {"flat": [0.1] * len(texts)}


@pytest.mark.parametrize("loss", ONE_FAST)
def test_trl_5588_groups_without_signal_pull_only_by_kl(fresh, loss):
    """There, such groups gave no policy gradient, while KL still pulled and tokens were diluted.
    Here, without KL they take no pass and change nothing but the count; with KL they pull."""
    for beta in (0.0, 0.04):
        policy, c = randomise(fresh()), config(loss=loss, kl_coef=beta)
        (step,), seen = oracle.watched(policy, c)  # one of its three groups has no signal
        assert step.metrics["frac_reward_zero_std"] == pytest.approx(1 / 3)
        passed = ~step.updates[0].logprobs.isnan()
        flat = (step.rollout.rewards.std(dim=1) == 0)[step.rollout.row // 4]
        assert torch.equal(passed, ~flat | torch.tensor(beta > 0))
        assert len(step.weights) == step.rollout.lengths.sum(), "its tokens count below the line"
        for found, gradient in oracle.step_gradients(policy, step, c, seen):
            near(found, gradient)

        policy = randomise(fresh())
        start = oracle.flat(policy)
        (step,), _ = oracle.watched(policy, c, reward=flat_rewards)
        assert step.metrics["frac_reward_zero_std"] == 1.0
        assert torch.equal(step.advantages, torch.zeros(3, 4))
        assert torch.equal(oracle.flat(policy), start) == (beta == 0.0)
    for size in (2, 3, 7, 8):
        assert not group_advantages(torch.full((2, size), 0.1)).any()


def test_trl_3708_dynamic_sampling_fills_slots_again(fresh):
    """There, filters looked at means, or cut groups apart, and the batch was not filled again.
    Here, whole groups of equal rewards are drawn again, boundedly, and the waste is counted."""
    asked = []

    def watched(step, slot, attempt):
        asked.append((slot, attempt))
        return draw(step, slot, attempt)

    c = config(dynamic_sampling=4, kl_coef=0.0)
    (step,), _ = oracle.watched(fresh(), c, draw=watched)
    rewards = step.rollout.rewards
    assert rewards.shape == (3, 4)
    assert not any(len(set(row)) == 1 for row in rewards.tolist())
    assert step.metrics["groups_redrawn"] == len(asked) - 3 > 0
    asked.clear()
    (step,), _ = oracle.watched(fresh(), c, reward=flat_rewards, draw=watched)
    assert [attempt for _, attempt in asked] == sorted([*range(5)] * 3)
    assert step.metrics["groups_redrawn"] == 12
    # Equal means are not equal rewards, and a group of a continuous reward is one as any other.
    continuous = torch.tensor([[0.2, 0.5, 0.8], [0.5, 0.0, 1.0], [0.3, 0.3, 0.3 + 1e-6], [0.1] * 3])
    assert group_advantages(continuous).any(dim=1).tolist() == [True, True, True, False]


def test_search_r1_88_a_group_is_compared_with_itself(fresh):
    """There, rows were grouped wrongly and GRPO quietly became something weaker.
    Here, advantages sum to 0 in each group, ignore other groups, and follow rows when shuffled."""
    rewards = (
        torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(6)[:, None]
    )
    advantages = group_advantages(rewards)
    assert advantages.sum(dim=1).abs().max() < 1e-5
    for b, row in enumerate(rewards.tolist()):
        assert advantages[b].tolist() == pytest.approx(oracle.advantages(row), rel=1e-4, abs=1e-5)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        groups, rows = (
            torch.randperm(6, generator=generator),
            torch.randperm(5, generator=generator),
        )
        shuffled = group_advantages(rewards[groups][:, rows])
        torch.testing.assert_close(shuffled, advantages[groups][:, rows])
    (step,), _ = oracle.watched(fresh(), config())
    for example, texts, row in zip(step.rollout.examples, step.rollout.texts,
                                   step.rollout.rewards.tolist(), strict=True):  # fmt: skip
        assert row == reward([example] * 4, texts)[0], "each completion, for its own question"


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        ("grpo", "group"),
        pytest.param("dapo", "group", marks=pytest.mark.slow),
        pytest.param("dr_grpo", "none", marks=pytest.mark.slow),
    ],
)
def test_trl_3021_no_split_into_passes_changes_a_gradient(fresh, loss, scale):
    """There, the loss was scaled by accumulation steps, or averaged pass by pass.
    Here, any split has the gradient of the objective done token by token, for every update."""
    rng, found = random.Random(0), []
    for split in range(3):
        policy = randomise(fresh())

        def passes(groups, split=split):
            order = rng.sample(range(len(groups)), len(groups))
            return [order[:1], order[1:]] if split == 2 else [[i] for i in order]

        if split:
            policy.passes = passes
        c = config(loss=loss, scale_rewards=scale, kl_coef=0.04, updates_per_rollout=2,
                   temperature=0.8, clip_eps=0.02, clip_eps_high=0.03)  # fmt: skip
        (step,), seen = oracle.watched(policy, c)
        found.append(seen[0][1])
        if not split:
            assert step.metrics["clip_ratio/region_mean"] > 0
            for mine, other in oracle.step_gradients(policy, step, c, seen):
                near(mine, other)
    near(found[1], found[0], 1e-6)
    near(found[2], found[0], 1e-6)


def test_vlm_r1_280_what_a_token_weighs(fresh):
    """There, a mean per sequence made long wrong answers cheap, and lengths collapsed.
    Here, each of three aggregations weighs a token as its paper says."""
    lengths = torch.tensor([1, 4, 3])
    by_hand = {
        "grpo": [1 / 3] + [1 / 12] * 4 + [1 / 9] * 3,
        "dapo": [1 / 8] * 8,
        "dr_grpo": [1 / 30] * 8,
    }
    for loss, expected in by_hand.items():
        assert token_weights(lengths, loss, 10).tolist() == pytest.approx(expected)
        (step,), _ = oracle.watched(fresh(), config(loss=loss, kl_coef=0.0))
        c, sampled = config(loss=loss), step.rollout.lengths.tolist()
        weights = [oracle.weight(c, sampled, i) for i in step.rollout.row.tolist()]
        assert step.weights.tolist() == pytest.approx(weights, rel=1e-6)


def test_trl_3857_the_reward_std_is_the_groups_own(fresh):
    """There, the std that was logged was another than the one that divides, and loss 0 alarmed.
    Here, it is the mean of the groups' own; a loss of 0 stands beside a gradient that is not."""
    (step,), seen = oracle.watched(randomise(fresh()), config(kl_coef=0.0))
    stds = [statistics.stdev(row) for row in step.rollout.rewards.tolist()]
    assert step.metrics["reward_std"] == pytest.approx(statistics.fmean(stds), rel=1e-5)
    assert statistics.stdev(step.rollout.rewards.flatten().tolist()) != pytest.approx(
        statistics.fmean(stds), rel=1e-2
    )
    assert abs(step.metrics["loss"]) < 1e-6
    assert step.metrics["grad_norm"] == pytest.approx(float(seen[0][1].norm()), rel=1e-5)
    assert step.metrics["grad_norm"] > 1e-3


def test_ms_swift_3980_the_std_is_unbiased_and_a_group_needs_two():
    """There, the divisor was ddof 0 or 1, with 1e-8 or 1e-4, and a group of one gave NaN.
    Here, it is the unbiased std plus 1e-4, to the last digits, and a group of one is refused."""
    rng = random.Random(1)
    for size in (2, 3, 8):
        for spread in (1e-3, 0.5, 3.0):  # the first tells 1e-4 from 1e-8
            row = [spread * rng.random() for _ in range(size)]
            found = group_advantages(torch.tensor([row], dtype=torch.float64))[0].tolist()
            assert found == pytest.approx(oracle.advantages(row), rel=1e-9)
    a = 1 / (2**0.5 + 1e-4)
    assert group_advantages(torch.tensor([[2.0, 0.0]]))[0].tolist() == pytest.approx([a, -a])
    with pytest.raises(UsageError, match="--group-size 1: a group needs at least 2"):
        Config(group_size=1)


def test_trl_3248_lengths_are_of_what_was_sampled(fresh):
    """There, masking truncated completions also masked them out of the length metrics.
    Here, lengths and the share cut off are of all completions, and cut ones are trained on."""
    policy = randomise(fresh())
    policy.chat.eos = policy.chat.eos | frozenset(range(0, 300, 9))
    c = config(max_completion_length=5, kl_coef=0.04)
    (step,), seen = oracle.watched(policy, c)
    lengths = [len(ids) for group in step.rollout.groups for ids in group.completions]
    cut = [ids[-1].item() not in policy.chat.eos
           for group in step.rollout.groups for ids in group.completions]  # fmt: skip
    assert 0 < sum(cut) < 12
    assert step.metrics["completions/mean_length"] == pytest.approx(statistics.fmean(lengths))
    assert step.metrics["completions/min_length"] == min(lengths)
    assert step.metrics["completions/max_length"] == max(lengths) == 5
    assert step.metrics["completions/clipped_ratio"] == pytest.approx(sum(cut) / 12)
    assert not step.updates[0].logprobs.isnan().any()
    for found, gradient in oracle.step_gradients(policy, step, c, seen):
        near(found, gradient)


def test_coursia_10603_small_groups_without_signal_are_announced():
    """There, with two rows and one right answer in five, seven groups in ten were dead, unsaid.
    Here, the share measured is the share to expect, and from a half on a line names the flags."""
    p, size, count = 0.18, 2, 4000
    right = torch.rand(count, size, generator=torch.Generator().manual_seed(0)) < p
    share = float((~group_advantages(right.float()).any(dim=1)).float().mean())
    assert share == pytest.approx(p**size + (1 - p) ** size, abs=0.03)
    said = no_signal([{"frac_reward_zero_std": share}] * 10, Config(group_size=size))
    assert re.match(r"\d\d % of groups have no signal: raise --group-size \(now 2\)", said)
    assert no_signal([{"frac_reward_zero_std": 0.2}] * 10, Config(group_size=8)) is None

"""What a step samples: whose question, whose reward, what is drawn again, what is reported."""

import math

import pytest

from grpo.rollout import sample_groups
from tests.grpo.cases import config, draw, reward, steps
from tests.tiny import Question


def test_dynamic_sampling_asks_again_with_new_questions_and_counts_the_waste(fresh):
    """areal#450: the batch was filtered and never filled again."""
    asked = []

    def watched(step: int, slot: int, attempt: int) -> Question:
        asked.append((slot, attempt))
        return draw(step, slot, attempt)

    rollout = sample_groups(fresh(), watched, reward, config(dynamic_sampling=4), 0)
    assert asked[:3] == [(0, 0), (1, 0), (2, 0)]
    assert (1, 1) in asked, "slot 1 asked the question whose rewards are all equal"
    assert rollout.redrawn == len(asked) - 3
    assert not (rollout.rewards == rollout.rewards[:, :1]).all(1).any()


def test_dynamic_sampling_gives_up_after_its_attempts(fresh):
    def flat(examples, texts, ids=()):
        return [0.0] * len(texts), {"flat": [0.0] * len(texts)}

    rollout = sample_groups(fresh(), draw, flat, config(dynamic_sampling=2), 0)
    assert rollout.redrawn == 6  # 3 slots, twice
    assert len(rollout.groups) == 3


def test_each_completion_is_rewarded_for_its_own_question(fresh):
    """R1-V#49: rewards were computed with another prompt's image."""
    policy = fresh()
    rollout = sample_groups(policy, draw, reward, config(), 0)
    for b, example in enumerate(rollout.examples):
        assert rollout.groups[b].prompt.id == example.id
        texts = [policy.decode(ids) for ids in rollout.groups[b].completions]
        assert texts == rollout.texts[b]
        assert rollout.rewards[b].tolist() == reward([example] * 4, texts)[0]


def test_a_reward_gets_the_token_ids_of_its_completions_end_included(fresh):
    given = []

    def seen(examples, texts, ids):
        given.extend(ids)
        return reward(examples, texts)

    rollout = sample_groups(fresh(), draw, seen, config(), 0)
    assert given == [ids.tolist() for group in rollout.groups for ids in group.completions]
    assert rollout.truncated.tolist() == [t for group in rollout.groups for t in group.truncated]


def test_a_reward_that_does_not_apply_is_left_out_of_its_mean(fresh):
    """TRL's contract: None is not zero."""

    def partial(examples, texts, ids=()):
        parts = [None if i % 2 else 1.0 for i in range(len(texts))]
        return [1.0 + i for i in range(len(texts))], {"some": parts}

    (step,) = steps(fresh(), draw, partial, config())
    assert step.metrics["rewards/some/mean"] == 1.0


def test_metrics_describe_what_was_sampled(fresh):
    c = config(max_completion_length=3)
    policy = fresh()
    rollout = sample_groups(policy, draw, reward, c, 0)
    (step,) = steps(policy, draw, reward, c)
    lengths = [len(ids) for group in rollout.groups for ids in group.completions]
    cut = [t for group in rollout.groups for t in group.truncated]
    assert step.metrics["completions/mean_length"] == pytest.approx(sum(lengths) / 12)
    assert step.metrics["completions/clipped_ratio"] == pytest.approx(sum(cut) / 12)
    assert step.metrics["reward"] == pytest.approx(rollout.rewards.mean().item())
    stds = [rollout.rewards[b].std().item() for b in range(3)]
    assert step.metrics["reward_std"] == pytest.approx(sum(stds) / 3)
    assert math.isfinite(step.metrics["entropy"])
    assert step.metrics["entropy"] > 0

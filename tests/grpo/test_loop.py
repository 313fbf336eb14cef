"""The loop on a real (random, tiny) Qwen2-VL, against one completion at a time in plain Python.

The rollouts and the gradients come out of the running loop: the sampler is keyed, so they can be
drawn again, and a hook of torch's optimizers sees each gradient just before it is used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from grpo.advantages import group_advantages
from grpo.optim import adamw
from grpo.rollout import sample_groups
from grpo.settings.config import Config
from grpo.sft import sft
from models.policy import Policy
from models.tree import Group
from tests.conftest import randomise
from tests.grpo.cases import QUESTIONS, config, draw, reward, steps


@contextmanager
def at_each_update(look: Callable[[int], None]) -> Iterator[None]:
    """Calls `look(k)` before the k-th optimizer step, with the gradients in place."""
    count = iter(range(1000))
    register = register_optimizer_step_pre_hook
    handle = register(lambda *_: look(next(count)))
    try:
        yield
    finally:
        handle.remove()


def gradients(policy: Policy) -> Tensor:
    return torch.cat([p.grad.flatten() for p in policy.parameters()]).clone()


def each_completion(rollout) -> Iterator[tuple[int, Group]]:
    """(row, group of that completion alone), so that nothing is shared or packed."""
    row = 0
    for group in rollout.groups:
        for ids in group.completions:
            yield row, Group(group.prompt, [ids], [False])
            row += 1


def logprobs_alone(policy: Policy, rollout, temperature: float, where=nullcontext) -> list[Tensor]:
    with where(), torch.no_grad():
        rows = each_completion(rollout)
        return [policy.logprobs([alone], temperature)[0].double() for _, alone in rows]


def naive_gradient(policy: Policy, rollout, c: Config, old, ref) -> Tensor:
    """The objective completion by completion and token by token, one backward a completion."""
    advantages = group_advantages(rollout.rewards, c.scale_rewards).flatten().tolist()
    lengths = [len(ids) for group in rollout.groups for ids in group.completions]
    kept = [p.grad for p in policy.parameters()]
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)
    for row, alone in each_completion(rollout):
        logprobs, _ = policy.logprobs([alone], c.temperature)
        weight = {
            "grpo": 1 / len(lengths) / lengths[row],
            "dapo": 1 / sum(lengths),
            "dr_grpo": 1 / (len(lengths) * c.max_completion_length),
        }[c.loss]
        total = torch.zeros(())
        for t, logprob in enumerate(logprobs):
            ratio = (logprob - old[row][t]).exp()
            high = 1 + (c.clip_eps_high or c.clip_eps)
            bounded = ratio.clamp(1 - c.clip_eps, high)
            gain = torch.minimum(ratio * advantages[row], bounded * advantages[row])
            if c.kl_coef:
                x = (ref[row][t] - logprob).exp()
                gain = gain - c.kl_coef * (x - x.log() - 1)
            total = total - weight * gain
        total.backward()
    found = gradients(policy)
    for p, grad in zip(policy.parameters(), kept, strict=True):
        p.grad = grad
    return found


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert b.norm() > 1e-4, "nothing to compare"
    assert (a - b).norm() / b.norm() < tolerance


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize(
    ("beta", "mu"),
    [
        pytest.param(0.0, 1, marks=pytest.mark.slow),
        pytest.param(0.0, 3, marks=pytest.mark.slow),
        pytest.param(0.04, 1, marks=pytest.mark.slow),
        (0.04, 3),
    ],
)
def test_every_update_has_the_gradient_of_the_naive_loop(fresh, loss, beta, mu):
    c = config(loss=loss, kl_coef=beta, updates_per_rollout=mu, temperature=0.8, clip_eps=0.02)
    policy = randomise(fresh())
    rollout = sample_groups(policy, draw, reward, c, 0)
    old = logprobs_alone(policy, rollout, c.temperature)
    ref = logprobs_alone(policy, rollout, c.temperature, policy.reference)
    seen = []

    def look(k: int) -> None:
        seen.append(k)
        close(gradients(policy), naive_gradient(policy, rollout, c, old, ref))

    with at_each_update(look):
        (step,) = steps(policy, draw, reward, c)
    assert seen == list(range(mu))
    moved = step.metrics["clip_ratio/region_mean"] > 0
    assert moved == (mu > 1), "the clip acts only once the weights have moved"


def test_the_first_update_has_ratio_one_no_loss_and_the_gradient_of_reinforce(fresh):
    """minimind#775, trl#3120, R1-V#51: ratio 1 and loss 0 are right, and the weights do move."""
    c = config(kl_coef=0.0, loss="grpo")
    policy = randomise(fresh())
    rollout = sample_groups(policy, draw, reward, c, 0)
    advantages = group_advantages(rollout.rewards).flatten()
    lengths = rollout.lengths

    def look(k: int) -> None:
        mine = gradients(policy)
        for p in policy.parameters():
            p.grad = torch.zeros_like(p)
        for row, alone in each_completion(rollout):  # - A_i grad log pi, averaged
            logprobs, _ = policy.logprobs([alone], 1.0)
            (-advantages[row] * logprobs.sum() / lengths[row] / len(lengths)).backward()
        close(mine, gradients(policy))

    with at_each_update(look):
        (step,) = steps(policy, draw, reward, c)
    assert step.metrics["ratio/mean"] == 1.0
    assert step.metrics["ratio/max"] == 1.0
    assert abs(step.metrics["loss"]) < 1e-6
    assert step.metrics["grad_norm"] > 1e-3


def test_several_updates_move_the_ratio(fresh):
    (step,) = steps(randomise(fresh()), draw, reward, config(updates_per_rollout=3))
    assert step.metrics["ratio/max"] > 1.0


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("beta", [pytest.param(0.0, marks=pytest.mark.slow), 0.04])
def test_the_gradient_does_not_depend_on_how_many_passes_a_step_takes(fresh, loss, beta):
    """trl#3021, ms-swift#10116: the loss scale depended on accumulation."""
    c, found = config(loss=loss, kl_coef=beta), []
    for budget in (1, 10**6):
        policy = randomise(fresh())
        policy.token_budget = budget
        rollout = sample_groups(policy, draw, reward, c, 0)
        assert len(policy.passes(rollout.groups)) == (3 if budget == 1 else 1)
        with at_each_update(lambda _, p=policy: found.append(gradients(p))):
            list(steps(policy, draw, reward, c))
    close(found[0], found[1], 1e-6)


def test_kl_starts_at_exactly_zero_and_the_reference_stays(fresh):
    """R1-V#64: is the reference the base? It is, to the bit, before and after updates."""
    policy = fresh()
    c = config(steps=3, kl_coef=0.04)
    rollout = sample_groups(policy, draw, reward, c, 0)
    before = logprobs_alone(policy, rollout, 1.0, policy.reference)
    history = [step.metrics for step in steps(policy, draw, reward, c)]
    assert history[0]["kl"] == 0.0
    assert history[2]["kl"] > 0.0
    after = logprobs_alone(policy, rollout, 1.0, policy.reference)
    assert all(map(torch.equal, before, after))


def test_groups_without_signal_give_exact_zeros_and_are_counted(fresh):
    """trl#5588: without KL such a group must not pull, with KL it still does."""

    def flat(examples, texts, ids=()):
        return [1.0] * len(texts), {"flat": [1.0] * len(texts)}

    for beta in (0.0, 0.04):
        policy = randomise(fresh())
        start = [p.detach().clone() for p in policy.parameters()]
        (step,) = steps(policy, draw, flat, config(kl_coef=beta))
        assert step.metrics["frac_reward_zero_std"] == 1.0
        still = all(map(torch.equal, start, policy.parameters()))
        assert still == (beta == 0.0)


def test_training_makes_a_rewarded_token_common(fresh):
    """The whole loop learns: a random model finds out that it is paid for one letter."""

    def letters(examples, texts, ids=()):
        values = [text.count("e") / max(1, len(text)) for text in texts]
        return values, {"e": values}

    c = config(steps=40, group_size=8, kl_coef=0.0, learning_rate=0.02, max_grad_norm=1.0)
    rewards = [s.metrics["reward"] for s in steps(fresh(), draw, letters, c)]
    assert sum(rewards[-5:]) / 5 > 5 * max(0.02, sum(rewards[:5]) / 5)


def test_supervised_loss_is_the_mean_over_target_tokens_and_nothing_else(fresh):
    policy = randomise(fresh())
    targets = {"one": "left", "none": "four it is", "two": "no"}
    prompts = policy.encode(QUESTIONS)
    groups = [policy.group(p, [targets[q.id]]) for p, q in zip(prompts, QUESTIONS, strict=True)]
    alone = [policy.logprobs([group], 1.0)[0] for group in groups]
    loss = -sum(part.sum() for part in alone) / sum(len(part) for part in alone)
    loss.backward()
    expected = gradients(policy)
    found = []
    c = config(method="sft", temperature=0.3)  # the sampling temperature has no part in it
    with at_each_update(lambda _: found.append(gradients(policy))):
        (step,) = sft(policy, adamw(policy.parameters(), c), draw, lambda q: targets[q.id], c)
    assert step.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    close(found[0], expected)

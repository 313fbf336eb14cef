"""The objective against a triple loop in float64: values, gradients, finite differences."""

import math
import random

import pytest
import torch

from grpo.loss import clipped, clipped_surrogate, importance_ratio, k3_kl, token_weights

LOSSES = ("grpo", "dapo", "dr_grpo")
MAX_LENGTH = 9


def weight(loss: str, lengths: list[int], i: int) -> float:
    """What one token of completion i counts, from the papers' nested means."""
    rows = len(lengths)
    if loss == "grpo":
        return 1 / rows / lengths[i]
    return 1 / sum(lengths) if loss == "dapo" else 1 / (rows * MAX_LENGTH)


def naive_loss(logprobs, old, ref, advantages, lengths, loss, eps, eps_high, beta) -> float:
    """Sum over completions, sum over tokens, in Python floats."""
    total, t = 0.0, 0
    for i, length in enumerate(lengths):
        for _ in range(length):
            ratio = math.exp(logprobs[t] - old[t])
            bounded = min(max(ratio, 1 - eps), 1 + eps_high)
            surrogate = min(ratio * advantages[i], bounded * advantages[i])
            x = math.exp(ref[t] - logprobs[t])
            kl = x - math.log(x) - 1
            total -= weight(loss, lengths, i) * (surrogate - beta * kl)
            t += 1
    return total


def our_loss(logprobs, old, ref, advantages, lengths, loss, eps, eps_high, beta):
    row = torch.repeat_interleave(torch.tensor(lengths))
    ratio = importance_ratio(logprobs, old)
    surrogate = clipped_surrogate(ratio, advantages[row], eps, eps_high)
    weights = token_weights(torch.tensor(lengths), loss, MAX_LENGTH)
    return -(weights * (surrogate - beta * k3_kl(logprobs, ref))).sum()


def case(seed: int):
    rng = random.Random(seed)
    lengths = [rng.randint(1, MAX_LENGTH) for _ in range(rng.choice([2, 4, 8]))]
    n = sum(lengths)
    old = [rng.uniform(-4, -0.01) for _ in range(n)]
    logprobs = [x + rng.uniform(-0.6, 0.6) for x in old]
    ref = [x + rng.uniform(-1, 1) for x in old]
    return logprobs, old, ref, [rng.uniform(-2, 2) for _ in lengths], lengths


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("seed", range(5))
def test_value_and_gradient_equal_the_triple_loop(loss, beta, seed):
    logprobs, old, ref, advantages, lengths = case(seed)
    settings = (loss, 0.2, 0.28, beta)
    tensor = torch.tensor(logprobs, requires_grad=True)
    rest = (torch.tensor(old), torch.tensor(ref), torch.tensor(advantages))
    ours = our_loss(tensor, *rest, lengths, *settings)
    ours.backward()
    expected = naive_loss(logprobs, old, ref, advantages, lengths, *settings)
    assert ours.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    h = 1e-6
    for t in range(len(logprobs)):
        shifted = [
            naive_loss(
                [x + sign * h * (i == t) for i, x in enumerate(logprobs)],
                *(old, ref, advantages, lengths, *settings),
            )
            for sign in (1, -1)
        ]
        slope = (shifted[0] - shifted[1]) / (2 * h)
        assert tensor.grad[t].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 1.0, 1.2, 0.0),  # grew enough: the clip takes the gradient
        (1.5, -1.0, -1.5, -1.0),  # grew though it is bad: full gradient
        (0.5, 1.0, 0.5, 1.0),  # shrank though it is good: full gradient
        (0.5, -1.0, -0.8, 0.0),  # shrank enough
        (1.1, 1.0, 1.1, 1.0),
        (0.9, -1.0, -0.9, -1.0),
    ],
)
def test_the_clip_acts_in_two_of_four_cases(ratio, advantage, value, slope):
    r = torch.tensor([ratio], requires_grad=True)
    surrogate = clipped_surrogate(r, torch.tensor([advantage]), 0.2, 0.2)
    surrogate.sum().backward()
    assert surrogate.item() == pytest.approx(value)
    assert r.grad.item() == pytest.approx(slope)
    low, high = clipped(r, torch.tensor([advantage]), 0.2, 0.2)
    assert (low | high).item() == (slope == 0.0)
    assert low.item() == (slope == 0.0 and advantage < 0)


def test_clip_higher_moves_the_upper_bound_alone():
    ratio, one = torch.tensor([1.25, 1.35, 0.75]), torch.ones(3)
    assert clipped_surrogate(ratio, one, 0.2, 0.28).tolist() == pytest.approx([1.25, 1.28, 0.75])
    assert clipped_surrogate(ratio, -one, 0.2, 0.28).tolist() == pytest.approx([-1.25, -1.35, -0.8])


def test_k3_is_zero_only_where_both_agree_and_never_negative():
    logprobs, ref = torch.tensor([-1.0, -1.0, -1.0]), torch.tensor([-1.0, -0.5, -3.0])
    kl = k3_kl(logprobs, ref)
    assert kl[0] == 0.0
    assert (kl[1:] > 0).all()
    assert kl[1].item() == pytest.approx(math.exp(0.5) - 0.5 - 1, rel=1e-6)


def test_k3_is_unbiased_for_the_true_divergence():
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * k3_kl(p.log(), q.log())).sum(), expected)


@pytest.mark.parametrize("gap", [100.0, -100.0, 1e4, -1e4])
def test_a_huge_log_ratio_stays_finite_in_value_and_gradient(gap):
    """NeMo-RL#874, verl#751: the exp of k3 overflowed and poisoned the optimizer."""
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    other = logprobs.detach() + torch.tensor([gap, 0.0])
    ones = torch.ones(2)
    loss = (clipped_surrogate(importance_ratio(logprobs, other), ones, 0.2, 0.2)).sum()
    loss = loss + k3_kl(logprobs, other).sum()
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_a_step_do_not_depend_on_how_it_is_cut_into_passes(loss):
    lengths = torch.tensor([3, 1, 7, 2])
    whole = token_weights(lengths, loss, MAX_LENGTH)
    assert len(whole) == lengths.sum()
    if loss != "dr_grpo":
        assert whole.sum().item() == pytest.approx(1.0)
    row = torch.repeat_interleave(lengths)
    expected = [weight(loss, lengths.tolist(), i) for i in row.tolist()]
    torch.testing.assert_close(whole, torch.tensor(expected))


def test_the_three_aggregations_differ_on_unequal_lengths_by_the_known_amount():
    """One good completion of 1 token, one bad of 3: who outweighs whom is what the flag decides."""
    values = torch.tensor([1.0, -1.0, -1.0, -1.0])
    lengths = torch.tensor([1, 3])
    totals = {loss: (token_weights(lengths, loss, 4) * values).sum().item() for loss in LOSSES}
    assert totals == pytest.approx({"grpo": 0.0, "dapo": -0.5, "dr_grpo": -0.25}, abs=1e-6)

"""The schedule, and updates that must not happen."""

import pytest
import torch

from grpo.optim import adamw, learning_rate, optimizer_step
from grpo.settings.config import Config

SOUND = torch.zeros(2)  # log-probs and losses that are finite


def test_the_rate_warms_up_and_falls_to_zero_after_the_last_step():
    config = Config(steps=10, warmup_steps=2, learning_rate=1.0, lr_schedule="linear")
    rates = [learning_rate(step, config) for step in range(10)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    constant = Config(steps=10, learning_rate=1.0, lr_schedule="constant")
    assert [learning_rate(step, constant) for step in range(10)] == [1.0] * 10


def test_a_rate_of_one_millionth_still_moves_float32_weights():
    """verl-omni#73: adapters kept in bfloat16 lose updates of this size."""
    weight = torch.nn.Parameter(torch.full((4,), 0.5))
    optimizer = adamw([weight], Config(learning_rate=1e-6))
    weight.grad += 1.0
    optimizer_step(optimizer, 0, Config(learning_rate=1e-6), SOUND)
    assert (weight != 0.5).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_moments(bad):
    weight = torch.nn.Parameter(torch.ones(3))
    config = Config(learning_rate=0.1, max_grad_norm=10.0)
    optimizer = adamw([weight], config)
    weight.grad += 1.0
    assert optimizer_step(optimizer, 0, config, SOUND)["skipped_updates"] == 0.0
    before, moments = weight.detach().clone(), optimizer.state[weight]["exp_avg"].clone()
    for gradient, seen in ([bad, 0.0, 0.0], SOUND), ([1.0, 1.0, 1.0], torch.tensor([0.0, bad])):
        weight.grad += torch.tensor(gradient)
        assert optimizer_step(optimizer, 0, config, seen)["skipped_updates"] == 1.0
        assert torch.equal(weight, before)
        assert torch.equal(optimizer.state[weight]["exp_avg"], moments)
        assert torch.equal(weight.grad, torch.zeros(3))


def test_the_gradient_is_clipped_to_the_norm_and_its_own_norm_is_reported():
    weight = torch.nn.Parameter(torch.zeros(2))
    config = Config(learning_rate=0.1, max_grad_norm=1.0)
    optimizer = adamw([weight], config)
    weight.grad += torch.tensor([3.0, 4.0])
    assert optimizer_step(optimizer, 0, config, SOUND)["grad_norm"] == pytest.approx(5.0)
    expected = 0.1 * torch.tensor([0.6, 0.8])  # (1 - beta1) g of the clipped gradient
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], expected)

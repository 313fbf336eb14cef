"""AdamW over the LoRA weights, its schedule, and an update that a bad gradient cannot poison."""

import math
import re

import torch
from torch import Tensor
from torch.optim import AdamW

from grpo.settings.config import Config


def adamw(parameters: list[Tensor], config: Config) -> AdamW:
    """The optimizer. Gradients start as zeros, so that a step in which no group has signal makes an
    update too."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def norm_by_layer(names: list[str], optimizer: AdamW) -> dict[str, float]:
    """The gradient's norm by layer: parameter `a.layers.0.q.A` counts to `layers.0`.

    `names` are those of the parameters. Call this before `optimizer_step`, which clips.
    """
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in zip(names, _parameters(optimizer), strict=True):
        layer = re.search(r"[^.]+\.\d+(?=\.)", name)
        layers.setdefault(layer[0] if layer else name, []).append(parameter.grad)
    norms = torch.stack([torch.nn.utils.get_total_norm(grads) for grads in layers.values()])
    return dict(zip(layers, norms.tolist(), strict=True))


def learning_rate(step: int, config: Config) -> float:
    """The rate of a step (from 0): a linear warm-up, then constant or falling linearly to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (config.steps - step) / (config.steps - config.warmup_steps)


def optimizer_step(optimizer: AdamW, step: int, config: Config, seen: Tensor) -> dict[str, float]:
    """Clip the gradient, update the parameters, zero the gradient.

    If the gradient or a number `seen` on the way to it (log-probs, losses) is not finite, nothing
    is updated and the moments stay as they are.
    """
    norm = torch.nn.utils.clip_grad_norm_(_parameters(optimizer), config.max_grad_norm)
    norm, all_finite = torch.stack([norm, seen.isfinite().all().to(norm)]).tolist()
    finite = math.isfinite(norm) and all_finite
    rate = learning_rate(step, config)
    if finite:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    return {"grad_norm": norm, "learning_rate": rate, "skipped_updates": float(not finite)}


def _parameters(optimizer: AdamW) -> list[Tensor]:
    return optimizer.param_groups[0]["params"]  # `adamw` makes one group

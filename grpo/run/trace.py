"""The record of a step: what happened to every token of it, and why, in two files.

    trace/step-000010.json          questions, completions, rewards, settings, metrics; written last
    trace/step-000010.safetensors   row, token_ids, weights, old_logprobs, ref_logprobs (N,);
                                    rewards, advantages (B, G); and of every update
                                    logprobs, ratio, kl, entropy, loss (U, N)
    trace/images/0123456789abcdef.png

The tokens of completion i are those with row == i, in order. The numbers are the very float32 ones
that the loop computed with, so its loss and the derivative of it follow from the file alone. NaN:
the token's group took no pass (equal rewards and no KL term), or there is no reference (kl_coef 0).

Bounds: of a step at most 64 groups are written, the first ones ("groups_left_out" counts the rest);
a token takes 28 + 20 U bytes in safetensors and about 20 in JSON, an image 200 kB at most.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from grpo.advantages import zero_variance
from grpo.interfaces import Example
from grpo.loss import clip_bounds
from grpo.metrics import Step
from grpo.rollout import Rollout
from grpo.run.atomic import write_whole
from grpo.settings.config import Config

MOST_GROUPS = 64
SETTINGS = ("group_size", "loss", "scale_rewards", "kl_coef", "clip_eps", "temperature")
SETTINGS += ("updates_per_rollout", "max_completion_length")
OF_UPDATE = ("logprobs", "ratio", "kl", "entropy", "loss")  # one number a token and update

Describe = Callable[[Example], tuple[dict[str, Any], list[bytes]]]


def write_trace(
    folder: Path, step: Step, config: Config, describe: Describe, pieces: Callable[..., list[str]]
) -> None:
    """Write the record of a step into `folder`; the JSON file says that the step is complete.

    `describe(example)` gives a question's facts, ready for JSON, and its images as PNG files;
    `pieces(ids)` the text of every token (n,).
    """
    folder.joinpath("images").mkdir(parents=True, exist_ok=True)
    groups = []
    for b, example in enumerate(step.rollout.examples[:MOST_GROUPS]):
        facts, pictures = describe(example)
        images = [_keep_image(folder, png) for png in pictures]
        groups.append({**facts, "images": images, **_group(step, b, pieces)})
    record = {
        "step": int(step.metrics["step"]),
        "settings": {name: getattr(config, name) for name in SETTINGS}
        | {"clip_eps_high": clip_bounds(config.clip_eps, config.clip_eps_high)[1]},
        "updates": [
            {
                "learning_rate": update.learning_rate,
                "grad_norm": _finite(update.grad_norm),
                "grad_norm_by_layer": {k: _finite(x) for k, x in update.grad_norm_by_layer.items()},
            }
            for update in step.updates
        ],
        "metrics": {name: _finite(value) for name, value in step.metrics.items()},
        "groups": groups,
        "groups_left_out": len(step.rollout.examples) - len(groups),
    }
    name = f"step-{record['step']:06d}"
    write_whole(folder / f"{name}.safetensors", save(_tensors(step)))
    write_whole(folder / f"{name}.json", json.dumps(record).encode())


def _tensors(step: Step) -> dict[str, Tensor]:
    """Every tensor of the record, on the CPU, of the groups that are written."""
    rollout = step.rollout
    written = min(len(rollout.examples), MOST_GROUPS)
    groups = rollout.groups[:written]
    n = int(rollout.lengths[: written * rollout.rewards.shape[1]].sum())
    ref = (
        torch.full_like(step.weights, math.nan) if step.ref_logprobs is None else step.ref_logprobs
    )
    tensors = {
        "row": rollout.row[:n],
        "token_ids": torch.cat([ids for group in groups for ids in group.completions]),
        "rewards": rollout.rewards[:written],
        "advantages": step.advantages[:written],
        "weights": step.weights[:n],
        "old_logprobs": step.old_logprobs[:n],
        "ref_logprobs": ref[:n],
    }
    for name in OF_UPDATE:  # (U, N)
        tensors[name] = torch.stack([getattr(update, name)[:n] for update in step.updates])
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _group(step: Step, b: int, pieces: Callable[..., list[str]]) -> dict[str, Any]:
    """The completions of one group, ready for JSON."""
    rollout: Rollout = step.rollout
    group, rewards = rollout.groups[b], rollout.rewards[b].tolist()
    parts = {name: part[b].tolist() for name, part in rollout.parts.items()}
    advantages = step.advantages[b].tolist()
    return {
        "zero_variance": zero_variance(rollout.rewards[b : b + 1]).item(),
        "completions": [
            {
                "text": text,
                "tokens": pieces(group.completions[i]),
                "reward": rewards[i],
                "parts": {name: _finite(part[i]) for name, part in parts.items()},
                "advantage": advantages[i],
                "truncated": group.truncated[i],
            }
            for i, text in enumerate(rollout.texts[b])
        ],
    }


def _finite(value: float) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _keep_image(folder: Path, png: bytes) -> str:
    """Write an image under the hash of it, once, and say where."""
    name = f"images/{hashlib.sha256(png).hexdigest()[:16]}.png"
    if not (folder / name).exists():
        write_whole(folder / name, png)
    return name

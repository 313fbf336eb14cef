"""The record of a step: every token of it with its numbers, in two files.

    trace/step-000010.json          questions, completions, rewards, settings, metrics; written last
    trace/step-000010.safetensors   row, token_ids, weights, old_logprobs, ref_logprobs (N,);
                                    rewards, advantages (B, G); and of every update
                                    logprobs, ratio, kl, entropy, loss (U, N);
                                    with --trace-blind seen_logprobs and blind_logprobs (N,)
    trace/images/0123456789abcdef.png

The tokens of completion i are those with row == i, in order. The numbers are the float32 numbers
that the loop computed with, so its loss and the loss's derivative follow from the file alone. NaN
means that the token's group took no pass (equal rewards and no KL term), or that there is no
reference (kl_coef 0). `seen_logprobs` and `blind_logprobs` are both by the policy as the step left
it: with the images, and with blank images of the same sizes.

Sizes: at most the first 64 groups of a step are written ("groups_left_out" counts the others). A
token takes 28 + 20 U bytes in safetensors and about 20 in JSON; an image takes at most 200 kB.
"""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from grpo.distributed import summed
from grpo.interfaces import Example, Policy
from grpo.loop import reference_pass
from grpo.loss import clip_bounds
from grpo.metrics import PER_TOKEN, Step, Tokens
from grpo.passes import Passes
from grpo.run.atomic import write_whole
from grpo.run.metrics_log import finite
from grpo.settings.config import Config

# What the loss of a traced step follows from; no path, and no address of a judge.
SETTINGS = ("group_size", "loss", "scale_rewards", "kl_coef", "clip_eps", "temperature")
SETTINGS += ("updates_per_rollout", "max_completion_length", "baseline", "combine_rewards", "ratio")
SETTINGS += ("surrogate", "clip_delta", "kl", "mask_truncated")
MOST_GROUPS = 64

Describe = Callable[[Example], tuple[dict[str, Any], list[bytes]]]
Pieces = Callable[[Tensor], list[str]]


def write_trace(
    folder: Path, step: Step, config: Config, describe: Describe, pieces: Pieces
) -> None:
    """Write the record of a step into `folder`; the JSON file comes last and completes it.

    `describe(example)` returns a question's facts, ready for JSON, and its images as PNG files;
    `pieces(ids)` returns the text of every token of ids (n,).
    """
    folder.joinpath("images").mkdir(parents=True, exist_ok=True)
    groups = []
    for b, example in enumerate(step.rollout.examples[:MOST_GROUPS]):
        facts, pictures = describe(example)
        images = [_keep_image(folder, png) for png in pictures]
        groups.append({**facts, "images": images, **_group(step, b, pieces)})
    updates = []
    for update in step.updates:
        numbers = finite({"learning_rate": update.learning_rate, "grad_norm": update.grad_norm})
        updates.append({**numbers, "grad_norm_by_layer": finite(update.grad_norm_by_layer)})
    settings = {name: getattr(config, name) for name in SETTINGS}
    _, high, _ = clip_bounds(config.clip_eps, config.clip_eps_high)
    record = {
        "step": int(step.metrics["step"]),
        "settings": {**settings, "clip_eps_high": high},
        "updates": updates,
        "metrics": finite(step.metrics),
        "groups": groups,
        "groups_left_out": len(step.rollout.examples) - len(groups),
    }
    name = f"step-{record['step']:06d}"
    write_whole(folder / f"{name}.safetensors", save(_tensors(step)))
    write_whole(folder / f"{name}.json", json.dumps(record).encode())


def score_blind(
    step: Step, policy: Policy, config: Config, blank: Callable[[Example], Example]
) -> None:
    """Add `seen_logprobs` and `blind_logprobs` (N,) to a step, by the policy as it is now.

    `blank(example)` is the question with blank images. Every process calls this, and computes its
    share.
    """
    groups = step.rollout.groups
    prompts = policy.encode(list(map(blank, step.rollout.examples)))
    blind = [replace(group, prompt=p) for group, p in zip(groups, prompts, strict=True)]
    for name, asked in (("seen_logprobs", groups), ("blind_logprobs", blind)):
        tokens = Tokens(step.weights, step.weights, policy.device)
        passes = Passes(policy, asked, torch.ones(len(groups)))
        with torch.no_grad():
            passes.run(reference_pass, policy, config, tokens)
        step.image_logprobs[name] = summed(tokens.ref_logprobs)


def _tensors(step: Step) -> dict[str, Tensor]:
    """Return every tensor of the record, on the CPU, for the groups that are written."""
    rollout, ref = step.rollout, step.ref_logprobs
    groups = rollout.groups[:MOST_GROUPS]
    n = int(rollout.lengths[: MOST_GROUPS * rollout.rewards.shape[1]].sum())
    tensors = {
        "row": rollout.row[:n],
        "token_ids": torch.cat([ids for group in groups for ids in group.completions]),
        "rewards": rollout.rewards[:MOST_GROUPS],
        "advantages": step.advantages[:MOST_GROUPS],
        "weights": step.weights[:n],
        "old_logprobs": step.old_logprobs[:n],
        "ref_logprobs": torch.full_like(step.weights[:n], math.nan) if ref is None else ref[:n],
    }
    for name in PER_TOKEN:  # (U, N)
        tensors[name] = torch.stack([getattr(update, name)[:n] for update in step.updates])
    tensors |= {name: values[:n] for name, values in step.image_logprobs.items()}
    # Copies: a file holds no memory twice, and without a baseline the advantages are the rewards.
    whole = torch.contiguous_format
    return {name: tensor.cpu().clone(memory_format=whole) for name, tensor in tensors.items()}


def _group(step: Step, b: int, pieces: Pieces) -> dict[str, Any]:
    """Return the completions of group b, ready for JSON."""
    rollout, group, rewards = step.rollout, step.rollout.groups[b], step.rollout.rewards[b]
    completions = [
        {
            "text": text,
            "tokens": pieces(group.completions[i]),
            "reward": rewards[i].item(),
            "parts": finite({k: part[b, i].item() for k, part in rollout.parts.items()}),
            "advantage": step.advantages[b, i].item(),
            "truncated": group.truncated[i],
        }
        for i, text in enumerate(rollout.texts[b])
    ]
    return {"zero_variance": not step.advantages[b].any(), "completions": completions}


def _keep_image(folder: Path, png: bytes) -> str:
    """Write an image once, under the hash of its bytes, and return its place in the folder."""
    name = f"images/{hashlib.sha256(png).hexdigest()[:16]}.png"
    if not (folder / name).exists():
        write_whole(folder / name, png)
    return name

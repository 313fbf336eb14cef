"""Run folders made by hand: metrics, summary and a trace whose every number is known."""

import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file

from grpo.run.atomic import write_json
from grpo.settings.config import Config
from rewards.evaluation.rows import rendered

WORDS = "<think> One lesion : large cyst , upper right . </think> <answer> B </answer> <|im_end|>"
TYPES = ("presence", "side", "count")


def make_run(
    folder: Path, steps: int = 60, traced: tuple[int, ...] = (1, 30, 60), **config: Any
) -> Path:
    """A finished run with these traced steps, of 3 groups of 4 completions and 2 updates each."""
    values = {"group_size": 4, "prompts_per_step": 3, "updates_per_rollout": 2, "steps": steps}
    made = Config(**{**values, **config})
    folder.mkdir(parents=True)
    machine = {"resolved": {"device": "cpu"}, "versions": {}, "git_commit": None}
    write_json(folder / "config.json", {**made.record(), **machine})
    lines = [json.dumps(metrics(step, steps)) for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "summary.json").write_text(json.dumps(summary()))
    for step in traced:
        write_trace(folder, step, made)
    return folder


def metrics(step: int, steps: int) -> dict[str, float]:
    done, wave = step / steps, math.sin(step * 12.9898) / 8
    return {
        "step": step,
        "reward": 0.3 + 1.4 * done + wave,
        "reward_std": 0.5 - 0.3 * done,
        "rewards/format/mean": min(1.0, 0.2 + done + wave / 2),
        "rewards/accuracy/mean": 0.1 + 0.6 * done + wave / 2,
        "frac_reward_zero_std": 0.2 + 0.4 * done,
        "completions/mean_length": 12 + 6 * done + wave,
        "completions/min_length": 2.0 + step % 5,
        "completions/max_length": 30.0 - step % 7,
        "completions/clipped_ratio": 0.1 - 0.1 * done,
        "loss": wave / 1e3,
        "kl": done * done / 5,
        "entropy": 0.3 - 0.2 * done,
        "clip_ratio/low_mean": 0.01 * done,
        "clip_ratio/high_mean": 0.02 * done,
        "grad_norm": 0.1 + abs(wave),
        "learning_rate": 1e-3 * (1 - done),
        "time/step": 0.6,
        "time/rollout": 0.3,
        "time/update": 0.3,
        "memory/peak_mb": 851.5,
        **(validation(done) if step % 20 == 0 else {}),
    }


def validation(done: float) -> dict[str, float]:
    """What --eval-every measures, `done` of the way."""
    lower = {"": 0.1, "CT/": 0.0, "XRAY/": -0.1}
    return {f"val/{place}accuracy": start + 0.6 * done for place, start in lower.items()}


def cell(accuracy: float, n: int = 240) -> dict[str, Any]:
    share = {"n": n, "correct": round(accuracy * n), "accuracy": accuracy, "options": {"2": n}}
    share["ci95"] = [max(0, accuracy - 0.06), min(1, accuracy + 0.06)]
    none = {"n": 0, "correct": 0, "accuracy": None, "ci95": [0, 1], "options": {}, "f1": None}
    figures = dict.fromkeys(("format_rate", "accuracy_parsed", "forced_choice"), accuracy)
    figures |= {"letter_bias": 0.1, "findings": None, "f1": None, "mean_length": 16.0}
    side = {**share, "forced_choice": share, "says": none, "follows": none}
    return {**share, **figures, "by_type": {"side": side}, "constant": none, "open": none}


def summary() -> dict[str, Any]:
    """The table of a run on MRI, with controls; XRAY's blank image explains its accuracy."""
    base, trained = {"MRI": 0.1, "CT": 0.05, "XRAY": 0.02}, {"MRI": 0.72, "CT": 0.7, "XRAY": 0.5}
    results = {
        model: {m: cell(x) for m, x in accuracies.items()}
        for model, accuracies in (("base", base), ("trained", trained))
    }
    gain = {"gain": 0.6, "ci95": [0.5, 0.7], "mcnemar_p": 1e-9}
    lost = {"value": 0.2, "ci95": [0.1, 0.3], "n": 240, "p": 1e-9}
    table = {
        "trained_on": "MRI",
        "chance": dict.fromkeys(base, 0.45),
        "results": results,
        "gains": {"trained": {m: {"accuracy": gain, "forced_choice": None} for m in base}},
        "ood_mean": {
            "base": {"accuracy": 0.03, "ci95": [0.0, 0.1]},
            "trained": {"accuracy": 0.6, "ci95": [0.5, 0.7]},
        },
        "controls": {
            "trained": {
                "blank_image": {m: cell(0.49 if m == "XRAY" else 0.3) for m in base},
                "permuted_options": {m: cell(0.6) | {"same_text": 0.8} for m in base},
            }
        },
        "reliance": {"trained": {m: {"visual_reliance": lost} for m in base}},
        "verdicts": ["XRAY: with a blank image it scores 49.0; trained's 50.0 there says little."],
        "calibration": {},
        "sampled": {},
        "metrics": {},
        "seconds": 100.0,
    }
    return table | {"rendered": rendered(table)}


def picture(seed: int) -> bytes:
    """A PNG of 64 x 64 grey pixels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = (torch.rand(8, 8, generator=generator) * 255).byte().numpy()
    out = BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(out, "PNG")
    return out.getvalue()


def write_trace(folder: Path, step: int, config: Config, words: str = WORDS) -> None:
    """Group 0 has right and wrong answers and a truncated one, group 1 none that is right, and the
    last no signal, so no pass."""
    trace, size, b = folder / "trace", config.group_size, config.prompts_per_step
    (trace / "images").mkdir(parents=True, exist_ok=True)
    tokens = [word if i == 0 else f" {word}" for i, word in enumerate(words.split(" "))]
    n, updates, live = len(tokens), config.updates_per_rollout, b - 1
    rewards = torch.tensor([[2.0 - i % 3 for i in range(size)]] * b)
    rewards[1], rewards[live:] = rewards[1].clamp(max=1), 1.0
    advantages = (rewards - rewards.mean(1, True)) / (rewards.std(1, keepdim=True) + 1e-4)
    groups = []
    for i in range(b):
        name = f"images/{step % 10:08d}{i:08d}.png"
        (trace / name).write_bytes(picture(100 * step + i))
        completions = [
            {
                "text": "".join(tokens),
                "tokens": tokens,
                "reward": rewards[i, g].item(),
                "parts": {"format": 1.0, "accuracy": max(0.0, rewards[i, g].item() - 1)},
                "advantage": advantages[i, g].item(),
                "truncated": i == 0 and g == 1,
            }
            for g in range(size)
        ]
        groups.append(
            {
                "id": f"phantom-{step}-{i}",
                "question": f"On which side of image {i} is the lesion?",
                "options": ["left", "right"],
                "gold": "B",
                "modality": ("MRI", "CT")[i % 2],
                "question_type": TYPES[i % 3],
                "asked": "reason",
                "prompt": "Which side?",
                "images": [name],
                "zero_variance": i >= live,
                "completions": completions,
            }
        )
    names = ("group_size", "loss", "scale_rewards", "kl_coef", "clip_eps", "clip_eps_high",
             "temperature", "updates_per_rollout", "max_completion_length")  # fmt: skip
    record = {
        "step": step,
        "settings": {name: getattr(config, name) for name in names},
        "updates": [
            {"learning_rate": 1e-3, "grad_norm": 0.5, "grad_norm_by_layer": {"layers.0": 0.3}}
        ] * updates,
        "metrics": metrics(step, 60),
        "groups": groups,
        "groups_left_out": 0,
    }  # fmt: skip
    (trace / f"step-{step:06d}.json").write_text(json.dumps(record))
    save_file(tensors(step, advantages, n, updates), trace / f"step-{step:06d}.safetensors")


def tensors(step: int, advantages: torch.Tensor, n: int, updates: int) -> dict[str, torch.Tensor]:
    """Random numbers in the ranges of real ones; NaN where the last group took no pass."""
    generator = torch.Generator().manual_seed(step)
    rows = advantages.numel()
    old = -(torch.rand(rows * n, generator=generator) ** 4) * 4 - 1e-3
    drift = 0.15 * torch.randn(updates, rows * n, generator=generator)
    drift[0] = 0
    old[-n * advantages.shape[1] :] = math.nan
    row, logprobs = torch.arange(rows).repeat_interleave(n), (old + drift).clamp(max=-1e-4)
    weights = torch.full((rows * n,), 1 / (rows * n))
    ratio = (logprobs - old).exp()
    kl = torch.rand(logprobs.shape, generator=generator) ** 6 + 0 * logprobs
    loss = -weights * (ratio * advantages.flatten()[row] - 0.04 * kl)
    return {
        "row": row,
        "token_ids": torch.arange(rows * n),
        "rewards": torch.zeros_like(advantages),
        "advantages": advantages,
        "weights": weights,
        "old_logprobs": old,
        "ref_logprobs": old - 0.1,
        "logprobs": logprobs,
        "ratio": ratio,
        "kl": kl,
        "entropy": -logprobs / 2,
        "loss": loss,
    }

"""Loss and LoRA gradients of our loop against TRL's GRPOTrainer, update by update. By hand, in an
environment of its own (README.md beside this file says how to make it):

    python tests/parity/against_trl.py

Both sides are the real thing: `grpo.loop.grpo` trains a policy, and `GRPOTrainer.train()` a model
that TRL loads from the same folder, with its own processor, on the same questions. Ours samples;
TRL gets the completions through its `rollout_func` and their rewards through a reward function.
Writes results.json and prints the tables of README.md; exits with 1 where the two disagree, or
where a mistake made on purpose is not seen.
"""

import itertools
import json
import logging
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}

import datasets
import torch
import transformers
from sides import Case, Tensors, World, ours, theirs
from tables import as_json, markdown
from trl.rewards import get_soft_overlong_punishment

from data.phantom import questions as phantom
from grpo.loss import clip_bounds, clipped
from models.loading.load import folder_of
from rewards.rules import overlong
from tests.grpo import cases
from tests.tiny import CHAT_TEMPLATE, make_model

TOLERANCE = 1e-5
BANNED_BIAS = -1e9
PACKAGES = ("trl", "transformers", "peft", "accelerate", "torch", "torchvision")
LOSSES = ("grpo", "dr_grpo", "dapo")


def grid() -> list[Case]:
    return [Case(*values) for values in itertools.product(LOSSES, (0.0, 0.04), (1, 3), (1.0, 0.7))]


def variations() -> list[Case]:
    """What else could differ: TRL in two passes, DAPO's upper bound, and every variant."""
    changes: list[dict[str, Any]] = [
        {"passes": 2},
        {"scale_rewards": "none"},
        {"clip_eps_high": 0.06},
        {"scale_rewards": "batch"},
        {"combine_rewards": "normalized"},
        {"ratio": "sequence"},
        {"clip_delta": 1.03},
        {"kl_times_ratio": True},
        {"ratio": "sequence", "kl_times_ratio": True},
        {"mask_truncated": True},
        {"mask_truncated": True, "passes": 2},
    ]
    every = [(change, loss) for change in changes for loss in LOSSES]
    cispo = {"surrogate": "cispo", "clip_eps_high": 0.06}  # TRL has it with dapo's mean alone
    every += [(cispo, "dapo"), (cispo | {"ratio": "sequence"}, "dapo")]
    return [replace(Case(loss, 0.04, 3, 0.7), **change) for change, loss in every]


def penalties() -> float:
    """The largest difference of `overlong` to TRL's soft overlong punishment."""
    ids = [[0] * n for n in range(80)]
    theirs = get_soft_overlong_punishment(60, 20)(completion_ids=ids)
    ours = overlong([], [], longest=60, cache=20, completion_ids=ids)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def worlds(place: Path) -> Iterator[World]:
    """A random model asked with no, one and two images; the shipped one and its own questions."""
    tiny = make_model(place / "tiny")
    (tiny / "chat_template.jinja").write_text(CHAT_TEMPLATE)  # where a processor looks for it
    yield World("random", tiny, cases.QUESTIONS, 12, 0.05)
    shipped = place / "phantom"
    shipped.mkdir()
    for file in folder_of("phantom").iterdir():
        (shipped / file.name).symlink_to(file)
    template = json.loads((shipped / "tokenizer_config.json").read_text())["chat_template"]
    (shipped / "chat_template.jinja").write_text(template)
    yield World("phantom", shipped, phantom.load("MRI", split="train", size=3), 48, 0.02)


def apart(a: Tensors, b: Tensors) -> float:
    """||a - b|| / ||b|| of all tensors as one vector, in float64."""
    assert a.keys() == b.keys()
    off = sum((a[name].double() - b[name].double()).square().sum() for name in b)
    return float((off / sum(value.double().square().sum() for value in b.values())).sqrt())


def minus(a: Tensors, b: Tensors) -> Tensors:
    return {name: a[name] - b[name] for name in b}


def compared(world: World, case: Case, other: Case | None = None, **changes: Any) -> list[dict]:
    """One row an update. TRL may be given another case, bias or questions: mistakes, on purpose."""
    policy, start, step, mine = ours(world, case)
    bias = torch.zeros(len(policy.banned)).masked_fill(policy.banned, BANNED_BIAS)
    if changes.pop("unbanned", False):
        bias = torch.zeros_like(bias)
    asked = replace(world, **changes)
    peer = theirs(asked, other or case, step, start, mine.weights, bias)
    token_advantages = step.advantages.flatten()[step.rollout.row]
    bounds = clip_bounds(case.clip_eps, case.clip_eps_high, case.clip_delta, case.surrogate)
    rows = []
    for k, update in enumerate(step.updates):
        a, b = mine.gradients[k], peer.gradients[k]
        tensors = {name: apart({name: a[name]}, {name: b[name]}) for name in b}
        worst = max(tensors, key=tensors.get)
        low_or_high = torch.stack(clipped(update.ratio, token_advantages, *bounds))
        off = abs(mine.losses[k] - peer.losses[k])
        moves = [minus(side.weights[k], start) for side in (mine, peer)]
        start = mine.weights[k]
        rows.append(
            {"model": world.name, **asdict(case), "update": k + 1}
            | {"tokens": len(update.loss), "clipped": low_or_high.any(0).float().mean().item()}
            | {"loss_ours": mine.losses[k], "loss_trl": peer.losses[k]}
            | {"loss_difference": off / update.loss.abs().nansum().item()}
            | {"loss_difference_plain": off / abs(peer.losses[k])}
            | {"gradient_norm_trl": float(torch.nn.utils.get_total_norm(b.values()))}
            | {"gradient_difference": apart(a, b), "worst_tensor_difference": tensors[worst]}
            | {"worst_tensor": worst, "step_difference": apart(*moves)}
        )
    return rows


def mistakes(world: World, same_size: World) -> list[dict[str, Any]]:
    """What the comparison says when TRL is given something else: it must see every one of them.

    All in one world, but for images, which can change places where they are of one size.
    """
    case = Case("grpo", 0.04, 3, 0.7)
    images = [question.images for question in same_size.questions]
    pairs = zip(same_size.questions, images[1:] + images[:1], strict=True)
    swapped = [replace(question, images=other) for question, other in pairs]
    made: dict[str, dict[str, Any]] = {
        "every image with another question": {"world": same_size, "questions": swapped},
        "vision tokens in the normaliser": {"unbanned": True},
        "scored at temperature 1, drawn at 0.7": {"other": replace(case, temperature=1.0)},
        "no KL term": {"other": replace(case, beta=0.0)},
        "KL times the ratio (TRL's default)": {"other": replace(case, kl_times_ratio=True)},
        "the ratio clipped at 0.2, not 0.02": {"other": replace(case, clip_eps=0.2)},
        "advantages not divided by the std": {"other": replace(case, scale_rewards="none")},
        "dapo for grpo": {"other": replace(case, loss="dapo")},
        "a ratio of sequences": {"other": replace(case, ratio="sequence")},
        "cut completions masked": {"other": replace(case, mask_truncated=True)},
    }
    figures = ("loss_difference", "gradient_difference")
    found = []
    for name, change in made.items():
        rows = compared(change.pop("world", world), case, **change)
        found.append({"mistake": name} | {f: max(row[f] for row in rows) for f in figures})
    return found


def main() -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        both = list(worlds(Path(place)))
        for world, case in itertools.product(both, grid() + variations()):
            rows += compared(world, case)
            print(f"{world.name}: {case}", file=sys.stderr)
        wrong = mistakes(*both)
    result = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "hardware": f"{platform.machine()} CPU, float32, {torch.get_num_threads()} thread",
        "tolerance": TOLERANCE,
        "overlong_difference": penalties(),
        "updates": rows,
        "mistakes": wrong,
    }
    Path(__file__).with_name("results.json").write_text(as_json(result), encoding="utf-8")
    print(markdown(result))
    differences = [max(row["loss_difference"], row["gradient_difference"]) for row in rows]
    unseen = [row for row in wrong if row["gradient_difference"] < 100 * TOLERANCE]
    apart = max(*differences, result["overlong_difference"])
    return int(apart > TOLERANCE or bool(unseen))


if __name__ == "__main__":
    sys.exit(main())

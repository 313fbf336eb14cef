"""The traced steps as the report shows them: groups, their completions, every token's numbers."""

from __future__ import annotations

import base64
import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grpo.loss import clipped

MOST_STEPS = 60  # traced steps of a page
MOST_UPDATES = 3  # of a step: the first two and the last
MOST_LAYERS = 12  # with the largest gradients
IMAGE_BYTES = 300_000  # a larger image is left out
PNG = b"\x89PNG\r\n\x1a\n"
# What a damaged file may raise while it is read.
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)
DAMAGED += (ArithmeticError, SafetensorError)

# Letter of the CSS class, name, what it is, and from where on a token is shaded 1, 2, 3 and 4.
QUANTITIES = (
    ("s", "share of the loss", "times the mean share", (0.5, 1.0, 2.0, 4.0)),
    ("k", "KL", "nats", (1e-3, 1e-2, 1e-1, 1.0)),
    ("r", "ratio", "away from 1", (0.01, 0.05, 0.1, 0.2)),
    ("e", "entropy", "nats", (0.1, 0.5, 1.0, 2.0)),
    ("l", "log-prob", "nats below 0", (0.1, 0.7, 2.3, 4.6)),
)
Token = tuple[str, str, str]  # CSS classes, the rows of numbers, the text


@dataclass
class Traced:
    """One traced step: its JSON, its tensors, and what is derived of them."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def step(self) -> int:
        return int(self.record["step"])

    @cached_property
    def updates(self) -> list[int]:
        """The updates that are shown, counted from 0."""
        of = range(len(self.tensors["logprobs"]))
        return [*of[: MOST_UPDATES - 1], of[-1]] if len(of) > MOST_UPDATES else list(of)

    @cached_property
    def shares(self) -> Tensor:
        """(U, N): -loss over the sum of |loss|: positive, made likelier; NaN, no pass was made."""
        loss = self.tensors["loss"]
        return -loss / loss.abs().nansum(dim=1, keepdim=True).clamp(min=1e-30)

    @cached_property
    def clipped(self) -> tuple[Tensor, Tensor]:
        """(U, N) twice: where the clip took the gradient, at the low and at the high bound."""
        settings, advantages = self.record["settings"], self.tensors["advantages"].flatten()
        eps, high = settings["clip_eps"], settings.get("clip_eps_high") or settings["clip_eps"]
        of = advantages[self.tensors["row"]].expand_as(self.tensors["ratio"])
        return clipped(self.tensors["ratio"], of, eps, high)

    @cached_property
    def has_reference(self) -> bool:
        return bool(self.record["settings"].get("kl_coef"))

    @cached_property
    def rows(self) -> list[str]:
        """What the rows of numbers of a token are, in order."""
        names = ["token", "log-prob", "old", "reference", "ratio", "KL", "entropy", "loss", "share"]
        return [n for n in names if self.has_reference or n not in ("reference", "KL")]


def traced_steps(run: Path) -> tuple[list[Traced], list[str]]:
    """The traced steps of a run, at most MOST_STEPS, and remarks on what is left out."""
    files = sorted((run / "trace").glob("step-*.json"))
    found, remarks = [], []
    if len(files) > MOST_STEPS:
        remarks.append(f"{MOST_STEPS} of {len(files)} traced steps are shown.")
        last = len(files) - 1
        files = [files[last * i // (MOST_STEPS - 1)] for i in range(MOST_STEPS)]
    for file in files:
        try:
            found.append(read(file))
        except DAMAGED:
            remarks.append(f"trace/{file.name} cannot be read and is left out.")
    return sorted(found, key=lambda traced: traced.step), remarks


def read(file: Path) -> Traced:
    """One traced step. Raises one of DAMAGED where a part of it is missing."""
    traced = Traced(
        json.loads(file.read_text(encoding="utf-8")), load_file(file.with_suffix(".safetensors"))
    )
    whole = [traced.step, traced.updates, traced.shares, traced.clipped, heading(traced)]
    if not whole[1] or not isinstance(traced.record["groups"], list):
        raise ValueError(f"{file}: no update or no groups")
    return traced


def heading(traced: Traced) -> dict[str, Any]:
    """What is said of a step above its groups."""
    record, groups = traced.record, traced.record["groups"]
    metrics = record.get("metrics") or {}
    updates = [record["updates"][u] for u in traced.updates]
    norms = updates[-1].get("grad_norm_by_layer") or {}
    layers = sorted(((k, x) for k, x in norms.items() if x is not None), key=lambda of: -of[1])
    return {
        "step": traced.step,
        "metrics": metrics,
        "times": [(k.removeprefix("time/"), x) for k, x in metrics.items() if k[:5] == "time/"],
        "groups": len(groups),
        "signal": sum(not group["zero_variance"] for group in groups),
        "updates": [(u + 1, of) for u, of in zip(traced.updates, updates, strict=True)],
        "layers": layers[:MOST_LAYERS],
        "all_layers": len(layers),
        "left_out": record.get("groups_left_out", 0),
    }


def group(traced: Traced, b: int, folder: Path) -> dict[str, Any]:
    """Group `b` of a step: the question with its images, and its completions, best first.

    `folder` is the trace's. Raises one of DAMAGED.
    """
    told = traced.record["groups"][b]
    size = traced.tensors["advantages"].shape[1]
    completions = [completion(traced, told, b * size + i, i) for i in range(size)]
    completions.sort(key=lambda of: -of["advantage"])
    letters = [chr(ord("A") + i) for i in range(len(told["options"]))]
    marks = {mark for of in completions for mark in of["marks"]}
    return {
        **told,
        "number": b + 1,
        "step": traced.step,
        "options": [
            (letter, text, told["gold"] in (letter, text))
            for letter, text in zip(letters, told["options"], strict=True)
        ],
        "images": [image_uri(folder, name) for name in told["images"]],
        "completions": completions,
        "marks": sorted(marks | ({"no signal"} if told["zero_variance"] else set())),
        "rewards": sorted((of["reward"] for of in completions), reverse=True),
    }


def completion(traced: Traced, told: dict[str, Any], row: int, i: int) -> dict[str, Any]:
    """Completion `i` of a group, the step's `row`-th, with its tokens."""
    of, tensors = told["completions"][i], traced.tensors
    places = (tensors["row"] == row).nonzero().flatten()  # (n,)
    low, high = (bool(side[:, places].any()) for side in traced.clipped)
    accuracy = [v for name, v in of["parts"].items() if name.startswith("accuracy")]
    wrong = bool(accuracy) and not any(accuracy)
    marks = {
        "truncated": of["truncated"],
        "clipped": low or high,
        "wrong but rewarded": wrong and of["advantage"] > 0,
    }
    return {
        **of,
        "index": i + 1,
        "weight": tensors["weights"][places[0]].item() if len(places) else math.nan,
        "marks": [mark for mark, holds in marks.items() if holds],
        "tokens": list(tokens(traced, places, of["tokens"])),
    }


def tokens(traced: Traced, places: Tensor, texts: list[str]) -> Iterator[Token]:
    """The tokens of a completion, whose places in (N,) are given. Raises ValueError."""
    shown, tensors, last = traced.updates, traced.tensors, len(traced.updates) - 1
    names = ("logprobs", "ratio", "kl", "entropy", "loss")
    of = {name: tensors[name][shown][:, places].T.tolist() for name in names}  # a token: (U,)
    old, low, high = (
        x.tolist()
        for x in (tensors["old_logprobs"][places], *(c[shown][:, places].T for c in traced.clipped))
    )
    reference = tensors["ref_logprobs"][places].tolist() if traced.has_reference else []
    shares = traced.shares[shown][:, places].T.tolist()
    passed = int((~tensors["loss"][-1].isnan()).sum())
    if len(texts) != len(places):
        raise ValueError(f"{len(texts)} texts of {len(places)} tokens")
    for t, text in enumerate(texts):
        sides = [" low" * a + " high" * b for a, b in zip(low[t], high[t], strict=True)]
        rows = {
            "token": text.replace("\n", "⏎").replace("\t", "⇥"),
            "log-prob": columns(of["logprobs"][t]),
            "old": columns(old[t : t + 1]),
            "reference": columns(reference[t : t + 1]),
            "ratio": columns(of["ratio"][t], sides),
            "KL": columns(of["kl"][t]),
            "entropy": columns(of["entropy"][t]),
            "loss": columns(of["loss"][t]),
            "share": columns([100 * share for share in shares[t]], ["%"] * len(shown)),
        }
        shaded = {
            "s": shares[t][last] * passed,
            "k": of["kl"][t][last],
            "r": of["ratio"][t][last] - 1,
            "e": of["entropy"][t][last],
            "l": -of["logprobs"][t][last],
        }
        classes = [shade(letter, value) for letter, value in shaded.items()]
        classes.append("c" if any(map(str.strip, sides)) else "")
        numbers = "\n".join(rows[name] for name in traced.rows)
        yield " ".join(filter(None, classes)), numbers, text.replace("\n", "⏎\n")


def columns(values: list[float], marks: list[str] | None = None) -> str:
    """A row of numbers, one an update, to six digits.

    >>> columns([0.5, float("nan")], ["%", "%"])
    '0.5%         -'
    """
    cells = ["-" if math.isnan(value) else f"{value:.6g}" for value in values]
    marked = [
        cell + mark * (cell != "-")
        for cell, mark in zip(cells, marks or [""] * len(cells), strict=True)
    ]
    return "".join(f"{cell:<13}" for cell in marked).rstrip()


def shade(letter: str, value: float) -> str:
    """The CSS class of a value: its letter, a capital if negative, and 1 to 4; "" for less.

    >>> shade("s", -3.0), shade("k", 0.0)
    ('S3', '')
    """
    bounds = next(of for name, _, _, of in QUANTITIES if name == letter)
    level = 0 if math.isnan(value) else bisect_right(bounds, abs(value))
    return f"{letter.upper() if value < 0 else letter}{level}" if level else ""


def image_uri(folder: Path, name: str) -> str | None:
    """A PNG of the trace folder as a data: URI; None if it is missing, foreign or too large."""
    file = (folder / name).resolve()
    if not file.is_relative_to(folder.resolve()) or not file.is_file():
        return None
    data = file.read_bytes() if file.stat().st_size <= IMAGE_BYTES else b""
    if not data.startswith(PNG):
        return None
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")

"""The traced steps as the report shows them: groups, their completions, every token's numbers."""

import base64
import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from grpo.loss import clip_bounds, clipped

MOST_STEPS = 60  # traced steps of a page
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
    ("i", "image", "nats of log-prob that the image adds", (0.1, 0.5, 1.0, 2.0)),
)
NEEDS = {"k": "KL", "i": "image"}  # letter -> the row of a token's numbers that it shades
# Row of a token's numbers -> tensor of the trace, (U, N) or (N,)
TENSORS = {"log-prob": "logprobs", "old": "old_logprobs", "reference": "ref_logprobs"}
TENSORS |= {"ratio": "ratio", "KL": "kl", "entropy": "entropy", "loss": "loss"}
BLIND = "blind_logprobs"  # of --trace-blind, beside seen_logprobs


@dataclass
class Traced:
    """One traced step: its JSON, its tensors, and what is derived from them."""

    step: int
    record: dict[str, Any]
    tensors: dict[str, Tensor]

    @cached_property
    def updates(self) -> list[int]:
        """The updates that are shown, counted from 0: the first two and the last."""
        last = len(self.tensors["logprobs"]) - 1
        return sorted({0, min(1, last), last})

    @cached_property
    def shares(self) -> Tensor:
        """(U, N): -loss over the sum of |loss|. Positive: made likelier. NaN: not trained on."""
        loss = self.tensors["loss"]
        return -loss / loss.abs().nansum(dim=1, keepdim=True).clamp(min=1e-30)

    @cached_property
    def clipped(self) -> tuple[Tensor, Tensor]:
        """(U, N) twice: whether the low, and whether the high bound took a token's gradient."""
        settings, advantages = self.record["settings"], self.tensors["advantages"].flatten()
        names = ("clip_eps", "clip_eps_high", "clip_delta", "surrogate")
        bounds = clip_bounds(*map(settings.get, names))
        by_token = advantages[self.tensors["row"]].expand_as(self.tensors["ratio"])
        return clipped(self.tensors["ratio"], by_token, *bounds)

    @cached_property
    def rows(self) -> dict[str, Tensor]:
        """The rows of a token's numbers by name, in order: (U, N), or (N,) for all updates."""
        rows = {name: self.tensors[key] for name, key in TENSORS.items()}
        if not self.record["settings"].get("kl_coef"):
            del rows["reference"], rows["KL"]
        if BLIND in self.tensors:
            rows["image"] = self.tensors["seen_logprobs"] - self.tensors[BLIND]
        return rows | {"share in %": 100 * self.shares}

    @cached_property
    def rewards(self) -> list[list[float]]:
        """B lists of G rewards."""
        return [[float(c["reward"]) for c in g["completions"]] for g in self.record["groups"]]


def traced_steps(run: Path) -> tuple[list[Traced], list[str]]:
    """Return the traced steps of a run, at most MOST_STEPS, and remarks on what is left out."""
    files = sorted((run / "trace").glob("step-*.json"))
    found, remarks = [], []
    every = max(1, math.ceil(len(files) / MOST_STEPS))
    if every > 1:
        remarks.append(f"{len(files[::every])} of {len(files)} traced steps are shown.")
    for file in files[::every]:
        try:
            found.append(read(file))
        except DAMAGED:
            remarks.append(f"trace/{file.name} cannot be read and is left out.")
    if any(BLIND in traced.tensors for traced in found):  # perhaps not in all, after a --resume
        for traced in found:
            missing = torch.full_like(traced.tensors["weights"], math.nan)
            traced.tensors = {BLIND: missing, "seen_logprobs": missing} | traced.tensors
    return sorted(found, key=lambda traced: traced.step), remarks


def read(file: Path) -> Traced:
    """Return one traced step. Raises one of DAMAGED if a part of it is missing."""
    record = json.loads(file.read_text(encoding="utf-8"))
    traced = Traced(int(record["step"]), record, load_file(file.with_suffix(".safetensors")))
    # What the page needs of a step before it shows any group: what is missing raises KeyError here.
    [(g["id"], g["question"], g["zero_variance"]) for g in record["groups"]], record["updates"]
    sizes, shape = {len(group) for group in traced.rewards}, traced.clipped[0].shape
    if sizes - {traced.tensors["advantages"].shape[1]} or traced.shares.shape != shape:
        raise ValueError(f"{file}: its groups or its tensors are not those of a step")
    return traced


def group(traced: Traced, b: int, folder: Path) -> dict[str, Any]:
    """Return group `b` of a step: the question with its images, and its completions, best first.

    `folder` is the trace's. Raises one of DAMAGED.
    """
    told = traced.record["groups"][b]
    size = traced.tensors["advantages"].shape[1]
    completions = [completion(traced, told, b * size + i, i) for i in range(size)]
    completions.sort(key=itemgetter("advantage"), reverse=True)
    marks = {mark for found in completions for mark in found["marks"]}
    options = zip(ascii_uppercase, told["options"], strict=False)
    return {
        **told,
        "options": [(letter, text, told["gold"] == letter) for letter, text in options],
        "images": [image_uri(folder, name) for name in told["images"]],
        "completions": completions,
        "marks": sorted(marks | ({"no signal"} if told["zero_variance"] else set())),
        "rewards": sorted(traced.rewards[b], reverse=True),
    }


def completion(traced: Traced, told: dict[str, Any], row: int, i: int) -> dict[str, Any]:
    """Return completion `i` of a group, which is the step's `row`-th, with its tokens."""
    found = told["completions"][i]
    places = (traced.tensors["row"] == row).nonzero().flatten()  # (n,)
    accuracy = [v for name, v in found["parts"].items() if name.startswith("accuracy")]
    marks = {
        "truncated": found["truncated"],
        "clipped": any(side[:, places].any() for side in traced.clipped),
        "wrong but rewarded": accuracy and not any(accuracy) and found["advantage"] > 0,
    }
    return {
        **found,
        "index": i + 1,
        "weight": traced.tensors["weights"][places[0]].item() if len(places) else math.nan,
        "marks": [mark for mark, holds in marks.items() if holds],
        "tokens": list(tokens(traced, places, found["tokens"])),
    }


def tokens(traced: Traced, places: Tensor, texts: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield CSS classes, rows of numbers and text of each token of a completion.

    The tokens are at `places` (n,) of (N,). Raises ValueError if there are not n texts.
    """

    def by_token(values: Tensor) -> list[list[Any]]:
        """(U, N) or (N,) -> n lists of the updates shown."""
        return (values[traced.updates] if values.dim() > 1 else values[None])[:, places].T.tolist()

    found = {name: by_token(values) for name, values in traced.rows.items()}
    low, high = map(by_token, traced.clipped)
    last = {name: values[-1] for name, values in traced.tensors.items()}
    share = traced.shares[-1] * (~last["loss"].isnan()).sum()
    shaded = [share, last["kl"], last["ratio"] - 1, last["entropy"], -last["logprobs"]]
    shaded += [traced.rows["image"]] if "image" in traced.rows else []
    by_letter = torch.stack(shaded)[:, places].T.tolist()  # n lists, in the order of QUANTITIES
    for t, (text, values) in enumerate(zip(texts, by_letter, strict=True)):
        bounds = [" low" * a + " high" * b for a, b in zip(low[t], high[t], strict=True)]
        rows = [text.replace("\n", "⏎").replace("\t", "⇥")]
        for name, numbers in found.items():
            rows.append(columns(numbers[t], bounds if name == "ratio" else None))
        classes = [*map(shade, "skreli", values), "c" if any(bounds) else ""]
        yield " ".join(filter(None, classes)), "\n".join(rows), text.replace("\n", "⏎\n")


def columns(values: list[float], marks: list[str] | None = None) -> str:
    """Return a row of numbers, one an update, to six digits, each with its mark.

    >>> columns([0.5, float("nan")], ["%", "%"])
    '0.5%         -'
    """
    marked = zip(values, marks or [""] * len(values), strict=True)
    cells = ["-" if math.isnan(value) else f"{value:.6g}{mark}" for value, mark in marked]
    return "".join(f"{cell:<13}" for cell in cells).rstrip()


def shade(letter: str, value: float) -> str:
    """Return the CSS class of a value: its letter, a capital if negative, and level; "" for none.

    >>> shade("s", -3.0), shade("k", 0.0)
    ('S3', '')
    """
    bounds = next(bounds for name, _, _, bounds in QUANTITIES if name == letter)
    level = 0 if math.isnan(value) else bisect_right(bounds, abs(value))
    return f"{letter.upper() if value < 0 else letter}{level}" if level else ""


def image_uri(folder: Path, name: str) -> str | None:
    """Return a PNG of the trace folder as a data: URI; None if missing, foreign or too large."""
    file = (folder / name).resolve()
    inside = file.is_relative_to(folder.resolve()) and file.is_file()
    data = file.read_bytes() if inside and file.stat().st_size <= IMAGE_BYTES else b""
    if not data.startswith(PNG):
        return None
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")

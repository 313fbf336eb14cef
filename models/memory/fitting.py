"""From the peaks of a step to other sizes of it: the largest that fits, and the table to print."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MB = 2**20
MOST = 64  # the largest group that is looked for
WAYS = {False: "without checkpointing", True: "with --gradient-checkpointing on"}


class Sizes(NamedTuple):
    """The shape of a step: B prompts, each of so many tokens and with G completions."""

    prompt: int
    size: int  # G
    length: int  # most tokens of a completion
    prompts: int  # B, of this process
    budget: int  # tokens of a pass, see Policy.passes
    longest: int  # the longest completion that the model has room for

    def largest_pass(self) -> tuple[int, int]:
        """(tokens of the largest pass that the step can have, length of its completions).

        Several groups that fill the budget of a pass may be more than the longest, which goes
        alone; see models/tree.py: plan_passes.
        """
        passes = [(self.prompt + self.size * (self.length - 1), self.length)]
        for groups in range(2, self.prompts + 1):
            cut = min(self.length, 1 + (self.budget // groups - self.prompt) // self.size)
            if cut > 0:
                passes.append((groups * (self.prompt + self.size * (cut - 1)), cut))
        return max(passes)


@dataclass(frozen=True)
class Peaks:
    """What a step holds, in bytes, and its sizes."""

    weights: int  # of the frozen model
    held: int  # before the step: weights, adapters, gradients and moments
    phases: dict[str, int]  # at most in each phase, `held` among it
    tokens: int  # of the largest pass
    fewer: tuple[int, int]  # tokens and peak of an update with half of them or so
    sizes: Sizes

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    @classmethod
    def read(cls, file: Path) -> Peaks:
        """From JSON. Raises OSError, ValueError, TypeError or KeyError."""
        found = json.loads(file.read_text())
        found["fewer"], found["sizes"] = tuple(found["fewer"]), Sizes(*found["sizes"])
        return cls(**found)


def mb(size: int) -> str:
    return f"{size / MB:,.0f} MB"


def fitting(
    peaks: dict[bool, Peaks], room: int, step: Callable[[bool, int], Peaks] | None = None
) -> str:
    """The largest group size and completion length that fit `room` bytes, as flags, by whether the
    step is checkpointed. The last group size is checked by `step`, a fake step of that size."""
    first, *_ = peaks.values()
    asked, samples = (first.sizes.size, first.sizes.length), "sampling" in first.phases
    found = {on: largest(known, room, *asked) for on, known in peaks.items()}
    unsure = [on for on, (size, _) in found.items() if samples and 1 < size < MOST]
    if step and unsure:
        on, size = unsure[-1], found[unsure[-1]][0]
        checked = step(on, size)
        nearer, length = largest(checked, room, *asked)
        found[on] = (size if checked.peak <= room else min(size - 1, nearer), length)
    fits = [f"{flags} {WAYS[on]}" for on, most in found.items() if (flags := as_flags(*most))]
    if not samples:
        fits = [f"this run {WAYS[on]}" for on, known in peaks.items() if known.peak <= room]
    nothing = "nothing of this; use a smaller --max-completion-length, --max-pixels or --model"
    return "; ".join(fits) or nothing


def as_flags(size: int, length: int) -> str:
    flags = [f"--group-size {size}" + " or more" * (size >= MOST)] if size > 1 else []
    return " or ".join(flags + [f"--max-completion-length {length}"] * (length > 0))


def largest(peaks: Peaks, room: int, size: int, length: int) -> tuple[int, int]:
    """The largest group size with this completion length, and the largest length with this group
    size, that fit `room` bytes; 0: not even 1 does."""
    sizes, lengths = range(1, MOST + 1), range(1, peaks.sizes.longest + 1)
    return (
        bisect_right(sizes, room, key=lambda n: estimated(peaks, n, length)),
        bisect_right(lengths, room, key=lambda n: estimated(peaks, size, n)),
    )


def estimated(peaks: Peaks, size: int, length: int) -> int:
    """The peak of the same step with another group size and completion length.

    An update is a line in the tokens of its largest pass, of which two points are known. Sampling
    holds as much as it has rows and slots.
    """
    sizes, phases = peaks.sizes, peaks.phases
    tokens, _ = sizes._replace(size=size, length=length).largest_pass()
    rows = size * (sizes.prompt + length) / (sizes.size * (sizes.prompt + sizes.length))
    ratios = {"sampling": rows, "reference": tokens / peaks.tokens}
    grown = {n: peaks.held + ratios.get(n, 1) * (peak - peaks.held) for n, peak in phases.items()}
    fewer, smaller = peaks.fewer
    slope = (phases["update"] - smaller) / max(1, peaks.tokens - fewer)
    grown["update"] = phases["update"] + slope * (tokens - peaks.tokens)
    return int(max(grown.values()))


def table(peaks: dict[bool, Peaks], beside: dict[str, int]) -> Iterator[str]:
    """What is held when, in MB: a column without checkpointing, or with it, or both."""
    columns, more = list(peaks.values()), sum(beside.values())
    yield f"{'in MB of 2^20 bytes':32}" + "".join(f"{WAYS[on]:>36}" for on in peaks)
    yield line("weights", [known.weights for known in columns])
    yield line("adapters, gradients, moments", [known.held - known.weights for known in columns])
    yield "and above them, at most, in"
    for name in columns[0].phases:
        yield line(f"  {name}", [known.phases[name] - known.held for known in columns])
    yield from (line(name, [size] * len(columns)) for name, size in beside.items())
    yield line("peak, planned", [known.peak + more for known in columns])
    yield f"{'tokens of the largest pass':32}" + "".join(f"{k.tokens:>36,}" for k in columns)


def line(name: str, sizes: list[int]) -> str:
    return f"{name:32}" + "".join(f"{size / MB:>36,.1f}" for size in sizes)

"""From the peaks of a step to other sizes of it: the largest that fits, and the table to print."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

MB = 2**20
MOST = 64  # the largest group that is looked for
WAYS = {False: "without checkpointing", True: "with --gradient-checkpointing on"}


@dataclass(frozen=True)
class Sizes:
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
            shorter = min(self.length, 1 + (self.budget // groups - self.prompt) // self.size)
            if shorter > 0:
                passes.append((groups * (self.prompt + self.size * (shorter - 1)), shorter))
        return max(passes)


@dataclass(frozen=True)
class Peaks(Sizes):
    """What a step of this shape holds, in bytes."""

    weights: int  # of the frozen model
    held: int  # before the step: weights, adapters, gradients and moments
    phases: dict[str, int]  # at most in each phase, `held` among it
    slope: float  # of an update: bytes for each token of its largest pass

    def at(self, size: int, length: int) -> int:
        """The peak of the same step with another group size and completion length.

        An update is a line in the tokens of its largest pass. Sampling holds as much as it has rows
        and slots.
        """
        here, there = (s.largest_pass()[0] for s in (self, replace(self, size=size, length=length)))
        rows = size * (self.prompt + length) / (self.size * (self.prompt + self.length))
        ratios = {"sampling": rows, "reference": there / here, "update": 0}
        grown = [self.held + ratios.get(n, 1) * (p - self.held) for n, p in self.phases.items()]
        return int(max(*grown, self.phases["update"] + self.slope * (there - here)))

    @property
    def peak(self) -> int:
        return max(self.phases.values())

    def largest(self, room: int, size: int, length: int) -> tuple[int, int]:
        """The largest group size with this completion length, and the largest length with this
        group size, that fit `room` bytes; 0: not even 1 does."""
        g = bisect_right(range(1, MOST + 1), room, key=lambda n: self.at(n, length))
        return g, bisect_right(range(1, self.longest + 1), room, key=lambda n: self.at(size, n))


def mb(size: int) -> str:
    return f"{size / MB:,.0f} MB"


def fitting(
    peaks: dict[bool, Peaks], room: int, step: Callable[[bool, int], Peaks] | None = None
) -> str:
    """The largest group size and completion length that fit `room` bytes, as flags, by whether the
    step is checkpointed. The last group size is checked by `step`, a fake step of that size."""
    fits = []
    for on, known in peaks.items():
        size, length = known.largest(room, known.size, known.length)
        if step and on == max(peaks) and 1 < size < MOST and "sampling" in known.phases:
            nearer, length = step(on, size).largest(room, known.size, known.length)
            size = min(size, nearer)
        flags = [f"--group-size {size}" + " or more" * (size >= MOST)] * (size > 1)
        flags += [f"--max-completion-length {length}"] * (length > 0)
        if "sampling" not in known.phases:
            flags = ["this run"] * (known.peak <= room)
        fits += [f"{' or '.join(flags)} {WAYS[on]}"] * bool(flags)
    nothing = "nothing of this; use a smaller --max-completion-length, --max-pixels or --model"
    return "; ".join(fits) or nothing


def table(peaks: dict[bool, Peaks], beside: dict[str, int]) -> Iterator[str]:
    """What is held when, in MB: without checkpointing, or with it, or both."""
    for on, known in peaks.items():
        rows = {"weights": known.weights}
        rows |= {"adapters, gradients, moments": known.held - known.weights}
        rows |= {f"above them, in {n}": peak - known.held for n, peak in known.phases.items()}
        rows |= beside | {"peak, planned": known.peak + sum(beside.values())}
        tokens = f"the largest pass has {known.largest_pass()[0]:,} tokens"
        yield f"{WAYS[on]}, in MB of 2^20 bytes; {tokens}"
        yield from (f"  {name:32}{size / MB:>12,.1f}" for name, size in rows.items())

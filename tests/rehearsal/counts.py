"""What a rehearsal counts, by the line of the product that causes it."""

import os
import sys
from collections import Counter
from pathlib import Path

ROOT = f"{Path(__file__).resolve().parents[2]}{os.sep}"
SHOWN = 25  # lines of each kind that `Counts.text` shows

# The kinds, in the order in which they are shown.
WAITS = "host waits for a value"
TO_HOST = "copies to the host"  # the host waits for each of these too
TO_DEVICE = "copies to the device"
SYNCHRONISED = "synchronisations"
KERNELS = "operations that launch kernels"
CAPTURED = "operations recorded in graphs"
REPLAYS = "graph replays"
ATTENTION = "attention calls by kernel"
PLANS = "cuDNN plans for new shapes"
PADDED = "bytes of masks that are padded"
COLLECTIVES = "exchanges between processes"
KINDS = (
    *(WAITS, TO_HOST, TO_DEVICE, SYNCHRONISED, KERNELS, CAPTURED, REPLAYS, ATTENTION, PLANS),
    *(PADDED, COLLECTIVES),
)


class Counts:
    """A counter for each kind: how many, by name and line."""

    def __init__(self) -> None:
        self.by_kind = {kind: Counter() for kind in KINDS}

    def add(self, kind: str, name: str, many: int = 1) -> None:
        self.by_kind[kind][f"{line()} {name}"] += many

    def total(self, kind: str) -> int:
        return sum(self.by_kind[kind].values())

    def names(self, kind: str) -> Counter:
        """How many of a kind by name alone."""
        found = Counter()
        for place, many in self.by_kind[kind].items():
            found[place.split(" ", 1)[1]] += many
        return found

    def lines(self, kind: str) -> Counter:
        """How many of a kind by line alone."""
        found = Counter()
        for place, many in self.by_kind[kind].items():
            found[place.split(" ", 1)[0]] += many
        return found

    def text(self) -> str:
        """All totals, then each kind by line, the most frequent first."""
        rows = [f"{self.total(kind):10}  {kind}" for kind in KINDS]
        for kind in KINDS:
            found = self.lines(kind) if kind in (KERNELS, CAPTURED) else self.by_kind[kind]
            rows += ["", f"{kind}: {self.total(kind)}"] if found else []
            rows += [f"{many:10}  {place}" for place, many in found.most_common(SHOWN)]
            if len(found) > SHOWN:
                rest = found.total() - sum(many for _, many in found.most_common(SHOWN))
                rows.append(f"{rest:10}  in {len(found) - SHOWN} other places")
        rows += ["", f"{KERNELS}, by name:"]
        rows += [f"{many:10}  {name}" for name, many in self.names(KERNELS).most_common(SHOWN)]
        return "\n".join(rows)


def line() -> str:
    """The innermost line of the product, or of a test of this folder, that is running: file:line.

    In a backward pass that is the call of `backward`, or the line of a written derivative.
    """
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(ROOT):
            name = file[len(ROOT) :]
            if not name.startswith("tests/") or name.startswith("tests/rehearsal/test_"):
                return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"

"""Curves of a run as the numbers an inline SVG needs: points, ticks and a sentence in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

Points = list[tuple[float, float]]  # (step, value)

# The drawing, in SVG units: the plot lies between these, the numbers around it.
LEFT, RIGHT, TOP, BOTTOM = 44, 372, 22, 168
MOST_POINTS = 240  # of a curve: more than a screen shows
MOST_ROWS = 11  # of the table below a curve
DASHES = ("none", "7 3", "2 3", "9 3 2 3", "14 4", "4 6")  # so that colour is not the only mark

# Title, what the numbers are, and metric -> name in the legend.
CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Reward", "mean of all completions", {"reward": "mean", "reward_std": "std in a group"}),
    ("Reward by part", "mean, before its weight", {}),
    ("Groups with signal", "share whose rewards differ", {"signal": "with signal"}),
    ("KL to the reference", "k3 estimate, nats a token", {"kl": "KL"}),
    ("Completion length", "tokens", {f"completions/{n}_length": n for n in ("mean", "min", "max")}),
    ("Truncated", "share of completions", {"completions/clipped_ratio": "truncated"}),
    (
        "Clipped",
        "share of tokens without gradient",
        {f"clip_ratio/{bound}_mean": f"{bound} bound" for bound in ("low", "high")},
    ),
    ("Gradient norm", "before it is clipped", {"grad_norm": "norm"}),
    ("Entropy", "nats a token", {"entropy": "entropy"}),
    ("Loss", "of one update a rollout: near 0, and no bug", {"loss": "loss"}),
    ("Learning rate", "of AdamW", {"learning_rate": "rate"}),
    (
        "Time",
        "seconds a step",
        {f"time/{phase}": phase for phase in ("step", "rollout", "reference", "update")},
    ),
)


@dataclass
class Line:
    """One curve: `path` as drawn, `faint` the raw values where `path` is a moving mean."""

    name: str
    points: Points
    path: str = ""
    faint: str = ""
    dash: str = "none"
    marks: Points = field(default_factory=list)


@dataclass
class Chart:
    """A figure: `words` says in text what is drawn; `rows` are numbers of it (step, then lines)."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    words: str
    rows: list[list[str]]
    window: int


def curves(metrics: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    """A chart for each of CURVES that the metrics of the steps hold anything of."""
    for title, unit, names in CURVES:
        if title == "Reward by part":
            parts = sorted({n for of in metrics for n in of if n.startswith("rewards/")})
            names = {name: name.removeprefix("rewards/").removesuffix("/mean") for name in parts}
        lines = [Line(label, series(metrics, name)) for name, label in names.items()]
        lines = [line for line in lines if line.points]
        if lines:
            yield drawn(title, unit, lines)


def accuracies(
    metrics: Sequence[Mapping[str, Any]], table: Mapping[str, Any], trained_on: str
) -> Iterator[Chart]:
    """By modality: validation over training, and the test of base and trained policy."""
    for title, figure in (("Accuracy", "accuracy"), ("Forced choice", "forced_choice")):
        names = {f"val/{figure}": f"{trained_on}, trained on"}
        for name in (name for of in metrics for name in of):
            if name.startswith("val/") and name.endswith(f"/{figure}"):
                names.setdefault(name, name[len("val/") : -len(f"/{figure}")])
        lines = [Line(label, series(metrics, name)) for name, label in names.items()]
        if lines := [line for line in lines if line.points]:
            yield drawn(f"{title} by modality", "validation questions", lines, marked=True)
    last, results = max((_step(of) for of in metrics), default=0), table.get("results") or {}
    base, trained = (results.get(model, {}) for model in ("base", "trained"))
    ends = {m: [base[m]["accuracy"], trained[m]["accuracy"]] for m in trained if m in base}
    tests = [Line(m, [(0, a), (last, b)]) for m, (a, b) in ends.items() if None not in (a, b)]
    if tests:
        yield drawn("Test accuracy by modality", "strict, base and trained", tests, marked=True)


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> Points:
    """The finite values of a metric, by step; `signal` is the share of groups with any."""
    source = "frac_reward_zero_std" if name == "signal" else name
    found = [(_step(of), of.get(source)) for of in metrics]
    points = [(step, float(v)) for step, v in found if isinstance(v, int | float)]
    points = [(step, value) for step, value in points if math.isfinite(value)]
    return [(step, 1 - value) for step, value in points] if name == "signal" else points


def _step(metrics: Mapping[str, Any]) -> float:
    return float(metrics["step"])


def drawn(title: str, unit: str, lines: list[Line], marked: bool = False) -> Chart:
    """Scale the lines to one plot. Long curves are drawn as a moving mean over their raw values."""
    every = [point for line in lines for point in line.points]
    x_range = (min(x for x, _ in every), max(x for x, _ in every))
    y_ticks = ticks(*value_range([y for _, y in every]))
    window = 1 if marked else max(1, max(len(line.points) for line in lines) // 25)
    window = window if window > 2 else 1

    def place(points: Points) -> Points:
        return [
            (
                _scaled(x, x_range, (LEFT, RIGHT)),
                _scaled(y, (y_ticks[0], y_ticks[-1]), (BOTTOM, TOP)),
            )
            for x, y in points
        ]

    for i, line in enumerate(lines):
        line.dash = DASHES[i % len(DASHES)]
        line.path = _path(place(thinned(moving_mean(line.points, window))))
        line.faint = _path(place(thinned(line.points))) if window > 1 else ""
        line.marks = place(line.points) if len(line.points) == 1 or marked else []
    x_ticks = [x for x in ticks(*x_range, whole=True) if x_range[0] <= x <= x_range[1]]
    return Chart(
        title,
        unit,
        lines,
        [(_scaled(x, x_range, (LEFT, RIGHT)), number(x)) for x in x_ticks],
        [(_scaled(y, (y_ticks[0], y_ticks[-1]), (BOTTOM, TOP)), number(y)) for y in y_ticks],
        in_words(title, unit, lines),
        rows_of(lines),
        window,
    )


def _scaled(x: float, of: tuple[float, float], to: tuple[float, float]) -> float:
    share = (x - of[0]) / (of[1] - of[0]) if of[1] > of[0] else 0.5
    return round(to[0] + share * (to[1] - to[0]), 1)


def _path(points: Points) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points: of each stretch the lowest and the highest, so that no spike is lost.

    >>> thinned([(0, 1.0), (1, 9.0), (2, 1.0), (3, 1.0), (4, 0.0), (5, 1.0)], most=4)
    [(0, 1.0), (1, 9.0), (3, 1.0), (4, 0.0)]
    """
    if len(points) <= most:
        return points
    cuts = [len(points) * i // (most // 2) for i in range(most // 2 + 1)]
    kept = []
    for start, stop in pairwise(cuts):
        stretch = points[start:stop]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])})
    return kept


def moving_mean(points: Points, window: int) -> Points:
    """Each value's mean with those around it, `window` in all; fewer at the ends.

    >>> moving_mean([(1, 0.0), (2, 3.0), (3, 6.0)], 3)
    [(1, 1.5), (2, 3.0), (3, 4.5)]
    """
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    ends = [
        (max(0, i - window // 2), min(len(points), i + (window + 1) // 2))
        for i in range(len(points))
    ]
    return [(x, (sums[b] - sums[a]) / (b - a)) for (x, _), (a, b) in zip(points, ends, strict=True)]


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """What an axis spans: from 0 where nothing is negative, and never a single value."""
    low, high = min(values), max(values)
    low = 0.0 if low >= 0 else low
    return (low, high) if high > low else (low, low + 1)


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Four to seven round numbers from at most `low` to at least `high`.

    >>> ticks(0, 0.93), ticks(1, 200)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 50.0, 100.0, 150.0, 200.0])
    """
    rough = max(high - low, 1e-300) / 4.5
    size = 10.0 ** math.floor(math.log10(rough))
    gap = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * 0.9)
    gap = max(1.0, gap) if whole else gap
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [round(i * gap, 12) if gap > 1e-9 else i * gap for i in range(first, last + 1)]


def number(x: float) -> str:
    """A number as a reader wants it: four digits at most.

    >>> number(0.07868262), number(2000.0), number(0.00015)
    ('0.07868', '2000', '1.5e-4')
    """
    if 0 < abs(x) < 1e-3:
        digits, power = f"{x:.3e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{x:.4g}"


def in_words(title: str, unit: str, lines: Sequence[Line]) -> str:
    """What a chart shows, for those who do not see it."""
    said = []
    for line in lines:
        (first, start), (last, end) = line.points[0], line.points[-1]
        low, high = min(y for _, y in line.points), max(y for _, y in line.points)
        if low == high:
            said.append(f"{line.name} {number(low)} throughout")
        else:
            spread = f"between {number(low)} and {number(high)}"
            at = f"{number(start)} at step {number(first)}, {number(end)} at step {number(last)}"
            said.append(f"{line.name} {at}, {spread}")
    return f"{title} ({unit}): {'; '.join(said)}."


def rows_of(lines: Sequence[Line]) -> list[list[str]]:
    """Values of all lines at some steps, the first and the last among them."""
    steps = sorted({x for line in lines for x, _ in line.points})
    many = len(steps) - 1
    kept = sorted({round(many * i / (MOST_ROWS - 1)) for i in range(MOST_ROWS)}) if many else [0]
    values = [dict(line.points) for line in lines]
    return [
        [number(steps[i]), *(number(of[steps[i]]) if steps[i] in of else "-" for of in values)]
        for i in kept
    ]

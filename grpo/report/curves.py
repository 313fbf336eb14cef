"""Curves of runs as the numbers an inline SVG needs: points, marks and ticks."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, pairwise
from operator import itemgetter
from typing import Any

import torch
from torch.nn.functional import avg_pool1d

Points = list[tuple[float, float]]  # (step, value)
Line = tuple[str, Points]  # with its name
Key = tuple[str, str, str]  # title of a chart, what the numbers are, name of a line
Metrics = Sequence[Mapping[str, Any]]  # of each step

# The drawing, in SVG units: the plot lies between these, the numbers around it.
LEFT, RIGHT, TOP, BOTTOM = 44, 372, 22, 168
MOST_POINTS = 240  # of a curve: more than a screen shows
MOST_MARKS, FEW = 25, 6  # a line of more points than that has few marks

NO_SIGNAL = "frac_reward_zero_std"
# Title, what the numbers are, and the metrics, as a regular expression. A line has the name that is
# in the brackets; if there are none, the title; if they match nothing, the modality trained on.
CURVES = (
    ("Accuracy by modality", "validation questions", "val/(?:(.+)/)?accuracy"),
    ("Forced choice by modality", "validation questions", "val/(?:(.+)/)?forced_choice"),
    ("Reward", "of all completions: mean, and std in a group", "(reward|reward_std)"),
    ("Reward by part", "mean, before its weight", "rewards/(.+)/mean"),
    ("Groups with signal", "share whose rewards differ", NO_SIGNAL),
    ("KL to the reference", "k3 estimate, nats a token", "kl"),
    ("Completion length", "tokens", "completions/(mean|min|max)_length"),
    ("Truncated", "share of completions", "completions/clipped_ratio"),
    ("Clipped", "share of tokens without gradient, by bound", "clip_ratio/(low|high)_mean"),
    ("Gradient norm", "before it is clipped", "grad_norm"),
    ("Entropy", "nats a token", "entropy"),
    ("Loss", "GRPO's is near 0 at one update a rollout", "loss"),
    ("Learning rate", "of AdamW", "learning_rate"),
    ("Time", "seconds a step", "time/(step|rollout|reference|update)"),
)


def curves(metrics: Metrics, trained_on: str) -> Iterator[dict[str, Any]]:
    """Yield a chart for each of CURVES whose metrics were logged in any step.

    `trained_on` is the modality that is validated under val/accuracy.
    """
    charts: dict[tuple[str, str], list[Line]] = {}
    for (title, unit, name), points in logged(metrics, f"{trained_on}, trained on").items():
        charts.setdefault((title, unit), []).append((name or title, points))
    yield from (drawn(title, unit, lines) for (title, unit), lines in charts.items())


def overlaid(runs: Mapping[str, Mapping[Key, Points]]) -> Iterator[dict[str, Any]]:
    """Yield a chart for each metric that `logged` found in any run, a line for each that has it."""
    for key in dict.fromkeys(chain.from_iterable(runs.values())):
        lines = [(run, points[key]) for run, points in runs.items() if key in points]
        title, unit, name = key
        yield drawn(f"{title}: {name}" if name else title, unit, lines)


def logged(metrics: Metrics, trained_on: str) -> dict[Key, Points]:
    """Return the points of each metric of CURVES by title, unit and name of its line ("": none)."""
    names, found = dict.fromkeys(name for step in metrics for name in step), {}
    for title, unit, pattern in CURVES:
        for match in filter(None, (re.fullmatch(pattern, name) for name in names)):
            (name,) = match.groups(trained_on) or ("",)
            if points := series(metrics, match[0]):
                found[title, unit, name] = points
    return found


def series(metrics: Metrics, name: str) -> Points:
    """Return the finite values of a metric; for NO_SIGNAL, the share of groups with signal."""
    found = [(float(step["step"]), step.get(name)) for step in metrics]
    points = [(x, float(y)) for x, y in found if isinstance(y, int | float) and math.isfinite(y)]
    return [(x, 1 - y) for x, y in points] if name == NO_SIGNAL else points


def drawn(title: str, unit: str, lines: list[Line], across: str = "step") -> dict[str, Any]:
    """Scale the lines to one plot over the steps, or over a share that is named by `across`.

    A long curve over the steps is drawn as a moving mean over its raw values.

    The `path` of a line is drawn; `faint` holds the raw values if that is a moving mean.
    """
    xs, values = zip(*chain.from_iterable(points for _, points in lines), strict=True)
    first, last = (min(xs), max(xs)) if across == "step" else (0.0, 1.0)
    low, high = min(0.0, *values), max(values)
    x_ticks = ticks(first, last, across == "step")
    y_ticks = ticks(low, high if high > low else low + 1)
    longest = max(len(points) for _, points in lines)
    window = 2 * (longest // 50) + 1 if across == "step" else 1
    n, every = len(lines), 1 if longest <= MOST_MARKS else longest // FEW
    right = partial(_scaled, first, last, LEFT, RIGHT)
    up = partial(_scaled, y_ticks[0], y_ticks[-1], BOTTOM, TOP)

    def path(points: Points) -> str:
        return " ".join(f"{right(x):g},{up(y):g}" for x, y in thinned(points))

    shapes = [
        {
            "name": name,
            "points": points,
            "path": path(means := moving_mean(points, window)),
            "faint": path(points) if window > 1 else "",
            # Those of another line lie elsewhere.
            "marks": [(right(x), up(y)) for x, y in means[i * every // n :: every] or means[:1]],
        }
        for i, (name, points) in enumerate(lines)
    ]
    return {
        "title": title,
        "unit": unit,
        "lines": shapes,
        "across": across,
        "x_ticks": [(right(x), number(x)) for x in x_ticks if first <= x <= last],
        "y_ticks": [(up(y), number(y)) for y in y_ticks],
        "window": window,
    }


def _scaled(low: float, high: float, start: float, end: float, x: float) -> float:
    share = (x - low) / (high - low) if high > low else 0.5
    return round(start + share * (end - start), 1)


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Keep at most `most` points: the lowest and highest of each stretch, so no spike is lost.

    >>> thinned([(0, 1.0), (1, 9.0), (2, 1.0), (3, 1.0), (4, 0.0), (5, 1.0)], most=4)
    [(0, 1.0), (1, 9.0), (3, 1.0), (4, 0.0)]
    """
    if len(points) <= most:
        return points
    kept = []
    for start, stop in pairwise(len(points) * i // (most // 2) for i in range(most // 2 + 1)):
        kept += sorted({bound(points[start:stop], key=itemgetter(1)) for bound in (min, max)})
    return kept


def moving_mean(points: Points, window: int) -> Points:
    """Return each value's mean with those around it, `window` (odd) in all; fewer at the ends.

    >>> moving_mean([(1, 0.0), (2, 3.0), (3, 6.0)], 3)
    [(1, 1.5), (2, 3.0), (3, 4.5)]
    """
    values = torch.tensor([[y for _, y in points]], dtype=torch.float64)  # (1, T)
    means = avg_pool1d(values, window, 1, window // 2, count_include_pad=False)[0].tolist()
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return four to seven round numbers from at most `low` to at least `high`.

    >>> ticks(0, 0.93), ticks(1, 200)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 50.0, 100.0, 150.0, 200.0])
    """
    rough = max(high - low, 1e-300) / 4.5
    size = 10.0 ** math.floor(math.log10(rough))
    gap = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * 0.9)
    gap = max(1.0, gap) if whole else gap
    first, last = math.floor(low / gap + 1e-9), math.ceil(high / gap - 1e-9)
    return [round(i * gap, 12) if gap > 1e-9 else i * gap for i in range(first, last + 1)]


def number(x: Any) -> str:
    """Return a number with four digits at most; "-" for what is none, or not finite.

    >>> number(0.07868262), number(2000.0), number(0.000015), number(None)
    ('0.07868', '2000', '1.5e-5', '-')
    """
    if not isinstance(x, int | float) or not abs(x) <= sys.float_info.max:  # NaN is not, either
        return "-"
    return f"{x:.4g}".replace("e-0", "e-")

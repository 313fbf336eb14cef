"""The traced steps side by side: their rewards as a histogram, and each question over the steps."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from grpo.report.token_table import Traced

MOST_BINS = 8  # each of as many different rewards, or of one if there are no more


def histogram(steps: Sequence[Traced]) -> tuple[list[float], list[tuple[int, list[list[int]]]]]:
    """Return where the bins of rewards begin, and for each step the groups of each bin: the index
    of a completion's group, once for each completion."""
    values = sorted({r for traced in steps for group in traced.rewards for r in group})
    edges = values[:: -(-len(values) // MOST_BINS) or 1]
    rows = []
    for traced in steps:
        bins: list[list[int]] = [[] for _ in edges]
        for b, group in enumerate(traced.rewards):
            for reward in group:
                bins[bisect_right(edges, reward) - 1].append(b)
        rows.append((traced.step, bins))
    return edges, rows


def recurring(steps: Sequence[Traced]) -> dict[str, list[tuple[Any, ...]]]:
    """Return step, group's index, rewards and text of each question of several groups, by id."""
    found = defaultdict(list)
    for traced in steps:
        for b, group in enumerate(traced.record["groups"]):
            found[str(group["id"])].append((traced.step, b, traced.rewards[b], group["question"]))
    return {name: asked for name, asked in found.items() if len(asked) > 1}

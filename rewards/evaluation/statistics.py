"""Intervals, paired tests and votes over answers that are right (1, True) or wrong (0, False).

Intervals are two-sided, 95 %. Bad arguments raise ValueError.
"""

import math
import random
import statistics
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

DRAWS = 2000  # of a bootstrap
Z95 = 1.959964  # 97.5 % quantile of the standard normal


def wilson(k: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Return the score interval of k right of n (Wilson 1927, JASA 22:209); (0, 1) if n is 0.

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} right of {n}: the first must lie between 0 and the second")
    if n == 0:
        return 0.0, 1.0
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)


def _changed(before: Sequence[int], after: Sequence[int]) -> tuple[int, int]:
    """Return how many answers went from wrong to right, and how many from right to wrong."""
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} answers before and {len(after)} after do not make pairs")
    pairs = Counter((bool(was), bool(now)) for was, now in zip(before, after, strict=True))
    return pairs[False, True], pairs[True, False]


def paired_interval(before: Sequence[int], after: Sequence[int]) -> tuple[float, float]:
    """Return the interval of accuracy(after) - accuracy(before), questions in the same order.

    The adjusted Wald interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37:479): one answer
    is added to each kind of change, wrong to right and right to wrong, then the normal formula.

    >>> [round(bound, 4) for bound in paired_interval([0, 0, 0, 1], [1, 1, 0, 0])]  # 1/6 -+ 0.7182
    [-0.5515, 0.8848]
    """
    gained, lost = _changed(before, after)
    n = len(before) + 2
    up, down = (gained + 1) / n, (lost + 1) / n
    half = Z95 * math.sqrt((up + down - (up - down) ** 2) / n)
    return max(-1.0, up - down - half), min(1.0, up - down + half)


def mcnemar(before: Sequence[int], after: Sequence[int]) -> float:
    """Return the exact two-sided p of equal gains and losses (McNemar 1947, Psychometrika 12:153).

    Given how many answers changed, the gains are Binomial(changed, 1/2); no change at all gives 1.

    >>> mcnemar([0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1])  # 5 gained, 0 lost: 2 / 2 ** 5
    0.0625
    """
    gained, lost = _changed(before, after)
    changed = gained + lost
    tail = sum(math.comb(changed, i) for i in range(min(gained, lost) + 1))  # integers: exact
    return min(1.0, 2 * tail / 2**changed)


def bootstrap_by(groups: Sequence[Any], values: Sequence[float], seed: int) -> tuple[float, float]:
    """Return the percentile interval of the mean of `values`: a bootstrap over whole groups.

    Questions that share an image are not independent: `groups` (n,) names the image of each
    (cluster bootstrap; Davison and Hinkley 1997, Bootstrap Methods, 3.8). The order of the
    questions does not matter. Raises ValueError if there are fewer than two groups.

    >>> bootstrap_by(["a", "a", "b", "c"], [1, 1, 0, 1], seed=0)
    (0.0, 1.0)
    """
    clusters: dict[Any, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        clusters.setdefault(group, []).append(value)
    if len(clusters) < 2:
        raise ValueError(f"a bootstrap over groups needs at least 2 of them, not {len(clusters)}")
    sums = sorted((math.fsum(cluster), len(cluster)) for cluster in clusters.values())
    generator = random.Random(seed)
    means = []
    for _ in range(DRAWS):
        totals, sizes = zip(*generator.choices(sums, k=len(sums)), strict=True)
        means.append(sum(totals) / sum(sizes))
    quantiles = statistics.quantiles(means, n=40, method="inclusive")  # 2.5 %, 5 %, ... 97.5 %
    return quantiles[0], quantiles[-1]


def linear_interval(value: float, slopes: Sequence[float], groups: Iterable[Any]) -> list[float]:
    """Return the interval of a figure of n questions, value -+ 1.96 errors, within -1 and 1.

    `slopes` (n,) are n times how fast the figure grows with the weight of each question, up to a
    constant; those of a mean are its values. `groups` (n,) names what dependent questions share.
    The error is that of a bootstrap over whole groups with infinitely many draws, linearised
    (infinitesimal jackknife; Davison and Hinkley 1997, Bootstrap Methods, 2.7). One group has none,
    so nothing is known.

    >>> found = linear_interval(0.5, [0, 0, 1, 1], ["a", "b", "b", "c"])
    >>> [round(bound, 4) for bound in found]  # the error is sqrt(0.5 * 3 / 2) / 4
    [0.0757, 0.9243]
    """
    sums, mean = Counter(), statistics.fmean(slopes)
    for group, slope in zip(groups, slopes, strict=True):
        sums[group] += slope - mean
    if (g := len(sums)) < 2:
        return [-1.0, 1.0]
    half = Z95 * math.sqrt(math.fsum(x * x for x in sums.values()) * g / (g - 1)) / len(slopes)
    return [max(-1.0, value - half), min(1.0, value + half)]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that k of n samples, c of them right, hold a right one: unbiased pass@k.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).

    >>> pass_at_k(4, 1, 2)  # 3 of the 6 pairs hold the right one
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@{k} needs at least {k} samples, {c} of {n} right is no such count")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def differ(values: Sequence[float], group_size: int) -> float:
    """Return the chance that G of n values, drawn without replacement, are not all equal.

    1 - sum_v C(m_v, G) / C(n, G), where m_v of the values are v: for c right answers of n,
    1 - C(c, G) / C(n, G) - C(n - c, G) / C(n, G). Equal means equal in float32, as GRPO compares
    rewards.

    >>> differ([0.0, 0.0, 0.5, 1.0], 2)  # 5 of the 6 pairs
    0.8333333333333334
    """
    equal = sum(math.comb(m, group_size) for m in Counter(array("f", values)).values())
    return 1 - equal / math.comb(len(values), group_size)


def majority(answers: Sequence[str | None]) -> str | None:
    """Return the answer given most often (self-consistency: Wang et al. 2022, arXiv 2203.11171).

    None stands for an answer that could not be read and has no vote. If two answers are given
    equally often the first one wins: an alphabetical rule would favour the letter A. None if there
    is no vote.

    >>> majority(["B", None, "A", None, "B", "A"])
    'B'
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.__getitem__, default=None)  # the first of equals


def students_t(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return mean, low and high bound over n seeds (Student 1908): mean -+ t * s / sqrt(n).

    P(|T| < t) is the level, for a Student variable T of n - 1 degrees of freedom.

    >>> [round(x, 3) for x in students_t([0.70, 0.72, 0.77])]  # t is 4.303 for 3 seeds
    [0.73, 0.64, 0.82]
    """
    mean, dof, part = statistics.fmean(values), len(values) - 1, math.pi / 2**54
    parts = bisect(range(2**53), level, key=lambda i: _student(part * i, dof))  # of a right angle
    half = math.tan(part * parts) * _per_tangent(values)
    return mean, mean - half, mean + half


def student_p(values: Sequence[float]) -> float:
    """Return the two-sided p of a mean of 0 over n seeds (Student 1908).

    >>> round(student_p([4.0, 5.0, 6.0]), 4)  # t is 5 sqrt(3)
    0.0131
    """
    angle = math.atan2(abs(statistics.fmean(values)), _per_tangent(values))
    return 1 - _student(angle, len(values) - 1)


def _per_tangent(values: Sequence[float]) -> float:
    """Return what one of `_student`'s tangents is worth for n values: s sqrt(n - 1) / sqrt(n)."""
    return statistics.stdev(values) * math.sqrt(1 - 1 / len(values))  # ValueError for one seed


def _student(angle: float, dof: int) -> float:
    """Return P(|T| < sqrt(dof) tan(angle)) for a Student variable T of `dof` degrees of freedom.

    It is a finite sum of sines and cosines (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    odd = dof % 2
    total, term = 0.0, (math.cos(angle) if odd else 1.0)
    for power in range(odd, dof - 1, 2):  # term is cos(angle) ** power and its coefficient
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    part = math.sin(angle) * total
    return (angle + part) * 2 / math.pi if odd else part


def holm(pvalues: Sequence[float]) -> list[float]:
    """Return m p-values adjusted for m tests, in their order (Holm 1979, Scand. J. Stat. 6:65).

    Reject those at most alpha, and the chance of any false rejection is at most alpha.
    >>> [round(p, 3) for p in holm([0.02, 0.01, 0.04])]  # 2 * 0.02, 3 * 0.01, 1 * 0.04
    [0.04, 0.03, 0.04]
    """
    m, highest, adjusted = len(pvalues), 0.0, [0.0] * len(pvalues)
    for rank, i in enumerate(sorted(range(m), key=pvalues.__getitem__)):
        adjusted[i] = highest = max(highest, min(1.0, (m - rank) * pvalues[i]))
    return adjusted


def poisson_binomial_tail(k: int, ps: Sequence[float]) -> float:
    """Return the chance of k or more right if question i is guessed right with chance ps[i].

    The Poisson-binomial law (Hong 2013, Comput. Stat. Data Anal. 59:41), built up a question at a
    time. All terms are positive, so a small tail is as exact as a large one.

    >>> poisson_binomial_tail(2, [0.5, 0.25])
    0.125
    """
    if not all(0 <= p <= 1 for p in ps):
        raise ValueError("a chance lies between 0 and 1")
    law = [1.0]  # law[j]: chance of j right so far
    for p in ps:
        law = [come * p + stay * (1 - p) for come, stay in pairwise([0.0, *law, 0.0])]
    return 1.0 if k <= 0 else min(1.0, math.fsum(law[k:]))

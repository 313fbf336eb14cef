"""What a clinical reviewer asks first: does a policy know when it is right, and what does it miss?

Calibration and abstention compare the confidence p (n,) of n answers, rising, with whether they are
right, y (n,), 0 or 1. No figure depends on the order of answers that are equally confident.
"""

import math
import random
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from statistics import fmean
from typing import Any

from rewards.evaluation.predictions import Row
from rewards.evaluation.scores import cluster, headline, macro_mean, share
from rewards.evaluation.statistics import linear_interval, majority
from rewards.words import normalised

BINS = 15
DRAWS = 400  # simulated tests of a perfectly calibrated model
MANY = 20  # right answers and wrong ones, from which on the error of a figure of ranks holds
LISTED = 10  # answers of a type at most, if their recall is given
Figure = tuple[float, list[float]]  # value, and the (n,) slopes of `linear_interval`


def calibration(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the figures of forced choices, or of the majorities of --samples; None if there are no
    such answers.

    A figure with an interval is {value, ci95}; those of ranks, `auroc` and `aurc`, have [0, 1] if
    fewer than MANY answers are right or wrong. `excess` is how far `ece` lies above the mean of a
    perfectly calibrated model. `accuracy_at_80` is of the most confident 80 %, with all that are as
    confident as the last of them. `curve` has points of coverage and risk.
    """
    rows = [row | found for row in headline(rows) if (found := confidence(row))]
    if not rows:
        return None
    rows.sort(key=lambda row: row["confidence"])
    p, y = [row["confidence"] for row in rows], [int(row["right"]) for row in rows]
    usual, (ece, slopes) = calibrated_ece(p), calibration_error(p, y)
    squares = [(chance - hit) ** 2 for chance, hit in zip(p, y, strict=True)]
    figures = {"excess": (ece - usual["mean"], slopes)}
    figures["brier"] = fmean(squares), squares
    figures["auroc"] = auroc(p, y, [len(row["options"]) for row in rows])
    curve, figures["aurc"] = risk_coverage(p, y)
    found = {"n": len(p), "accuracy": fmean(y), "confidence": fmean(p), "ece": ece}
    for name, figure in figures.items():
        sure = name not in ("auroc", "aurc") or MANY <= sum(y) <= len(y) - MANY
        ci95 = figure and (linear_interval(*figure, map(cluster, rows)) if sure else [0.0, 1.0])
        found[name] = figure and {"value": figure[0], "ci95": ci95}
    for percent in (80, 50):
        first = bisect_left(p, p[len(p) - math.ceil(len(p) * percent / 100)])
        found[f"accuracy_at_{percent}"] = share(rows[first:], "right")
    bins = [{"confidence": fmean(p[a:b]), "accuracy": fmean(y[a:b])} for a, b in equal_mass(p)]
    return found | {"calibrated": usual, "bins": bins, "curve": curve}


def confidence(row: Row) -> Row | None:
    """Return the `confidence` of an answer and whether it is `right`; None if there is no answer.

    The confidence of a forced choice is its probability among the options. Of several samples the
    answer is the majority, and its confidence the share of samples that equal it.
    """
    if logprobs := row.get("letter_logprobs"):
        return {"confidence": math.exp(max(logprobs)), "right": row["forced_correct"]}
    vote = majority(row.get("answers", ()))
    agreeing = vote and row["answers"].count(vote) / len(row["answers"])
    return vote and {"confidence": agreeing, "right": vote == row["gold"]}


def equal_mass(p: Sequence[float]) -> list[tuple[int, int]]:
    """Return (first, behind the last) of at most BINS bins of equally many answers; answers that
    are equally confident share a bin.

    >>> equal_mass([0.1 * i for i in range(30)])[:2], equal_mass([0.5, 0.5, 0.5, 0.7])
    ([(0, 2), (2, 4)], [(0, 3), (3, 4)])
    """
    last = (max(0, len(p) * b // BINS - 1) for b in range(1, BINS + 1))
    return list(pairwise(sorted({0, *(bisect_right(p, p[i]) for i in last)})))


def calibration_error(p: Sequence[float], y: Sequence[int]) -> Figure:
    """Return the expected calibration error: the mean over all answers of how far the accuracy of
    their bin is from its mean confidence (Naeini et al. 2015, AAAI)."""
    gaps = [(a, b, math.fsum(y[a:b]) - math.fsum(p[a:b])) for a, b in equal_mass(p)]
    ece = math.fsum(abs(gap) for *_, gap in gaps) / len(p)
    return ece, [math.copysign(1, g) * (y[i] - p[i]) for a, b, g in gaps for i in range(a, b)]


def calibrated_ece(p: Sequence[float]) -> dict[str, Any]:
    """Return mean and 95 % band of the calibration error of a perfectly calibrated model with these
    confidences: every answer is right with the chance p. Simulated, with a fixed seed."""
    draw = random.Random(0).random
    errors = sorted(calibration_error(p, [draw() < x for x in p])[0] for _ in range(DRAWS))
    return {"mean": fmean(errors), "band95": [errors[DRAWS // 40], errors[-DRAWS // 40 - 1]]}


def auroc(p: Sequence[float], y: Sequence[int], options: Sequence[int]) -> Figure | None:
    """Return the chance that a right answer is more confident than a wrong one, equals counted as
    half; None if there is no such pair.

    Only questions of equally many options (n,) are compared: a guess between two is more confident
    than one between four. Slopes are those of DeLong et al. (1988, Biometrics 44:837).
    """
    rivals = defaultdict(list)
    for chance, hit, number in zip(p, y, options, strict=True):
        rivals[number, hit].append(chance)
    compared = []  # of each answer: its part in right orders, and in pairs
    for chance, hit, number in zip(p, y, options, strict=True):
        others = rivals[number, 1 - hit]
        below = (bisect_left(others, chance) + bisect_right(others, chance)) / 2
        compared.append((below if hit else len(others) - below, len(others)))
    won, pairs = map(sum, zip(*compared, strict=True))  # both count each pair twice
    if not pairs:
        return None
    return won / pairs, [2 * len(p) * (w - m * won / pairs) / pairs for w, m in compared]


def risk_coverage(p: Sequence[float], y: Sequence[int]) -> tuple[list[list[float]], Figure]:
    """Return about 40 points of the curve of coverage and risk, and its area.

    The risk at an answer is the share of wrong ones among all that are at least as confident; the
    area is the mean over all answers (Geifman et al. 2019, arXiv 1805.08206).
    """
    first, wrong = [bisect_left(p, chance) for chance in p], [1 - hit for hit in y]
    answered, errors = [len(p) - i for i in first], [*accumulate(reversed(wrong))][::-1]
    risk = [errors[i] / (len(p) - i) for i in first]
    # An answer counts in the risk at every answer that is at most as confident.
    adds = [0.0, *accumulate(1 / m for m in answered)]
    takes = [0.0, *accumulate(r / m for r, m in zip(risk, answered, strict=True))]
    last = [bisect_right(p, chance) for chance in p]
    slopes = [risk[i] + wrong[i] * adds[j] - takes[j] for i, j in enumerate(last)]
    points = [[m / len(p), r] for m, r in dict(zip(answered, risk, strict=True)).items()]
    return points[:: len(points) // 40 + 1][::-1], (fmean(risk), slopes)


def recalls(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the recall of each answer, by name of its list: "yes/no", or the question type.

    Recall is the accuracy on the questions to which an answer is right; the balanced accuracy is
    its mean. Forced choices and strict answers are counted, and the share of answers `unread`. A
    list of more than LISTED right answers is left out.
    """
    lists: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in headline(rows):
        if texts := list(map(normalised, row["options"])):
            name = "yes/no" if {"yes", "no"} == set(texts) else row["question_type"] or "all"
            lists[name][texts[ord(row["gold"]) - ord("A")]].append(row)
    found: dict[str, Any] = {}
    for name, asked in sorted(lists.items()):
        named = {"yes": "sensitivity", "no": "specificity"} if name == "yes/no" else {}
        if len(asked) <= LISTED:
            found[name] = {"unread": fmean(row["answer"] is None for row in chain(*asked.values()))}
            for kind, key in (("forced_choice", "forced_correct"), ("strict", "correct")):
                rates = {named.get(x, x): share(part, key) for x, part in sorted(asked.items())}
                balanced = macro_mean([*rates.values()])
                found[name][kind] = {"recall": rates, "balanced_accuracy": balanced}
    return found

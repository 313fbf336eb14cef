"""Answered questions made into figures: accuracies, intervals, differences."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from rewards.evaluation.predictions import Row
from rewards.evaluation.statistics import (
    bootstrap_by,
    majority,
    mcnemar,
    paired_interval,
    pass_at_k,
    wilson,
)

Interval = tuple[float, float]


def headline(rows: Sequence[Row]) -> list[Row]:
    """Closed questions whose answer changes within the modality: the others need no image.

    Where there is nothing closed, or nothing that changes, what there is.
    """
    of = _closed(rows)
    return [row for row in of if not row.get("constant")] or of


def apart(rows: Sequence[Row]) -> list[Row]:
    """The questions of one answer that `headline` leaves out."""
    shown = {row["id"] for row in headline(rows)}
    return [row for row in _closed(rows) if row["id"] not in shown]


def _closed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("closed", True)] or list(rows)


def cell(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one model on one modality; constant and open questions apart.

    `letter_bias`: how far the letters chosen are from the letters that are right, as the total
    variation distance of their shares (0: none; by forced choice). `findings`: how true the stated
    findings are, by a rule (rewards/rules.py), where the true ones are known.
    """
    shown = headline(rows)
    closed = {row["id"] for row in _closed(rows)}
    parsed = [row["correct"] for row in shown if row["answer"] is not None]
    return share(shown) | {
        "format_rate": fmean(row["formatted"] for row in shown),
        "accuracy_parsed": fmean(parsed) if parsed else None,
        "forced_choice": mean_of(shown, "forced_correct"),
        "letter_bias": letter_bias(shown),
        "findings": mean_of(shown, "findings"),
        "f1": mean_of(shown, "f1"),
        "mean_length": fmean(row["length"] for row in shown),
        "by_type": {name: share(part) for name, part in sorted(_by_type(shown).items())},
        "constant": share(apart(rows)),
        "open": opened([row for row in rows if row["id"] not in closed]),
    }


def opened(rows: Sequence[Row]) -> dict[str, Any]:
    """Open questions beside closed ones: exact match as `share` has it, and token F1."""
    return share(rows) | {"f1": mean_of(rows, "f1")}


def mean_of(rows: Sequence[Row], name: str) -> float | None:
    """The mean of a figure over the rows that have it; None where none has."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return fmean(values) if values else None


def letter_bias(rows: Sequence[Row]) -> float | None:
    """Total variation distance between the letters chosen and the right ones, 0 to 1.

    >>> letter_bias([{"forced_answer": "A", "gold": "A"}, {"forced_answer": "A", "gold": "B"}])
    0.5
    """
    chosen = [row for row in rows if row["forced_answer"] is not None]
    if not chosen:
        return None
    said, right = (Counter(row[name] for row in chosen) for name in ("forced_answer", "gold"))
    return sum(abs(said[x] - right[x]) for x in said.keys() | right.keys()) / (2 * len(chosen))


def measured(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of --metrics: `perplexity` of the reference answers, exp of the mean of -log p
    over their tokens; means of grades and similarities, and how many could not be had. Those of
    open questions beside closed ones are apart, as `open NAME`."""
    closed = [row["closed"] for row in rows]
    if all(closed) or not any(closed):
        return _measured(rows)
    return _measured([row for row in rows if row["closed"]]) | {
        f"open {name}": figure
        for name, figure in _measured([row for row in rows if not row["closed"]]).items()
    }


def _measured(rows: Sequence[Row]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if any("reference_nll" in row for row in rows):
        tokens = sum(row["reference_tokens"] for row in rows)
        figures["perplexity"] = math.exp(math.fsum(row["reference_nll"] for row in rows) / tokens)
    for name in ("reasoning", "correctness", "similarity"):
        if any(name in row for row in rows):
            figures[name] = mean_of(rows, name)
            figures[f"{name} missing"] = sum(row[name] is None for row in rows)
    return figures


def share(rows: Sequence[Row]) -> dict[str, Any]:
    """n, correct, accuracy (None of none), its interval, and how many had how many options."""
    correct, options = sum(row["correct"] for row in rows), Counter(len(r["options"]) for r in rows)
    return {
        "n": len(rows),
        "correct": correct,
        "accuracy": correct / len(rows) if rows else None,
        "ci95": list(interval(rows)) if rows else [0.0, 1.0],
        "options": {str(number): count for number, count in sorted(options.items())},
    }


def interval(rows: Sequence[Row]) -> Interval:
    """Of the accuracy: Wilson, and a bootstrap over images where questions share them.

    A bootstrap of answers all alike, or of one image, has no width; then Wilson counts the images.
    """
    images, values = [_image(row) for row in rows], [float(row["correct"]) for row in rows]
    n = len(set(images))
    if n == len(rows) or n == 1 or min(values) == max(values):
        return wilson(round(fmean(values) * n, 9), n)
    return bootstrap_by(images, values, seed=0)


def gain(before: Sequence[Row], after: Sequence[Row], name: str) -> dict[str, Any] | None:
    """Difference of two accuracies on the same questions, its interval, and McNemar's exact p.

    `name`: correct or forced_correct. Where questions share images the interval is a bootstrap over
    images; McNemar's test takes questions for independent.
    """
    before, after = headline(before), headline(after)
    if any(row[name] is None for row in after):  # open questions have no forced choice
        return None
    old, new = ([int(row[name]) for row in rows] for rows in (before, after))
    images, change = [_image(row) for row in after], [b - a for a, b in zip(old, new, strict=True)]
    if 1 < len(set(images)) < len(images) and min(change) < max(change):
        ci95 = bootstrap_by(images, change, seed=0)
    else:  # each image counts once; where they are shared, all its questions changed alike
        pairs = dict(zip(images, zip(old, new, strict=True), strict=True)).values()
        ci95 = paired_interval(*zip(*pairs, strict=True))
    return {"gain": fmean(change), "ci95": list(ci95), "mcnemar_p": mcnemar(old, new)}


def _image(row: Row) -> Any:
    """What makes rows dependent: the images. Questions about none, or a blank one, stand alone."""
    seen = [key for key in row["image"] if not key.startswith("blank/")]
    return tuple(seen) or row["id"]


def _by_type(rows: Sequence[Row]) -> dict[str, list[Row]]:
    parts = defaultdict(list)
    for row in rows:
        parts[row["question_type"] or "all"].append(row)
    return parts


def ood_mean(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy over unseen modalities, each counting alike; their intervals as independent."""
    halves = [(high - low) / 2 for low, high in (cell["ci95"] for cell in cells)]
    mean = fmean(cell["accuracy"] for cell in cells)
    half = math.hypot(*halves) / len(cells)
    return {"accuracy": mean, "ci95": [max(0.0, mean - half), min(1.0, mean + half)]}


def control(arm: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of a control on one modality, its constant questions apart."""
    if arm == "permuted_options":
        return permuted(rows)
    return share(headline(rows)) | {"constant": share(apart(rows))}


def permuted(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracy over all orders of the options, and how often an answer is the same text as before.

    Ids are `question~k`, k the order's number, 0 the one that was asked.
    """
    chosen: dict[str, dict[str, str | None]] = defaultdict(dict)
    for row in rows:
        question, _, order = row["id"].rpartition("~")
        named = dict(zip(ascii_uppercase, row["options"], strict=False))
        chosen[question][order] = named.get(row["answer"])  # another scorer may read any letter
    same = [
        text is not None and text == texts["0"]
        for texts in chosen.values()
        for order, text in texts.items()
        if order != "0"
    ]
    return share(rows) | {"same_text": fmean(same) if same else None}


def sampled(rows: Sequence[Row]) -> dict[str, Any]:
    """Of K samples a question: pass@k for k = 1, 2, 4 .. K, majority@K, how many agree with it.

    And mixed: the share of questions answered both right and wrong, where GRPO has a signal.

    `answers` of a row: K letters, None where none was given.
    """
    rows = headline(rows)
    k = len(rows[0]["answers"])
    right = [sum(answer == row["gold"] for answer in row["answers"]) for row in rows]
    votes = [majority(row["answers"]) for row in rows]
    ks = sorted({*(2**i for i in range(k.bit_length())), k})
    figures: dict[str, Any] = {"n": len(rows), "samples": k}
    figures |= {f"pass@{j}": fmean(pass_at_k(k, c, j) for c in right) for j in ks}
    figures[f"majority@{k}"] = fmean(
        vote == row["gold"] for vote, row in zip(votes, rows, strict=True)
    )
    figures["mixed"] = fmean(0 < c < k for c in right)
    figures["agreement"] = fmean(
        row["answers"].count(vote) / k if vote else 0.0
        for vote, row in zip(votes, rows, strict=True)
    )
    return figures

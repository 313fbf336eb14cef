"""Figures of answered questions: accuracies, intervals, differences."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from rewards.evaluation import statistics
from rewards.evaluation.predictions import Row
from rewards.rules import mentioned
from rewards.words import normalised


def headline(rows: Sequence[Row]) -> list[Row]:
    """Return the closed questions whose answer changes within the modality: others need no image.

    If no question is closed, or no answer changes, return all of them.
    """
    closed = _closed(rows)
    return [row for row in closed if not row.get("constant")] or closed


def apart(rows: Sequence[Row]) -> list[Row]:
    """Return the closed questions of a constant answer, which `headline` leaves out."""
    shown = {row["id"] for row in headline(rows)}
    return [row for row in _closed(rows) if row["id"] not in shown]


def _closed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.get("closed", True)] or list(rows)


def cell(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of one model on one modality; constant and open questions apart.

    `findings` is how true the stated findings are, by a rule of rewards/rules.py, None if the true
    ones are not known. `follows` counts the thoughts before the forced choice that name one option,
    as correct if it is the one chosen.
    """
    shown = [row | {"follows": follows(row)} for row in headline(rows)]
    closed = {row["id"] for row in _closed(rows)}
    opened = [row for row in rows if row["id"] not in closed]
    thoughts = [r for r in shown if r.get("finding") and r.get("forced_reasoning") is not None]
    by_type = defaultdict(list)
    for row in shown:
        by_type[row["question_type"] or "all"].append(row)
    return share(shown) | {
        "format_rate": fmean(row["formatted"] for row in shown),
        "accuracy_parsed": mean_of([r for r in shown if r["answer"] is not None], "correct"),
        "forced_choice": mean_of(shown, "forced_correct"),
        "letter_bias": letter_bias(shown),
        "findings": mean_of(shown, "findings"),
        "f1": mean_of(shown, "f1"),
        "mean_length": fmean(row["length"] for row in shown),
        "follows": share(shown, "follows"),
        "by_type": {name: _of_type(part, thoughts) for name, part in sorted(by_type.items())},
        "constant": share(apart(rows)),
        "open": share(opened) | {"f1": mean_of(opened, "f1")},
    }


def follows(row: Row) -> bool | None:
    """Is the forced choice the option that the thought before it names? None if the thought names
    none or several.

    Options are found as `rewards/rules.py: consistency_rule` finds them; it knows no denial.

    >>> row = {"options": ["left", "right"], "forced_answer": "A"}
    >>> follows(row | {"forced_reasoning": "upper right"}), follows(row)
    (False, None)
    """
    options = dict(zip(ascii_uppercase, map(normalised, row["options"]), strict=False))
    said = set(mentioned(row.get("forced_reasoning") or "", options.values()))
    return said == {options[row["forced_answer"]]} if len(said) == 1 else None


def _of_type(asked: Sequence[Row], thoughts: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of the questions of one type, and what `thoughts` say about that type.

    `thoughts` are rows of all types about an image with one known finding. The type is a part of a
    finding (its side, its size, ...) if the finding names one of the type's options; other thoughts
    are not counted. A thought counts in `stated` as correct if it names one option of the type, in
    `says` if that is the true one. `right` is `says` of those that name one option.
    """
    options = {normalised(option) for row in asked for option in row["options"]}
    judged = []
    for row in thoughts:
        true, said = (set(mentioned(x, options)) for x in (row["finding"], row["forced_reasoning"]))
        if len(true) == 1:
            says, stated = said == true, len(said) == 1
            judged.append(row | {"says": says, "stated": stated, "right": says if stated else None})
    found = {"forced_choice": share(asked, "forced_correct"), "follows": share(asked, "follows")}
    return share(asked) | found | {key: share(judged, key) for key in ("says", "stated", "right")}


def mean_of(rows: Sequence[Row], name: str) -> float | None:
    """Return the mean of a figure over the rows that have it, None if none has."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return fmean(values) if values else None


def letter_bias(rows: Sequence[Row]) -> float | None:
    """Return the total variation distance between the shares of the letters chosen by forced
    choice and of the right ones, 0 (no bias) to 1.

    >>> letter_bias([{"forced_answer": "A", "gold": "A"}, {"forced_answer": "A", "gold": "B"}])
    0.5
    """
    chosen = [row for row in rows if row["forced_answer"] is not None]
    if not chosen:
        return None
    said, right = (Counter(row[name] for row in chosen) for name in ("forced_answer", "gold"))
    return sum(abs(said[x] - right[x]) for x in said.keys() | right.keys()) / (2 * len(chosen))


def measured(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of --metrics; of open questions as `open NAME` if there are closed ones.

    `perplexity` of the reference answers is exp of the mean of -log p over their tokens. The others
    are means, with how many are missing.
    """
    closed, opened = ([row for row in rows if row["closed"] == kind] for kind in (True, False))
    if closed and opened:
        return measured(closed) | {f"open {name}": x for name, x in measured(opened).items()}
    figures: dict[str, Any] = {}
    if any("reference_nll" in row for row in rows):
        tokens = sum(row["reference_tokens"] for row in rows)
        figures["perplexity"] = math.exp(math.fsum(row["reference_nll"] for row in rows) / tokens)
    after = [f"same_after_{thought}" for thought in ("none", "half", "other")]
    for name in ("reasoning", "correctness", "similarity", *after):
        if any(name in row for row in rows):
            figures[name] = mean_of(rows, name)
            figures[f"{name} missing"] = sum(row[name] is None for row in rows)
    return figures


def share(rows: Sequence[Row], name: str = "correct") -> dict[str, Any]:
    """Return n, correct, accuracy (None if n is 0), its interval, and the number of questions by
    their number of options.

    `name` is the figure that counts as correct; rows without it, or with None, are left out.
    """
    rows = [row | {"correct": row[name]} for row in rows if row.get(name) is not None]
    correct, options = sum(row["correct"] for row in rows), Counter(len(r["options"]) for r in rows)
    return {
        "n": len(rows),
        "correct": correct,
        "accuracy": correct / len(rows) if rows else None,
        "ci95": list(interval(rows)) if rows else [0.0, 1.0],
        "options": {str(number): count for number, count in sorted(options.items())},
    }


def interval(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the accuracy's 95 % interval: Wilson's, or a bootstrap over patients or shared images.

    A bootstrap of equal answers, or of one image, has no width; then Wilson's counts the images.
    """
    images, values = [cluster(row) for row in rows], [float(row["correct"]) for row in rows]
    n = len(set(images))
    return _clustered(images, values) or statistics.wilson(round(fmean(values) * n, 9), n)


def _clustered(images: Sequence[Any], values: Sequence[float]) -> tuple[float, float] | None:
    """Return the bootstrap's interval over images; None if none is shared or it has no width."""
    shared = 1 < len(set(images)) < len(images) and min(values) < max(values)
    low, high = statistics.bootstrap_by(images, values, seed=0) if shared else (0.0, 0.0)
    return (low, high) if low < high else None


def gain(before: Sequence[Row], after: Sequence[Row], name: str) -> dict[str, Any] | None:
    """Return the difference of two accuracies on the same questions, its interval, and McNemar's p.

    `name` is correct or forced_correct. If questions share images or patients the interval is a
    bootstrap over those; McNemar's test assumes independence. None if there is no forced choice.
    """
    before, after = headline(before), headline(after)
    if any(row[name] is None for row in after):  # open questions have no forced choice
        return None
    old, new = ([int(row[name]) for row in rows] for rows in (before, after))
    images, change = [cluster(row) for row in after], [b - a for a, b in zip(old, new, strict=True)]
    # Each image counts once, if all changed alike; else nothing is known without a bootstrap.
    pairs = dict(zip(images, zip(old, new, strict=True), strict=True)).values()
    unlike = len(pairs) < len(images) and min(change) < max(change)
    paired = (-1.0, 1.0) if unlike else statistics.paired_interval(*zip(*pairs, strict=True))
    ci95 = _clustered(images, change) or paired
    p = statistics.mcnemar(old, new)
    return {"gain": fmean(change), "ci95": list(ci95), "mcnemar_p": p}


def cluster(row: Row) -> Any:
    """Return what dependent rows share: the patient, else the images, else (blank, none) the id."""
    images = [key for key in row["image"] if not key.startswith("blank/")]
    return row.get("patient") or tuple(images) or row["id"]


def macro_mean(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of accuracies, with equal weights: of unseen modalities, of the recalls of
    several answers. They are taken as independent: each side of the interval is the root of the sum
    of the squared sides of theirs (Zou and Donner 2008, Stat. Med. 27:1693)."""
    sides = ([cell["accuracy"] - cell["ci95"][end] for cell in cells] for end in (0, 1))
    down, up = (math.hypot(*side) / len(cells) for side in sides)
    mean = fmean(cell["accuracy"] for cell in cells)
    return {"accuracy": mean, "ci95": [max(0.0, mean - down), min(1.0, mean + up)]}


def control(arm: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of a control on one modality, its constant questions apart."""
    if arm == "permuted_options":
        return permuted(rows)
    forced = share(headline(rows), "forced_correct")
    return share(headline(rows)) | {"forced_choice": forced, "constant": share(apart(rows))}


def permuted(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the accuracy over all orders of the options, and how often the answer's text stays.

    Ids are `question~k`, where k is the number of the order; 0 is the order of the test.
    """
    chosen = {}
    for row in rows:
        named = dict(zip(ascii_uppercase, row["options"], strict=False))
        chosen[row["id"]] = named.get(row["answer"])  # another scorer may read any letter
    same = [
        text is not None and text == chosen[question.rpartition("~")[0] + "~0"]
        for question, text in chosen.items()
        if not question.endswith("~0")
    ]
    asked = [row | {"id": row["id"].rpartition("~")[0]} for row in rows]  # orders are dependent
    return share(asked) | {"same_text": fmean(same) if same else None}

"""Answered questions made into the figures of a table."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rewards.metrics import (
    bootstrap_by,
    holm,
    majority,
    mcnemar,
    paired_interval,
    pass_at_k,
    poisson_binomial_tail,
    students_t,
    wilson,
)
from rewards.rows import Row

Interval = tuple[float, float]
BLIND = {  # the controls that cannot see the image, as the beginning of a sentence
    "blank_image": "with a blank image it scores",
    "shuffled_image": "with another question's image it scores",
    "options_prior": "the options alone score",
    "majority_letter": "one letter for all scores",
}
Rows = Sequence[Row]
Answers = dict[str, dict[str, dict[str, list[Row]]]]  # model, arm, modality -> rows
TESTS, SAMPLES = "tests", "samples"  # the arms that are no controls
ALPHA = 0.01  # a control is above chance if its one-sided p, after Holm, is below


def headline(rows: Sequence[Row]) -> list[Row]:
    """Without the questions whose answer never changes in training: they need no image.

    Where there is nothing else, they are the headline.
    """
    return [row for row in rows if not row.get("constant")] or list(rows)


def apart(rows: Sequence[Row]) -> list[Row]:
    """What `headline` leaves out."""
    shown = {row["id"] for row in headline(rows)}
    return [row for row in rows if row["id"] not in shown]


def cell(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one model on one modality, its constant questions apart."""
    shown = headline(rows)
    n, correct = len(shown), sum(row["correct"] for row in shown)
    parsed = [row["correct"] for row in shown if row["answer"] is not None]
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "ci95": list(interval(shown)),
        "format_rate": fmean(row["formatted"] for row in shown),
        "accuracy_parsed": fmean(parsed) if parsed else None,
        "forced_choice": fmean(row["forced_correct"] for row in shown),
        "mean_length": fmean(row["length"] for row in shown),
        "by_type": {name: share(part) for name, part in sorted(_by_type(shown).items())},
        "constant": share(apart(rows)),
    }


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
        return wilson(round(fmean(values) * n), n)
    return bootstrap_by(images, values, seed=0)


def gain(before: Sequence[Row], after: Sequence[Row], name: str) -> dict[str, Any]:
    """Difference of two accuracies on the same questions, its interval, and McNemar's exact p.

    `name`: correct or forced_correct. Where questions share images the interval is a bootstrap over
    images; McNemar's test takes questions for independent.
    """
    before, after = headline(before), headline(after)
    old, new = ([int(row[name]) for row in rows] for rows in (before, after))
    images, change = [_image(row) for row in after], [b - a for a, b in zip(old, new, strict=True)]
    shared = 1 < len(set(images)) < len(images) and min(change) < max(change)
    ci95 = bootstrap_by(images, change, seed=0) if shared else paired_interval(old, new)
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
        letter = row["answer"]
        text = row["options"][ord(letter) - ord("A")] if letter else None
        chosen[question][order] = text
    same = [
        text is not None and text == texts["0"]
        for texts in chosen.values()
        for order, text in texts.items()
        if order != "0"
    ]
    return share(rows) | {"same_text": fmean(same)}


def sampled(rows: Sequence[Row]) -> dict[str, Any]:
    """Of K samples a question: pass@k for k = 1, 2, 4 .. K, majority@K, and how many agree with it.

    `answers` of a row: K letters, None where none was given.
    """
    k = len(rows[0]["answers"])
    right = [sum(answer == row["gold"] for answer in row["answers"]) for row in rows]
    votes = [majority(row["answers"]) for row in rows]
    ks = sorted({*(2**i for i in range(k.bit_length())), k})
    figures: dict[str, Any] = {"n": len(rows), "samples": k}
    figures |= {f"pass@{j}": fmean(pass_at_k(k, c, j) for c in right) for j in ks}
    figures[f"majority@{k}"] = fmean(
        vote == row["gold"] for vote, row in zip(votes, rows, strict=True)
    )
    figures["agreement"] = fmean(
        row["answers"].count(vote) / k if vote else 0.0
        for vote, row in zip(votes, rows, strict=True)
    )
    return figures


def tabulate(
    answers: Answers,
    trained_on: str,
    priors: Mapping[str, Mapping[str, Rows]] | None = None,
    coinciding: Mapping[str, tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """All figures of all models, ready for JSON.

    `priors` are the controls that ask no model. Differences are to the base asked alike.
    """
    tests = {model: arms[TESTS] for model, arms in answers.items()}
    results = {m: {name: cell(rows) for name, rows in of.items()} for m, of in tests.items()}
    first = next(iter(tests.values()))
    gains: dict[str, Any] = {}
    for model, of in tests.items():
        base = tests["base" + model.removeprefix(model.partition(", ")[0])]
        if of is not base:
            gains[model] = {
                name: {
                    "accuracy": gain(base[name], rows, "correct"),
                    "forced_choice": gain(base[name], rows, "forced_correct"),
                }
                for name, rows in of.items()
            }
    unseen = [name for name in first if name != trained_on]
    controls = {}
    for model, arms in answers.items():
        asked = {arm: found for arm, found in arms.items() if arm not in (TESTS, SAMPLES)}
        if asked:
            controls[model] = {
                arm: {name: control(arm, rows) for name, rows in of.items()}
                for arm, of in {**asked, **(priors or {})}.items()
            }
    return {
        "trained_on": trained_on,
        "chance": {
            m: fmean(1 / len(r["options"]) for r in headline(rows)) for m, rows in first.items()
        },
        "results": results,
        "gains": gains,
        "ood_mean": {m: ood_mean([of[name] for name in unseen]) for m, of in results.items()}
        if unseen
        else {},
        "controls": controls,
        "coinciding": dict(coinciding or {}),
        "sampled": {
            model: {m: sampled(rows) for m, rows in arms[SAMPLES].items()}
            for model, arms in answers.items()
            if SAMPLES in arms
        },
    }


def over_seeds(table: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Mean accuracy of runs that differ in the seed alone, by modality: Student's t interval."""
    found = {}
    for modality in table["chance"]:
        of = [table["results"][model][modality]["accuracy"] for model in models]
        mean, low, high = students_t(of)
        found[modality] = {"seeds": len(of), "accuracy": mean, "ci95": [low, high]}
    return found


def verdicts(table: dict[str, Any]) -> list[str]:
    """A sentence for each accuracy that a control above chance explains, wholly or in part."""
    tried = [
        (model, modality, control, found[modality])
        for model, controls in table["controls"].items()
        for control, found in controls.items()
        for modality in found
        if control in BLIND
    ]
    adjusted = holm([above_chance(found) for *_, found in tried])
    sentences = []
    for (model, modality, control, found), p in zip(tried, adjusted, strict=True):
        figure = table["results"][model][modality]
        if p >= ALPHA or figure["accuracy"] <= table["chance"][modality]:
            continue
        explained = found["ci95"][1] >= figure["ci95"][0]
        verdict = "says little about seeing" if explained else "is not all seeing"
        scores, accuracy = (f"{100 * c['accuracy']:.1f}" for c in (found, figure))
        sentences.append(
            f"{modality}: {BLIND[control]} {scores}; {model}'s {accuracy} there {verdict}."
        )
    return sentences


def above_chance(found: dict[str, Any]) -> float:
    """One-sided exact p of so many right by guessing, questions taken for independent."""
    chances = [1 / int(number) for number, count in found["options"].items() for _ in range(count)]
    return poisson_binomial_tail(math.ceil(found["correct"] - 1e-9), chances)

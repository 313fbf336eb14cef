"""The table of an evaluation: the figures of all models, and what the controls make of them."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from rewards.evaluation.predictions import Row
from rewards.evaluation.scores import cell, control, gain, headline, measured, ood_mean, sampled
from rewards.evaluation.statistics import holm, poisson_binomial_tail, students_t

BLIND = {  # the controls that cannot see the image, as the beginning of a sentence
    "blank_image": "with a blank image it scores",
    "shuffled_image": "with another question's image it scores",
    "options_prior": "the options alone score",
    "majority_letter": "one letter for all scores",
}
Rows = Sequence[Row]
Answers = dict[str, dict[str, dict[str, list[Row]]]]  # model, arm, modality -> rows
# The arms that are no controls.
NO_CONTROLS = TESTS, SAMPLES, MEASURES = "tests", "samples", "measures"
ALPHA = 0.01  # a control is above chance if its one-sided p, after Holm, is below


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
        asked = {arm: found for arm, found in arms.items() if arm not in NO_CONTROLS}
        if asked:
            controls[model] = {
                arm: {name: control(arm, rows) for name, rows in of.items()}
                for arm, of in {**asked, **(priors or {})}.items()
            }
    table = {
        "trained_on": trained_on,
        "chance": {
            m: fmean(1 / len(r["options"]) if r["options"] else 0.0 for r in headline(rows))
            for m, rows in first.items()
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
        "metrics": {
            model: {m: measured(rows) for m, rows in arms[MEASURES].items()}
            for model, arms in answers.items()
            if MEASURES in arms
        },
    }
    return table | {"verdicts": verdicts(table)}


def over_seeds(table: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Mean accuracy of runs that differ in the seed alone: Student's t interval.

    By the way of asking ("": the first), then by modality.
    """
    ways = [m.removeprefix(models[0]) for m in table["results"] if m.split(", ")[0] == models[0]]
    found: dict[str, Any] = {way: {} for way in ways}
    for way in ways:
        for modality in table["chance"]:
            of = [table["results"][model + way][modality]["accuracy"] for model in models]
            mean, low, high = students_t(of)
            found[way][modality] = {"seeds": len(of), "accuracy": mean, "ci95": [low, high]}
    return found


def verdicts(table: dict[str, Any]) -> list[str]:
    """A sentence for each accuracy above chance that a blind control explains, wholly or in part.

    Wholly: their intervals meet. In part: the control is above chance, all controls counted (Holm).
    """
    tried = [
        (model, modality, arm, found[modality])
        for model, controls in table["controls"].items()
        for arm, found in controls.items()
        for modality in found
        if arm in BLIND and found[modality]["n"]
    ]
    # A prior stands under every model and is still one test.
    tests = {(arm, m, of["correct"], of["n"]): above_chance(of) for _, m, arm, of in tried}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    sentences = []
    for model, modality, arm, found in tried:
        p = adjusted[arm, modality, found["correct"], found["n"]]
        figure = table["results"][model][modality]
        explained = found["ci95"][1] >= figure["ci95"][0]
        if above_chance(figure) >= ALPHA or not (explained or p < ALPHA):
            continue
        verdict = "says little about seeing" if explained else "is not all seeing"
        scores, accuracy = (f"{100 * c['accuracy']:.1f}" for c in (found, figure))
        sentences.append(
            f"{modality}: {BLIND[arm]} {scores}; {model}'s {accuracy} there {verdict}."
        )
    return sentences


def above_chance(found: dict[str, Any]) -> float:
    """One-sided exact p of so many right by guessing, questions taken for independent."""
    chances = [
        1 / int(number) if int(number) else 0.0
        for number, count in found["options"].items()
        for _ in range(count)
    ]
    return poisson_binomial_tail(math.ceil(found["correct"] - 1e-9), chances)

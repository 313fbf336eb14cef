"""The table of an evaluation: the figures of all models, and what the controls make of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from rewards.evaluation import scores
from rewards.evaluation.calibration import calibration, recalls
from rewards.evaluation.predictions import Row
from rewards.evaluation.reliance import Oracle, reliance
from rewards.evaluation.rows import percent, rendered
from rewards.evaluation.samples import sampled, sampling_gain, sharpened_or_learned
from rewards.evaluation.statistics import holm, poisson_binomial_tail, students_t

BLIND = {  # the controls that cannot see the image, as the beginning of a sentence
    "no_image": "without an image it scores",
    "blank_image": "with a blank image it scores",
    "shuffled_image": "with another question's image it scores",
    "options_prior": "the options alone score",
    "majority_letter": "one letter for all scores",
}
PRIORS = ("options_prior", "majority_letter")  # ask no model
# From thought to choice: figures of a part of the finding, and what they tell about it.
LINKS = {"stated": "is stated", "right": "stated is right", "follows": "stated is chosen"}
Rows = Sequence[Row]
Answers = dict[str, dict[str, dict[str, list[Row]]]]  # model, arm, modality -> rows
# The arms that are no controls.
NO_CONTROLS = TESTS, SAMPLES, MEASURES = "tests", "samples", "measures"
# The figures whose means over seeds are reported, besides the accuracy.
MEANS = ("format_rate", "forced_choice", "letter_bias", "findings", "mean_length")
PAIRED = {"accuracy": "correct", "forced_choice": "forced_correct"}  # figure -> key of a row
ALPHA = 0.01  # a control is above chance if its one-sided p, after Holm, is below


def tabulate(
    answers: Answers,
    trained_on: str,
    priors: Mapping[str, Mapping[str, Rows]] | None = None,
    oracle: Oracle | None = None,
    seeds: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all figures of all models, and their rows as text, ready for JSON.

    `priors` are the controls that ask no model. `oracle` has the chance that an oracle of the image
    changes its answer. `seeds` are models that differ in the seed alone. Differences are to the
    base model asked in the same way.
    """
    results = _figures(answers, TESTS, scores.cell)
    first = next(iter(results.values()))
    unseen = {
        model: [cell for modality, cell in cells.items() if modality != trained_on]
        for model, cells in results.items()
    }
    table = {
        "trained_on": trained_on,
        "chance": {modality: fmean(_chances(cell)) for modality, cell in first.items()},
        "results": results,
        "gains": _gains(answers, TESTS, _gain),
        "ood_mean": {model: scores.macro_mean(cells) for model, cells in unseen.items() if cells},
        "controls": _controls(answers, priors or {}),
        "reliance": {model: reliance(arms, oracle or {}) for model, arms in answers.items()},
        "calibration": _figures(answers, TESTS, calibration),
        "recalls": _figures(answers, TESTS, recalls),
        "sampled": _figures(answers, SAMPLES, sampled),
        "sampled_calibration": _figures(answers, SAMPLES, calibration),
        "sampled_gains": _gains(answers, SAMPLES, sampling_gain),
        "metrics": _figures(answers, MEASURES, scores.measured),
    }
    links = weakest_link(results.get("trained") or results["base"])
    table["verdicts"] = verdicts(table) + links + sharpened_or_learned(table)
    if len(seeds) > 1:
        table["seeds"] = over_seeds(table, seeds)
    return table | {"rendered": rendered(table)}


def _figures(answers: Answers, arm: str, figures: Callable[[Rows], Any]) -> dict[str, Any]:
    """Return the figures of an arm's rows by modality, of each model that was asked it."""
    return {
        model: {modality: figures(rows) for modality, rows in arms[arm].items()}
        for model, arms in answers.items()
        if arm in arms
    }


def _gains(answers: Answers, arm: str, gain: Callable[[Rows, Rows], Any]) -> dict[str, Any]:
    """Return the gains of an arm's rows over the base's, by modality, of each other model."""
    gains: dict[str, Any] = {}
    for model, arms in answers.items():
        base = answers["base" + model.removeprefix(model.partition(", ")[0])]
        if arms is not base and arm in arms:
            gains[model] = {m: gain(base[arm][m], rows) for m, rows in arms[arm].items()}
    return gains


def _gain(before: Rows, after: Rows) -> dict[str, Any]:
    return {figure: scores.gain(before, after, name) for figure, name in PAIRED.items()}


def _controls(answers: Answers, priors: Mapping[str, Mapping[str, Rows]]) -> dict[str, Any]:
    """Return the figures of the controls of each model that was asked any, `priors` among them."""
    return {
        model: {
            arm: {modality: scores.control(arm, rows) for modality, rows in by_modality.items()}
            for arm, by_modality in {**arms, **priors}.items()
            if arm not in NO_CONTROLS
        }
        for model, arms in answers.items()
        if arms.keys() - NO_CONTROLS
    }


def over_seeds(table: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
    """Return the means of runs that differ in the seed alone, by way of asking, then by modality.

    The first way of asking is "". The accuracy has Student's t interval. A figure that a run lacks
    is None; one of --metrics is the mean over the runs that have it.
    """
    ways = [m.removeprefix(models[0]) for m in table["results"] if m.split(", ")[0] == models[0]]
    return {way: {m: _means(table, models, way, m) for m in table["chance"]} for way in ways}


def _means(table: dict[str, Any], models: Sequence[str], way: str, modality: str) -> dict[str, Any]:
    cells = [table["results"][model + way][modality] for model in models]
    mean, low, high = students_t([cell["accuracy"] for cell in cells])
    means = {"seeds": len(cells), "accuracy": mean, "ci95": [low, high]}
    for name in MEANS:
        values = [cell[name] for cell in cells]
        means[name] = None if None in values else fmean(values)
    metrics = [table["metrics"].get(model + way, {}).get(modality, {}) for model in models]
    means["metrics"] = {name: scores.mean_of(metrics, name) for found in metrics for name in found}
    return means


def verdicts(table: dict[str, Any]) -> list[str]:
    """Return a sentence for each accuracy above chance that a blind control explains, and one on
    the visual reliance of the trained model.

    The control explains all of it if the intervals meet, and a part of it if the control is above
    chance. Holm's correction is over the tests of all sentences.
    """
    tried = [
        (model, modality, arm, found[modality])
        for model, controls in table["controls"].items()
        for arm, found in controls.items()
        for modality in found
        if arm in BLIND and found[modality]["n"]
    ]
    # A prior is listed under every model, but it is one test.
    tests = {(arm, m, model * (arm not in PRIORS)): above_chance(f) for model, m, arm, f in tried}
    reliant = table["reliance"].get("trained") or table["reliance"]["base"]
    lost = {m: x["visual_reliance"] for m, x in reliant.items() if "visual_reliance" in x}
    tests |= {m: x["p"] for m, x in lost.items()}
    adjusted = dict(zip(tests, holm(list(tests.values())), strict=True))
    sure = {m: adjusted[m] < ALPHA and x["ci95"][0] > 0 for m, x in lost.items()}
    parts = [(m, percent(x["value"]), percent(x["ceiling"]["value"])) for m, x in lost.items()]
    shown = [f"{m} {x} of {y}" if sure[m] else f"{m} none that is shown" for m, x, y in parts]
    said = f"Visual reliance, of an oracle's, in points: {', '.join(shown)}."
    sentences = [said] * any(sure.values())
    for model, modality, arm, found in tried:
        figure = table["results"][model][modality]
        explained = found["ci95"][1] >= figure["ci95"][0]
        in_part = adjusted[arm, modality, model * (arm not in PRIORS)] < ALPHA
        if (explained or in_part) and above_chance(figure) < ALPHA:
            verdict = "says little about seeing" if explained else "is not all seeing"
            blind = f"{BLIND[arm]} {percent(found['accuracy'])}"
            seeing = f"{model}'s {percent(figure['accuracy'])} there {verdict}"
            sentences.append(f"{modality}: {blind}; {seeing}.")
    return sentences


def weakest_link(cells: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return a sentence about the lowest of a model's links, none if no true findings are known.

    Links are how often the thought states a part of the finding, how often what it states is right,
    and how often what it names is chosen.
    """
    links = [
        (part[link]["accuracy"], f"on {modality} the {name} {tells}", part[link]["n"])
        for modality, cell in cells.items()
        for name, part in cell["by_type"].items()
        for link, tells in LINKS.items()
        if part["stated"]["n"] and part[link]["n"]
    ]
    return [f"Weakest link: {text} in {percent(x)} % of {n}." for x, text, n in sorted(links)[:1]]


def above_chance(found: dict[str, Any]) -> float:
    """Return the one-sided exact p of so many right by guessing, for independent questions."""
    return poisson_binomial_tail(math.ceil(found["correct"] - 1e-9), _chances(found))


def _chances(found: dict[str, Any]) -> list[float]:
    """Return the chance of each question to be guessed right; an open question has none."""
    options = chain.from_iterable([int(n)] * count for n, count in found["options"].items())
    return [1 / number if number else 0.0 for number in options]

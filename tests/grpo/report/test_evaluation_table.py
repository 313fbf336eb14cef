"""The report's tables read what evaluate.py writes, means over seeds among it."""

from __future__ import annotations

import json

from grpo.report import evaluation_table as sheets
from rewards.evaluation import text as render
from rewards.evaluation.table import over_seeds, tabulate
from tests.grpo.report.runs import cell, summary
from tests.rewards.evaluation.test_table import rows


def rows_of(table: dict) -> dict[str, list[str]]:
    return {label: cells for _, label, cells in sheets.evaluation("e.json", table).rows}


def test_means_over_seeds_stand_by_the_way_of_asking() -> None:
    table = summary()
    for model, accuracy in (("grpo-2", 0.6), ("trained, direct", 0.5), ("grpo-2, direct", 0.3)):
        table["results"][model] = {m: cell(accuracy) for m in table["chance"]}
        table["ood_mean"][model] = {"accuracy": accuracy, "ci95": [0.2, 0.7]}
    table["seeds"] = over_seeds(table, ["trained", "grpo-2"])
    rows = rows_of(table)

    assert rows["mean of 2 seeds"][0].startswith("66.0 [")  # of 0.72 and 0.6
    assert rows["mean of 2 seeds, direct"][0].startswith("40.0 [")


def test_what_evaluate_py_says_of_a_blind_control_is_said_here() -> None:
    arms = {"tests": {"MRI": rows(150, 200)}, "blank_image": {"MRI": rows(148, 200)}}
    made = tabulate({"base": {"tests": {"MRI": rows(90, 200)}}, "trained": arms}, "MRI")
    table = json.loads(json.dumps(made))
    (sentence,) = sheets.evaluation("e.json", table).remarks

    assert sentence == (
        "MRI: with a blank image it scores 74.0; trained's 75.0 there says little about seeing."
    )
    assert sentence in render.text(table)


def test_a_control_tells_of_constant_answers_apart() -> None:
    table = summary()
    prior = {m: cell(0.3) for m in ("MRI", "CT", "XRAY")}
    prior["MRI"]["constant"] = cell(1.0, 16)
    table["controls"]["trained"]["options_prior"] = prior

    assert rows_of(table)["constant answers there"] == ["100.0", "-", "-"]
    assert "constant answers there" not in rows_of(summary())


def test_a_perplexity_is_no_share_whatever_it_is_of() -> None:
    of = {m: {"perplexity": 1.25, "open perplexity": 3.5, "reasoning": 0.5} for m in ("MRI", "CT")}
    rows = rows_of(summary() | {"metrics": {"trained": of}})

    assert rows["perplexity"][0] == "1.25"
    assert rows["open perplexity"][0] == "3.5"
    assert rows["reasoning"][0] == "50.0"

"""The report's tables read what evaluate.py writes, means over seeds among it."""

from __future__ import annotations

from grpo import sheets
from rewards.table import over_seeds
from tests.grpo.runs import cell, summary


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


def test_a_perplexity_is_no_share_whatever_it_is_of() -> None:
    of = {m: {"perplexity": 1.25, "open perplexity": 3.5, "reasoning": 0.5} for m in ("MRI", "CT")}
    rows = rows_of(summary() | {"metrics": {"trained": of}})

    assert rows["perplexity"][0] == "1.25"
    assert rows["open perplexity"][0] == "3.5"
    assert rows["reasoning"][0] == "50.0"

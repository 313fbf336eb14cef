"""The tables of the report: an evaluation with its controls, and the settings of a run."""

from collections.abc import Iterator, Mapping
from typing import Any

from grpo.report.curves import drawn, number
from grpo.settings.config import Config
from grpo.settings.flags import shown
from grpo.settings.recipes import RECIPES

WITHOUT_ROWS = "An older version wrote this, without a table; evaluate.py scores the run again."


def evaluation(name: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation of evaluate.py or train.py: rewards/evaluation/rows.py's table, drawn.

    The parts are empty if an older version wrote it; train.py asks no controls. Raises KeyError or
    TypeError if another program wrote it.
    """
    old = {"parts": [], "footnotes": [WITHOUT_ROWS, *table.get("verdicts", [])]}
    rendered = table.get("rendered") or old
    drawings = {"bars": list(_bars(table)), "charts": list(_calibration(table))}
    return {"name": name, **rendered, **drawings, "table": table}


def _bars(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield accuracy, interval and chance of every model on every modality."""
    for modality, chance in table["chance"].items():
        for model, cells in table["results"].items():
            found = cells[modality]
            if found["accuracy"] is not None:
                yield {**found, "model": model, "modality": modality, "chance": chance}


def _calibration(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield reliability, and risk by coverage, on every modality: a line for each model."""
    for modality in table["chance"]:
        bins, risks = [("perfect calibration", [(0.0, 0.0), (1.0, 1.0)])], []
        for model, cells in table.get("calibration", {}).items():
            if x := cells.get(modality):
                name = f"{model}: ECE {number(x['ece'])}"
                name += f", if calibrated {number(x['calibrated']['mean'])}"
                bins.append((name, [(b["confidence"], b["accuracy"]) for b in x["bins"]]))
                risks.append((f"{model}: area {number(x['aurc']['value'])}", x["curve"]))
        if risks:
            yield drawn(f"Reliability, {modality}", "accuracy of 15 bins", bins, "confidence")
            yield drawn(f"Risk and coverage, {modality}", "share that is wrong", risks, "coverage")


def settings(record: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return (setting, value, the recipe's value, whether it differs) of config.json."""
    config, changed = record["config"], record.get("overrides") or {}
    plain = vars(Config(**RECIPES.get(str(config.get("recipe")), {})))
    return [
        (name, shown(value), shown(plain.get(name, "-")), name in changed)
        for name, value in config.items()
    ]

"""The tables of the report: an evaluation with its controls, and the settings of a run."""

from collections.abc import Iterator, Mapping
from typing import Any

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
    return {"name": name, **rendered, "bars": list(_bars(table)), "table": table}


def _bars(table: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield accuracy, interval and chance of every model on every modality."""
    for modality, chance in table["chance"].items():
        for model, cells in table["results"].items():
            found = cells[modality]
            if found["accuracy"] is not None:
                yield {**found, "model": model, "modality": modality, "chance": chance}


def settings(record: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return (setting, value, the recipe's value, whether it differs) of config.json."""
    config, changed = record["config"], record.get("overrides") or {}
    plain = vars(Config(**RECIPES.get(str(config.get("recipe")), {})))
    return [
        (name, shown(value), shown(plain.get(name, "-")), name in changed)
        for name, value in config.items()
    ]


def percent(share: float | None) -> str:
    """Return a share in percent, "-" for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def measured(found: Mapping[str, Any]) -> str:
    """Return an accuracy and its 95 % interval, in percent.

    >>> measured({"accuracy": 0.5, "ci95": [0.4, 0.6]})
    '50.0 [40.0, 60.0]'
    """
    if found["accuracy"] is None:
        return "-"
    low, high = map(percent, found["ci95"])
    return f"{percent(found['accuracy'])} [{low}, {high}]"
